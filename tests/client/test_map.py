"""Sweeps: many jobs, a bound on those that are out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from carod_client import BadJob, Grid, GridError, JobError, JobFailed, Result

from tests.client.conftest import Gate, own_tasks

PATIENCE = 60.0


async def test_each_item_gives_one_result_that_knows_it(grid: Grid) -> None:
    results = [result async for result in grid.map("/bin/echo", "abcde", timeout=PATIENCE)]
    assert sorted((r.index, r.item, r.stdout) for r in results) == [
        (n, item, item.encode() + b"\n") for n, item in enumerate("abcde")
    ]


async def test_ordered_results_come_in_the_items_order(grid: Grid) -> None:
    delays = ["0.3", "0", "0.1", "0"]
    items = [r.item async for r in grid.map("/bin/sleep", delays, ordered=True, timeout=PATIENCE)]
    assert items == delays


async def test_unordered_results_come_as_they_end(grid: Grid, gate: Gate) -> None:
    items = []
    async for result in grid.map("/bin/cat", [gate.path, "/dev/null"], timeout=PATIENCE):
        items.append(result.item)
        if len(items) == 1:
            await gate.open()
    assert items == ["/dev/null", gate.path]


@pytest.mark.parametrize("ordered", [False, True])
async def test_no_more_jobs_are_out_than_asked_for_and_no_item_is_drawn_early(grid: Grid, ordered: bool) -> None:
    drawn, taken, most = 0, 0, 0

    def items() -> Iterator[int]:
        nonlocal drawn, most
        for n in range(20):
            drawn += 1
            most = max(most, drawn - taken)
            yield n

    async for _ in grid.map("/bin/true", items(), in_flight=3, ordered=ordered, timeout=PATIENCE):
        taken += 1
    assert (taken, most) == (20, 3)


async def test_args_inputs_and_environment_may_be_functions_of_the_item(grid: Grid) -> None:
    results = grid.map(
        "/bin/sh", [1, 2],
        args=lambda n: ["-c", f"cat in; echo $N {n}"],
        inputs=lambda n: {"in": b"input %d " % n}, env=lambda n: {"N": str(n)},
        attributes=lambda n: {"ProcId": n}, ordered=True, timeout=PATIENCE,
    )  # fmt: skip
    assert [(r.stdout, r.ad["ProcId"]) async for r in results] == [(b"input 1 1 1\n", 1), (b"input 2 2 2\n", 2)]


async def test_shared_inputs_are_packed_once_and_reach_every_job(grid: Grid, tmp_path: Path) -> None:
    (tmp_path / "table").write_text("a\nb\nc\n")
    results = grid.map(
        "/usr/bin/head", range(1, 4), args=["-n", "{item}", "table"],
        inputs=[tmp_path / "table"], ordered=True, timeout=PATIENCE,
    )  # fmt: skip
    assert [r.stdout.count(b"\n") async for r in results] == [1, 2, 3]


async def test_a_job_without_result_ends_the_sweep_with_its_item(grid: Grid) -> None:
    with pytest.raises(JobFailed, match="exit code 2") as caught:
        async for _ in grid.map(
            "/bin/sh", [0, 2, 0], args=["-c", "exit {item}"], check=True, ordered=True, timeout=PATIENCE
        ):
            pass
    assert (caught.value.item, caught.value.index) == (2, 1)


async def test_with_on_error_the_others_go_on(grid: Grid) -> None:
    errors: list[GridError] = []
    results: list[Result] = [
        result
        async for result in grid.map(
            "/bin/cat",
            ["there", "missing"],
            inputs=lambda name: [(name, b"x")] if name == "there" else [name],
            on_error=errors.append,
            timeout=PATIENCE,
        )
    ]
    assert [r.item for r in results] == ["there"]
    assert [(type(error), error.item) for error in errors] == [(BadJob, "missing")]


async def test_leaving_a_sweep_early_leaves_nothing_behind(grid: Grid) -> None:
    async with aclosing(grid.map("/bin/true", range(100), in_flight=10, timeout=PATIENCE)) as results:
        async for _ in results:
            break
    assert (own_tasks(), grid._handles) == (1, {})


async def test_a_cancelled_sweep_leaves_nothing_behind(grid: Grid) -> None:
    async def sweep() -> None:
        async for _ in grid.map("/bin/sleep", ["0.2"] * 20, in_flight=10):
            started.set()

    started = asyncio.Event()
    task = asyncio.create_task(sweep())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (own_tasks(), grid._handles) == (1, {})


async def test_a_bound_below_one_is_refused(grid: Grid) -> None:
    with pytest.raises(BadJob, match="in_flight=0"):
        grid.map("/bin/true", [], in_flight=0)


async def test_no_items_make_no_jobs(grid: Grid) -> None:
    assert [r async for r in grid.map("/bin/true", [])] == []


async def test_an_error_of_a_sweep_is_a_job_error_with_its_ad(grid: Grid) -> None:
    errors: list[GridError] = []
    async for _ in grid.map("/no-such-program", [1], on_error=errors.append, timeout=PATIENCE):
        pass
    assert isinstance(errors[0], JobError)
    assert errors[0].ad is not None
