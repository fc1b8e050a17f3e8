"""What can go wrong, one class a case, all of them `GridError`. Each text says what, which value, and the
mend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from carod import amqp
from carod.classad import ClassAd

if TYPE_CHECKING:
    from carod_client.results import Result, Results


class GridError(Exception):
    """Any failure of this library.

    `job_id` is the job's message id, empty where no job is concerned. Errors that come out of `Grid.map` also
    say whose they are: `item` is the item of the sweep, `index` its place, counted from 0 (-1 outside a
    sweep).
    """

    job_id: str = ""
    item: Any = None
    index: int = -1


class BrokerLost(GridError, amqp.ConnectionLost):
    """No connection to the broker, or it went away while the answer was awaited."""


class BrokerRefused(GridError, amqp.Refused):
    """The broker is there and said no: credentials, access, a message too large, a full disk."""


class NoQueue(GridError, amqp.Unroutable):
    """The broker has no such job queue: no node ever ran there."""


class BadJob(GridError, ValueError):
    """The job can't be described as asked (a missing input, an attribute that can't be sent); nothing was
    sent.
    """


class BadArchive(GridError, ValueError):
    """A result is no zip, or one that would write outside the directory it is unpacked to; nothing was
    written.
    """


class JobError(GridError):
    """A job that was sent and gave no result. `ad` is its ClassAd as last heard of, None when never."""

    def __init__(self, text: str, job_id: str, ad: ClassAd | None = None) -> None:
        super().__init__(text)
        self.job_id = job_id
        self.ad = ad


class JobHeld(JobError):
    """The node held the job: it could not be started or broke a rule.

    `reason` is HoldReason, `code` HoldReasonCode (0 when the node gave none), `results` the files that came
    back.
    """

    def __init__(self, job_id: str, reason: str, code: int, ad: ClassAd, results: Results) -> None:
        super().__init__(f"job {job_id} is held: {reason}", job_id, ad)
        self.reason, self.code, self.results = reason, code, results


class JobRejected(JobHeld):
    """The job never ran: its description does not suit the node, and `reason` says where."""


class JobRemoved(JobError):
    """Somebody removed the job. `results` are the files that came back."""

    def __init__(self, job_id: str, reason: str, ad: ClassAd, results: Results) -> None:
        super().__init__(f"job {job_id} was removed: {reason}", job_id, ad)
        self.reason, self.results = reason, results


class JobExpired(JobError):
    """No node took the job within the time it was allowed to wait in the queue."""


class JobTimeout(JobError, TimeoutError):
    """No final answer within `timeout`. The job itself is not stopped by this: see `Handle.remove`."""


class JobFailed(JobError):
    """With `check=True`: the job ended with a code other than 0, or by a signal. `result` has all of it."""

    def __init__(self, result: Result) -> None:
        how = f"exit code {result.exit_code}" if result.signal is None else f"signal {result.signal}"
        last = result.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        super().__init__(f"job {result.job_id} ended with {how}{': ' + last if last else ''}", result.job_id, result.ad)
        self.result = result


def from_transport(error: amqp.TransportError) -> GridError:
    """The same news as one of ours, so that `except GridError` catches everything."""
    if isinstance(error, GridError):
        return error
    if isinstance(error, amqp.ConnectionLost):
        return BrokerLost(str(error))
    if isinstance(error, amqp.Unroutable):
        return NoQueue(str(error))
    return BrokerRefused(str(error))
