"""What RabbitMQ makes of a 1.0 client's message for a 0-9-1 consumer; the bytes are those of RabbitMQ 3.10 and 4.0."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carod.amqp import HeaderValue, Message, TypedId
from carod.amqp.amqp10.message import headers_section, properties_section
from carod.amqp.crossing import HEADERS, PROPERTIES, arrived, extra_headers
from carod.amqp.fields import decode_properties, encode_properties

A_UUID = "0e0b6d0f-5b0a-4d6e-8f2c-3a1b5c7d9e0f"


def through(message: Message) -> Message:
    """A message as its receiver has it."""
    assert isinstance(message.body, bytes)
    return decode_properties(encode_properties(message), message.body)


def plugin(message: Message, headers: dict[str, HeaderValue], body: bytes = b"", kind: str = "binary") -> Message:
    """A 1.0 client's message as the plugin hands it over."""
    encoded = {PROPERTIES: properties_section(message), HEADERS: headers_section(headers)}
    texts = {name: data.decode("utf-8", "surrogateescape") for name, data in encoded.items()}
    return through(Message(body, texts, str(message.message_id), type=kind, durable=True, expiration=60.0))


@pytest.mark.parametrize(
    ("header", "text", "kind"), [(b"job", "job", "binary"), (b"\xff", "0xff", "binary"), ("x" * 300, "x" * 300, "")]
)
def test_an_id_that_fits_no_short_string_is_in_a_header(header: HeaderValue, text: str, kind: str) -> None:
    message = through(Message(headers={"x-message-id": header, "x-correlation-id": header}))
    assert (message.message_id, message.correlation_id) == (text, text)
    assert getattr(message.message_id, "kind", "") == kind


def test_an_id_of_the_clients_own_counts_more_than_such_a_header() -> None:
    assert through(Message(message_id="id", headers={"x-message-id": b"other"})).message_id == "id"


@pytest.mark.parametrize("kind", ["", "uuid", "binary"])
def test_a_message_from_the_plugin_is_what_the_client_sent(kind: str) -> None:
    job_id = TypedId(A_UUID, kind) if kind else A_UUID
    sent = Message(message_id=job_id, reply_to="replies", timestamp=1_700_000_000, content_type="text/plain")
    message = plugin(sent, {"Cmd": "/bin/true", "N": 2}, b"zip")
    assert (message.headers, message.body, message.type) == ({"Cmd": "/bin/true", "N": 2}, b"zip", None)
    assert (message.message_id, message.reply_to, message.timestamp) == (A_UUID, "replies", 1_700_000_000)
    assert (message.durable, message.expiration) == (True, 60.0)


@pytest.mark.parametrize("kind", ["", "uuid", "binary"])
def test_an_answer_to_the_plugins_client_carries_its_sections(kind: str) -> None:
    job = plugin(Message(message_id=TypedId(A_UUID, kind) if kind else A_UUID), {})
    extra = extra_headers(Message(b"", {"JobStatus": 4}, "new", job.message_id))
    assert set(extra) == {PROPERTIES, HEADERS}
    answer = arrived(Message(b"", {"JobStatus": 4, **extra}))
    assert (answer.headers["JobStatus"], answer.correlation_id, answer.message_id) == (4, A_UUID, "new")
    assert getattr(answer.correlation_id, "kind", "") == f"plugin {kind}"


def test_a_job_from_the_plugin_can_be_published_anew() -> None:
    job = plugin(Message(message_id="id", reply_to="replies"), {"Cmd": "/bin/true"})
    again = through(Message(headers=job.headers, message_id=job.message_id, reply_to=job.reply_to))
    assert (again.headers["Cmd"], again.message_id, again.reply_to) == ("/bin/true", "id", "replies")


def test_a_body_that_is_no_data_comes_encoded() -> None:
    assert plugin(Message(message_id="i"), {}, b"\x00\x53\x77\xa1\x04text", "amqp-1.0").body == b"text"
    assert through(Message(b"\x00\x53\x77\xa0\x03zip", type="amqp-1.0")).body == b"zip"


def test_an_ordinary_answer_has_no_headers_but_its_own() -> None:
    assert extra_headers(Message(message_id="a", correlation_id="b")) == {}
    assert extra_headers(Message(message_id="a", correlation_id=TypedId(A_UUID, "uuid"))) == {}


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=40))
def test_no_bytes_in_such_headers_make_reading_raise(properties: bytes, headers: bytes, body: bytes) -> None:
    marks: dict[str, HeaderValue] = {PROPERTIES: b"\x00\x53\x73" + properties, HEADERS: b"\x00\x53\x74" + headers}
    for names in ([PROPERTIES], [HEADERS], [PROPERTIES, HEADERS]):
        message = arrived(Message(body, {name: marks[name] for name in names}, "id", type="amqp-1.0"))
        assert isinstance(message, Message)
