"""What agent and console share: bodies, ids, predicates."""

from __future__ import annotations

import math
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carod.amqp import Message
from carod.amqp.amqp091 import _as_json
from carod.qmf import AgentName, BadBody, BadPredicate, TooLong, equality, read_body, sendable, split_object_name
from carod.qmf.body import MAX_ITEMS, MAX_REQUEST, MAX_STRING
from carod.qmf.names import object_name
from carod.qmf.predicate import split

SCALARS = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=40)
SCALARS |= st.floats(allow_nan=False, allow_infinity=False) | st.binary(max_size=40)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)


def json_message(text: str | bytes, content_type: str | None = "application/json") -> Message:
    return Message(text if isinstance(text, bytes) else text.encode(), content_type=content_type)


def as_sent(value: Any) -> Message:
    """A body as it arrives over 0-9-1."""
    import json

    return json_message(json.dumps(sendable(value), default=_as_json))


@given(st.dictionaries(st.text(max_size=9), VALUES, max_size=5) | st.lists(VALUES, max_size=5))
def test_what_is_sent_as_json_arrives_as_it_was(value: Any) -> None:
    assert same(read_body(as_sent(value)), value)


@given(st.dictionaries(st.text(max_size=9), VALUES, max_size=5) | st.lists(VALUES, max_size=5))
def test_what_is_sent_as_an_amqp_map_arrives_as_it_was(value: Any) -> None:
    assert same(read_body(Message(value=sendable(value))), value, texts=True)


def same(got: Any, sent: Any, texts: bool = False) -> bool:
    """Equal, but that UTF-8 in binary may come as text where Python 2 sends text so, and a lone map key `_bytes`."""
    match sent:
        case dict():
            if not texts and sent.keys() == {"_bytes"}:
                return True
            return (
                isinstance(got, dict) and got.keys() == sent.keys() and all(same(got[k], sent[k], texts) for k in sent)
            )
        case list():
            return (
                isinstance(got, list) and len(got) == len(sent) and all(map(lambda a, b: same(a, b, texts), got, sent))
            )
        case bytes() if texts and isinstance(got, str):
            return got.encode() == sent
        case float():
            return isinstance(got, float) and got == sent
    return bool(got == sent and got.__class__ is sent.__class__)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_body_or_bad(data: bytes) -> None:
    try:
        assert isinstance(read_body(json_message(data)), dict | list)
    except BadBody as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", None),
        ("{", "not JSON"),
        ("5", "the body is int"),
        ('"x"', "the body is str"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[NaN]", "NaN"),
        ("[1e400]", None),
        ("[Infinity]", "Infinity"),
        (f"[{1 << 64}]", "65 bits"),
        (f"[{'9' * 5000}]", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 30 + "]" * 30, "nested deeper than 16"),
        ('["\\ud800"]', "surrogate"),
        (b'["\xff"]', "not JSON"),
        ('["' + "x" * MAX_STRING + '"]', None),
        ('["' + "x" * (MAX_STRING + 1) + '"]', "65536 bytes"),
        ('["' + "é" * 40_000 + '"]', "80000 bytes"),
        ('{"' + "k" * 256 + '": 1}', "256 bytes"),
        ('{"_bytes": "//8="}', "the body is bytes"),
        ('[{"_bytes": "%%"}]', "not base64"),
        ('[{"_bytes": 5}]', "not base64"),
        ('[{"_bytes": "' + "A" * 90_000 + '"}]', "67500 bytes"),
        ("[" + "0," * MAX_ITEMS + "0]", "too many values"),
        (" " * (MAX_REQUEST + 1), "more than 1048576 bytes"),
    ],
)
def test_a_hostile_body_is_refused_by_its_reason(text: str | bytes, said: str | None) -> None:
    if said is None:
        read_body(json_message(text))
    else:
        with pytest.raises(BadBody, match=said):
            read_body(json_message(text))


def test_a_body_of_another_kind_is_refused_by_its_content_type() -> None:
    with pytest.raises(BadBody, match="amqp/map"):
        read_body(json_message("{}", "amqp/map"))
    assert read_body(json_message("{}", None)) == {}


def test_an_amqp_value_is_refused_if_it_holds_what_is_no_data() -> None:
    for value in ([object()], [{1: 2}], {"a": [{"b": {1, 2}}]}):
        with pytest.raises(BadBody):
            read_body(Message(value=value))
    deep: list[Any] = []
    for _ in range(50):
        deep = [deep]
    with pytest.raises(BadBody, match="deeper"):
        read_body(Message(value=deep))


def test_text_that_a_client_sent_as_binary_is_text() -> None:
    value: dict[Any, Any] = {b"_what": b"OBJECT", "zip": b"PK\xff"}
    assert read_body(Message(value=value)) == {"_what": "OBJECT", "zip": b"PK\xff"}


def test_values_that_can_not_travel_become_their_text_or_are_refused() -> None:
    assert sendable([math.inf, -math.inf, 1 << 64]) == ['real("INF")', 'real("-INF")', str(1 << 64)]
    assert sendable(math.nan) == 'real("NaN")'
    assert sendable("a\ud800b") == "a?b"
    assert sendable({"a": (1, uuid.UUID(int=5))}) == {"a": [1, uuid.UUID(int=5)]}
    for value in ("x" * 65_536, b"x" * 65_536, "é" * 32_768):
        with pytest.raises(TooLong, match="65536 bytes"):
            sendable([value])


@pytest.mark.parametrize(
    ("where", "equal", "meant", "others"),
    [
        (["eq", "A", ["quote", 1]], {"A": 1}, {}, None),
        (["and", ["eq", "A", ["quote", "x"]], ["eq", "B", ["quote", 2]]], {"A": "x", "B": 2}, {}, None),
        (["eq", "A", 1], {}, {"A": 1}, {"A": 2}),
        (["eq", "A", "B"], {}, {"A": 1, "B": 1}, {"A": 1, "B": 2}),
        (["ne", "A", ["quote", 1]], {}, {"A": 2}, {"B": 2}),
        (["lt", "A", ["quote", 1]], {}, {"A": 0.5}, {"A": "text"}),
        (["ge", "A", ["quote", "b"]], {}, {"A": "c"}, {"A": 5}),
        (["exists", "A"], {}, {"A": 0}, {"A": None}),
        (["not", ["exists", "A"]], {}, {}, {"A": 1}),
        (["or", ["eq", "A", ["quote", 1]], ["gt", "A", 5]], {}, {"A": 6}, {"A": 3}),
        (["and", ["eq", "A", ["quote", 1]], ["le", "B", 3]], {"A": 1}, {"B": 3}, {"B": 4}),
        (["and", ["eq", "A", ["quote", 1]], ["eq", "A", ["quote", 2]]], {"A": 1}, {"A": 2}, {"A": 1}),
        (["true"], {}, {}, None),
        (["false"], {}, None, {}),
    ],
)
def test_a_predicate_is_split_into_what_an_index_knows_and_the_rest(
    where: Any, equal: dict[str, Any], meant: dict[str, Any] | None, others: dict[str, Any] | None
) -> None:
    got, rest = split(where)
    assert got == equal
    if meant is not None:
        assert rest is None or rest(meant)
    if others is not None:
        assert rest is not None and not rest(others)


@pytest.mark.parametrize(
    "where",
    ["text", 5, {}, ["eq"], ["eq", "A"], ["re_match", "A", "x*"], ["and", 5], ["eq", "A", ["quote"]], ["eq", [], {}]],
)
def test_what_is_no_predicate_is_refused(where: Any) -> None:
    with pytest.raises(BadPredicate, match="_where"):
        split(where)


def test_a_predicate_nested_too_deeply_is_refused() -> None:
    where: list[Any] = ["true"]
    for _ in range(30):
        where = ["not", where]
    with pytest.raises(BadPredicate, match="deeper"):
        split(where)


def test_equality_is_written_as_the_query_api_writes_it() -> None:
    assert equality({"A": 1}) == ["eq", "A", ["quote", 1]]
    assert equality({"A": 1, "B": "x"}) == ["and", ["eq", "A", ["quote", 1]], ["eq", "B", ["quote", "x"]]]
    assert split(equality({"A": 1, "B": "x"})) == ({"A": 1, "B": "x"}, None)


def test_an_objects_name_tells_package_class_and_name() -> None:
    assert object_name("mrg.grid", "Job", "a:b#1.0") == "mrg.grid:job:a:b#1.0"
    assert split_object_name("mrg.grid:job:a:b#1.0") == ("mrg.grid", "job", "a:b#1.0")
    assert split_object_name("mrg.grid:job") == split_object_name("") == ("", "", "")


def test_an_agents_name_is_vendor_product_and_instance() -> None:
    name = AgentName("com.redhat.grid", "scheduler", "a.b")
    assert str(name) == "com.redhat.grid:scheduler:a.b"
    assert name.words == "com_redhat_grid.scheduler"
    assert str(name.address) == "qmf.default.direct/com.redhat.grid:scheduler:a.b"
