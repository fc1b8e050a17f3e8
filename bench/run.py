#!/usr/bin/env python3
"""Measures the node against the floor and Celery, and by slots, backlog and result size.

The floor (floor.py) is the least that a node in Python can do; Celery is what a Python user would take instead. They
take turns on one broker, so that the ratios hold where the figures themselves do not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import broker
import measure
import plot
import report
from contenders import NotStarted
from load import LoadError
from sections import QUICK, SECTIONS, Figures, Plan, say

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "reference"
sys.path.append(str(ROOT))  # for tests/brokers, whose brokers a section starts
DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672/"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  make bench                                everything, with a broker of its own: some 12 minutes;\n"
        "                                            writes docs/reference/benchmark.md and .png\n"
        '  make bench ARGS="--quick"                 a sample in a minute; its tables go to standard output only\n'
        '  make bench ARGS="results idle"            only these sections\n'
        "  run.py --broker amqp://rabbit/ --json raw.json --output /tmp/bench\n"
        "  run.py --render raw.json                  tables and plot once more, from raw figures",
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--broker", metavar="URL", help="RabbitMQ (default: CAROD_BROKER, else this machine's)")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of compare")
    parser.add_argument("--backlog", type=int, metavar="N", help="jobs queued for backlog")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="the longest that backlog may take")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write benchmark.md and benchmark.png there (default: docs, if all)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.add_argument("--render", type=Path, metavar="FILE", help="measure nothing, take the raw figures from there")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section is named {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return options


def measured(options: argparse.Namespace) -> Figures:
    """Run the sections that were asked for."""
    url = options.broker or os.environ.get("CAROD_BROKER") or DEFAULT_URL
    plan = planned(options)
    figures: Figures = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": measure.machine(broker.product(url)),
    }
    # In the order of SECTIONS, whatever the order asked for: compare comes first, on a machine still cool.
    for name in [name for name in SECTIONS if name in (options.sections or SECTIONS)]:
        say(f"{name} ...")
        figures[name] = SECTIONS[name](url, plan)
    figures["load"] = os.getloadavg()[0]
    return figures


def planned(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else Plan()
    given: dict[str, Any] = {
        "rounds": options.rounds,
        "backlog": options.backlog,
        "backlog_limit": options.limit,
    }
    values = {name: getattr(plan, name) for name in plan.__slots__}
    return Plan(**values | {name: value for name, value in given.items() if value is not None})


def destination(options: argparse.Namespace, figures: Figures) -> Path | None:
    """Where tables and plot go. The docs are for whole runs: a sample does not replace them unless told to."""
    if options.output:
        return Path(options.output)
    return DOCS if not options.quick and all(name in figures for name in SECTIONS) else None


def write(directory: Path, text: str, figures: Figures) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "benchmark.md").write_text(text)
    plot.draw(figures, directory / "benchmark.png")
    say(f"wrote {directory / 'benchmark.md'} and benchmark.png")


def stop(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)  # on the way out, every context ends what it started


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    # matplotlib caches fonts, and tells so, where its home can't be written
    os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"bench-matplotlib-{os.getuid()}"))
    try:
        figures = json.loads(options.render.read_text()) if options.render else measured(options)
    except (NotStarted, LoadError, ConnectionError) as problem:
        say(str(problem))
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    text = report.markdown(figures)
    print(text)
    directory = destination(options, figures)
    if directory:
        write(directory, text, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
