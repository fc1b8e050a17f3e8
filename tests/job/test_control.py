"""Control requests, to the wire and back."""

from __future__ import annotations

import dataclasses
import json

import pytest

from carod.amqp import HeaderValue, Message
from carod.control import Action, BadRequest, Request


@pytest.mark.parametrize("value", [None, 7, "x > 3", ["a", "b\udc80", "line\nbreak"], []])
def test_a_request_comes_back_as_it_was_sent(value: HeaderValue) -> None:
    request = Request(Action.DONE, "job", "hello", value, "why", "node one", ahead=True)
    assert Request.from_message(request.to_message()) == request


def test_no_header_of_a_request_is_a_list_which_amqp_1_0_forbids() -> None:
    message = Request(Action.DONE, "job", value=["a", "b"]).to_message()
    assert not any(isinstance(value, list | dict) for value in message.headers.values())


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"[[", b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_list_of_texts_is_refused(body: bytes) -> None:
    message = dataclasses.replace(Request(Action.DONE, "job").to_message(), body=body, content_type="application/json")
    with pytest.raises(BadRequest, match="JSON"):
        Request.from_message(message)


def test_a_refused_body_is_quoted_but_not_whole() -> None:
    message = Message(json.dumps({"x": "y" * 10_000}).encode(), {"Action": "Ping"}, content_type="application/json")
    with pytest.raises(BadRequest) as caught:
        Request.from_message(message)
    assert len(str(caught.value)) < 200
