"""Grids for this room's tests. What takes hours as a whole is marked `soak` and runs only where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.faults.grid import Grid


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in str(config.getoption("markexpr")):
        return
    left = [item for item in items if item.get_closest_marker("soak")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


@pytest.fixture
def new_grid() -> Iterator[Callable[..., Grid]]:
    """Makes grids, on whichever broker; their nodes end with the test."""
    with ExitStack() as stack:

        def make(broker: PrivateRabbitMQ, queue: str, **options: Any) -> Grid:
            grid = Grid(broker, queue, **options)
            stack.callback(_close, grid)
            return grid

        yield make


def _close(grid: Grid) -> None:
    try:
        grid.close()
    finally:
        for node in grid.nodes:  # shown if the test failed
            print(f"-- log of process {node.pid}:", *node.lines, sep="\n")


@pytest.fixture
def grid(rabbitmq: PrivateRabbitMQ, queue_name: str, new_grid: Callable[..., Grid]) -> Grid:
    """A grid without nodes yet, on the session's own broker."""
    return new_grid(rabbitmq, queue_name)
