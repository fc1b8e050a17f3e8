"""AMQP 1.0's messages, both ways; Proton's own codec is the oracle."""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from typing import Any

import proton
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carod.amqp import Message, TypedId
from carod.amqp.amqp10 import codec
from carod.amqp.amqp10.codec import Malformed, decode, encode
from carod.amqp.amqp10.message import Received, encode_head, id_text
from carod.amqp.amqp10.message import decode as decode_message
from carod.amqp.crossing import bodies

AN_ID = uuid.UUID("0e0b6d0f-5b0a-4d6e-8f2c-3a1b5c7d9e0f")


def sent(message: Message, **more: Any) -> bytes:
    assert isinstance(message.body, bytes)
    return encode_head(message, len(message.body), **more) + (b"" if message.value is not None else message.body)


def by_proton(data: bytes) -> proton.Message:
    message = proton.Message()
    message.decode(data)
    return message


def nested(depth: int) -> bytes:
    """An empty list in lists."""
    data = b"\x45"
    for _ in range(depth):
        data = codec.encode_list([data])
    return data


def from_proton(**fields: Any) -> Received:
    return decode_message(bytes(proton.Message(**fields).encode()))


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    data = encode(value)
    assert decode(data) == (value, len(data))


@given(st.dictionaries(st.text(), plain, max_size=6))
def test_headers_are_what_proton_reads(headers: dict[str, Any]) -> None:
    read = by_proton(sent(Message(b"b", headers)))
    assert (read.properties or {}) == headers
    assert decode_message(bytes(read.encode())).message.headers == headers


def test_a_message_is_what_proton_reads() -> None:
    message = Message(
        b"zip", {"Cmd": '"/bin/true"', "N": 2**40, "ü": True}, "id", "correlation", "reply/to", 60.0, 3, "guest", True,
        "text/plain", "kind", 1_700_000_000,
    )  # fmt: skip
    read = by_proton(sent(message, to="grid", subject="key"))
    assert (read.id, read.correlation_id, read.reply_to, read.address, read.subject) == (
        "id", "correlation", "reply/to", "grid", "key",
    )  # fmt: skip
    assert (read.ttl, read.priority, read.durable, read.user_id) == (60.0, 3, True, b"guest")
    assert (read.content_type, read.creation_time, read.body) == ("text/plain", 1_700_000_000.0, b"zip")
    assert decode_message(sent(message)).message == message


@given(st.binary(max_size=300))
def test_a_body_of_bytes_is_what_proton_reads(body: bytes) -> None:
    read = by_proton(sent(Message(body)))
    assert (read.body, read.inferred) == (body, True)
    assert decode_message(bytes(read.encode())).message.body == body


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("job-1", "job-1"), (AN_ID, str(AN_ID)), (proton.ulong(0), "0"), (proton.ulong(2**64 - 1), str(2**64 - 1)),
        (b"job-2", "job-2"), (b"\xff\x00", "0xff00"), (b"0x41", "0x30783431"), (str(AN_ID), str(AN_ID)),
    ],
)  # fmt: skip
def test_a_message_id_of_any_type_has_a_text_and_comes_back_as_it_was(value: Any, text: str) -> None:
    received = from_proton(id=value, correlation_id=value).message
    assert (received.message_id, received.correlation_id) == (text, text)
    read = by_proton(sent(Message(message_id=received.message_id, correlation_id=received.message_id)))
    assert (read.id, read.correlation_id) == (value, value)
    kind = {proton.ulong: int, bytes: memoryview}.get(type(value), type(value))  # what Proton has for them
    assert (type(read.id), type(read.correlation_id)) == (kind, kind)


def test_ids_that_differ_have_texts_that_differ() -> None:
    ids = [b"0xff", b"\xff", b"\xef\xbf\xbd", b"\n", b"0x0a"]
    assert len({id_text(value) for value in ids}) == len(ids)


def test_a_typed_id_that_is_none_is_sent_as_text() -> None:
    for text in (TypedId("x", "uuid"), TypedId("-1", "ulong"), TypedId(str(2**64), "ulong"), TypedId("0xg", "binary")):
        assert by_proton(sent(Message(message_id=text))).id == text


@pytest.mark.parametrize(
    ("value", "header"),
    [
        (proton.symbol("s"), "s"), (b"\xff", b"\xff"), (b"/bin/true", b"/bin/true"), (AN_ID, str(AN_ID)),
        (proton.timestamp(1_700_000_000_999), 1_700_000_000), (proton.int32(-5), -5), (proton.ubyte(255), 255),
        (proton.byte(-1), -1), (proton.short(-300), -300), (proton.ushort(65535), 65535),
        (proton.uint(2**32 - 1), 2**32 - 1),
        (proton.ulong(2**64 - 1), 2**64 - 1), (proton.char("ä"), "ä"), (proton.float32(0.5), 0.5), (None, None),
        (True, True), (0.1, 0.1), ([1, proton.symbol("a")], [1, "a"]), ({"a": {"b": AN_ID}}, {"a": {"b": str(AN_ID)}}),
        ({1: 2, proton.symbol("s"): b"x"}, {"1": 2, "s": b"x"}), (proton.Described("d", "v"), "v"),
        (proton.decimal64(5), (5).to_bytes(8, "big")),
        (proton.Array(proton.UNDESCRIBED, proton.Data.INT, 1, 2), [1, 2]),
    ],
)  # fmt: skip
def test_a_header_of_any_type_is_read(value: Any, header: Any) -> None:
    read = from_proton(properties={"x": value}).message.headers["x"]
    assert read == header
    assert type(read) is type(header)


def test_not_a_number_passes() -> None:
    value = from_proton(properties={"x": math.nan}).message.headers["x"]
    assert isinstance(value, float)
    assert math.isnan(value)


def test_text_that_is_not_utf8_is_bytes_again() -> None:
    assert encode("\udcff") == b"\xa0\x01\xff"
    assert decode(b"\xa1\x01\xff") == (b"\xff", 3)


def test_a_name_that_is_no_unicode_does_not_cost_the_connection() -> None:
    read = by_proton(sent(Message(reply_to="a\udcff", message_id="\ud800")))
    assert (read.reply_to, read.id) == ("a?", "?")


@pytest.mark.parametrize(
    ("fields", "body", "value"),
    [
        ({"body": b"zip", "inferred": True}, b"zip", None), ({"body": b"zip"}, b"zip", None),
        ({"body": "text"}, b"text", None), ({"body": None}, b"", None), ({"body": 17}, b"17", None),
        ({"body": {"a": [1, AN_ID]}}, b"", {"a": [1, AN_ID]}), ({"body": [1, "a"]}, b"", [1, "a"]),
        ({"body": [1, {"a": b"x"}], "inferred": True}, b"", [1, {"a": b"x"}]),
    ],
)  # fmt: skip
def test_a_body_of_any_section_is_read(fields: dict[str, Any], body: bytes, value: Any) -> None:
    message = from_proton(**fields).message
    assert (message.body, message.value) == (body, value)


def test_many_sections_are_one_body() -> None:
    data = b"\x00\x53\x75\xa0\x02ab\x00\x53\x75\xa0\x01c"
    assert decode_message(data).message.body == b"abc"
    sequence = b"\x00\x53\x76" + encode([1]) + b"\x00\x53\x76" + encode([2])
    assert decode_message(sequence).message.value == [1, 2]


def test_no_body_at_all_is_an_empty_one() -> None:
    assert decode_message(b"").message == Message()
    assert decode_message(b"\x00\x53\x73\xc0\x04\x01\xa1\x01i").message == Message(message_id="i")


def test_maps_and_lists_are_sent_as_such_with_uuids() -> None:
    value = {"_hash": AN_ID, "_values": [1, "x", None, {"n": 2**40}]}
    assert by_proton(sent(Message(value=value))).body == value


def test_a_section_may_be_named_in_full() -> None:
    data = b"\x00\xa3\x10amqp:data:binary\xa0\x01x" + b"\x00\x80\x00\x00\x00\x00\x00\x00\x00\x75\xa0\x01y"
    assert decode_message(data).message.body == b"xy"


def test_a_ttl_counts_from_creation_or_from_now() -> None:
    assert from_proton(ttl=60.0).message.expiration == pytest.approx(60.0, abs=1)
    created = from_proton(ttl=60.0, creation_time=1_700_000_000.5).message
    assert (created.timestamp, created.expiration) == (1_700_000_000, 60.5)


def test_the_earlier_of_two_expiries_counts() -> None:
    soon = time.time() + 30
    assert from_proton(ttl=60.0, expiry_time=soon).message.expiration == pytest.approx(30.0, abs=1)
    assert from_proton(ttl=10.0, expiry_time=soon).message.expiration == pytest.approx(10.0, abs=1)
    assert from_proton(expiry_time=1000.0).message.expiration < 0  # type: ignore[operator]


def test_a_ttl_that_would_be_none_is_a_millisecond_and_one_too_long_the_longest() -> None:
    assert by_proton(sent(Message(expiration=0.0))).ttl == 0.001
    assert by_proton(sent(Message(expiration=1e9))).ttl == (2**32 - 1) / 1000


def test_what_is_known_of_earlier_deliveries_is_read() -> None:
    received = from_proton(delivery_count=2, first_acquirer=True, subject="key", annotations={proton.symbol("x"): 1})
    assert (received.delivery_count, received.first_acquirer, received.subject) == (2, True, "key")
    assert received.annotations == {"x": 1}


@pytest.mark.parametrize("headers", [{"n": 2**64}, {"n": [-(2**63) - 1]}])
def test_a_number_too_large_is_refused(headers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        encode_head(Message(headers=headers), 0)


def test_a_body_over_what_a_section_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="4 GiB"):
        encode_head(Message(), 1 << 32)


@pytest.mark.parametrize(
    "data",
    [
        b"\x01", b"\x00", b"\x00\x53", b"\x00\x53\x75", b"\x00\x53\x75\xb0\xff\xff\xff\xff", b"\x00\x53\x74\x45",
        b"\x00\x53\x70\x40", b"\x00\x53\x74\xd1\x00\x00\x00\x04\xff\xff\xff\xff",
        b"\x00\x53\x77\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x41", b"\x00\x53\x77" + b"\x00" * 100,
        b"\x00\x53\x77" + nested(100), b"\x00\x53\x74\xc1\x04\x02\x45\x45\x40", b"\x00\x53\x77\x73\x00\x00\xd8\x00",
        b"\x00\x53\x77\x81\x00", b"\x00\x40\x40", b"\x00\x53\x77\xe0\x02\x00\x99",
    ],
    ids=range(16),
)  # fmt: skip
def test_bytes_that_are_no_message_are_told_and_kept(data: bytes) -> None:
    message = decode_message(data).message
    assert message.malformed
    assert (message.body, message.headers, message.reply_to) == (data, {}, None)


@given(st.binary(max_size=200))
def test_no_bytes_make_decoding_raise(data: bytes) -> None:
    for prefix in (b"", b"\x00\x53\x70", b"\x00\x53\x73", b"\x00\x53\x74", b"\x00\x53\x77"):
        assert isinstance(decode_message(prefix + data), Received)


@given(st.data())
def test_no_damaged_message_makes_decoding_raise(data: st.DataObject) -> None:
    whole = bytearray(sent(Message(b"x", {"a": [1, {"b": 2.0}]}, TypedId(str(AN_ID), "uuid"), "c", "r", 1.0, 2, "u")))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    message = decode_message(bytes(whole)).message
    if not message.malformed:
        encode_head(dataclasses.replace(message, body=b"", value=None, expiration=None), 0)


def test_nobody_can_claim_more_than_was_sent() -> None:
    with pytest.raises(Malformed, match="items of an array"):
        decode(b"\xe0\x02\xff\x40")
    with pytest.raises(Malformed, match="deeper"):
        decode(nested(codec.MAX_DEPTH + 1))


@given(st.binary(max_size=60))
def test_no_bytes_make_the_body_that_rabbitmq_hands_over_raise(data: bytes) -> None:
    assert isinstance(bodies(b"\x00\x53" + data), Message)


def test_the_body_that_rabbitmq_hands_over_is_read() -> None:
    assert bodies(b"\x00\x53\x77\xa1\x02\xc3\xa4").body == "ä".encode()
    assert bodies(b"\x00\x53\x77\xb1\x00\x00\x00\x01a").body == b"a"
    assert bodies(b"\x00\x53\x77" + encode({"a": 1})).value == {"a": 1}
    assert bodies(b"PK\x03\x04").body == b"PK\x03\x04"
