"""One command over many items, with a bound on the jobs that are out at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from carod.amqp import Body
from carod_client import description
from carod_client.description import CommonOptions, JobOptions, Parcel
from carod_client.errors import BadJob, GridError
from carod_client.handle import Handle
from carod_client.inputs import AnyPath, Inputs, release
from carod_client.results import Result

if TYPE_CHECKING:
    from carod_client.grid import Grid

T = TypeVar("T")
Args: TypeAlias = Sequence[str] | Callable[[T], Sequence[str]]


@dataclass(slots=True)
class Sweep(Generic[T]):
    """What `Grid.map` was asked for; see there."""

    grid: Grid
    cmd: AnyPath
    items: Iterable[T]
    args: Args[T] | None
    inputs: Inputs | Callable[[T], Inputs]
    attributes: Mapping[str, Any] | Callable[[T], Mapping[str, Any]]
    env: Mapping[str, str] | Callable[[T], Mapping[str, str]]
    stdin: bytes | Callable[[T], bytes] | None
    in_flight: int
    ordered: bool
    on_error: Callable[[GridError], None] | None
    common: CommonOptions
    _packed: tuple[Parcel, Body] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.in_flight, bool) or self.in_flight < 1:
            raise BadJob(f"in_flight={self.in_flight!r} is not a number of jobs, 1 or more")
        if isinstance(self.args, str):
            raise BadJob(f"args={self.args!r} is one text; write a list: args=[{self.args!r}]")

    async def run(self) -> AsyncGenerator[Result, None]:
        """Results as they come, or in the items' order. A new job goes out only as a result is taken."""
        todo = enumerate(self.items)
        waiting: dict[int, tuple[T, Handle]] = {}
        finished: dict[int, None] = {}  # in the order in which they ended
        wake = asyncio.Event()
        exhausted, next_index = False, 0
        try:
            while True:
                index = next_index if self.ordered else next(iter(finished), -1)
                if index in finished:
                    del finished[index]
                    next_index += 1
                    result = self._outcome(index, *waiting.pop(index))
                    if result is not None:
                        yield result
                elif not exhausted and len(waiting) < self.in_flight:
                    exhausted = not await self._submit_next(todo, waiting, finished, wake)
                elif waiting:
                    wake.clear()
                    await wake.wait()
                else:
                    return
        finally:
            for _, handle in waiting.values():
                handle.forget()
            if self._packed is not None:
                release(self._packed[1])

    async def _submit_next(
        self,
        todo: Iterator[tuple[int, T]],
        waiting: dict[int, tuple[T, Handle]],
        finished: dict[int, None],
        wake: asyncio.Event,
    ) -> bool:
        """Send the next item's job; False when there is no next one."""
        for index, item in todo:

            def done(_: Handle, index: int = index) -> None:
                finished[index] = None
                wake.set()

            try:
                waiting[index] = item, await self._send(item, done)
            except GridError as error:
                error.item, error.index = item, index
                if self.on_error is None or not isinstance(error, BadJob):
                    raise  # without a broker or a queue the others would fare no better
                waiting[index] = item, Handle.failed(self.grid, error)
                done(waiting[index][1])
            return True
        return False

    async def _send(self, item: T, done: Callable[[Handle], None]) -> Handle:
        options = cast(
            JobOptions, {**self.common, "attributes": _of(self.attributes, item), "env": _of(self.env, item)}
        )
        if self._packed is not None:
            return await self.grid.send(self._packed[0], self._args(item), self._packed[1], options, done)
        parcel = description.parcel(self.cmd, _of(self.inputs, item), _of(self.stdin, item))
        body = parcel.body() if parcel.at_once else await asyncio.to_thread(parcel.body)
        if not callable(self.inputs) and not callable(self.stdin):
            self._packed = parcel, body  # the same for all
            return await self.grid.send(parcel, self._args(item), body, options, done)
        try:
            return await self.grid.send(parcel, self._args(item), body, options, done)
        finally:
            release(body)

    def _args(self, item: T) -> Sequence[str]:
        if self.args is None:
            return [str(item)]
        if callable(self.args):
            return self.args(item)
        return [argument.replace("{item}", str(item)) for argument in self.args]

    def _outcome(self, index: int, item: T, handle: Handle) -> Result | None:
        try:
            return replace(handle.result, item=item, index=index)
        except GridError as error:
            error.item, error.index = item, index
            if self.on_error is None:
                raise
            self.on_error(error)
            return None


def _of(what: Any, item: object) -> Any:
    return what(item) if callable(what) else what
