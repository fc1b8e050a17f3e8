#!/usr/bin/env python3
"""A grid in two minutes: starts a node, runs Hello Grid on it, then prices 200 options, and shows what came back.

Needs a broker, named by CAROD_BROKER (default: RabbitMQ on this machine). `make demo` brings one if none is there.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carod_client import Grid, GridError, NoQueue, Reply, Result
from carod_client.commands.report import percentile
from carod_client.grid import default_url
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

QUEUE = "demo"
SCENARIOS = 200
NOTHINGS = 50
PATHS = 60_000
"""Paths of a simulation: about 60 ms of one core, Python's own start not counted."""
OUTPUT = Path("demo-results")
START_PATIENCE = 30.0
"""Seconds for a node to come up on a slow machine."""
PRICE_SCRIPT = Path(__file__).with_name("price.py")

console = Console(highlight=False)


# -- the node --------------------------------------------------------------------------------------------------


@contextmanager
def node(url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An execute node as a child process, stopped at the end. What it says goes to `log`."""
    command = [sys.executable, "-m", "carod.cli", "start", "--queue", QUEUE, "--slots", str(slots())]
    environment = os.environ | {"_CAROD_BROKER_URL": url}  # not on the command line: it may hold a password
    with log.open("wb") as output:
        # a group of its own: Ctrl-C is for us, and we stop the node
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=output, process_group=0)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def slots() -> int:
    return len(os.sched_getaffinity(0))


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def wait_for(child: subprocess.Popen[bytes], grid: Grid, log: Path) -> None:
    """Until the node answers: it declares the job queue, then takes jobs from it."""
    give_up = time.monotonic() + START_PATIENCE
    while True:
        try:
            await grid.run("/bin/true", timeout=START_PATIENCE)
            return
        except NoQueue:
            if child.poll() is not None or time.monotonic() > give_up:
                raise GridError(f"the node did not start; it says:\n{tail(log)}") from None
            await asyncio.sleep(0.1)


# -- Hello Grid ------------------------------------------------------------------------------------------------


async def hello(grid: Grid) -> None:
    """One job, and the two messages that come back for it."""
    console.print('[bold]1. Hello Grid:[/bold] one job, /bin/echo "Hello Grid!"\n')
    handle = await grid.submit("/bin/echo", "Hello Grid!", attributes={"Out": "job.out", "Err": "job.err"}, timeout=60)
    async for reply in handle:
        show(reply)
    results = (await handle).results
    console.print("  Body is a zip of:")
    for name in results.names():
        console.print(f"    {name:<10} {len(results.read(name)):>3} bytes")
    console.print(f"  job.out says:     {results.read('job.out').decode().strip()}\n", markup=False)


async def latency(grid: Grid) -> None:
    """What a job costs that does nothing."""
    took = [(await grid.run("/bin/true", timeout=60)).elapsed_seconds for _ in range(NOTHINGS)]
    console.print(
        f"  {NOTHINGS} jobs that do nothing, one after the other: median "
        f"{percentile(took, 50) * 1000:.1f} ms from sending to result, slowest {max(took) * 1000:.1f} ms\n",
        soft_wrap=True,
    )


def show(reply: Reply) -> None:
    console.print("Response")
    for name in ("JobState", "JobStatus", "ExitCode"):
        console.print(f"  {name + ':':<17} {reply.ad.get(name, 'not yet')}", markup=False)
    console.print(f"  {'Is Body Empty?':<17} {'no' if reply.body else 'yes'}\n", markup=False)


# -- the sweep -------------------------------------------------------------------------------------------------


def scenario(n: int) -> dict[str, float]:
    """One of the 200: strikes around the spot, maturities from half a year to five."""
    return {
        "spot": 100.0,
        "strike": 80.0 + 2.0 * (n % 20),
        "rate": 0.03,
        "years": 0.5 * (1 + n // 20),
        "volatility": 0.25,
        "paths": PATHS,
        "seed": n,
    }


async def sweep(grid: Grid) -> tuple[list[Result], float]:
    """Price all scenarios; the results, and the seconds that it took."""
    console.print(
        f"[bold]2. A sweep:[/bold] {SCENARIOS} Monte-Carlo pricings, {PATHS} paths each, on {slots()} slots. "
        "Script and scenario travel in the message.\n",
        soft_wrap=True,
    )
    results: list[Result] = []
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[last]}"), TimeRemainingColumn(),
    )  # fmt: skip
    started = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("pricing", total=SCENARIOS, last="")
        async for result in grid.map(
            "price.py",
            range(SCENARIOS),
            args=["scenario.json"],
            inputs=lambda n: {"scenario.json": json.dumps(scenario(n)).encode(), "price.py": PRICE_SCRIPT},
            check=True,
            timeout=600,
        ):
            await asyncio.to_thread(result.results.extract, OUTPUT / f"{result.index:03}")
            results.append(result)
            progress.update(bar, advance=1, last=result.stdout.decode().strip())
    return results, time.monotonic() - started


def prices(results: list[Result]) -> Table:
    """The cheapest and the dearest three."""
    table = Table(title="Cheapest and dearest", title_justify="left")
    for heading in ("scenario", "strike", "years", "price", "error"):
        table.add_column(heading, justify="right")
    ranked = sorted((json.loads(result.results.read("price.json"))["price"], result.index) for result in results)
    by_index = {result.index: result for result in results}
    for section in (ranked[:3], ranked[-3:]):
        for _, index in section:
            given, price = scenario(index), json.loads(by_index[index].results.read("price.json"))
            table.add_row(
                f"{index:03}", f"{given['strike']:.0f}", f"{given['years']:.2f}",
                f"{price['price']:.2f}", f"{price['error']:.2f}",
            )  # fmt: skip
        table.add_section()
    return table


def times(results: list[Result], seconds: float) -> Table:
    """Where the time went, in milliseconds."""
    table = Table(
        title=f"{len(results)} jobs in {seconds:.1f} s: {len(results) / seconds:.1f} a second", title_justify="left"
    )
    table.add_column("milliseconds")
    for heading in ("median", "90 %", "99 %"):
        table.add_column(heading, justify="right")
    rows = {
        "the job itself": [result.duration for result in results],
        "waiting for a slot": [result.queued_seconds or 0.0 for result in results],
        "from sending to result": [result.elapsed_seconds for result in results],
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{percentile(values, part) * 1000:.1f}" for part in (50, 90, 99)))
    return table


# -- all of it -------------------------------------------------------------------------------------------------


def next_broker(url: str) -> str:
    """How to have a broker that does not end with the demo, of the kind that this one was."""
    if not url.startswith("amqp10:"):
        return (
            "Try next, in a shell with a broker (.venv/bin/python tests/brokers/rabbitmq.py -- bash):\n"
            "  . .venv/bin/activate\n"
        )
    return (
        "Try next, with a broker and a node that stay:\n"
        "  . .venv/bin/activate\n"
        "  export CAROD_BROKER=amqp10://127.0.0.1\n"
        "  carod broker >broker.log 2>&1 &\n"
    )


async def show_all(url: str) -> None:
    log = OUTPUT / "node.log"
    with node(url, log) as child:
        async with Grid(url, QUEUE, in_flight=4 * slots()) as grid:
            with console.status("starting a node"):
                await wait_for(child, grid, log)
            await hello(grid)
            await latency(grid)
            results, seconds = await sweep(grid)
    console.print(prices(results))
    console.print(times(results, seconds))
    console.print(
        f"\nEach job's files are in {OUTPUT}/000 to {OUTPUT}/{SCENARIOS - 1:03}, the node's log in {log}.\n"
        f"{next_broker(url)}"
        '  carod start --broker "$CAROD_BROKER" >node.log 2>&1 &\n'
        "  carod submit -- /bin/echo Hello\n"
        f"  carod submit -i {OUTPUT}/007/scenario.json -o my-result -- ./clients/demo/price.py scenario.json\n"
        "  carod submit --count 100 -- /bin/sh -c 'echo {n}; sleep 0.1'\n"
        "  carod submit --help",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # then too the node is stopped
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    try:
        asyncio.run(show_all(default_url()))
    except KeyboardInterrupt:
        console.print("\nstopped, and the node with it")
        return 130
    except GridError as error:
        console.print(f"demo: {error}", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
