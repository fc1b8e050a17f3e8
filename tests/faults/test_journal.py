"""What a node's journal gives back to its next life, whatever moment the last one ended at."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from carod.amqp import Message
from carod.node.journal import INLINE, Journal


def result(job: str, body: bytes = b"zip") -> Message:
    headers = {"JobStatus": 4, "Blob": b"\xff\x00", "List": [1, "two", None]}
    return Message(body, headers, f"reply-to-{job}", job, durable=True)


def left(journal: Journal) -> dict[str, tuple[Message, str]]:
    return {key: (message, reply_to) for message, reply_to, key in journal.unconfirmed()}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "node.journal")


def test_a_result_that_was_not_confirmed_is_there_in_the_next_life(path: str) -> None:
    journal = Journal(path)
    journal.started("a", os.getpid())
    assert journal.sending(result("a"), "replies", "a")
    again = Journal(path)
    assert again.holds("a")
    assert not again.is_done("a")
    assert left(again) == {"a": (result("a"), "replies")}
    again.finished("a", "a")
    again.dispatched("a")
    third = Journal(path)
    assert third.is_done("a")
    assert not left(third)


def test_a_result_that_was_confirmed_is_not_sent_by_the_next_life(path: str) -> None:
    journal = Journal(path)
    for number in range(5):
        journal.sending(result(f"job{number}"), "replies", f"job{number}")
        journal.finished(f"job{number}", f"job{number}")
    journal.sending(result("moved"), "replies", "moved")
    journal.ended("moved")
    again = Journal(path)
    assert not left(again)
    assert all(again.is_done(f"job{number}") for number in range(5))
    assert not again.is_done("moved")


def test_a_result_written_over_a_longer_one_is_whole(path: str) -> None:
    journal = Journal(path)
    journal.sending(result("long", b"x" * 10_000), "replies", "long")
    journal.finished("long", "long")
    journal.sending(result("short", b"y"), "replies", "short")
    assert left(Journal(path)) == {"short": (result("short", b"y"), "replies")}


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_a_large_result_is_kept_beside_the_others(path: str, kind: str) -> None:
    journal, body = Journal(path), b"z" * (INLINE + 1)
    message = result("large", body)
    if kind == "file":
        message.body = io.BytesIO(body)
    assert not journal.sending(message, "replies", "large")
    journal.keep(message, "replies", "large")
    assert left(Journal(path)) == {"large": (result("large", body), "replies")}


@pytest.mark.parametrize("kept", [0, 5, 11, 12, 40, -1])
def test_a_result_that_was_cut_off_is_none(path: str, kept: int) -> None:
    journal = Journal(path)
    journal.sending(result("cut"), "replies", "cut")
    (box,) = Path(f"{path}.results").iterdir()
    box.write_bytes(box.read_bytes()[:kept])
    again = Journal(path)
    assert not left(again)
    assert not list(Path(f"{path}.results").iterdir())


def test_a_line_that_was_cut_off_costs_only_itself(path: str) -> None:
    journal = Journal(path)
    journal.finished("before", "before")
    with open(path, "ab") as file:
        file.write(b'{"done": "cut", "ke')
    again = Journal(path)
    again.finished("after", "after")
    third = Journal(path)
    assert (third.is_done("before"), third.is_done("cut"), third.is_done("after")) == (True, False, True)


def test_an_orderly_end_leaves_no_files_of_results(path: str) -> None:
    journal = Journal(path)
    for job in ("a", "b"):
        journal.sending(result(job), "replies", job)
    for job in ("a", "b"):
        journal.finished(job, job)
    journal.close()
    assert not list(Path(f"{path}.results").iterdir())


def test_what_other_nodes_have_done_is_known_but_not_ours_to_announce(path: str) -> None:
    journal = Journal(path)
    for number in range(4):
        journal.finished(f"ours{number}", f"ours{number}")
        journal.told(f"theirs{number}")
    journal.told("ours0")
    journal.doubt("ours2")
    for life in (journal, Journal(path), Journal(path)):
        assert all(life.is_done(f"theirs{number}") for number in range(4))
        assert life.last_done(3) == ["ours1", "ours2", "ours3"]
        assert life.doubtful == ["ours2"]
