"""What the benchmark asks of the broker itself. Each call is a connection of its own: none is on a measured path."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import aiormq
from aiormq.abc import AbstractConnection
from aiormq.exceptions import ChannelClosed

Answer = TypeVar("Answer")


def _ask(url: str, question: Callable[[AbstractConnection], Awaitable[Answer]]) -> Answer:
    async def ask() -> Answer:
        connection = await aiormq.connect(url)
        try:
            return await question(connection)
        finally:
            await connection.close()

    return asyncio.run(ask())


def state(url: str, queue: str) -> tuple[int, int] | None:
    """Messages that wait in a queue, and its consumers; None when there is no such queue."""

    async def question(connection: AbstractConnection) -> tuple[int, int] | None:
        channel = await connection.channel()
        try:
            found = await channel.queue_declare(queue, passive=True)
        except ChannelClosed:
            return None
        return found.message_count or 0, found.consumer_count or 0

    return _ask(url, question)


def delete(url: str, queues: Iterable[str], exchanges: Iterable[str] = ()) -> None:
    """Delete what is there of these."""

    async def question(connection: AbstractConnection) -> None:
        for method, names in (("queue_delete", queues), ("exchange_delete", exchanges)):
            for name in names:
                channel = await connection.channel()
                with suppress(ChannelClosed):
                    await getattr(channel, method)(name)

    _ask(url, question)


def product(url: str) -> str:
    """Name and version, as the broker gives them."""

    async def question(connection: AbstractConnection) -> str:
        told = connection.server_properties
        return " ".join(_text(told.get(name, "")) for name in ("product", "version")).strip()

    return _ask(url, question)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
