"""The database's two threads: one writes, in groups; one reads, beside it.

Whatever waits when the writer is free becomes one transaction: the disk is asked once for all of it, however many
submissions and replies come at a time. Work that fails is undone by itself, and costs the others nothing. Work that may
be lost with the machine, though not with the process, does not wait for the disk.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
OnDone = Callable[[T], None]
OnFailure = Callable[[BaseException], None]
Item = tuple[Work[Any], OnDone[Any], OnFailure, bool]
GROUP = 256
"""Works in one transaction at most: none of them is answered before it is committed."""


class StoreError(Exception):
    """The database can't be opened or written; the text says why and how to mend it."""


class Store:
    """An sqlite3 database in WAL mode that one process owns. Use in the event loop that made it.

    Raises StoreError when the file can't be used, also when another agent has it.
    """

    def __init__(self, path: str, schema: str, *, fsync: bool = True) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        try:
            self._db = self._open(fsync)
            self._db.execute("PRAGMA locking_mode = NORMAL")
            self._db.executescript(schema)
        except sqlite3.Error as error:
            raise StoreError(f"job queue {path!r}: {error}") from None
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._fsync, self._waits_for_disk = fsync, fsync
        self._writer = threading.Thread(target=self._write, name="job queue", daemon=True)
        self._writer.start()
        self._readers = ThreadPoolExecutor(1, "job queue reader")
        self._reading: sqlite3.Connection | None = None

    def _open(self, fsync: bool) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=512)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
        db.execute("PRAGMA cache_size = -32000")
        return db

    # -- from the event loop -----------------------------------------------------------------------------------

    def submit(self, work: Work[T], done: OnDone[T], failed: OnFailure, *, durable: bool = True) -> None:
        """Have work done in the next transaction; `done` is called with its result once that is committed.

        Works are done in the order they came in, and so are the calls of `done`. What work raises goes to `failed`,
        as does an sqlite3.Error of the commit. What is not `durable` may be lost if the machine crashes.
        """
        self._waiting.put((work, done, failed, durable))

    async def write(self, work: Work[T]) -> T:
        """Do work in a transaction: its result, once that is committed. Raises what work raises."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.submit(work, lambda result: _resolve(future, result), lambda error: _fail(future, error))
        return await future

    async def read(self, work: Work[T]) -> T:
        """Do work that only reads, on what is committed."""
        return await self._loop.run_in_executor(self._readers, self._read, work)

    async def close(self) -> None:
        """Write what waits, and close."""
        self._waiting.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        if self._reading is not None:
            self._reading.close()
        self._db.close()

    # -- in the threads ----------------------------------------------------------------------------------------

    def _read(self, work: Work[T]) -> T:
        if self._reading is None:
            self._reading = self._open(False)
            self._reading.execute("PRAGMA query_only = TRUE")
        return work(self._reading)

    def _write(self) -> None:
        ended = False
        while not ended:
            group = [self._waiting.get()]
            while len(group) < GROUP:
                try:
                    group.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            ended = None in group
            calls = self._transact([item for item in group if item is not None])
            self._loop.call_soon_threadsafe(_call_all, calls)

    def _transact(self, group: list[Item]) -> list[tuple[Callable[[Any], None], Any]]:
        """One transaction; what is to be called afterwards, and with what."""
        calls: list[tuple[Callable[[Any], None], Any]] = []
        db = self._db
        try:
            self._choose_durability(any(durable for *_, durable in group))
            db.execute("BEGIN IMMEDIATE")
            for work, done, failed, _ in group:
                db.execute("SAVEPOINT work")
                try:
                    calls.append((done, work(db)))
                except BaseException as error:
                    db.execute("ROLLBACK TO work")
                    calls.append((failed, error))
                db.execute("RELEASE work")
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            return [(failed, error) for _, _, failed, _ in group]
        return calls

    def _choose_durability(self, durable: bool) -> None:
        wait = self._fsync and durable
        if wait != self._waits_for_disk:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if wait else 'NORMAL'}")
            self._waits_for_disk = wait


def _call_all(calls: list[tuple[Callable[[Any], None], Any]]) -> None:
    for call, argument in calls:
        call(argument)


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
