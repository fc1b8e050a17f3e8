"""Of nodes that get a copy of one job each, at whatever moments, one runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from carod.node.claims import DECIDING, RUNNING, Claims

JOB = "job-1"


class Judge:
    """A node that asks, hears and answers as `control.py` and `custody.py` do; time is the order of its calls."""

    def __init__(self, name: str) -> None:
        self.name, self.claims = name, Claims(name, wait=60)
        self.answer = ""
        self.runs = False
        self._deciding = ExitStack()

    def ask(self) -> None:
        self._deciding.enter_context(self.claims.deciding(JOB))

    def asked_by(self, other: Judge) -> None:
        self.claims.hear(JOB, other.name, DECIDING)
        if self.runs:
            other.answer = RUNNING
        elif self.claims.keeps_from(JOB, other.name):
            other.answer = other.answer or DECIDING

    def decide(self) -> None:
        self.runs = not self.answer and not self.claims.is_beaten(JOB)
        self._deciding.close()


def orders(left: dict[str, list[str]]) -> Iterator[list[tuple[str, str]]]:
    """All orders of what the nodes have left to do, each in its own order."""
    if not any(left.values()):
        yield []
    for name, steps in left.items():
        if steps:
            for rest in orders({**left, name: steps[1:]}):
                yield [(name, steps[0]), *rest]


@pytest.mark.parametrize("names", ["ab", "ba", "abc"])
def test_of_nodes_that_decide_at_once_one_runs_the_job(names: str) -> None:
    """Each asks, is heard by the others, and decides; all orders of that."""
    plans = {name: ["ask", *(other for other in names if other != name), "decide"] for name in names}
    for order in orders(plans):
        judges = {name: Judge(name) for name in names}
        for name, step in order:
            match step:
                case "ask":
                    judges[name].ask()
                case "decide":
                    judges[name].decide()
                case other:
                    judges[other].asked_by(judges[name])
        assert sum(judge.runs for judge in judges.values()) == 1, order


def test_a_claim_counts_for_a_while() -> None:
    lasting, brief = Claims("a", wait=60), Claims("a", wait=0)
    for claims in (lasting, brief):
        claims.hear(JOB, "b", RUNNING)
        claims.hear("another", "b", None)
        assert not claims.is_claimed("another")
    assert lasting.is_claimed(JOB)
    assert not lasting.is_claimed(JOB, "b"), "who gave it away since does not have it"
    assert not brief.is_claimed(JOB)


def test_who_is_beaten_once_may_decide_again() -> None:
    claims = Claims("b", wait=60)
    with claims.deciding(JOB):
        claims.hear(JOB, "a", DECIDING)
        assert claims.is_beaten(JOB)
        with claims.deciding(JOB):
            assert claims.is_beaten(JOB), "so is a second copy of it here"
    assert not claims.is_deciding(JOB)
    with claims.deciding(JOB):
        assert not claims.is_beaten(JOB)
