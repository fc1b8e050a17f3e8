"""Broker URLs, and what is wrong with those that can't be one."""

from __future__ import annotations

import pytest

from carod.amqp import BadEndpoint, Endpoint


@pytest.mark.parametrize(
    ("url", "host", "port", "vhost", "credentials"),
    [
        ("amqp://localhost", "localhost", 5672, "/", None),
        ("amqps://localhost/", "localhost", 5671, "/", None),
        ("amqp://u:p@h:1234/prod", "h", 1234, "prod", ("u", "p")),
        ("amqp://u%40x:p%2F%3A@h/%2F", "h", 5672, "/", ("u@x", "p/:")),
        ("amqp://u@[::1]:7/a%2Fb", "::1", 7, "a/b", ("u", "")),
    ],
)
def test_a_url_is_taken_apart(url: str, host: str, port: int, vhost: str, credentials: object) -> None:
    end = Endpoint(url)
    assert (end.host, end.port, end.vhost, end.credentials) == (host, port, vhost, credentials)


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://h/", "amqp://", "amqp://h:x/", "amqp://h:0/", "amqp://h:70000/"]
)
def test_a_url_that_cannot_be_one_is_told_with_what_would_do(url: str) -> None:
    with pytest.raises(BadEndpoint, match="write amqp://user:password@host:port/vhost"):
        Endpoint(url)


@pytest.mark.parametrize("url", ["amqp://me:secret@h/v", "amqp://me:secret@h:1/", "amqps://me:se%40cret@h"])
def test_a_password_is_not_shown(url: str) -> None:
    assert Endpoint(url).safe_url.startswith(url.partition("://")[0] + "://me:***@h")
    assert "cret" not in Endpoint(url).safe_url


def test_a_password_is_not_shown_in_an_error_either() -> None:
    for url in ("http://me:secret@h/", "amqp://me:secret@/", "amqp://me:secret@h:x/"):
        with pytest.raises(BadEndpoint) as caught:
            Endpoint(url)
        assert "secret" not in str(caught.value)


def test_a_certificate_without_a_user_is_the_identity() -> None:
    assert Endpoint("amqps://h/", cert_file="c").external
    assert not Endpoint("amqps://me@h/", cert_file="c").external
    assert not Endpoint("amqps://h/").external


def test_a_plain_connection_has_no_tls() -> None:
    assert Endpoint("amqp://h/", ca_file="/missing").tls_context() is None
