"""Control messages (docs/reference/wire-contract.md, section 5): what a request says, and what comes back.

Shared by the node, which obeys, and by whoever asks: clients, the command line, and nodes asking each other.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from carod.amqp import Address, ConnectionLost, Delivery, HeaderValue, Message, Queue, Subscription, Transport


class Action(Enum):
    """What can be asked; all but the last three are about one job."""

    REMOVE = "Remove"
    HOLD = "Hold"
    SUSPEND = "Suspend"
    CONTINUE = "Continue"
    VACATE = "Vacate"
    SET_ATTRIBUTE = "SetAttribute"
    QUERY = "Query"
    WHO_HAS = "WhoHas"
    YIELD = "Yield"
    DONE = "Done"
    DRAIN = "Drain"
    RESUME = "Resume"
    PING = "Ping"


class BadRequest(ValueError):
    """A control message that can't be obeyed; the text says what is wrong and what would do."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `sender` is the broker's word for who sent it; `node` the asking node's name, if one asks.

    Remove and Hold may come `ahead` of their job: a node that does not have it ends it should it come. A `value` that
    is a list travels as the body, JSON: AMQP 1.0 has no lists in a header.
    """

    action: Action
    job: str = ""
    name: str = ""
    value: HeaderValue = None
    reason: str = ""
    node: str = ""
    sender: str | None = field(default=None, compare=False)
    ahead: bool = False

    def to_message(self) -> Message:
        headers: dict[str, HeaderValue] = {"Action": self.action.value}
        texts = {"JobId": self.job, "Name": self.name, "Reason": self.reason, "Node": self.node}
        headers |= {key: text for key, text in texts.items() if text}
        if self.value is not None and not isinstance(self.value, list):
            headers["Value"] = self.value
        if self.ahead:
            headers["Ahead"] = True
        body = json.dumps(self.value).encode() if isinstance(self.value, list) else b""
        return Message(
            body, headers, str(uuid.uuid4()), expiration=60.0, user_id=self.sender,
            content_type="application/json" if body else None,
        )  # fmt: skip

    @classmethod
    def from_message(cls, message: Message) -> Request:
        """Raises BadRequest for an unknown action or one whose arguments are missing."""
        headers = {name.lower(): value for name, value in message.headers.items()}
        text = str(headers.get("action", ""))
        try:
            action = Action(text)
        except ValueError:
            known = ", ".join(item.value for item in Action)
            raise BadRequest(f"Action: {text[:40]!r} is unknown; it is one of {known}") from None
        job = str(headers.get("jobid", "")).strip('"')
        if not job and action not in (Action.DRAIN, Action.RESUME, Action.PING):
            raise BadRequest(f"{action.value} needs the header JobId: the message id of the job")
        name = str(headers.get("name", "")).strip('"')
        if action is Action.SET_ATTRIBUTE and not (name and "value" in headers):
            raise BadRequest("SetAttribute needs the headers Name and Value (ClassAd source text)")
        value = _listed(message) if message.content_type == "application/json" else headers.get("value")
        return cls(
            action, job, name, value, str(headers.get("reason", "")), str(headers.get("node", "")),
            message.user_id, headers.get("ahead") is True,
        )  # fmt: skip


def _listed(message: Message) -> list[HeaderValue]:
    body = message.body if isinstance(message.body, bytes) else message.body.read()
    try:
        listed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not the JSON that its content type says: {error}") from None
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise BadRequest(f'the body is no JSON list of texts, such as ["7f0c", "a2d1"]: {body[:40]!r}')
    return list(listed)


@dataclass(frozen=True, slots=True)
class Answer:
    """A node's answer: `status` 0, or an error and its text. `headers` are all it sent, `body` JSON for Ping."""

    status: int
    error: str
    node: str
    headers: dict[str, HeaderValue]
    body: bytes = b""

    @classmethod
    def from_message(cls, message: Message) -> Answer:
        headers = dict(message.headers)
        status, body = headers.get("Status"), message.body
        return cls(
            status if isinstance(status, int) else 1,
            str(headers.get("Error", "")),
            str(headers.get("Node", "")),
            headers,
            body if isinstance(body, bytes) else body.read(),
        )


def answer(
    request: Message, node: str, error: str = "", headers: Mapping[str, HeaderValue] | None = None, body: bytes = b""
) -> Message:
    """The message that answers a request: `headers`, then Status, Node and, if it failed, Error."""
    status: dict[str, HeaderValue] = {"Status": 1 if error else 0, "Node": node}
    if error:
        status["Error"] = error
    return Message(
        body, {**(headers or {}), **status}, str(uuid.uuid4()), request.correlation_id or request.message_id,
        content_type="application/json" if body else None,
    )  # fmt: skip


def job_key(job: str) -> str:
    """The routing key that reaches whoever has a job."""
    return f"job.{job}".encode()[:255].decode("utf-8", "ignore")


def node_key(node: str) -> str:
    return f"node.{node}"


EVERYONE = "all"


ECHO = "echo"
"""State in a node's answer to its own WhoHas: the question went all the way."""
ECHO_PATIENCE = 15.0
"""Seconds that a question may take to come back; a broker that is busy for longer is as good as none."""


class Asker:
    """Sends requests to a grid's nodes and gathers their answers, on a connection that it does not own."""

    def __init__(self, transport: Transport, queue: str) -> None:
        self._transport, self._exchange = transport, f"{queue}.control"
        self._waiting: dict[str, asyncio.Queue[Answer | None]] = {}
        self._replies = ""
        self._subscription: Subscription | None = None

    async def open(self) -> None:
        """Make the queue for the answers. To be called again on every new connection."""
        self.lost()
        wanted = Queue("", durable=False, exclusive=True, auto_delete=True)
        self._replies, _ = await self._transport.declare(wanted)
        self._subscription = await self._transport.consume(self._replies, self._arrived, credit=0, settled=True)

    def lost(self) -> None:
        """The connection is gone: nothing more will be answered of what was asked."""
        for waiting in self._waiting.values():
            waiting.put_nowait(None)

    def _arrived(self, delivery: Delivery) -> None:
        waiting = self._waiting.get(delivery.message.correlation_id or "")
        if waiting is not None:
            waiting.put_nowait(Answer.from_message(delivery.message))

    async def ask(
        self, request: Request, key: str, timeout: float, enough: int = 1, echoed: bool = False
    ) -> list[Answer]:
        """Send a request and wait for `enough` answers or `timeout` seconds. Raises TransportError.

        With `echoed` (nodes only) the time runs from when the question has come back to us, and it is ConnectionLost
        if it does not: silence then means that nobody has an answer, not that nobody was asked.
        """
        message = request.to_message()
        message.reply_to = self._replies
        assert message.message_id is not None
        arrived = self._waiting[message.message_id] = asyncio.Queue()
        answers: list[Answer] = []
        echo = not echoed
        try:
            await self._transport.publish(message, Address(self._exchange, key), confirm=False)
            async with asyncio.timeout(timeout if echo else ECHO_PATIENCE) as limit:
                while len(answers) < enough:
                    received = await arrived.get()
                    if received is None:
                        raise ConnectionLost("the connection ended while we waited for an answer")
                    if received.headers.get("State") == ECHO:
                        echo = True
                        limit.reschedule(asyncio.get_running_loop().time() + timeout)
                    else:
                        answers.append(received)
        except TimeoutError:
            if not echo:
                raise ConnectionLost(f"a question did not come back to us in {ECHO_PATIENCE:g} s") from None
        finally:
            del self._waiting[message.message_id]
        return answers
