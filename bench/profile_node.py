#!/usr/bin/env python3
"""Where a job's time goes: step by step in wall time for jobs one after the other, by function in CPU time for a burst.

Stamps and profiler cost time themselves, the profiler about as much as what it measures: read shares, not sums. What
a job costs in all is in the benchmark (`run.py compare`), which measures without either.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pstats
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import contenders
from load import Load

HERE = Path(__file__).resolve().parent
WARM_UP = 30

STEPS = (
    ("submit", "delivered", "client to node: through the broker, and aiormq's reading"),
    ("delivered", "handed", "node: the ad is parsed and matched, the launch made ready"),
    ("handed", "_prepare", "to the spawner: the frame, and a process wakes up"),
    ("_prepare", "_prepare end", "spawner: directory, ads, input files"),
    ("_spawn", "_spawn end", "spawner: standard files, fork and exec"),
    ("_spawn end", "_wait end", "the job itself, until it is reaped"),
    ("_end_tree", "_end_tree end", "spawner: is the process tree gone?"),
    ("_report", "_report end", "spawner: zip, frame to the node"),
    ("_report end", "exited", "to the node: it wakes up and reads the frame"),
    ("exited", "final", "node: the outcome into the ad, the final reply made"),
    ("final", "reply", "node to client: written, through the broker, and aiormq's reading"),
)
ASIDE = (
    ("handed end", "status end", "node: the status message, while the job starts"),
    ("_clear", "_clear end", "spawner: the directory is emptied, after the frame"),
    ("final", "final end", "node: the broker confirms the final reply; then the job is settled"),
    ("submit", "reply", "all, as the client sees it"),
)


def steps(url: str, jobs: int) -> None:
    """Median wall time of each step of a job's way, on one slot."""
    with tempfile.TemporaryDirectory(prefix="carod-probe-") as name:
        Path(name).chmod(0o777)  # spawners write there as the jobs' user
        with contenders.node(url, 1, carod=(str(HERE / "probe.py"), name, "stamps")) as running:
            times = asyncio.run(_sequential(url, running.queue, WARM_UP + jobs))
        seen = [json.loads((Path(name) / "node").read_text())]
        seen += [json.loads(path.read_text()) for path in Path(name).glob("spawner-*")]
    lives = _lives(times, seen)[WARM_UP:]
    print(f"wall time by step, median of {len(lives)} jobs one after the other, /bin/true:")
    total = 0.0
    for title, rows in (("on the way to the result", STEPS), ("beside or after it", ASIDE)):
        print(f"\n  {title}")
        for begin, end, meaning in rows:
            lengths = [life[end] - life[begin] for life in lives if begin in life and end in life]
            if lengths:
                middle = statistics.median(lengths)
                total += middle if rows is STEPS else 0
                print(f"  {middle * 1e6:8.0f} us  {meaning}")
        if rows is STEPS:
            print(f"  {total * 1e6:8.0f} us  sum")


async def _sequential(url: str, queue: str, jobs: int) -> list[tuple[float, float]]:
    """When each job was submitted, and when its final reply came."""
    times = []
    async with Load.connected(url, queue) as load:
        for _ in range(jobs):
            (latency,) = await load.sequential(1)
            times.append((load.arrivals[-1] - latency, load.arrivals[-1]))
    return times


def _lives(times: list[tuple[float, float]], seen: list[list[tuple[str, float]]]) -> list[dict[str, float]]:
    """Each job's first stamp of each kind between its submission and the next one's."""
    stamps = sorted((when, what) for each in seen for what, when in each)
    lives, at = [], 0
    for number, (submitted, replied) in enumerate(times):
        life = {"submit": submitted, "reply": replied}
        until = times[number + 1][0] if number + 1 < len(times) else float("inf")
        while at < len(stamps) and stamps[at][0] < until:
            when, what = stamps[at]
            # What ends now without having begun belongs to the job before, which is not quite over.
            if when >= submitted and (not what.endswith(" end") or what.removesuffix(" end") in life):
                life.setdefault(what, when)
            at += 1
        lives.append(life)
    return lives


def functions(url: str, jobs: int, slots: int, top: int) -> None:
    """CPU time by function in node and spawners, for a burst."""
    with tempfile.TemporaryDirectory(prefix="carod-probe-") as name:
        Path(name).chmod(0o777)
        with contenders.node(url, slots, carod=(str(HERE / "probe.py"), name, "profile")) as running:
            asyncio.run(_burst(url, running.queue, jobs))
        _print_profile("the node's event loop", [f"{name}/node.prof"], jobs, top)
        spawners = [str(path) for path in Path(name).glob("spawner-*.prof")]
        _print_profile("the spawners, together", spawners, jobs, top)


async def _burst(url: str, queue: str, jobs: int) -> None:
    async with Load.connected(url, queue) as load:
        await load.burst(jobs)


def _print_profile(title: str, paths: list[str], jobs: int, top: int) -> None:
    stats = pstats.Stats(*paths)
    rows: list[tuple[float, float, int, str]] = []
    rooms: dict[str, float] = defaultdict(float)
    for (file, line, name), (_, calls, own, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
        where = _short(file, line, name)
        rows.append((own, cumulative, calls, where))
        rooms[_room(file, name)] += own
    total = sum(own for own, *_ in rows)
    print(f"\nCPU of {title}: {total / jobs * 1e6:.0f} us a job, profiler included, {jobs} jobs")
    print("  by room: " + ", ".join(
        f"{name} {own / total:.0%}" for name, own in sorted(rooms.items(), key=lambda item: -item[1])[:9]
    ))  # fmt: skip
    print("     own us  with calls  calls/job  function")
    for own, cumulative, calls, where in sorted(rows, reverse=True)[:top]:
        print(f"  {own / jobs * 1e6:9.1f} {cumulative / jobs * 1e6:11.1f} {calls / jobs:10.1f}  {where}")


def _short(file: str, line: int, name: str) -> str:
    return name if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {name}"


def _room(file: str, name: str) -> str:
    """Whose code it is: one of our rooms, a library, or the interpreter."""
    parts = Path(file).parts
    if file == "~":
        return "system calls and built-ins"
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    if "carod" in parts:
        return "/".join(parts[len(parts) - 1 - parts[::-1].index("carod") : -1]) or name
    return "asyncio" if "asyncio" in parts else "standard library"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python tests/brokers/rabbitmq.py -- .venv/bin/python bench/profile_node.py\n"
        "  profile_node.py --only functions --jobs 5000 --top 60",
    )
    parser.add_argument("--broker", metavar="URL", help="RabbitMQ (default: CAROD_BROKER, else this machine's)")
    parser.add_argument("--only", choices=["steps", "functions"], help="one of the two")
    parser.add_argument("--jobs", type=int, default=1000, metavar="N")
    parser.add_argument("--slots", type=int, default=4, metavar="N", help="slots for the burst")
    parser.add_argument("--top", type=int, default=30, metavar="N", help="functions to print")
    options = parser.parse_args()
    url = options.broker or os.environ.get("CAROD_BROKER") or "amqp://guest:guest@127.0.0.1:5672/"
    if options.only != "functions":
        steps(url, options.jobs // 2)
    if options.only != "steps":
        functions(url, options.jobs, options.slots, options.top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
