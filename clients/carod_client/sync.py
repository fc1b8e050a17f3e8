"""The same client without asyncio: for scripts, notebooks and threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar, Unpack

from carod.job import JobStatus, Reply
from carod_client.description import CommonOptions, JobOptions
from carod_client.errors import GridError
from carod_client.grid import Grid
from carod_client.handle import Handle
from carod_client.inputs import AnyPath, Inputs
from carod_client.results import Result
from carod_client.sweep import Args

T = TypeVar("T")


class SyncGrid:
    """`Grid` for code that blocks: `with SyncGrid(url) as grid: print(grid.run("/bin/echo",
    "Hello").stdout)`.

    Takes what `Grid` takes. Its event loop runs in a thread of its own; methods may be called from any other
    thread. Each blocks until it is done, and stops waiting at Ctrl-C.
    """

    def __init__(self, url: str | None = None, queue: str | None = None, **settings: Any) -> None:
        self._grid = Grid(url, queue, **settings)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Self:
        """Connect. Raises what `Grid` raises."""
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, args=(started,), name="carod_client", daemon=True)
        self._thread.start()
        started.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect. Jobs under way go on, their replies are awaited no more."""
        assert self._thread is not None and self._loop is not None and self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop = None

    @property
    def queue(self) -> str:
        """The job queue's name."""
        return self._grid.queue

    def run(self, cmd: AnyPath, *args: str, **options: Unpack[JobOptions]) -> Result:
        """Run a job and return its result; see `Grid.run`."""
        return self._call(self._grid.run(cmd, *args, **options))

    def submit(self, cmd: AnyPath, *args: str, **options: Unpack[JobOptions]) -> SyncHandle:
        """Send a job; see `Grid.submit`."""
        return SyncHandle(self, self._call(self._grid.submit(cmd, *args, **options)))

    def map(
        self,
        cmd: AnyPath,
        items: Iterable[T],
        *,
        args: Args[T] | None = None,
        inputs: Inputs | Callable[[T], Inputs] = (),
        attributes: Mapping[str, Any] | Callable[[T], Mapping[str, Any]] = MappingProxyType({}),
        env: Mapping[str, str] | Callable[[T], Mapping[str, str]] = MappingProxyType({}),
        stdin: bytes | Callable[[T], bytes] | None = None,
        in_flight: int | None = None,
        ordered: bool = False,
        on_error: Callable[[GridError], None] | None = None,
        **options: Unpack[CommonOptions],
    ) -> Iterator[Result]:
        """Run `cmd` once for each item; see `Grid.map`. Items are drawn, and functions of them run, in its
        thread.
        """
        results = self._grid.map(
            cmd, items, args=args, inputs=inputs, attributes=attributes, env=env, stdin=stdin,
            in_flight=in_flight, ordered=ordered, on_error=on_error, **options,
        )  # fmt: skip
        try:
            while (result := self._call(anext(results, None))) is not None:
                yield result
        finally:
            if self._loop is not None:
                self._call(results.aclose())

    def _live(self, started: Future[None]) -> None:
        with asyncio.Runner() as runner:
            try:
                runner.run(self._main(started))
            except BaseException as error:
                if started.done():
                    raise
                started.set_exception(error)

    async def _main(self, started: Future[None]) -> None:
        self._stop = asyncio.Event()
        async with self._grid:
            self._loop = asyncio.get_running_loop()
            started.set_result(None)
            await self._stop.wait()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            coroutine.close()
            raise GridError("this SyncGrid is not open; use it inside `with SyncGrid(...) as grid:`")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class SyncHandle:
    """A submitted job: `result()` waits for it, iteration gives its updates as they come."""

    def __init__(self, grid: SyncGrid, handle: Handle) -> None:
        self._grid, self._handle = grid, handle
        self.id = handle.id

    def __repr__(self) -> str:
        return repr(self._handle)

    def __iter__(self) -> Iterator[Reply]:
        """Each reply, from the first one up to and including the last; see `Handle`."""
        replies = aiter(self._handle)
        try:
            while (reply := self._grid._call(anext(replies, None))) is not None:
                yield reply
        finally:
            if self._grid._loop is not None:
                self._grid._call(replies.aclose())  # type: ignore[attr-defined]

    @property
    def done(self) -> bool:
        """Whether its result, or what became of it, is known."""
        return self._handle.done

    @property
    def status(self) -> JobStatus:
        """The last status heard of."""
        return self._handle.status

    def result(self) -> Result:
        """Wait for the result. Raises what `await handle` raises."""
        return self._grid._call(self._handle._wait())

    def remove(self, reason: str = "") -> None:
        """Have the node that runs the job stop and remove it; see `Handle.remove`."""
        self._grid._call(self._handle.remove(reason))

    def forget(self) -> None:
        """Wait for nothing more; the job goes on."""
        if self._grid._loop is not None:
            self._grid._loop.call_soon_threadsafe(self._handle.forget)
