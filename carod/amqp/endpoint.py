"""Where a broker is and how to get in: the one value from which every transport is made."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit, urlunsplit

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671, "amqp10": 5672, "amqps10": 5671}
SCHEMES = {"0-9-1": ("amqp", "amqps"), "1.0": ("amqp10", "amqps10")}
"""Of each protocol, without TLS and with it."""
FORM = "amqp://user:password@host:port/vhost (amqps:// with TLS, amqp10:// and amqps10:// for AMQP 1.0)"


class BadEndpoint(ValueError):
    """A broker URL or a TLS file that can't be used; the text names it and says what would do."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A broker's URL and the credentials beside it.

    `url` is `amqp[s][10]://[user[:password]@]host[:port][/vhost]`; `amqp10` and `amqps10` are AMQP 1.0, the others
    0-9-1. `name` is what the broker's console shows for the connection. Times are in seconds. Raises BadEndpoint when
    the URL can't be one.
    """

    url: str
    name: str = "carod"
    heartbeat: int = 30
    connect_timeout: float = 10.0
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            shown = re.sub(r"//([^:@/]*):.*@", r"//\1:***@", self.url)
            raise BadEndpoint(f"broker URL {shown!r}: {error}; write {FORM}") from None
        if parts.scheme not in DEFAULT_PORTS:
            raise BadEndpoint(
                f"broker URL {self.safe_url!r}: scheme {parts.scheme!r} is not one of "
                f"{', '.join(DEFAULT_PORTS)}; write {FORM}"
            )
        if not parts.hostname or port == 0:
            raise BadEndpoint(f"broker URL {self.safe_url!r} names no host; write {FORM}")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or DEFAULT_PORTS[parts.scheme]

    @property
    def vhost(self) -> str:
        """The virtual host: `/` when the URL's path is empty or a lone slash."""
        return unquote(urlsplit(self.url).path[1:]) or "/"

    @property
    def amqp10(self) -> bool:
        """Whether it is AMQP 1.0 that is spoken there."""
        return urlsplit(self.url).scheme.endswith("10")

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password, or None when the URL has neither.

        Then a client certificate speaks for us, or we are guest, or, over AMQP 1.0, anonymous.
        """
        parts = urlsplit(self.url)
        if parts.username is None:
            return None
        return unquote(parts.username), unquote(parts.password or "")

    @property
    def user(self) -> str | None:
        """Whom the broker knows us as; None if that is for our certificate to say, or we are anonymous."""
        if self.credentials is not None:
            return self.credentials[0]
        return None if self.external or self.amqp10 else "guest"

    @property
    def external(self) -> bool:
        """Whether the client certificate is the identity (SASL EXTERNAL): one is given and the URL names no user."""
        return bool(self.cert_file) and self.credentials is None

    @property
    def safe_url(self) -> str:
        """The URL without its password, for logs and messages."""
        parts = urlsplit(self.url)
        if "@" not in parts.netloc:
            return self.url
        user = quote(unquote(parts.username or ""), safe="")
        return urlunsplit(parts._replace(netloc=f"{user}:***@{parts.netloc.rpartition('@')[2]}"))

    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS settings, None for a plain connection. Raises BadEndpoint naming the file that can't be used."""
        if not urlsplit(self.url).scheme.startswith("amqps"):
            return None
        for what, path in (("CA", self.ca_file), ("certificate", self.cert_file), ("key", self.key_file)):
            if path and not os.access(path, os.R_OK):
                raise BadEndpoint(f"TLS {what} file {path!r} is missing or not readable by this user")
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except ssl.SSLError as error:
            raise BadEndpoint(f"TLS files {self.ca_file!r}, {self.cert_file!r}, {self.key_file!r}: {error}") from None
        return context


def with_protocol(url: str, protocol: str) -> str:
    """A broker's URL for a protocol, `0-9-1` or `1.0`, whichever its scheme names; for an empty one, the URL as it is.

    Raises BadEndpoint for another protocol. A URL that is none stays as it is: whoever opens it says so.
    """
    if not protocol:
        return url
    if protocol not in SCHEMES:
        raise BadEndpoint(f"protocol {protocol!r} is not one of {', '.join(SCHEMES)}")
    scheme, colon, rest = url.partition("://")
    plain, tls = SCHEMES[protocol]
    return f"{tls if scheme.startswith('amqps') else plain}{colon}{rest}" if scheme in DEFAULT_PORTS else url
