"""The database's threads: groups of works, works that fail, and what is there after a crash."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qmf_agent.jobqueue.store import Store, StoreError

SCHEMA = "CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY)"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(str(tmp_path / "q.db"), SCHEMA)
    yield store
    await store.close()


def add(number: int):
    def work(db: sqlite3.Connection) -> int:
        db.execute("INSERT INTO t VALUES (?)", (number,))
        return number

    return work


def numbers(db: sqlite3.Connection) -> list[int]:
    return [row[0] for row in db.execute("SELECT n FROM t ORDER BY n")]


async def test_what_is_written_can_be_read(store: Store) -> None:
    assert await asyncio.gather(*(store.write(add(number)) for number in range(1000))) == list(range(1000))
    assert await store.read(numbers) == list(range(1000))


async def test_work_that_fails_is_undone_and_costs_the_others_nothing(store: Store) -> None:
    def fails(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t VALUES (100)")
        raise ValueError("no")

    results = await asyncio.gather(
        store.write(add(1)), store.write(fails), store.write(add(2)), store.write(add(1)), return_exceptions=True
    )
    assert results[0] == 1
    assert isinstance(results[1], ValueError)
    assert results[2] == 2
    assert isinstance(results[3], sqlite3.IntegrityError)
    assert await store.read(numbers) == [1, 2]


async def test_a_reader_can_not_write(store: Store) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await store.read(add(1))


async def test_what_waits_is_written_when_it_is_closed(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "q.db"), SCHEMA)
    writing = [asyncio.ensure_future(store.write(add(number))) for number in range(50)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*writing) == list(range(50))


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.db").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(StoreError, match=r"q\.db.*not a database"):
        Store(str(tmp_path / "q.db"), SCHEMA)


KILLED = """
import asyncio, os, sys
from qmf_agent.jobqueue.store import Store
async def main():
    store = Store(sys.argv[1], {schema!r})
    for number in range(10_000):
        await store.write(lambda db: db.execute("INSERT INTO t VALUES (?)", (number,)))
        os.write(1, b"%d\\n" % number)
asyncio.run(main())
"""


def answered_before_a_kill(path: Path) -> list[int]:
    """What a process that writes says was written before it was killed."""
    command = [sys.executable, "-c", KILLED.format(schema=SCHEMA), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        answered = [int(process.stdout.readline()) for _ in range(200)]
        process.kill()
        return answered + [int(line) for line in process.stdout.read().splitlines()]


async def test_what_was_answered_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    answered = await asyncio.to_thread(answered_before_a_kill, path)
    store = Store(str(path), SCHEMA)
    there = await store.read(numbers)
    await store.close()
    assert there[: len(answered)] == answered
    assert len(there) - len(answered) in (0, 1)
