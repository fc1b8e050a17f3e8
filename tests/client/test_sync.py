"""The client for code without asyncio."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from carod_client import BrokerLost, GridError, JobHeld, JobStatus, SyncGrid

PATIENCE = 60.0


def test_run_blocks_until_the_result(broker_url: str, node_queue: str) -> None:
    with SyncGrid(broker_url, node_queue) as grid:
        assert grid.run("/bin/echo", "hi", timeout=PATIENCE).stdout == b"hi\n"


def test_map_gives_results_and_may_be_left_early(broker_url: str, node_queue: str) -> None:
    with SyncGrid(broker_url, node_queue) as grid:
        assert [r.item for r in grid.map("/bin/true", range(5), ordered=True, timeout=PATIENCE)] == [0, 1, 2, 3, 4]
        for _ in grid.map("/bin/true", range(100), timeout=PATIENCE):
            break
        assert grid.run("/bin/true", timeout=PATIENCE).ok


def test_a_handle_gives_updates_and_the_result(broker_url: str, node_queue: str) -> None:
    with SyncGrid(broker_url, node_queue) as grid:
        handle = grid.submit("/bin/true", timeout=PATIENCE)
        statuses = [reply.status for reply in handle]
        assert (statuses[0], statuses[-1]) == (JobStatus.RUNNING, JobStatus.COMPLETED)
        assert (handle.done, handle.status, handle.result().job_id) == (True, JobStatus.COMPLETED, handle.id)


def test_errors_are_the_same_as_without_the_facade(broker_url: str, node_queue: str, tmp_path: Path) -> None:
    with SyncGrid(broker_url, node_queue) as grid, pytest.raises(JobHeld):
        grid.run("/no-such-program", timeout=PATIENCE)
    with pytest.raises(GridError, match="not open"):
        grid.run("/bin/true")
    with pytest.raises(BrokerLost), SyncGrid("amqp://guest:guest@127.0.0.1:1/"):
        pass


def test_leaving_it_ends_its_thread(broker_url: str, node_queue: str) -> None:
    with SyncGrid(broker_url, node_queue):
        assert "carod_client" in {thread.name for thread in threading.enumerate()}
    assert "carod_client" not in {thread.name for thread in threading.enumerate()}


def test_several_threads_may_share_it(broker_url: str, node_queue: str) -> None:
    outputs: dict[int, bytes] = {}
    with SyncGrid(broker_url, node_queue) as grid:

        def work(n: int) -> None:
            outputs[n] = grid.run("/bin/echo", str(n), timeout=PATIENCE).stdout

        threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outputs == {n: b"%d\n" % n for n in range(5)}
