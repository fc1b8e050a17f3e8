"""The measurements, one function a section of the report. Each returns plain values: numbers in seconds and bytes."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import bare
import broker
import contenders
import measure
from celery_app import CeleryLoad
from contenders import Running
from load import TRUE, Load, Load10, LoadError

Figures: TypeAlias = dict[str, Any]
WARM_UP = 20
SETTLE = 0.3
"""Seconds after the last job before memory is read: the last acknowledgement is under way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. `backlog_limit` and `idle_seconds` are in seconds, `results` in bytes."""

    rounds: int = 5
    sequential: int = 300
    jobs: int = 2000
    compare_slots: int = 4
    slots: tuple[int, ...] = (1, 2, 4, 8, 64)
    sleep: float = 0.1
    sleeps_per_slot: int = 15
    backlog: int = 100_000
    backlog_limit: float = 600.0
    results: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
    idle_seconds: float = 10.0


QUICK = Plan(
    rounds=1, sequential=50, jobs=300, slots=(1, 2, 4), sleeps_per_slot=5, backlog=3000, backlog_limit=60.0,
    results=(1_000, 1_000_000, 10_000_000), idle_seconds=2.0,
)  # fmt: skip


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


# -- compare ---------------------------------------------------------------------------------------------------


def compare(url: str, plan: Plan) -> Figures:
    """Node, floor and Celery in turn, in rounds, so that what else the machine does meets all of them."""
    rounds = _rounds("compare", ["floor", "node", "celery"], url, plan)
    return {"slots": plan.compare_slots, "jobs": plan.jobs, "sequential": plan.sequential, "rounds": rounds}


def _rounds(section: str, order: list[str], url: str, plan: Plan) -> dict[str, list[Figures]]:
    rounds: dict[str, list[Figures]] = {name: [] for name in order}
    for number in range(plan.rounds):
        for name in order:
            row = _compare_one(name, url, plan)
            rounds[name].append(row)
            p50 = statistics.median(row["latencies"])
            say(f"{section}, round {number + 1}: {name:6s} {p50 * 1e3:6.2f} ms, {row['rate']:6.0f} jobs/s")
        order.append(order.pop(0))  # nobody always comes first
    return rounds


def _compare_one(name: str, url: str, plan: Plan) -> Figures:
    if name == "celery":
        with contenders.celery(url) as running:
            return _celery_load(url, running, plan)
    start = contenders.floor if name == "floor" else contenders.node
    with start(url, plan.compare_slots) as running:
        return asyncio.run(_load(url, running, plan))


async def _load(url: str, running: Running, plan: Plan) -> Figures:
    kind = Load10 if url.startswith("amqp10:") else Load
    async with kind.connected(url, running.queue) as load:
        await load.sequential(WARM_UP)
        latencies = await load.sequential(plan.sequential)
        used = measure.cpu(running.pid)
        seconds = await load.burst(plan.jobs)
        used = measure.cpu(running.pid) - used
    return {
        "latencies": [round(each, 6) for each in latencies],
        "rate": plan.jobs / seconds,
        "cpu": {"main": used.main / plan.jobs, "below": used.below / plan.jobs, "jobs": used.ended / plan.jobs},
    }


def _celery_load(url: str, running: Running, plan: Plan) -> Figures:
    load = CeleryLoad(url, running.queue)
    try:
        load.sequential(WARM_UP)
        latencies = load.sequential(plan.sequential)
        seconds = load.burst(plan.jobs)
    finally:
        load.close()
    return {"latencies": [round(each, 6) for each in latencies], "rate": plan.jobs / seconds}


# -- amqp10 ----------------------------------------------------------------------------------------------------


def amqp10(_url: str, plan: Plan) -> list[Figures]:
    """Node and floor in turn, over AMQP 1.0, on brokers of their own: the embedded one, and Qpid Broker-J."""
    from tests.brokers.broker_j import PrivateBrokerJ
    from tests.brokers.embedded import PrivateEmbedded
    from tests.brokers.process import BrokerUnavailable

    rows = []
    for name, private in (("carod broker", PrivateEmbedded), ("Broker-J", PrivateBrokerJ)):
        try:
            with private() as started:
                rounds = _rounds(f"amqp10, {name}", ["floor", "node"], started.url, plan)
                rows.append({"broker": bare.product(started.url), "rounds": rounds})
        except BrokerUnavailable as problem:
            say(f"amqp10: {problem}")
    return rows


# -- slots -----------------------------------------------------------------------------------------------------


def slots(url: str, plan: Plan) -> list[Figures]:
    """Throughput by slots, of jobs that do nothing (bound by the CPU) and of jobs that sleep (bound by the slots)."""
    rows = []
    for count in plan.slots:
        with contenders.floor(url, count) as running:
            floor = asyncio.run(_burst(url, running, plan, TRUE, plan.jobs))
        with contenders.node(url, count) as running:
            idle = measure.memory(running.pid)
            rate = asyncio.run(_burst(url, running, plan, TRUE, plan.jobs))
            naps = count * plan.sleeps_per_slot
            nap_rate = asyncio.run(_burst(url, running, plan, _sleep(plan.sleep), naps))
        rows.append({
            "slots": count, "rate": rate, "floor_rate": floor, "sleep": plan.sleep, "sleep_rate": nap_rate,
            "idle_main_rss": idle.main_rss, "idle_tree_rss": idle.tree_rss, "idle_tree_pss": idle.tree_pss,
        })  # fmt: skip
        say(f"slots: {count:3d}: {rate:6.0f} jobs/s, floor {floor:6.0f}; of {plan.sleep:g} s {nap_rate:6.1f} jobs/s")
    return rows


async def _burst(url: str, running: Running, plan: Plan, headers: Mapping[str, str | int], jobs: int) -> float:
    async with Load.connected(url, running.queue) as load:
        await load.burst(WARM_UP)
        return jobs / await load.burst(jobs, headers)


def _sleep(seconds: float) -> dict[str, str | int]:
    return {**TRUE, "Cmd": '"/bin/sleep"', "Arguments": f'"{seconds:g}"'}


# -- backlog ---------------------------------------------------------------------------------------------------


def backlog(url: str, plan: Plan) -> Figures:
    """A queue full of jobs before any node is there; then one node, until it is empty or the limit is reached."""
    return asyncio.run(_backlog(url, plan))


async def _backlog(url: str, plan: Plan) -> Figures:
    queue = contenders.new_queue("backlog")
    async with Load.connected(url, queue) as load:
        await load.channel.queue_declare(queue, durable=True)
        began = time.perf_counter()
        for _ in range(plan.backlog):
            await load.submit()
        filled = time.perf_counter() - began
        say(f"backlog: {plan.backlog} jobs queued in {filled:.1f} s")
        async with _in_thread(contenders.node(url, plan.compare_slots, queue)) as running:
            at_first = measure.memory(running.pid)
            began = time.perf_counter()
            await _watch(load, plan, began + plan.backlog_limit)
            at_last = measure.memory(running.pid)
            await asyncio.to_thread(running.stop)  # nothing is under way while it is counted
            found = await asyncio.to_thread(broker.state, url, queue)
            left = found[0] if found else 0
            await load.wait(left, time.perf_counter() + 5)
    return {
        "queued": plan.backlog, "fill_seconds": filled, "finals": len(load.arrivals), "left_in_queue": left,
        "lost": len(load.submitted) - left, "duplicates": load.duplicates, "slots": plan.compare_slots,
        "seconds": load.arrivals[-1] - began, "rate": len(load.arrivals) / (load.arrivals[-1] - began),
        "rates": _rates(load.arrivals, began),
        "rss_first": at_first.main_rss, "rss_last": at_last.main_rss, "peak": at_last.main_peak,
    }  # fmt: skip


@asynccontextmanager
async def _in_thread(manager: AbstractContextManager[Running]) -> AsyncIterator[Running]:
    entered = await asyncio.to_thread(manager.__enter__)
    try:
        yield entered
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


async def _watch(load: Load, plan: Plan, until: float) -> None:
    shares = [plan.backlog * tenth // 10 for tenth in range(9, -1, -1)]
    for share in shares:
        if not await load.wait(share, until):
            say(f"backlog: stopped after {plan.backlog_limit:g} s with {len(load.submitted)} jobs to go")
            return
        say(f"backlog: {plan.backlog - share} of {plan.backlog} done")


def _rates(arrivals: list[float], began: float) -> list[float]:
    """Jobs a second in each tenth of the jobs."""
    tenths, last = [], began
    for number in range(1, 11):
        index = len(arrivals) * number // 10 - 1
        count = index + 1 - len(arrivals) * (number - 1) // 10
        tenths.append(count / (arrivals[index] - last))
        last = arrivals[index]
    return tenths


# -- results ---------------------------------------------------------------------------------------------------


def results(url: str, plan: Plan) -> list[Figures]:
    """Latency and peak memory by the size of an incompressible result, each size on a fresh node."""
    rows = []
    for size in plan.results:
        with contenders.node(url, plan.compare_slots) as running:
            time.sleep(SETTLE)
            idle = measure.memory(running.pid)
            exact = measure.reset_peak(running.pid)
            try:
                latencies, got = asyncio.run(_results(url, running, size))
            except LoadError as problem:
                say(f"results: {size} bytes: {problem}")
                rows.append({"size": size, "problem": str(problem)})
                continue
            peak = measure.memory(running.pid)
        rows.append({
            "size": size, "zip": got, "jobs": len(latencies), "p50": statistics.median(latencies),
            "idle_main": idle.main_rss, "idle_tree": idle.tree_rss, "peak_main": peak.main_peak,
            "peak_tree": peak.tree_peak, "peaks_from_idle": exact,
        })  # fmt: skip
        rise = (peak.main_peak - idle.main_rss) / size, (peak.tree_peak - idle.tree_rss) / size
        say(
            f"results: {size:9d} bytes: {statistics.median(latencies) * 1e3:8.1f} ms; peak above idle: "
            f"node {rise[0]:.2f} x, with spawners {rise[1]:.2f} x the result"
        )
    return rows


async def _results(url: str, running: Running, size: int) -> tuple[list[float], int]:
    headers: dict[str, str | int] = {
        "Cmd": '"/usr/bin/head"',
        "Arguments": f'"-c {size} /dev/urandom"',
        "Out": '"result"',
        "Requirements": "TRUE",
    }
    async with Load.connected(url, running.queue) as load:
        latencies = await load.sequential(max(3, min(20, 50_000_000 // size)), headers)
        return latencies, load.body_size


# -- idle ------------------------------------------------------------------------------------------------------


def idle(url: str, plan: Plan) -> Figures:
    """What a node that waits for work costs, with its default slots, before its first job and after some."""
    with contenders.node(url, None) as running:
        time.sleep(SETTLE)
        before = measure.memory(running.pid)
        used = measure.cpu(running.pid)
        time.sleep(plan.idle_seconds)
        used = measure.cpu(running.pid) - used
        asyncio.run(_burst(url, running, plan, TRUE, plan.jobs))
        time.sleep(SETTLE)
        after = measure.memory(running.pid)
    say(f"idle: {before.main_rss / 1e6:.1f} MB, with its spawners {before.tree_pss / 1e6:.1f} MB (PSS)")
    return {
        "processes": before.processes, "seconds": plan.idle_seconds, "cpu": used.main + used.below, "jobs": plan.jobs,
        "main_rss": before.main_rss, "tree_rss": before.tree_rss, "tree_pss": before.tree_pss,
        "main_rss_after": after.main_rss, "tree_rss_after": after.tree_rss, "tree_pss_after": after.tree_pss,
    }  # fmt: skip


SECTIONS = {"compare": compare, "amqp10": amqp10, "slots": slots, "backlog": backlog, "results": results, "idle": idle}
