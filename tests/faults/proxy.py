"""A network of the test's own between a node and its broker: it passes bytes on, stalls, or cuts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Listens on loopback for one broker, or for the first of several that answers."""

    def __init__(self, *urls: str) -> None:
        self._targets = [(urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 5672) for url in urls]
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._heard = asyncio.Event()
        self._heard.set()
        self._last = b""
        self.reached = asyncio.Event()
        """Set when what `stall_at` waits for has come."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._links: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"amqp://guest:guest@127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def stall(self) -> None:
        """Take what comes and pass nothing on, in either direction; new connections hang. Nobody is told."""
        self._flowing.clear()

    def stall_at(self, last: bytes) -> None:
        """Stall, in both directions, when these bytes are about to be passed on to the broker."""
        self._last = last

    def deafen(self) -> None:
        """Pass nothing on to the node; the broker hears it."""
        self._heard.clear()

    def flow(self) -> None:
        """Pass on again, also what was held up."""
        self._last = b""
        self._heard.set()
        self._flowing.set()

    def cut(self) -> None:
        """Drop all connections and what they hold."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        self._writers.add(writer)
        try:
            await self._flowing.wait()
            there, back = await self._connect()
            self._writers.add(back)
            try:
                await asyncio.gather(self._pump(reader, back, up=True), self._pump(there, writer))
            finally:
                self._writers.discard(back)
                back.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(link)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for host, port in self._targets:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(host, port)
        raise ConnectionRefusedError("no broker answers")

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool = False) -> None:
        while data := await reader.read(1 << 16):
            if up and self._last and self._last in data:
                self.stall()
                self.reached.set()
            await self._flowing.wait()
            if not up:
                await self._heard.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("the other end hung up")
