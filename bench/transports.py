#!/usr/bin/env python3
"""Compares what carod.amqp is made of: aio-pika, plain aiormq, and carod.amqp itself, on one broker.

Each library runs in a process of its own and does the same: publish with confirm, one message after the other and
in a window; then consume and acknowledge what it has published. The messages look like a node's replies. Libraries
take turns; medians of the rounds are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import measure

HEADERS: dict[str, Any] = {f"Attribute{number}": f'"value {number}"' for number in range(12)}
HEADERS |= {f"Number{number}": number * 1000 for number in range(12)} | {"HasFileTransfer": True}
BODY = b"x" * 300
WINDOW = 50
PREFETCH = 50


class Library(Protocol):
    """What is measured of each."""

    async def open(self, url: str, queue: str) -> None: ...

    async def publish(self, message_id: str) -> None:
        """Publish, and come back when the broker has confirmed."""

    async def consume(self, seen: Callable[[str, object], None]) -> None:
        """Call `seen` with message id and a header of each message, and acknowledge it."""

    async def close(self) -> None: ...


class AioPika:
    async def open(self, url: str, queue: str) -> None:
        import aio_pika

        self.pika = aio_pika
        self.connection = await aio_pika.connect(url)
        self.channel = await self.connection.channel(publisher_confirms=True)
        await self.channel.set_qos(prefetch_count=PREFETCH)
        self.queue = await self.channel.declare_queue(queue)

    async def publish(self, message_id: str) -> None:
        message = self.pika.Message(BODY, headers=HEADERS, message_id=message_id, correlation_id=message_id)
        await self.channel.default_exchange.publish(message, self.queue.name)

    async def consume(self, seen: Callable[[str, object], None]) -> None:
        async def on_message(message: Any) -> None:
            seen(message.message_id, message.headers["Number1"])
            await message.ack()

        await self.queue.consume(on_message)

    async def close(self) -> None:
        await self.queue.delete(if_empty=False, if_unused=False)
        await self.connection.close()


class Aiormq:
    async def open(self, url: str, queue: str) -> None:
        import aiormq

        self.connection, self.queue = await aiormq.connect(url), queue
        self.channel = await self.connection.channel(publisher_confirms=True)
        await self.channel.basic_qos(prefetch_count=PREFETCH)
        await self.channel.queue_declare(queue)

    async def publish(self, message_id: str) -> None:
        from aiormq import spec

        properties = spec.Basic.Properties(headers=HEADERS, message_id=message_id, correlation_id=message_id)
        await self.channel.basic_publish(BODY, routing_key=self.queue, properties=properties)

    async def consume(self, seen: Callable[[str, object], None]) -> None:
        async def on_message(message: Any) -> None:
            seen(message.header.properties.message_id, message.header.properties.headers["Number1"])
            await self.channel.basic_ack(message.delivery.delivery_tag)

        await self.channel.basic_consume(self.queue, on_message)

    async def close(self) -> None:
        await self.channel.queue_delete(self.queue)
        await self.connection.close()


class Carod:
    async def open(self, url: str, queue: str) -> None:
        from carod import amqp

        self.amqp, self.queue = amqp, queue
        self.transport = amqp.open_transport(amqp.Endpoint(url))
        await self.transport.connect()
        await self.transport.declare(amqp.Queue(queue, durable=False))

    async def publish(self, message_id: str) -> None:
        message = self.amqp.Message(BODY, HEADERS, message_id, message_id)
        await self.transport.publish(message, self.amqp.Address("", self.queue))

    async def consume(self, seen: Callable[[str, object], None]) -> None:
        def on_delivery(delivery: Any) -> None:
            seen(delivery.message.message_id, delivery.message.headers["Number1"])
            delivery.settle(self.amqp.Outcome.ACCEPTED)

        await self.transport.consume(self.queue, on_delivery, credit=PREFETCH)

    async def close(self) -> None:
        await self.transport.delete(self.queue)
        await self.transport.close()


LIBRARIES: dict[str, Callable[[], Library]] = {"aio-pika": AioPika, "aiormq": Aiormq, "carod.amqp": Carod}


async def run(name: str, url: str, messages: int) -> dict[str, float]:
    """One library's turn: rates in messages a second, CPU in seconds a message, memory in bytes."""
    library, queue = LIBRARIES[name](), f"bench.transport.{uuid.uuid4().hex[:8]}"
    await library.open(url, queue)
    figures: dict[str, float] = {"rss": measure.memory(os.getpid()).main_rss}
    try:
        for _ in range(50):
            await library.publish(str(uuid.uuid4()))
        alone = messages // 5
        figures["alone"], figures["alone_cpu"] = await _timed(lambda: _one_by_one(library, alone), alone)
        figures["window"], figures["window_cpu"] = await _timed(lambda: _windowed(library, messages), messages)
        published = 50 + alone + messages
        figures["consume"], figures["consume_cpu"] = await _timed(lambda: _consumed(library, published), published)
    finally:
        await library.close()
    return figures


async def _timed(work: Callable[[], Awaitable[None]], count: int) -> tuple[float, float]:
    began, used = time.perf_counter(), time.process_time()
    await work()
    return count / (time.perf_counter() - began), (time.process_time() - used) / count


async def _one_by_one(library: Library, count: int) -> None:
    for _ in range(count):
        await library.publish(str(uuid.uuid4()))


async def _windowed(library: Library, count: int) -> None:
    async def publisher() -> None:
        for _ in range(count // WINDOW):
            await library.publish(str(uuid.uuid4()))

    await asyncio.gather(*(publisher() for _ in range(WINDOW)))


async def _consumed(library: Library, count: int) -> None:
    done, left = asyncio.Event(), count

    def seen(message_id: str, number: object) -> None:
        nonlocal left
        assert message_id and number == 1000
        left -= 1
        if not left:
            done.set()

    await library.consume(seen)
    await done.wait()


def compare(url: str, messages: int, rounds: int) -> None:
    """Let each take its turn in a process of its own."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in LIBRARIES}
    for number in range(rounds):
        for name in LIBRARIES:
            command = [sys.executable, __file__, "--broker", url, "--messages", str(messages), "--one", name]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows[name].append(json.loads(told))
            print(f"bench: round {number + 1}: {name}", file=sys.stderr)
    print("| | one by one | CPU | window of 50 | CPU | consume, ack | CPU | RSS, connected |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, turns in rows.items():
        middle = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        cells = [f"{middle[key]:.0f}/s | {middle[key + '_cpu'] * 1e6:.0f} us" for key in ("alone", "window", "consume")]
        print(f"| {name} | {' | '.join(cells)} | {middle['rss'] / 1e6:.1f} MB |")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tests/brokers/rabbitmq.py -- .venv/bin/python bench/transports.py",
    )
    parser.add_argument("--broker", metavar="URL", help="RabbitMQ (default: CAROD_BROKER, else this machine's)")
    parser.add_argument("--messages", type=int, default=10_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--one", choices=LIBRARIES, help="only this one, figures as JSON")
    options = parser.parse_args()
    url = options.broker or os.environ.get("CAROD_BROKER") or "amqp://guest:guest@127.0.0.1:5672/"
    if options.one:
        print(json.dumps(asyncio.run(run(options.one, url, options.messages))))
    else:
        compare(url, options.messages, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
