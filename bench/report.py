"""The figures as a Markdown page: targets first, then a table a section, then the machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sections import Figures

MB = 1e6
HEAD = """\
# Benchmark

Written by `make bench` on {date}; how to run it and read it: [how-to/benchmark.md](../how-to/benchmark.md). Where a
job's time goes: [discussion/performance.md](../discussion/performance.md). Figures depend on the machine, the
ratios in one run much less.

![Latency, throughput and memory](benchmark.png)
"""


@dataclass(frozen=True, slots=True)
class Target:
    """One promise, and what was measured."""

    what: str
    bound: str
    measured: str
    met: bool


def markdown(figures: Figures) -> str:
    parts = [HEAD.format(date=figures["date"])]
    targets = list(_targets(figures))
    if targets:
        parts.append(
            "## Targets\n\n"
            + _table(
                ("", "target", "measured", "met"),
                [(each.what, each.bound, each.measured, "yes" if each.met else "**no**") for each in targets],
            )
        )
    for name, section in _SECTIONS.items():
        if name in figures:
            parts.append(section(figures[name]))
    parts.append(
        "## The machine\n\n"
        + _table(("", ""), [*figures["machine"].items()])
        + "\nBroker, load and contender share it.\n"
    )
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


# -- what several need -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the rounds of one contender; latencies in seconds."""

    p50: float
    p99: float
    rate: float


def summary(rounds: list[Figures]) -> Summary:
    return Summary(
        statistics.median(percentile(row["latencies"], 0.5) for row in rounds),
        statistics.median(percentile(row["latencies"], 0.99) for row in rounds),
        statistics.median(row["rate"] for row in rounds),
    )


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def size_name(size: float) -> str:
    """1 KB = 1000 bytes."""
    for unit, factor in (("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            return f"{size / factor:g} {unit}"
    return f"{size:g} B"


def _targets(figures: Figures) -> Iterable[Target]:
    if "compare" in figures:
        rounds = figures["compare"]["rounds"]
        node, floor, celery = (summary(rounds[name]) for name in ("node", "floor", "celery"))
        latency, rate, peer = node.p50 / floor.p50, node.rate / floor.rate, node.rate / celery.rate
        yield Target(
            "median latency of `/bin/true`, node / floor", "<= 1.5, goal 1.15", f"{latency:.2f}", latency <= 1.5
        )
        yield Target("throughput, node / floor", ">= 0.7, goal 1.0", f"{rate:.2f}", rate >= 0.7)
        yield Target("throughput, node / Celery", ">= 1.1", f"{peer:.2f}", peer >= 1.1)
    for row in figures.get("amqp10", []):
        node, floor = (summary(row["rounds"][name]) for name in ("node", "floor"))
        latency, rate = node.p50 / floor.p50, node.rate / floor.rate
        yield Target(f"AMQP 1.0, {row['broker']}: latency, node / floor", "<= 1.5", f"{latency:.2f}", latency <= 1.5)
        yield Target(f"AMQP 1.0, {row['broker']}: throughput, node / floor", ">= 0.7", f"{rate:.2f}", rate >= 0.7)
    if "idle" in figures:
        idle = figures["idle"]
        yield Target(
            "idle node with all its processes, resident (PSS)", "<= 60 MB", f"{idle['tree_pss'] / MB:.0f} MB",
            idle["tree_pss"] <= 60 * MB,
        )  # fmt: skip
    for row in figures.get("results", []):
        if row["size"] == 100_000_000 and "problem" not in row:
            rise = (row["peak_tree"] - row["idle_tree"]) / row["size"]
            yield Target("peak memory that a 100 MB result adds", "<= 2.5 x its size", f"{rise:.2f} x", rise <= 2.5)


# -- sections --------------------------------------------------------------------------------------------------


COMPARED = ("latency p50", "p99", "throughput", "its rounds", "latency / floor", "throughput / floor")


def _compared(rounds: dict[str, list[Figures]]) -> Iterable[tuple[str, ...]]:
    """A row for each contender: its name, and what COMPARED says."""
    floor = summary(rounds["floor"])
    for name in [name for name in ("floor", "node", "celery") if name in rounds]:
        each = summary(rounds[name])
        spread = [row["rate"] for row in rounds[name]]
        yield (
            name, f"{each.p50 * 1e3:.2f} ms", f"{each.p99 * 1e3:.2f} ms", f"{each.rate:.0f} jobs/s",
            f"{min(spread):.0f} to {max(spread):.0f}", f"{each.p50 / floor.p50:.2f}", f"{each.rate / floor.rate:.2f}",
        )  # fmt: skip


def _compare(figures: Figures) -> str:
    return (
        "## Node, floor and Celery\n\n"
        f"`/bin/true`: {figures['sequential']} jobs one after the other for the latency, a burst of {figures['jobs']} "
        f"for the throughput; {len(figures['rounds']['node'])} rounds in turn, medians of the rounds. "
        f"{figures['slots']} slots; Celery prefork with 2 processes, which answers with the exit code only.\n\n"
        + _table(("", *COMPARED), _compared(figures["rounds"]))
        + "\nCPU per job of the burst, from `/proc`:\n\n"
        + _table(("", "its process", "spawners", "the jobs' own"), _cpu_rows(figures["rounds"]))
    )


def _amqp10(rows: list[Figures]) -> str:
    lines = [(row["broker"], *line) for row in rows for line in _compared(row["rounds"])]
    return (
        "## Over AMQP 1.0\n\n"
        "The same jobs on other brokers, each a private one: node and floor in turn. The floor here is a bare Proton "
        "loop that does the same work.\n\n" + _table(("broker", "", *COMPARED), lines)
    )


def _cpu_rows(rounds: dict[str, list[Figures]]) -> Iterable[tuple[str, ...]]:
    for name in ("floor", "node"):
        used = [row["cpu"] for row in rounds[name]]
        main, below, jobs = (statistics.median(row[key] for row in used) * 1e3 for key in ("main", "below", "jobs"))
        # The floor has no spawners: what its own children used is not counted, they are gone.
        yield (
            (name, f"{main:.2f} ms", f"{below:.2f} ms", f"{jobs:.2f} ms") if below else (name, f"{main:.2f} ms", "", "")
        )


def _slots(rows: list[Figures]) -> str:
    table = [
        (
            row["slots"], f"{row['rate']:.0f} jobs/s", f"{row['floor_rate']:.0f} jobs/s",
            f"{row['rate'] / row['floor_rate']:.2f}",
            f"{row['sleep_rate']:.1f} jobs/s", f"{row['sleep_rate'] * row['sleep'] / row['slots']:.0%}",
            *(f"{row[name] / MB:.0f} MB" for name in ("idle_main_rss", "idle_tree_pss", "idle_tree_rss")),
        )
        for row in rows
    ]  # fmt: skip
    nap = rows[0]["sleep"]
    head = (
        "slots", "`/bin/true`", "the floor's", "ratio", f"`sleep {nap:g}`", "of the ideal",
        "idle: node, RSS", "all, PSS", "all, sum of RSS",
    )  # fmt: skip
    return (
        "## By slots\n\n"
        "Throughput of bursts. Jobs that do nothing are bound by the CPUs; jobs that sleep are bound by the slots, "
        f"ideally to slots / {nap:g} s. A sum of RSS counts shared pages once for each process.\n\n"
        + _table(head, table)
    )


def _backlog(row: Figures) -> str:
    rates = row["rates"]
    return f"## {row['queued']:,} jobs queued before the node starts\n\n" + _table(
        ("", ""),
        [
            ("queued", f"{row['queued']:,} in {row['fill_seconds']:.1f} s"),
            ("completed", f"{row['finals']:,} in {row['seconds']:.1f} s, {row['slots']} slots"),
            ("left in the queue, lost, answered twice", f"{row['left_in_queue']}, {row['lost']}, {row['duplicates']}"),
            ("throughput", f"{row['rate']:.0f} jobs/s; by tenths {', '.join(f'{each:.0f}' for each in rates)}"),
            (
                "the node's RSS",
                f"{row['rss_first'] / MB:.1f} MB before the first job, {row['rss_last'] / MB:.1f} MB after the last, "
                f"peak {row['peak'] / MB:.1f} MB",
            ),
        ],
    )


def _results(rows: list[Figures]) -> str:
    table = []
    for row in rows:
        if "problem" in row:
            table.append((size_name(row["size"]), row["problem"], "", "", "", "", ""))
            continue
        main, tree = row["peak_main"] - row["idle_main"], row["peak_tree"] - row["idle_tree"]
        large = row["size"] >= MB
        table.append((
            size_name(row["size"]), f"{row['p50'] * 1e3:.1f} ms", f"{row['size'] / row['p50'] / MB:.1f} MB/s",
            f"{main / MB:.1f} MB", f"{main / row['size']:.2f} x" if large else "",
            f"{tree / MB:.1f} MB", f"{tree / row['size']:.2f} x" if large else "",
        ))  # fmt: skip
    head = (
        "result",
        "latency p50",
        "rate",
        "node's peak above idle",
        "of the result",
        "with its spawners",
        "of the result",
    )
    return (
        "## By result size\n\n"
        "`head -c SIZE /dev/urandom`: random bytes, which can't be compressed; one job after the other, on a fresh "
        "node for each size. Peak resident memory (VmHWM) above that of the idle node; with spawners: the sum of each "
        "process's own peak, an upper bound.\n\n" + _table(head, table)
    )


def _idle(row: Figures) -> str:
    def cell(name: str) -> str:
        return f"{row[name] / MB:.1f} MB"

    return (
        f"## Idle\n\n{row['processes']} processes (node, nursery, a spawner for each slot) with default settings; "
        f"{row['cpu'] / row['seconds']:.2%} of a CPU over {row['seconds']:g} s.\n\n"
        + _table(
            ("", "the node, RSS", "all, PSS", "all, sum of RSS"),
            [
                ("before the first job", cell("main_rss"), cell("tree_pss"), cell("tree_rss")),
                (f"after {row['jobs']:,} jobs", cell("main_rss_after"), cell("tree_pss_after"), cell("tree_rss_after")),
            ],
        )
    )


_SECTIONS: dict[str, Any] = {
    "compare": _compare,
    "amqp10": _amqp10,
    "slots": _slots,
    "backlog": _backlog,
    "results": _results,
    "idle": _idle,
}
