"""AMQP 0-9-1 properties: what is encoded is decoded, and no bytes make the decoder raise."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode

from carod.amqp import Message
from carod.amqp.fields import decode_properties, encode_properties, encode_table

short = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
header_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(max_size=20),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(short, inner, max_size=4),
    max_leaves=10,
)
messages = st.builds(
    Message,
    body=st.just(b""),
    headers=st.dictionaries(short, header_values, max_size=6),
    message_id=st.none() | short,
    correlation_id=st.none() | short,
    reply_to=st.none() | short,
    expiration=st.none() | st.integers(0, 2**40).map(lambda ms: ms / 1000),
    priority=st.none() | st.integers(0, 255),
    user_id=st.none() | short,
    durable=st.booleans(),
    content_type=st.none() | short,
    type=st.none() | short,
    timestamp=st.none() | st.integers(0, 2**64 - 1),
)


@given(messages)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert decode_properties(encode_properties(message), b"") == message


@given(st.binary(max_size=300), st.binary(max_size=10))
def test_no_bytes_make_the_decoder_raise(data: bytes, body: bytes) -> None:
    message = decode_properties(data, body)
    assert message.malformed or isinstance(message.headers, dict)


@given(messages, st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=5), st.floats(0, 1))
def test_no_damage_makes_the_decoder_raise(message: Message, changes: list[tuple[float, int]], part: float) -> None:
    data = bytearray(encode_properties(message))
    for at, value in changes:
        data[int(at * len(data))] = value
    decode_properties(bytes(data), b"")
    decode_properties(bytes(data[: int(part * len(data))]), b"")


@given(
    st.dictionaries(short, st.integers(-(2**63), 2**63 - 1) | st.text() | st.booleans() | st.floats(allow_nan=False))
)
def test_another_library_reads_the_same_table(headers: dict[str, object]) -> None:
    assert decode.field_table(encode_table(headers))[1] == headers  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"t\x01", True), (b"b\xff", -1), (b"B\xff", 255), (b"s\xff\xfe", -2), (b"u\xff\xff", 65535),
        (b"I\xff\xff\xff\xff", -1), (b"i\xff\xff\xff\xff", 2**32 - 1), (b"l" + b"\xff" * 8, -1),
        (b"f" + struct.pack(">f", 1.5), 1.5), (b"d" + struct.pack(">d", math.pi), math.pi),
        (b"D\x02\x00\x00\x01\x3a", 3.14), (b"S\x00\x00\x00\x01\xff", b"\xff"), (b"x\x00\x00\x00\x01\xff", b"\xff"),
        (b"V", None), (b"T" + bytes(7) + b"\x05", 5), (b"A\x00\x00\x00\x02t\x00", [False]),
    ],
)  # fmt: skip
def test_every_type_of_rabbitmqs_table_is_read(field: bytes, value: object) -> None:
    table = b"\x01x" + field
    message = decode_properties(b"\x20\x00" + len(table).to_bytes(4, "big") + table, b"")
    assert message.headers == {"x": value}


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"\x20\x00\x00\x00\x00\x03\x01x?", "unknown field type"),
        (b"\x20\x00\xff\xff\xff\xff", "expected"),
        (b"\x01\x00\x03abc", "'abc'"),
    ],
)
def test_what_cannot_be_decoded_is_told(data: bytes, part: str) -> None:
    message = decode_properties(data, b"body")
    assert part in message.malformed
    assert (message.headers, message.body) == ({}, b"body")


def test_text_that_is_not_utf8_goes_back_as_it_came() -> None:
    message = decode_properties(b"\x02\x80\x03r\xff\xfe\x02m\xfd", b"")
    assert encode_properties(message) == b"\x12\x80\x01\x03r\xff\xfe\x02m\xfd"


@pytest.mark.parametrize(
    "message", [Message(message_id="x" * 256), Message(headers={"n" * 256: 1}), Message(headers={"n": 2**64})]
)
def test_what_does_not_fit_is_refused(message: Message) -> None:
    with pytest.raises(ValueError, match=r"255|64 bits"):
        encode_properties(message)


@pytest.mark.parametrize("text", ["urn:uuid:0e0b6d0f-5b0a-4d6e-8f2c-3a1b5c7d9e0f"])
def test_a_uuid_from_amqp_1_0_is_an_id_in_canonical_form_and_goes_back_as_it_came(text: str) -> None:
    message = decode_properties(encode_properties(Message(message_id=text, correlation_id=text)), b"")
    assert (message.message_id, message.correlation_id) == (text[9:], text[9:])
    again = Message(correlation_id=message.message_id)
    assert text.encode() in encode_properties(again)


def test_an_id_that_only_looks_like_a_urn_stays_as_it_is() -> None:
    message = decode_properties(encode_properties(Message(message_id="urn:uuid:17", correlation_id="URN:x")), b"")
    assert (message.message_id, message.correlation_id) == ("urn:uuid:17", "URN:x")
