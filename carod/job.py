"""The wire contract: job message -> Job, status -> reply message, reply message -> Reply.

The only module that knows both ClassAds and AMQP. What it implements is docs/reference/wire-contract.md; its
section numbers are named below.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from carod.amqp import Body, HeaderValue, Message
from carod.classad import UNDEFINED, ClassAd, ClassAdSyntaxError, Expr, Value, parse_value, unparse

STRING_ATTRIBUTES = frozenset(
    """accountinggroup acctgroup acctgroupuser args arguments authenticatedidentity batchname cmd description env
    environment err globaljobid holdkillsig in iwd jobbatchname jobdescription killsig messageid notifyuser out owner
    removekillsig submission transferinput transferoutput transferoutputremaps user userlog""".split()
)
"""Attributes that are strings by definition (section 2, "bare strings"), in lower case."""

NODE_ATTRIBUTES = frozenset(
    """jobstate jobpid numpids remoteusercpu remotesyscpu imagesize residentsetsize diskusage remotehost exitbysignal
    exitcode exitsignal exitreason jobduration completiondate transferoutputrefused holdreason holdreasoncode
    removereason lastrejmatchreason authenticatedidentity""".split()
)
"""What only a node says of a job (section 4), in lower case: a client's own are dropped."""


EXPIRES_AT = "x-carod-expires-at"
"""Header of a job that a node published anew: when it expires, in seconds since the epoch."""


INCARNATION = "x-carod-incarnation"
"""Header of a job that was released from hold: how often. What is known of earlier lives does not count for it."""


ON_BEHALF = "x-carod-on-behalf"
"""Header of a job that a node published anew: the user id that it came with, which only that user could repeat."""


KEEPER = "x-carod-keeper"
"""Header of a job that an agent, which it names, has in its queue: it keeps the job when it is held, the broker need
not."""


class JobStatus(IntEnum):
    """HTCondor's JobStatus (section 3)."""

    IDLE = 1
    RUNNING = 2
    REMOVED = 3
    COMPLETED = 4
    HELD = 5
    TRANSFERRING_OUTPUT = 6
    SUSPENDED = 7


class HoldReasonCode(IntEnum):
    """HTCondor's HoldReasonCode, as far as a node holds jobs (manual, job ClassAd attributes)."""

    USER_REQUEST = 1
    JOB_POLICY = 3
    FAILED_TO_CREATE_PROCESS = 6
    UNABLE_TO_OPEN_OUTPUT = 7
    UNABLE_TO_OPEN_INPUT = 8
    TRANSFER_OUTPUT_ERROR = 12
    TRANSFER_INPUT_ERROR = 13
    IWD_ERROR = 14
    STARTD_HELD_JOB = 21
    FAILED_TO_ACCESS_USER_ACCOUNT = 23
    MAX_TRANSFER_OUTPUT_SIZE_EXCEEDED = 33
    JOB_OUT_OF_RESOURCES = 34
    JOB_EXECUTION_TIME_EXCEEDED = 47


class JobError(ValueError):
    """A job that can't be run as it is; the text names what, its value and the mend."""

    def __init__(self, text: str, code: HoldReasonCode = HoldReasonCode.STARTD_HELD_JOB) -> None:
        super().__init__(text)
        self.code = code


class NoReplyTo(JobError):
    """Nobody can be told of this job: it goes to the dead-letter queue."""


class NoMessageId(JobError):
    """The job has no identity: it is answered once and discarded."""


@dataclass(slots=True)
class Job:
    """A job as it came from the wire: its ad is parsed, nothing in it is believed yet.

    `id` is the message id in its text form, `expires_at` seconds since the epoch, `problem` what was wrong with
    the headers (then `ad` holds those before it). `courier` is whom the broker knows the grid's nodes as, `keeper` the
    agent that has the job, too.
    """

    id: str
    ad: ClassAd
    reply_to: str
    body: Body = b""
    durable: bool = False
    expires_at: float | None = None
    incarnation: int = 0
    courier: str | None = None
    keeper: str = ""
    problem: JobError | None = field(default=None)

    @classmethod
    def from_message(cls, message: Message, courier: str | None = None) -> Job:
        """The job in a message. Raises NoReplyTo or NoMessageId; a bad header becomes `problem`."""
        headers = message.headers
        job_id = message.message_id or _header_id(headers)
        if not message.reply_to:
            raise NoReplyTo(
                f"job {job_id or 'without message id'}: no reply_to property, so there is nobody to answer; "
                f"set reply_to to the queue that waits for the results{_malformed(message)}"
            )
        if not job_id:
            raise NoMessageId(
                "ERROR: the message has no unique message id (property message_id, or header MessageId). "
                f"Discarding{_malformed(message)}"
            )
        released = headers.get(INCARNATION)
        job = cls(
            job_id, ClassAd(), message.reply_to, message.body, message.durable, _expiry(message),
            released if isinstance(released, int) else 0, courier, str(headers.get(KEEPER, "")),
        )  # fmt: skip
        try:
            read_headers(headers, job.ad)
        except JobError as error:
            job.problem = error
        for name in [name for name in headers if name.lower() in NODE_ATTRIBUTES]:
            job.ad.pop(name, None)
        identity = _identity(message, courier)
        if identity is not None:
            job.ad["AuthenticatedIdentity"] = identity
        return job

    @property
    def expired(self) -> bool:
        """Whether it may no longer be started."""
        return self.expires_at is not None and time.time() >= self.expires_at

    @property
    def key(self) -> str:
        """What tells this life of the job from those before it was released from hold."""
        return f"{self.id}#{self.incarnation}" if self.incarnation else self.id

    @property
    def starts(self) -> int:
        """How often it has been started (NumJobStarts)."""
        starts = self.ad.get("NumJobStarts")
        return starts if isinstance(starts, int) and not isinstance(starts, bool) and starts > 0 else 0

    def reply(
        self,
        status: JobStatus,
        state: str | None = None,
        *,
        body: Body = b"",
        slot: Mapping[str, HeaderValue] | None = None,
    ) -> Message:
        """A status message for the job's owner (section 4): the ad as it is now, before it the slot's attributes.

        Sets JobStatus and JobState in the ad.
        """
        ad = self.ad
        ad["JobStatus"] = int(status)
        if state is None:
            ad.pop("JobState", None)
        else:
            ad["JobState"] = state
        headers: dict[str, HeaderValue] = dict(slot) if slot else {}
        headers.update(wire_headers(ad))
        return Message(body, headers, str(uuid.uuid4()), self.id, durable=self.durable)

    def short_reply(self, status: JobStatus, state: str | None, *, body: Body = b"") -> Message:
        """A reply with the node's own attributes only, for an ad too large to send back."""
        names = {*NODE_ATTRIBUTES, "numjobstarts", "jobstartdate"}
        ad = ClassAd({name: value for name, value in self.ad.items() if name.lower() in names})
        ad["AdTooLarge"] = True
        return Job(self.id, ad, self.reply_to, durable=self.durable).reply(status, state, body=body)


def discarded(message: Message, error: JobError) -> Message:
    """The one answer to a message that is no job: its body says why (section 2, message id)."""
    return Message(
        str(error).encode(),
        {
            "JobStatus": int(JobStatus.HELD),
            "HoldReason": unparse(str(error)),
            "HoldReasonCode": int(error.code),
        },
        str(uuid.uuid4()),
        message.correlation_id,
        durable=message.durable,
    )


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client gets: one status message of one job.

    `state` is JobState without its quotes, None when absent; `body` is empty or a zip, or text beginning `ERROR:`.
    """

    job_id: str
    status: JobStatus
    state: str | None
    ad: ClassAd
    body: bytes

    @classmethod
    def from_message(cls, message: Message) -> Reply:
        """Raises ValueError for a message that is no reply of a node."""
        ad = ClassAd()
        read_headers(message.headers, ad)
        status, state = ad.get("JobStatus"), ad.get("JobState")
        if not isinstance(status, int) or not message.correlation_id:
            raise ValueError(f"not a node's reply: JobStatus {status!r}, correlation id {message.correlation_id!r}")
        body = message.body if isinstance(message.body, bytes) else message.body.read()
        return cls(message.correlation_id, JobStatus(status), state if isinstance(state, str) else None, ad, body)

    @property
    def final(self) -> bool:
        """Whether no further reply follows: completed, removed or held."""
        return self.status in (JobStatus.COMPLETED, JobStatus.REMOVED, JobStatus.HELD)


def job_message(
    ad: Mapping[str, Value | Expr],
    *,
    reply_to: str,
    message_id: str | None = None,
    body: Body = b"",
    expiration: float | None = None,
    priority: int | None = None,
    durable: bool = False,
) -> Message:
    """The message that submits a job (section 2). `expiration` is in seconds; without an id it gets a new uuid."""
    return Message(
        body,
        wire_headers(ad),
        message_id or str(uuid.uuid4()),
        reply_to=reply_to,
        expiration=expiration,
        priority=priority,
        durable=durable,
    )


# -- headers ---------------------------------------------------------------------------------------------------


def wire_headers(ad: Mapping[str, Value | Expr]) -> dict[str, HeaderValue]:
    """An ad as application headers: numbers and booleans as such, all else as ClassAd source text (section 4)."""
    return {
        name: value if value.__class__ in _AS_IS and -HUGE < value < HUGE else unparse(value)  # type: ignore
        for name, value in ad.items()
    }


_AS_IS = frozenset((bool, int, float))
HUGE = float("inf")
"""NaN and the infinities travel as source text: RabbitMQ ends the connection that sends one as a number."""
MAX_INTEGER = (1 << 63) - 1


def read_headers(headers: Mapping[str, HeaderValue], ad: ClassAd) -> None:
    """Put application headers into an ad (section 2). Raises JobError naming the header that can't be read."""
    for name, value in headers.items():
        if value.__class__ in _AS_IS and value <= MAX_INTEGER:  # type: ignore[operator]
            ad[name] = value
        elif not name.startswith("x-") and name not in ("CC", "BCC"):  # the broker's own, not the job's
            ad[name] = _read_header(name, value)


def _read_header(name: str, value: HeaderValue) -> Value | Expr:
    match value:
        case int() if value > MAX_INTEGER:  # a timestamp has 64 bits without a sign
            raise JobError(f"{name}: {value} is beyond a ClassAd's integers, which end at {MAX_INTEGER}")
        case bytes():
            try:
                return _read_text(name, value.decode())
            except UnicodeDecodeError:
                raise JobError(f"{name}: {value[:40]!r} is neither text nor a number; send UTF-8 text") from None
        case str():
            return _read_text(name, value)
        case None:
            return UNDEFINED
        case list():
            return [_plain(name, _read_header(name, item)) for item in value]
        case dict():
            inner = ClassAd()
            read_headers(value, inner)
            return inner
    return value


def _plain(name: str, value: Value | Expr) -> Value:
    if isinstance(value, Expr):
        raise JobError(f"{name}: a list in a header holds literals, not {str(value)[:60]!r}; send it as source text")
    return value


def _read_text(name: str, text: str) -> Value | Expr:
    by_definition = name.lower() in STRING_ATTRIBUTES
    try:
        value = parse_value(text)
    except ClassAdSyntaxError as error:
        if by_definition:
            return text
        raise JobError(
            f"ERROR: header {name}: {error}; a string needs its quotes in a ClassAd: {unparse(text[:40])}"
        ) from None
    if by_definition and not isinstance(value, str):
        return value if _is_string_expression(value, text) else text
    return value


def _is_string_expression(value: Value | Expr, text: str) -> bool:
    """An operator or function call with a string for its value; a lone word is a bare string, not a reference."""
    if not isinstance(value, Expr) or text.isidentifier():
        return False
    return isinstance(value.evaluate(), str)


def _header_id(headers: Mapping[str, HeaderValue]) -> str:
    """The id given as header `MessageId`, by clients that can't set properties (section 2)."""
    for name, value in headers.items():
        if name.lower() == "messageid":
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            return text.strip('"').encode("utf-8", "replace")[:255].decode("utf-8", "ignore")
    return ""


def _identity(message: Message, courier: str | None) -> str | None:
    """Who sent a job, as the broker has it; a job that a node published anew says so itself, by that node's word."""
    behalf = message.headers.get(ON_BEHALF)
    if isinstance(behalf, str) and courier is not None and message.user_id == courier:
        return behalf
    return message.user_id


def _expiry(message: Message) -> float | None:
    """A job's last moment: counted from its timestamp where it has one, else from its arrival here."""
    kept = message.headers.get(EXPIRES_AT)
    if isinstance(kept, int | float):
        return float(kept)
    if message.expiration is None:
        return None
    return (message.timestamp or time.time()) + message.expiration


def _malformed(message: Message) -> str:
    return f" (its properties can't be decoded: {message.malformed})" if message.malformed else ""
