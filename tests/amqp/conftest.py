"""The broker in the box, for tests of this room."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from carod.amqp.embedded import EmbeddedBroker


@dataclass(frozen=True)
class Embedded:
    """Where it listens."""

    url: str


@pytest.fixture(scope="session")
def embedded() -> Iterator[Embedded]:
    """An embedded broker in a thread of its own: tests come and go with their event loops."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    broker = EmbeddedBroker()
    asyncio.run_coroutine_threadsafe(broker.__aenter__(), loop).result()
    try:
        yield Embedded(broker.url)
    finally:
        asyncio.run_coroutine_threadsafe(broker.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
