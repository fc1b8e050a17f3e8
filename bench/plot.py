"""The figures as one PNG: latency and throughput against floor and Celery, throughput by slots, memory by result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import percentile, size_name, summary
from sections import Figures

COLORS = {"node": "#1f6f8b", "floor": "#9aa5ab", "celery": "#d98032"}
NAMES = {"node": "carod", "floor": "floor", "celery": "Celery"}
MB = 1e6


def draw(figures: Figures, path: Path) -> None:
    """One panel for each thing that was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: list[tuple[Callable[[Any, Any], None], Any]] = []
    if "compare" in figures:
        panels += [(_latency, figures["compare"]), (_throughput, figures["compare"])]
    if "slots" in figures:
        panels.append((_slots, figures["slots"]))
    if "results" in figures:
        panels.append((_memory, [row for row in figures["results"] if "problem" not in row]))
    if not panels:
        return
    pyplot.rcParams.update({
        "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e7e9", "axes.axisbelow": True,
        "legend.frameon": False, "axes.titlelocation": "left",
    })  # fmt: skip
    columns = min(2, len(panels))
    lines = (len(panels) + columns - 1) // columns
    figure, axes = pyplot.subplots(lines, columns, figsize=(5.2 * columns, 3.6 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (panel, data) in zip(axes.flat, panels, strict=False):
        panel(axis, data)
    figure.tight_layout(h_pad=2.0, w_pad=2.5)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _latency(axis: Any, compare: Figures) -> None:
    """Share of the jobs done within so many milliseconds."""
    farthest = 0.0
    for name in ("floor", "node", "celery"):
        values = sorted(value * 1e3 for row in compare["rounds"][name] for value in row["latencies"])
        shares = [(number + 1) / len(values) for number in range(len(values))]
        middle = percentile(values, 0.5)
        axis.plot(values, shares, color=COLORS[name], linewidth=1.8, label=f"{NAMES[name]}, median {middle:.2f} ms")
        axis.plot([middle], [0.5], "o", color=COLORS[name], markersize=4)
        farthest = max(farthest, percentile(values, 0.97))
    axis.set(
        xlim=(0, farthest * 1.1), ylim=(0, 1.02), xlabel="ms from submit to result", ylabel="share of the jobs",
        title="Latency of /bin/true, one at a time",
    )  # fmt: skip
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.legend(loc="lower right")


def _throughput(axis: Any, compare: Figures) -> None:
    """Medians as bars, rounds as dots."""
    names = ("floor", "node", "celery")
    for place, name in enumerate(names):
        rounds = compare["rounds"][name]
        rate = summary(rounds).rate
        axis.bar(place, rate, 0.6, color=COLORS[name])
        axis.plot([place] * len(rounds), [row["rate"] for row in rounds], "o", color="#222222", markersize=3, alpha=0.6)
        axis.text(place, rate / 2, f"{rate:.0f}", ha="center", va="center", color="white", fontweight="bold")
    axis.set_xticks(range(len(names)), [NAMES[name] for name in names])
    axis.grid(axis="x", visible=False)
    slots = compare["slots"]
    axis.set(ylabel="jobs/s", title=f"Throughput of /bin/true, {slots} slots (dots: rounds)")


def _slots(axis: Any, rows: list[Figures]) -> None:
    counts, nap = [row["slots"] for row in rows], rows[0]["sleep"]
    series = [
        ("floor_rate", "/bin/true, floor", COLORS["floor"], "-"),
        ("rate", "/bin/true, carod", COLORS["node"], "-"),
        ("sleep_rate", f"sleep {nap:g}, carod", COLORS["celery"], "-"),
    ]
    for key, label, color, style in series:
        axis.plot(counts, [row[key] for row in rows], style, marker="o", markersize=4, color=color, label=label)
    axis.plot(counts, [count / nap for count in counts], ":", color="#555555", label=f"ideal: slots / {nap:g} s")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set(xlabel="slots", ylabel="jobs/s", title="Throughput by slots")
    axis.legend(loc="best", fontsize=8)


def _memory(axis: Any, rows: list[Figures]) -> None:
    """Peaks as they are, with the idle node in them: so the bound at 100 MB begins at the idle node, too."""
    sizes, idle = [row["size"] for row in rows], rows[0]["idle_tree"]
    bound = [(idle + 2.5 * size) / MB for size in sizes]
    axis.plot(sizes, bound, ":", color="#b03030", label="bound: idle + 2.5 x the result")
    axis.plot(
        sizes, [row["peak_tree"] / MB for row in rows], marker="s", markersize=4, color="#6b4c9a",
        label="node and spawners, sum of their peaks",
    )  # fmt: skip
    axis.plot(
        sizes, [row["peak_main"] / MB for row in rows], marker="o", markersize=4, color=COLORS["node"], label="node"
    )
    axis.plot(sizes, [size / MB for size in sizes], "--", color=COLORS["floor"], label="the result itself")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(sizes, [size_name(size) for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(1, max(bound) * 4)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set(xlabel="result", ylabel="MB resident", title="Peak memory by result size")
    axis.legend(loc="upper left", fontsize=8)
