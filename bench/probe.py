"""The command `carod`, with stamps or a profiler in node and spawners; started by `profile_node.py`.

    probe.py DIRECTORY stamps|profile start --broker ...

Only the standard library and carod itself: the spawners run without site-packages. What each process has seen is in
DIRECTORY when it has ended. Names of carod's that are gone are reported and left out.
"""

from __future__ import annotations

import cProfile
import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NODE, SPAWNER = "node", "spawner"
SPAWNER_STEPS = ("_prepare", "_spawn", "_wait", "_end_tree", "_report")
PROGRAM = """\
import sys
sys.path[:0] = [{bench!r}, {root!r}]
import probe
probe.spawner({directory!r}, {mode!r})
"""

stamps: list[tuple[str, float]] = []


def stamp(what: str) -> None:
    """Note that something happened now. CLOCK_MONOTONIC: the same in all processes."""
    stamps.append((what, time.perf_counter()))


def around(where: str, label: Callable[..., str] | str, after: bool = True) -> None:
    """Stamp `label` before each call of `module:Owner.name` and `label end` after it. An empty label: not this call."""
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        original = getattr(owner, name)
    except (ImportError, AttributeError):
        print(f"probe: there is no {where}; its step is not measured", file=sys.stderr)
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        what = label if isinstance(label, str) else label(*args, **kwargs)
        if what:
            stamp(what)
        try:
            return original(*args, **kwargs)
        finally:
            if what and after:
                stamp(f"{what} end")

    @functools.wraps(original)
    async def waiting(*args: Any, **kwargs: Any) -> Any:
        what = label if isinstance(label, str) else label(*args, **kwargs)
        if what:
            stamp(what)
        try:
            return await original(*args, **kwargs)
        finally:
            if what and after:
                stamp(f"{what} end")

    is_async = original.__code__.co_flags & 0x80  # CO_COROUTINE
    setattr(owner, name, waiting if is_async else wrapper)


def node(directory: str, mode: str) -> None:
    """Run the command, with spawners that are probed as well."""
    import carod.starter.spawner
    from carod.cli import main

    program = f"{directory}/spawner.py"
    root = Path(carod.starter.spawner.__file__).parent.parent.parent
    Path(program).write_text(PROGRAM.format(bench=str(HERE), root=str(root), directory=directory, mode=mode))
    carod.starter.spawner.__file__ = program  # what the nursery is started from
    if mode == "stamps":
        around("carod.node.node:Node._on_delivery", "delivered", after=False)
        around("carod.starter.process:Spawner.run", "handed")
        around("carod.starter.process:Spawner._on_frame", lambda _s, _e, frame, _b: next(iter(frame)), after=False)
        around("carod.amqp.amqp091:Amqp091Transport.publish", _kind_of_publish)
        _until_exit(lambda: main(), f"{directory}/{NODE}")
    else:
        _profiled(lambda: main(), f"{directory}/{NODE}.prof")


def _kind_of_publish(_self: object, _message: object, _to: object, *, confirm: bool = True) -> str:
    return "final" if confirm else "status"


def spawner(directory: str, mode: str) -> None:
    """Be the nursery, whose spawners write what they saw when they end."""
    from carod.starter import spawner as program

    if mode == "stamps":
        for name in SPAWNER_STEPS:
            around(f"carod.starter.spawner:Spawner.{name}", name)
        around("carod.starter.spawner:_clear", "_clear")
    serve = program.Spawner.serve

    def probed(self: Any) -> None:
        target = f"{directory}/{SPAWNER}-{os.getpid()}"
        if mode == "stamps":
            _until_exit(lambda: serve(self), target)
        else:
            _profiled(lambda: serve(self), f"{target}.prof")

    program.Spawner.serve = probed  # type: ignore[method-assign]
    program.main()


def _until_exit(run: Callable[[], None], path: str) -> None:
    try:
        run()
    finally:
        Path(path).write_text(json.dumps(stamps))


def _profiled(run: Callable[[], None], path: str) -> None:
    """By CPU time of the thread: waiting costs nothing."""
    profiler = cProfile.Profile(time.thread_time)
    try:
        profiler.runcall(run)
    finally:
        profiler.dump_stats(path)


if __name__ == "__main__":
    target, chosen = sys.argv[1:3]
    del sys.argv[1:3]
    node(target, chosen)
