"""Job ads in the forms that consoles send: what is read, what is refused and how that is said."""

from __future__ import annotations

from typing import Any

import pytest

from qmf_agent.jobqueue.ads import EXPRESSION, MAX_TEXT, check_ad, check_name, read_ad, read_value, shown_ad
from qmf_agent.model import Code, MethodError


def test_an_ad_in_the_first_form_is_read() -> None:
    given = {
        "Cmd": {"TYPE": 3, "VALUE": "/bin/sleep"},
        "Args": {"TYPE": 3, "VALUE": "120"},
        "Requirements": {"TYPE": 0, "VALUE": "Memory > 10"},
        "JobUniverse": {"TYPE": 1, "VALUE": "5"},
        "Weight": {"TYPE": 2, "VALUE": "0.5"},
    }
    assert read_ad(given) == {
        "Cmd": '"/bin/sleep"', "Args": '"120"', "Requirements": "Memory > 10", "JobUniverse": 5, "Weight": 0.5
    }  # fmt: skip


def test_an_ad_in_the_second_form_is_read() -> None:
    given = {
        "Cmd": "/bin/sleep", "Args": "120", "Requirements": "Memory > 10", "JobUniverse": 5, "Big": True,
        "!!descriptors": {"Requirements": "com.redhat.grid.Expression"},
    }  # fmt: skip
    assert read_ad(given) == {
        "Cmd": '"/bin/sleep"', "Args": '"120"', "Requirements": "Memory > 10", "JobUniverse": 5, "Big": True
    }  # fmt: skip


def test_an_ad_as_source_text_is_read() -> None:
    assert read_ad('Cmd = "/bin/true"\nRequirements = Memory > 10') == {
        "Cmd": '"/bin/true"', "Requirements": "Memory > 10"
    }  # fmt: skip


def test_an_ad_of_bytes_is_read() -> None:
    assert read_ad({b"Cmd": {"TYPE": 3, "VALUE": b"/bin/true"}, "Args": b"1"}) == {"Cmd": '"/bin/true"', "Args": '"1"'}


def test_strings_with_quotes_survive_both_ways() -> None:
    text = 'say "hello" \\ and\nnothing \u00e4'
    assert shown_ad(read_ad({"Args": text}))["Args"] == text


def test_an_ad_is_shown_with_its_expressions_named() -> None:
    shown = shown_ad({"Cmd": '"/bin/true"', "Requirements": "Memory > 10", "JobPrio": 3, "Big": True})
    assert shown == {
        "Cmd": "/bin/true", "Requirements": "Memory > 10", "JobPrio": 3, "Big": True,
        "!!descriptors": {"Requirements": EXPRESSION},
    }  # fmt: skip
    assert read_ad(shown) == {"Cmd": '"/bin/true"', "Requirements": "Memory > 10", "JobPrio": 3, "Big": True}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (7, "a map of attributes is needed, not int"),
        ({"Requirements": {"TYPE": 0, "VALUE": "Memory > 10)"}}, "Requirements: .*column 12"),
        ({"JobUniverse": {"TYPE": 1, "VALUE": "five"}}, "JobUniverse: 'five' is no integer"),
        ({"Weight": {"TYPE": 2, "VALUE": "much"}}, "Weight: 'much' is no number"),
        ({"Cmd": {"TYPE": 9, "VALUE": "x"}}, "Cmd: TYPE 9 is none of 0"),
        ({"Cmd": {"VALUE": "x"}}, "Cmd: a value is {TYPE"),
        ({"Cmd": b"\xff"}, "Cmd: .* is no UTF-8 text"),
        ({"Cmd": "x" * (MAX_TEXT + 1)}, "Cmd: 32001 characters"),
        ({f"A{number}": "x" * 9000 for number in range(9)}, "Ad: about 8[0-9]+ bytes"),
        ({"": 1}, "can't be an attribute's name"),
        ({"a\nb": 1}, "can't be an attribute's name"),
        ({"x-death": "1"}, "brokers read it"),
        ({"Big": 1 << 70}, "beyond a ClassAd's integers"),
        ({"Cmd": object()}, "Cmd: object is no type"),
        ({"Cmd": "\ud800"}, "no text that could be sent"),
        ({"!!descriptors": 5}, "!!descriptors is a map"),
        ("Cmd = ", "Ad: "),
    ],
)
def test_what_can_not_be_read_is_named(given: Any, text: str) -> None:
    with pytest.raises(MethodError, match=text) as caught:
        read_ad(given)
    assert caught.value.code is Code.BAD_VALUE


@pytest.mark.parametrize(
    ("ad", "text"),
    [
        ({"Requirements": "true"}, "Cmd is missing"),
        ({"Cmd": '"a"', "Requirements": '"TRUE"'}, "Requirements: .* is no condition"),
        ({"Cmd": '"a"', "JobPrio": 1.5}, "JobPrio: 1.5.* is no integer"),
        ({"Cmd": '"a"', "JobUniverse": 9}, "JobUniverse 9 is not run here"),
    ],
)
def test_an_ad_that_no_node_could_run_is_refused(ad: dict[str, Any], text: str) -> None:
    with pytest.raises(MethodError, match=text):
        check_ad(ad)


@pytest.mark.parametrize(
    "name", ["ClusterId", "procid", "OWNER", "GlobalJobId", "QDate", "JobStatus", "ExitCode", "Submission"]
)
def test_protected_attributes_can_not_be_set(name: str) -> None:
    with pytest.raises(MethodError) as caught:
        check_name(name)
    assert caught.value.code is Code.PROTECTED


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("Foo", "1 + 2", "1 + 2"),
        ("Foo", '"text"', '"text"'),
        ("Foo", 5, 5),
        ("Foo", True, True),
        ("JobPrio", "7", 7),
        ("Args", "bare text", '"bare text"'),
        ("Args", "word", '"word"'),
        ("Args", '"quoted"', '"quoted"'),
        ("Requirements", "Memory > 1", "Memory > 1"),
    ],
)
def test_a_value_to_be_set_is_classad_source_or_a_literal(name: str, given: Any, kept: Any) -> None:
    assert read_value(name, given) == kept


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("Foo", "1 +", "Foo: unexpected end at column 4"),
        ("JobPrio", '"high"', "JobPrio: .* is no integer"),
        ("Requirements", '"x"', "is no condition"),
        ("Foo", [1], "Foo: text, a number or a boolean"),
    ],
)
def test_a_bad_value_is_refused_with_its_place(name: str, given: Any, text: str) -> None:
    with pytest.raises(MethodError, match=text):
        read_value(name, given)
