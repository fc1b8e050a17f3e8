"""Section 2 of the wire contract, "Attributes the node acts on" and "Body": each has its effect or its error."""

from __future__ import annotations

import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.node.client import Client, Received, shell, zipped
from tests.node.conftest import Node, needs_root
from tests.node.test_sandbox import encrypt, link, member, tar


def refused(reply: Received, code: int, *parts: str) -> None:
    """The job was held with that code before it ran; reason and body have all parts."""
    assert (reply.status, reply.state, reply.headers["HoldReasonCode"]) == (5, None, code), reply.headers
    text = reply.body.decode()
    assert text.startswith("ERROR:")
    for part in parts:
        assert part in text
        assert part in reply.headers["HoldReason"]
    assert "ExitCode" not in reply.headers


# -- the body --------------------------------------------------------------------------------------------------


async def test_a_job_may_have_an_empty_body(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/ls", "Arguments": "-A"})
    assert reply.out.split() == [".job.ad", ".machine.ad", "_condor_stderr", "_condor_stdout"]


SCRIPT = "#!/bin/sh\ncat data/in.txt\n"
BODIES = {
    "zip": zipped({"run.sh": SCRIPT, "data/in.txt": "input"}, {"run.sh": 0o755, "data/in.txt": 0o644}),
    "zip without permission bits": zipped({"run.sh": SCRIPT, "data/in.txt": "input"}),
    "tar": tar((member("run.sh"), SCRIPT.encode()), (member("data/in.txt"), b"input")),
    "tar.gz": tar((member("run.sh"), SCRIPT.encode()), (member("data/in.txt"), b"input"), compress="gz"),
}


@pytest.mark.parametrize("kind", BODIES)
async def test_the_bodys_files_are_there_before_the_job_starts(client: Client, kind: str) -> None:
    reply = await client.run({"Cmd": "run.sh"}, BODIES[kind])
    assert (reply.status, reply.headers.get("ExitCode"), reply.out) == (4, 0, "input"), reply.body


async def test_an_empty_zip_is_a_body_without_files(client: Client) -> None:
    assert (await client.run({"Cmd": "/bin/true"}, zipped({}))).status == 4


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"garbage", "no zip, tar or tar.gz"),
        (b"\x00", "no zip, tar or tar.gz"),
        (BODIES["zip"][:-30], "damaged"),
        (BODIES["zip"][:50] + bytes(20) + BODIES["zip"][70:], "damaged"),
        (BODIES["tar.gz"][:-20], "damaged"),
        (encrypt(zipped({"f": "x"})), "encrypted"),
        (zipped({"../f": "x"}), "'../f' leads out"),
        (tar((member("/etc/f"), b"x")), "'/etc/f' leads out"),
        (tar(link("l", "/etc"), (member("l/f"), b"x")), "'l' -> '/etc' leads out"),
        (tar((member("h", tarfile.LNKTYPE, "/etc/passwd"), b"")), "'h' -> '/etc/passwd' leads out"),
        (tar((member("d", tarfile.CHRTYPE), b"")), "'d' is a device"),
        (zipped({f"{n}": "" for n in range(1001)}), "MAX_UNPACKED_FILES = 1000"),
        (tar((member("bomb"), bytes(65 << 20)), compress="gz"), "MAX_UNPACKED_SIZE = 67108864"),
    ],
)  # fmt: skip
async def test_a_body_that_cannot_be_unpacked_is_held_with_the_reason(client: Client, body: bytes, part: str) -> None:
    refused(await client.run({"Cmd": "/bin/true"}, body), 13, part)


async def test_what_the_body_calls_job_ad_is_the_nodes_own(client: Client) -> None:
    body = tar((member("f"), b"evil"), link(".job.ad", "f"), (member(".machine.ad", tarfile.DIRTYPE), b""))
    reply = await client.run({"Cmd": "/bin/cat", "Arguments": ".job.ad .machine.ad f"}, body)
    assert reply.headers["ExitCode"] == 0
    assert reply.out.endswith("evil")
    assert 'Cmd = "/bin/cat"' in reply.out
    assert set(reply.files) == {"f", "_condor_stdout", "_condor_stderr"}


async def test_24_mb_of_input_come_back_unharmed(client: Client) -> None:
    content = os.urandom(12 << 20)
    body = zipped({"a.bin": content, "b.bin": content[::-1]})
    reply = await client.run({"Cmd": "/bin/true", "TransferOutput": "a.bin,b.bin"}, body)
    assert reply.status == 4, reply.headers
    assert (reply.files["a.bin"], reply.files["b.bin"]) == (content, content[::-1])


# -- Cmd -------------------------------------------------------------------------------------------------------


async def test_a_job_without_cmd_is_held(client: Client) -> None:
    refused(await client.run({"Arguments": "x"}), 6, "Cmd")


@pytest.mark.parametrize(
    ("cmd", "parts"),
    [
        ("/no/such/program", ("'/no/such/program' does not exist on this node",)),
        ("missing.sh", ("'missing.sh' is not among the job's input files",)),
        ("plain.txt", ("'plain.txt' is no program for this machine",)),
        ("bad.sh", ("interpreter", "'bad.sh'")),
        ("noexec", ("'noexec' is no program for this machine",)),
        ("/etc", ("'/etc' is a directory",)),
        ("../../bin/true", ("'../../bin/true' leads out",)),
        ("/etc/passwd", ("'/etc/passwd' is not executable",)),
    ],
)
async def test_a_cmd_that_cannot_be_started_is_held_with_the_reason(client: Client, cmd: str, parts: Any) -> None:
    files = {"plain.txt": "x", "bad.sh": "#!/no/such/interpreter\n", "noexec": "x y z"}
    modes = {"bad.sh": 0o755, "noexec": 0o755}
    refused(await client.run({"Cmd": cmd}, zipped(files, modes)), 6, "Cmd", *parts)


@pytest.mark.parametrize("cmd", ["bin/run", "./bin/run", "bin/../bin/run"])
async def test_a_relative_cmd_is_in_the_jobs_directory(client: Client, cmd: str) -> None:
    reply = await client.run({"Cmd": cmd}, zipped({"bin/run": "#!/bin/sh\necho $0\n"}, {"bin/run": 0o755}))
    assert (reply.status, reply.headers.get("ExitCode")) == (4, 0), reply.body


async def test_a_relative_cmd_is_found_when_iwd_is_elsewhere(client: Client) -> None:
    reply = await client.run({"Cmd": "run", "Iwd": "/tmp"}, zipped({"run": "#!/bin/sh\npwd\n"}))
    assert reply.out == "/tmp\n"


# -- arguments and environment ---------------------------------------------------------------------------------

ECHO = {"Cmd": "/usr/bin/printf"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b  c", ["a", "b", "c"]),
        ("'a b' c''d", ["a b", "cd"]),
        ("'it''s' ''", ["it's", ""]),
        ('"x" \\y', ['"x"', "\\y"]),
        ("$HOME * ;", ["$HOME", "*", ";"]),
        ("ü '日本'", ["ü", "日本"]),
    ],
)
async def test_arguments_are_split_by_the_new_syntax(client: Client, text: str, words: list[str]) -> None:
    reply = await client.run({**ECHO, "Arguments": f"'[%s]' {text}"})
    assert reply.out == "".join(f"[{word}]" for word in words)


async def test_args_are_split_by_the_old_syntax(client: Client) -> None:
    reply = await client.run({**ECHO, "Args": '[%s] it\'s \\"quoted\\" x'})
    assert reply.out == '[it\'s]["quoted"][x]'


async def test_arguments_win_over_args(client: Client) -> None:
    assert (await client.run({"Cmd": "/bin/echo", "Args": "old", "Arguments": "new"})).out == "new\n"


@pytest.mark.parametrize("name", ["Arguments", "Environment"])
async def test_a_quote_that_is_not_closed_is_held_with_its_column(client: Client, name: str) -> None:
    refused(await client.run({"Cmd": "/bin/true", name: "A='1"}), 21, name, "column 3", "not closed")


async def test_env_is_split_by_the_old_syntax(client: Client) -> None:
    lines = (await client.run({"Cmd": "/usr/bin/env", "Env": "A=1 2;B=it's;;C="})).out.splitlines()
    assert {"A=1 2", "B=it's", "C="} <= set(lines)


@pytest.mark.parametrize(("name", "text"), [("Environment", "A=1 B"), ("Env", "A=1;=2"), ("Environment", "'=x'")])
async def test_an_environment_without_names_is_held(client: Client, name: str, text: str) -> None:
    refused(await client.run({"Cmd": "/bin/true", name: text}), 21, name, "NAME=value")


async def test_a_job_may_set_home_and_path_but_not_the_nodes_variables(client: Client) -> None:
    variables = "HOME=/h PATH=/p TMPDIR=/t _CONDOR_SLOT=mine _CONDOR_SCRATCH_DIR=/x"
    lines = (await client.run({"Cmd": "/usr/bin/env", "Environment": variables})).out.splitlines()
    assert {"HOME=/h", "PATH=/p", "TMPDIR=/t"} <= set(lines)
    assert not {"_CONDOR_SLOT=mine", "_CONDOR_SCRATCH_DIR=/x"} & set(lines)


async def test_the_jobs_variables_name_its_directory_and_its_ads(client: Client) -> None:
    script = """
        test "$PWD" = "$_CONDOR_SCRATCH_DIR" -a "$PWD" = "$HOME" -a "$PWD" = "$TMPDIR" || exit 1
        grep -q "^Cmd = " "$_CONDOR_JOB_AD" && grep -q "^Name = \\"$_CONDOR_SLOT\\"" "$_CONDOR_MACHINE_AD"
    """
    reply = await client.shell(script)
    assert reply.headers["ExitCode"] == 0
    assert set(reply.files) == {"_condor_stdout", "_condor_stderr"}  # both ads are there, and not returned


# -- Iwd -------------------------------------------------------------------------------------------------------


async def test_iwd_is_relative_to_the_jobs_directory(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/ls", "Iwd": "d/e"}, zipped({"d/e/f": "x"}))
    assert reply.out == "f\n"


async def test_iwd_may_be_absolute(client: Client) -> None:
    assert (await client.run({"Cmd": "/bin/pwd", "Iwd": "/usr/bin"})).out == "/usr/bin\n"


@pytest.mark.parametrize("iwd", ["/no/such/place", "missing", "file"])
async def test_an_iwd_that_does_not_exist_is_held(client: Client, iwd: str) -> None:
    refused(await client.run({"Cmd": "/bin/true", "Iwd": iwd}, zipped({"file": "x"})), 14, "Iwd", iwd)


@pytest.mark.parametrize("iwd", ["..", "../..", "d/../.."])
async def test_an_iwd_that_leads_out_is_held(client: Client, iwd: str) -> None:
    refused(await client.run({"Cmd": "/bin/true", "Iwd": iwd}, zipped({"d/f": "x"})), 14, "Iwd", "leads out")


# -- In, Out, Err ----------------------------------------------------------------------------------------------


async def test_stdin_is_empty_by_default(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/cat"})
    assert (reply.headers["ExitCode"], reply.out) == (0, "")


async def test_stdout_and_stderr_have_names_by_default(client: Client) -> None:
    reply = await client.shell("echo out; echo err >&2")
    assert reply.files == {"_condor_stdout": b"out\n", "_condor_stderr": b"err\n"}


async def test_in_out_and_err_name_files_of_the_jobs_directory(client: Client) -> None:
    names = {"In": "d/in", "Out": "d/out", "Err": "err"}
    reply = await client.run(shell("cat; echo err >&2", Iwd="/", **names), zipped({"d/in": "input"}))
    assert {name: reply.files[name] for name in ("d/out", "err")} == {"d/out": b"input", "err": b"err\n"}
    assert not {"_condor_stdout", "_condor_stderr"} & set(reply.files)


async def test_out_and_err_may_be_one_file(client: Client) -> None:
    reply = await client.shell("echo 1; echo 2 >&2; echo 3", Out="both", Err="both")
    assert reply.files["both"] == b"1\n2\n3\n"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("In", "missing", 8), ("In", "/etc/passwd", 8), ("In", "../x", 8), ("In", "d", 8),
        ("Out", "../x", 7), ("Out", "/tmp/x", 7), ("Out", "no/such/dir", 7), ("Out", "d", 7),
        ("Err", "../x", 7), ("Err", "d", 7),
    ],
)  # fmt: skip
async def test_a_standard_file_that_cannot_be_opened_is_held(client: Client, name: str, value: str, code: int) -> None:
    refused(await client.run({"Cmd": "/bin/true", name: value}, zipped({"d/f": "x"})), code, name, repr(value))


async def test_a_standard_file_through_a_link_of_the_body_stays_inside(client: Client) -> None:
    body = tar((member("d/f"), b""), link("out", "d/f"))
    reply = await client.run({"Cmd": "/bin/echo", "Arguments": "x", "Out": "out"}, body)
    assert reply.status in (4, 5)
    if reply.status == 4:
        assert reply.files["d/f"] == b"x\n"


# -- universes, requests, limits -------------------------------------------------------------------------------


@pytest.mark.parametrize("universe", [5, 12])
async def test_vanilla_and_local_universe_run_alike(client: Client, universe: int) -> None:
    assert (await client.run({"Cmd": "/bin/true", "JobUniverse": universe})).status == 4


@pytest.mark.parametrize(
    ("universe", "name"), [(9, "grid"), (7, "scheduler"), (11, "parallel"), (13, "VM"), (99, "unknown")]
)
async def test_other_universes_are_refused_by_name(client: Client, universe: int, name: str) -> None:
    refused(await client.run({"Cmd": "/bin/true", "JobUniverse": universe}), 21, "JobUniverse", str(universe), name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JobUniverse", "five"), ("JobUniverse", -1), ("AllowedExecuteDuration", "soon"),
        ("AllowedExecuteDuration", -1), ("KillSigTimeout", True), ("RequestMemory", 1.5), ("KillSig", "SIGNOTHING"),
        ("KillSig", 77), ("RemoveKillSig", "x"), ("HoldKillSig", "0"), ("Cmd", True),
        ("Out", True), ("TransferOutput", True), ("Iwd", 'error + "x"'),
    ],
)  # fmt: skip
async def test_an_attribute_of_the_wrong_kind_is_held_by_name(client: Client, name: str, value: Any) -> None:
    reply = await client.run({"Cmd": "/bin/true", name: value})
    if (name == "JobUniverse" and value == "five") or (
        name == "AllowedExecuteDuration" and value == "soon"
    ):  # a reference to an attribute that is not there
        assert reply.status == 4
    elif name == "Iwd":  # a bare string
        refused(reply, 14, name)
    else:
        refused(reply, 21, name)


@pytest.mark.parametrize("request_", [{"RequestCpus": 1}, {"RequestMemory": 16}, {"RequestDisk": 1024}])
async def test_a_request_that_fits_is_run(client: Client, request_: dict[str, int]) -> None:
    assert (await client.run({"Cmd": "/bin/true", **request_})).status == 4


async def test_a_job_over_its_requested_memory_is_held(client: Client) -> None:
    greedy = "python3 -c 'import time; x = bytearray(b\"x\") * (200 << 20); time.sleep(1000)'"
    reply = await client.run({"Cmd": "/usr/bin/env", "Arguments": greedy, "RequestMemory": 50})
    assert (reply.status, reply.state, reply.headers["HoldReasonCode"]) == (5, '"Exited"', 34)
    assert "RequestMemory is 50 MiB" in reply.headers["HoldReason"]


async def test_a_job_that_keeps_to_its_requested_memory_is_not_held(client: Client) -> None:
    assert (await client.run({"Cmd": "/bin/sleep", "Arguments": "0.5", "RequestMemory": 100})).status == 4


@pytest.mark.parametrize(("name", "number"), [("SIGUSR1", 10), ("usr2", 12), ("1", 1), (15, 15)])
async def test_a_job_past_its_allowed_duration_gets_its_kill_signal_and_is_held(
    client: Client, name: Any, number: int
) -> None:
    script = f'trap "echo caught; exit 3" {number}; echo ready; while :; do sleep 0.05; done'
    reply = await client.run(shell(script, AllowedExecuteDuration=0.3, KillSig=name))
    assert (reply.status, reply.headers["HoldReasonCode"], reply.out) == (5, 47, "ready\ncaught\n")
    assert "AllowedExecuteDuration of 0.3 s" in reply.headers["HoldReason"]
    assert (reply.headers["ExitBySignal"], reply.headers["ExitCode"]) == (False, 3)


async def test_a_hold_has_a_signal_of_its_own(client: Client) -> None:
    script = 'trap "echo int; exit 0" INT; trap "echo term; exit 0" TERM; while :; do sleep 0.05; done'
    reply = await client.run(shell(script, AllowedExecuteDuration=0.3, KillSig="SIGTERM", HoldKillSig="SIGINT"))
    assert reply.out == "int\n"


async def test_a_job_that_ignores_its_kill_signal_is_killed_after_its_timeout(client: Client) -> None:
    headers = shell('trap "" TERM; sleep 1000 & wait; sleep 1000', AllowedExecuteDuration=0.2, KillSigTimeout=0.2)
    reply = await client.run(headers)
    assert (reply.status, reply.headers["ExitBySignal"], reply.headers["ExitSignal"]) == (5, True, signal.SIGKILL)


async def test_a_kill_timeout_may_be_longer_than_any_life(client: Client) -> None:
    reply = await client.run(
        {"Cmd": "/bin/sleep", "Arguments": "1000", "AllowedExecuteDuration": 0.2, "KillSigTimeout": "1e300"}
    )
    assert (reply.status, reply.headers["HoldReasonCode"], reply.headers["ExitSignal"]) == (5, 47, signal.SIGTERM)


# -- Owner -----------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("owner", [None, "root", "alice"])
async def test_a_job_of_a_root_node_runs_as_nobody_whatever_its_owner(client: Client, owner: str | None) -> None:
    reply = await client.run({"Cmd": "/usr/bin/id", "Arguments": "-un"} | ({"Owner": owner} if owner else {}))
    assert reply.out == "nobody\n"


@needs_root
async def test_a_job_runs_as_an_owner_that_is_allowed(start_node, new_client: Client) -> None:
    start_node("--slots", "1", STARTER_ALLOW_RUNAS_OWNER="TRUE", ALLOWED_OWNERS="daemon, root, nosuchuser")
    who = {"Cmd": "/usr/bin/id", "Arguments": "-un"}
    assert (await new_client.run({**who, "Owner": "daemon"})).out == "daemon\n"
    assert (await new_client.run(who)).out == "nobody\n"
    refused(await new_client.run({**who, "Owner": "root"}), 23, "Owner", "'root'")
    refused(await new_client.run({**who, "Owner": "games"}), 23, "Owner", "'games'", "ALLOWED_OWNERS")
    refused(await new_client.run({**who, "Owner": "nosuchuser"}), 23, "'nosuchuser'")
    assert (await new_client.run({**who, "Owner": "daemon"})).out == "daemon\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="a root node's jobs run as another user")
async def test_a_node_of_an_ordinary_user_runs_every_job_as_itself(client: Client) -> None:
    reply = await client.run({"Cmd": "/usr/bin/id", "Arguments": "-u", "Owner": "root"})
    assert reply.out == f"{os.getuid()}\n"


# -- how it ended ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 42, 255])
async def test_the_exit_code_is_told(client: Client, code: int) -> None:
    reply = await client.shell(f"exit {code}")
    assert (reply.status, reply.state) == (4, '"Exited"')
    assert (reply.headers["ExitBySignal"], reply.headers["ExitCode"]) == (False, code)
    assert "ExitSignal" not in reply.headers


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_an_exit_by_signal_is_told(client: Client, number: int) -> None:
    reply = await client.shell(f"kill -{int(number)} $$")
    assert (reply.status, reply.headers["ExitBySignal"], reply.headers["ExitSignal"]) == (4, True, number)
    assert "ExitCode" not in reply.headers
    assert signal.Signals(number).name in reply.headers["ExitReason"]


# -- results ---------------------------------------------------------------------------------------------------


async def test_everything_in_the_jobs_directory_is_returned(client: Client) -> None:
    reply = await client.shell(
        "mkdir -p a/b/c empty; echo x >a/b/c/f; ln -s a/b/c/f l; mkfifo p; ln -s /etc/passwd out"
    )
    assert set(reply.files) == {"a/b/c/f", "empty/", "l", "_condor_stdout", "_condor_stderr"}
    assert sorted(reply.headers["TransferOutputRefused"].strip('"').split(",")) == ["out", "p"]


async def test_only_the_names_of_transfer_output_are_returned_with_out_and_err(client: Client) -> None:
    reply = await client.shell("echo 1 >a; echo 2 >b; mkdir d; echo 3 >d/c", TransferOutput=" a , d ")
    assert reply.files == {"_condor_stdout": b"", "_condor_stderr": b"", "a": b"1\n", "d/c": b"3\n"}
    assert "TransferOutputRefused" not in reply.headers


@pytest.mark.parametrize(
    "name", ["/etc/shadow", "/etc/passwd", "../x", "out", "out/passwd", "missing", ".", "d/../../x"]
)
async def test_a_name_of_transfer_output_outside_is_left_out_and_told(client: Client, name: str) -> None:
    reply = await client.shell("ln -s /etc out; mkdir d; echo x >f", TransferOutput=f"{name},f")
    assert (reply.status, reply.headers["TransferOutputRefused"]) == (4, f'"{name}"')
    assert set(reply.files) == {"f", "_condor_stdout", "_condor_stderr"}


async def test_names_of_transfer_output_are_found_in_iwd_too(client: Client, open_directory: Path) -> None:
    reply = await client.run(shell("echo x >made-here", Iwd=str(open_directory), TransferOutput="made-here,../x"))
    assert reply.files["made-here"] == b"x\n"
    assert reply.headers["TransferOutputRefused"] == '"../x"'


async def test_results_beyond_max_result_size_are_held_and_what_fits_is_returned(client: Client) -> None:
    reply = await client.shell("head -c 42000000 /dev/urandom >big; echo x >small")
    assert (reply.status, reply.state, reply.headers["HoldReasonCode"]) == (5, '"Exited"', 33)
    assert "MAX_RESULT_SIZE = 41943040" in reply.headers["HoldReason"]
    assert "big" in reply.headers["HoldReason"]
    assert (reply.files["small"], reply.headers["ExitCode"]) == (b"x\n", 0)


async def test_files_that_cannot_be_read_are_told(client: Client) -> None:
    reply = await client.shell("echo x >f; chmod 0 f; echo y >g; mkdir d; echo z >d/h; chmod 0 d")
    assert reply.status == 4
    assert reply.files["g"] == b"y\n"
    assert "f (Permission denied)" in reply.headers["TransferOutputRefused"]
    assert "d (Permission denied)" in reply.headers["TransferOutputRefused"]


async def test_names_that_are_not_utf8_come_back_as_text(client: Client) -> None:
    reply = await client.shell(r"""touch "$(printf 'na\357ve')"; mkfifo "$(printf 'p\377')" """)
    assert "na�ve" in reply.files
    assert reply.headers["TransferOutputRefused"] == '"p�"'


async def test_refused_names_without_end_still_fit_a_reply(client: Client) -> None:
    reply = await client.shell(
        'i=0; while [ $i -lt 3000 ]; do mkfifo "a-rather-long-name-for-a-pipe-$i"; i=$((i+1)); done'
    )
    assert (reply.status, reply.headers["ExitCode"]) == (4, 0)
    assert "and 2900 more" in reply.headers["TransferOutputRefused"]


@pytest.mark.parametrize(
    "script",
    [
        'rm -rf "$PWD"',
        "chmod 0 .",
        'mv "$PWD" "$PWD.away"; ln -s / "$PWD"',
        "mkdir sub; chmod 0 sub",
        'python3 -c \'import os\nfor n in range(3000): os.mkdir("d"); os.chdir("d")\'',
        "rm -f _condor_stdout; mkdir _condor_stdout",
        "mkdir d; cd d; rmdir ../d",
    ],
)
async def test_a_job_that_spoils_its_directory_is_answered_and_leaves_nothing(
    client: Client, execute: Path, script: str
) -> None:
    reply = await client.shell(script)
    assert reply.status in (4, 5)
    assert not [name for name in reply.files if name.startswith(("etc/", "usr/"))]
    jobs = [await client.submit({"Cmd": "/bin/ls", "Arguments": "-A"}) for _ in range(2)]
    for reply in [await client.end(job) for job in jobs]:
        assert reply.out.split() == [".job.ad", ".machine.ad", "_condor_stderr", "_condor_stdout"]


async def test_what_a_job_leaves_beside_its_directory_is_removed(client: Client, execute: Path) -> None:
    assert (await client.shell("mkdir -p ../left/d; echo x >../left/d/f; chmod 0 ../left/d")).status == 4
    assert (await client.run({"Cmd": "/bin/true"})).status == 4
    assert not list(execute.glob("*/*/left*"))


async def test_a_jobs_directory_is_empty_when_the_next_job_comes(client: Client, node: Node) -> None:
    for _ in range(3):
        reply = await client.shell("ls -A; mkdir -p a/b; echo x >a/b/c; chmod 0 a/b; touch f")
        assert reply.out.split() == [".job.ad", ".machine.ad", "_condor_stderr", "_condor_stdout"]


async def test_a_job_is_bound_to_the_cpus_it_requests(client: Client) -> None:
    bound = await client.run({"Cmd": "/usr/bin/nproc", "RequestCpus": 1})
    free = await client.run({"Cmd": "/usr/bin/nproc"})
    assert (bound.out, free.out) == ("1\n", f"{len(os.sched_getaffinity(0))}\n")
