"""Control of a grid's jobs and nodes, for operators and their programs.

async with Control("amqp://guest:guest@127.0.0.1/") as control:
    await control.hold(job_id, "disk is full")
    for node in await control.nodes():
        print(node.name, node.busy, node.total)
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from types import TracebackType
from typing import Self

from carod.amqp import ConnectionLost, Endpoint, TransportError, open_transport
from carod.classad import ClassAd
from carod.control import EVERYONE, Action, Answer, Asker, Request, job_key, node_key
from carod.job import JobError, read_headers
from carod_client.census import NodeStatus
from carod_client.dead import DeadLetters, DeadMessage, Kind
from carod_client.errors import BrokerLost, GridError, from_transport
from carod_client.grid import default_queue, default_url

PATIENCE = 3.0
"""Seconds that a node has to answer about its job or itself; it answers from memory."""
CENSUS = 0.5
"""Seconds that nodes have to answer when nobody knows how many there are."""
ANSWER_HEADERS = frozenset({"Status", "Error", "Node"})


class NoSuchJob(GridError):
    """No node has the job. It may still wait in the queue, be held, or be over."""

    def __init__(self, text: str, job_id: str) -> None:
        super().__init__(text)
        self.job_id = job_id


class NoSuchNode(GridError):
    """No node of that name answered."""


class RequestRefused(GridError):
    """The node that has the job would not do it; the text is the node's."""


class NotReleasable(GridError):
    """There is something of the job, but nothing that could be released: it runs, is over, or is only a result."""


class Control:
    """Orders to the nodes of a grid, and questions. Use with `async with`.

    A request about a job is answered by the node that runs it; jobs that wait in the queue can't be reached this
    way. `patience` is how many seconds a node has to answer. Methods raise NoSuchJob or NoSuchNode if none
    does, RequestRefused with the node's text, BrokerLost, BrokerRefused. Raises BadEndpoint for a bad URL.
    """

    def __init__(
        self,
        url: str | Endpoint | None = None,
        queue: str | None = None,
        *,
        patience: float = PATIENCE,
    ) -> None:
        self.endpoint = url if isinstance(url, Endpoint) else Endpoint(url or default_url(), "carod control")
        self.queue = queue or default_queue()
        self.dead = DeadLetters(self.endpoint, self.queue)
        self.patience = patience
        self._transport = open_transport(self.endpoint)
        self._asker = Asker(self._transport, self.queue)

    async def __aenter__(self) -> Self:
        """Connect. Raises BrokerLost (nobody there) or BrokerRefused (credentials, vhost, TLS)."""
        try:
            await self._transport.connect()
            await self._asker.open()
        except BaseException as error:
            await self._transport.close()
            if isinstance(error, ConnectionLost):
                raise BrokerLost(f"{error}; is a broker running there? (CAROD_BROKER names another)") from None
            if isinstance(error, TransportError):
                raise from_transport(error) from None
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.close()

    # -- a job -----------------------------------------------------------------------------------------------

    async def hold(self, job: str, reason: str = "") -> str:
        """Have a job stopped and held; it is in the dead-letter queue then, until it is released.

        Like all orders about a job it gives the node's name, as soon as the node has taken the order: the job
        itself has its KillSigTimeout to end.
        """
        return (await self._about_job(Action.HOLD, job, reason=reason)).node

    async def remove(self, job: str, reason: str = "") -> str:
        """Have a job stopped for good."""
        return (await self._about_job(Action.REMOVE, job, reason=reason)).node

    async def vacate(self, job: str, reason: str = "") -> str:
        """Have a job stopped and put back into the queue."""
        return (await self._about_job(Action.VACATE, job, reason=reason)).node

    async def suspend(self, job: str) -> str:
        """Have all of a job's processes stopped where they are."""
        return (await self._about_job(Action.SUSPEND, job)).node

    async def resume_job(self, job: str) -> str:
        """Have a suspended job go on."""
        return (await self._about_job(Action.CONTINUE, job)).node

    async def set_attribute(self, job: str, name: str, value: str | int | float | bool) -> str:
        """Set an attribute of a running job's ad; a string is ClassAd source text."""
        return (await self._about_job(Action.SET_ATTRIBUTE, job, name=name, value=value)).node

    async def query(self, job: str) -> ClassAd:
        """A running job's ad as its node has it."""
        answer = await self._about_job(Action.QUERY, job)
        ad = ClassAd()
        try:
            read_headers({name: value for name, value in answer.headers.items() if name not in ANSWER_HEADERS}, ad)
        except JobError as error:
            raise GridError(f"job {job}: the answer of node {answer.node} can't be read: {error}") from None
        return ad

    async def _about_job(
        self, action: Action, job: str, *, reason: str = "", name: str = "", value: str | float | bool | None = None
    ) -> Answer:
        answers = await self._ask(Request(action, job, name, value, reason, sender=self._user), job_key(job))
        if not answers:
            raise NoSuchJob(await self._where_it_may_be(job), job)
        (answer,) = answers
        if answer.status:
            refused = RequestRefused(f"job {job}: node {answer.node} refused {action.value}: {answer.error}")
            refused.job_id = job
            raise refused
        return answer

    async def _where_it_may_be(self, job: str) -> str:
        waiting = await self.waiting()
        if waiting is None:
            return (
                f"job {job}: no node has it; there is no queue {self.queue!r} on broker {self.endpoint.safe_url} at "
                "all (--queue and --broker name others)"
            )
        return (
            f"job {job}: no node has it; it may still be waiting in queue {self.queue} ({waiting} waiting), where only "
            "the agent can manage it, be held (`carod dead` lists those), or be over"
        )

    # -- held jobs -------------------------------------------------------------------------------------------

    async def release(self, job: str) -> None:
        """Send a held job back to the queue. Raises NoSuchJob or NotReleasable, see `release_all`."""
        async with aclosing(self.release_all([job])) as outcomes:
            async for _, error in outcomes:
                if error is not None:
                    raise error

    async def release_all(
        self, jobs: Collection[str] | None = None
    ) -> AsyncGenerator[tuple[str, GridError | None], None]:
        """Send held jobs back to the queue, these or all there are: each one's id, and why not if it was not.

        Its ad, its inputs and NumJobStarts are what they were when it was held. What is no job is left where it is.
        """
        left: dict[str, DeadMessage] = {}
        done = set()
        try:
            async with aclosing(self.dead.release(jobs)) as messages:
                async for message, released in messages:
                    if released:
                        done.add(message.id)
                        yield message.id, None
                    else:
                        left[message.id] = message
        except TransportError as error:
            raise from_transport(error) from None
        for job in dict.fromkeys(jobs or ()):
            if job not in done:
                yield job, await self._why_not_released(job, left.get(job))

    async def _why_not_released(self, job: str, dead: DeadMessage | None) -> GridError:
        if dead is not None:
            what = {
                Kind.RESULT: "its result, which could not be delivered, is there, but no job to run again",
                Kind.UNUSABLE: "what is there can't be run",
            }[dead.kind]
            return NotReleasable(f"job {job} can't be released from {self.dead.name}: {what}: {dead.reason}")
        answers = await self._ask(Request(Action.WHO_HAS, job), job_key(job), wait=CENSUS)
        if not answers:
            return NoSuchJob(
                f"job {job}: not held, {self.dead.name} does not have it, and no node knows of it either; "
                f"it may be waiting in queue {self.queue}, or be over",
                job,
            )
        node = answers[0].node
        if answers[0].headers.get("State") == "running":
            return NotReleasable(
                f"job {job} runs on node {node}; if it was just held, it still has its KillSigTimeout to end"
            )
        return NotReleasable(
            f"job {job} is not held: it ended on node {node}, or was released already and waits in queue {self.queue}"
        )

    # -- nodes -----------------------------------------------------------------------------------------------

    async def nodes(self, wait: float = CENSUS, enough: int | None = None) -> list[NodeStatus]:
        """The nodes that answer within `wait` seconds, or until `enough` did; by name."""
        answers = await self._ask(Request(Action.PING), EVERYONE, wait, enough or sys.maxsize)
        return sorted((NodeStatus.from_answer(answer) for answer in answers), key=lambda node: node.name)

    async def ping(self, node: str) -> NodeStatus:
        """How a node is."""
        return NodeStatus.from_answer(await self._about_node(Action.PING, node))

    async def drain(self, node: str) -> None:
        """Have a node take no more jobs; those that run go on."""
        await self._about_node(Action.DRAIN, node)

    async def resume(self, node: str) -> None:
        """Have a drained node take jobs again."""
        await self._about_node(Action.RESUME, node)

    async def tell_all(self, action: Action, wait: float = CENSUS) -> list[Answer]:
        """Drain, Resume or Ping every node: what those that answer within `wait` seconds say."""
        return await self._ask(Request(action, sender=self._user), EVERYONE, wait, sys.maxsize)

    async def _about_node(self, action: Action, node: str) -> Answer:
        answers = await self._ask(Request(action, sender=self._user), node_key(node))
        if not answers:
            others = ", ".join(other.name for other in await self.nodes()) or "none at all"
            raise NoSuchNode(f"node {node}: no answer; nodes of queue {self.queue} that answer: {others}")
        if answers[0].status:
            raise RequestRefused(f"node {node} refused {action.value}: {answers[0].error}")
        return answers[0]

    # -- queues ----------------------------------------------------------------------------------------------

    async def waiting(self) -> int | None:
        """How many jobs wait in the queue; None when there is no such queue."""
        return await self._depth(self.queue)

    async def held(self) -> int | None:
        """How many messages are in the dead-letter queue, jobs and others; None when there is no such queue."""
        return await self._depth(self.dead.name)

    async def dead_letters(self) -> list[DeadMessage]:
        """What is in the dead-letter queue, oldest first; it stays there. Raises NoQueue when there is none."""
        try:
            return await self.dead.messages()
        except TransportError as error:
            raise from_transport(error) from None

    async def _depth(self, queue: str) -> int | None:
        try:
            return await self._transport.depth(queue)
        except TransportError as error:
            raise from_transport(error) from None

    async def _ask(self, request: Request, key: str, wait: float | None = None, enough: int = 1) -> list[Answer]:
        try:
            return await self._asker.ask(request, key, self.patience if wait is None else wait, enough)
        except TransportError as error:
            raise from_transport(error) from None

    @property
    def _user(self) -> str | None:
        """Whom the broker knows us as; a certificate's name is the broker's to find out."""
        if self.endpoint.external:
            return None
        return (self.endpoint.credentials or ("guest", ""))[0]
