"""Thousands of jobs through three nodes, with a random fault every second: nothing is lost, nothing answered twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
from collections import Counter
from collections.abc import Callable, Coroutine

import pytest

from tests.faults.grid import Client, Grid, kill
from tests.faults.proxy import Proxy
from tests.node.conftest import Node

SEED_VARIABLE = "CAROD_FAULTS_SEED"
ADOPTION_WAIT = 10
"""Seconds: who is killed or cut off is back before that, with the results that the broker may have had of it."""
STALL_MAX = 4.0


async def test_no_job_is_lost_or_answered_twice_in_a_storm_of_faults(grid: Grid) -> None:
    """A sample of what the soak does with ten thousand jobs."""
    await storm(grid, 1000)


@pytest.mark.soak
async def test_no_job_of_ten_thousand_is_lost_or_answered_twice_in_a_storm_of_faults(grid: Grid) -> None:
    await storm(grid, 10_000)


async def storm(grid: Grid, count: int) -> None:
    seed = os.environ.get(SEED_VARIABLE) or secrets.token_hex(4)
    print(f"{SEED_VARIABLE}={seed}")
    dice = random.Random(seed)
    async with Proxy(grid.broker.url) as network, grid.client() as client:
        jobs = [grid.job(f"sleep {dice.uniform(0, 0.25):.3f}") for _ in range(count)]
        weather = Weather(grid, network, dice)
        ids = await client.submit_all(jobs)
        await weather.start()
        faults = asyncio.create_task(weather.blow())
        asyncio.get_running_loop().call_later(60 + count * 0.05, weather.end)  # so that it ends on any machine
        try:
            await client.all_final(ids, 120 + count * 0.1)
        finally:
            weather.end()
            await faults
        await grid.settled()
        report = weather.report(client, ids)
        print(*(f"{name}: {value}" for name, value in report.items()), sep="\n")
        assert report["lost"] == 0
        assert not report["answered twice"]
        assert not report["not completed"]
        assert not report["started again without a node's death"]
        assert not report["wrongly counted"]


class Weather:
    """The faults, and what came of them."""

    def __init__(self, grid: Grid, network: Proxy, dice: random.Random) -> None:
        self._grid, self._network, self._dice = grid, network, dice
        self._nodes: dict[str, Node] = {}
        self._over = asyncio.Event()
        self._restarting, self._stalling = asyncio.Lock(), asyncio.Lock()
        self._dead: list[Node] = []
        """Lives that ended with jobs in hand: killed, or told to stop while jobs ran."""
        self.blown: Counter[str] = Counter()

    async def start(self) -> None:
        await asyncio.gather(*(self._begin(name) for name in ("one", "two", "three")))

    async def _begin(self, name: str) -> None:
        url = self._network.url if name == "three" else ""
        node = await asyncio.to_thread(
            self._grid.start, name, 4, url=url, ready=False, ADOPTION_WAIT=ADOPTION_WAIT, BROKER_HEARTBEAT=2,
            SHUTDOWN_GRACEFUL_TIMEOUT=0.1, KILLING_TIMEOUT=1, MAX_JOB_STARTS=1000,
        )  # fmt: skip
        await node.seen("ready")
        self._nodes[name] = node

    async def blow(self) -> None:
        """A fault a second, on one node that is up or on the broker, whatever the last one is still doing."""
        faults: list[tuple[Callable[[str], Coroutine[object, object, None]], int]] = [
            (self.killed, 3), (self.hung_up, 3), (self.stopped, 2), (self.broker_restarted, 1), (self.stalled, 2),
        ]  # fmt: skip
        choices, weights = zip(*faults, strict=True)
        async with asyncio.TaskGroup() as tasks:
            while not self._over.is_set():
                (fault,) = self._dice.choices(choices, weights)
                up = sorted(self._nodes)
                busy = {self.broker_restarted: self._restarting, self.stalled: self._stalling}.get(fault)
                if up and not (busy and busy.locked()) and (fault != self.stalled or "three" in up):
                    self.blown[fault.__name__] += 1
                    tasks.create_task(fault(self._dice.choice(up)))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), 1)

    async def killed(self, name: str) -> None:
        node = self._nodes.pop(name)
        kill(node)
        self._dead.append(node)
        await self._begin(name)

    async def stopped(self, name: str) -> None:
        node = self._nodes.pop(name)
        node.send(signal.SIGTERM)
        await node.ended()
        self._dead.append(node)
        await self._begin(name)

    async def hung_up(self, name: str) -> None:
        async with self._restarting:  # there must be a broker to ask
            await self._grid.close_connections(name)

    async def broker_restarted(self, _: str) -> None:
        async with self._restarting:
            await asyncio.to_thread(self._grid.broker.ctl, "stop_app")
            await asyncio.to_thread(self._grid.broker.ctl, "start_app")

    async def stalled(self, _: str) -> None:
        """Long enough for the broker to give the node up, not for its jobs to be started elsewhere."""
        async with self._stalling:
            node = self._nodes["three"]
            connections = len(node.events("ready"))
            self._network.stall()
            await asyncio.sleep(self._dice.uniform(0.5, STALL_MAX))
            self._network.cut()
            self._network.flow()
            with contextlib.suppress(AssertionError):  # it was killed meanwhile
                await node.seen("ready", connections + 1)

    def end(self) -> None:
        """No further faults; `blow` returns when those that blow are over."""
        self._over.set()

    def report(self, client: Client, ids: list[str]) -> dict[str, object]:
        finals, starts = client.finals, self._grid.starts()
        again = [job for job in ids if starts[job] > 1]
        # A result that waited in a journal can't know of starts since; it was the first's, and wins.
        kept = {event["job"] for node in self._grid.nodes for event in node.events("result of an earlier life")}
        started_by_dead = Counter(event["job"] for node in self._dead for event in node.events("job running"))
        return {
            "jobs": len(ids),
            "faults": dict(self.blown),
            "lost": sum(not finals[job] for job in ids),
            "answered twice": [job for job in ids if len(finals[job]) > 1],
            "not completed": [job for job in ids if any(reply.status != 4 for reply in finals[job].values())],
            "final replies that came twice (the same message)": client.repeated,
            "started again": len(again),
            "started again without a node's death": [job for job in again if starts[job] > started_by_dead[job] + 1],
            "wrongly counted": [
                job
                for job in ids
                if any(reply.ad["NumJobStarts"] < starts[job] for reply in finals[job].values()) and job not in kept
            ],
        }
