"""A spawner imports nothing after it has become the jobs' user, who may not be able to read Python's library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = """
import sys
sys.path.append(ROOT)
from carod.starter import channel, sandbox, spawner
before = set(sys.modules)
import io, os, signal, tarfile, tempfile, zipfile
known = before | set(sys.modules)

def archives():
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as zipped:
            zipped.writestr("plain", "x" * 1000)
        yield file.getvalue()
        yield file.getvalue().replace(b"plain", b"pl\\x84in")
        yield file.getvalue()[:60]
    for mode in ("w", "w:gz"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as tarred:
            tarred.addfile(tarfile.TarInfo("n\\u00e4me"), io.BytesIO())
        yield file.getvalue()
    yield b"garbage"

with tempfile.TemporaryDirectory() as top:
    for number, archive in enumerate(archives()):
        os.mkdir(f"{top}/{number}")
        try:
            sandbox.unpack(io.BytesIO(archive), f"{top}/{number}", sandbox.Limits(1 << 20, 100))
        except sandbox.SandboxError:
            pass
    with open(f"{top}/0/large", "wb") as file:
        file.write(os.urandom(sandbox.IN_MEMORY + 1))
    sandbox.collect(f"{top}/0", 1 << 30).zipped.close()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    ours, theirs = channel.pair()
    slot = spawner.Spawner(theirs, top)
    for cmd in ("/bin/true", "/no/such"):
        slot._run({"directory": f"{top}/job", "cmd": cmd, "args": [], "env": {}, "iwd": "", "in": "/dev/null",
                   "out": "o", "err": "e", "cpus": None, "outputs": None, "job_ad": "A = 1", "machine_ad": "B = 1",
                   "max_size": 1, "max_files": 1, "max_result": 9999}, b"")
print(*sorted(set(sys.modules) - known - set(sys.builtin_module_names)))
"""


def test_a_spawner_imports_nothing_while_it_works() -> None:
    program = WORK.replace("ROOT", repr(str(ROOT)), 1)
    ran = subprocess.run([sys.executable, "-E", "-s", "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.stdout.split(), ran.stderr) == ([], "")
