"""A connection to a grid: jobs go out on its queue, replies come back on one of our own.

async with Grid("amqp://guest:guest@127.0.0.1/") as grid:
    result = await grid.run("/bin/echo", "Hello")
    print(result.stdout)
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar, Unpack

from carod.amqp import (
    Address,
    BadEndpoint,
    Body,
    ConnectionLost,
    Delivery,
    Endpoint,
    Message,
    Outcome,
    Queue,
    TransportError,
    Unroutable,
    open_transport,
)
from carod.classad import ClassAd
from carod.control import Action, Answer, Request, job_key
from carod.job import Reply, job_message, read_headers
from carod_client import description
from carod_client.description import CommonOptions, JobOptions, Parcel
from carod_client.errors import BadJob, BrokerLost, GridError, JobTimeout, NoQueue, from_transport
from carod_client.handle import Handle
from carod_client.inputs import AnyPath, Inputs, release
from carod_client.results import Result
from carod_client.sweep import Args, Sweep

T = TypeVar("T")

DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672/"
DEFAULT_QUEUE = "grid"
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds between attempts to reach a lost broker: doubled from the first to the last, and spread by a half,
so that the clients of a restarted broker don't come back all at once."""
REMEMBERED = 10_000
"""Finished jobs whose late or repeated replies are known for what they are."""
CONTROL_PATIENCE = 10.0
"""Seconds that a node has to answer a control message."""

log = logging.getLogger("carod_client")


def default_url() -> str:
    """The broker that the environment names (CAROD_BROKER, _CAROD_BROKER_URL), else the local one."""
    return os.environ.get("CAROD_BROKER") or os.environ.get("_CAROD_BROKER_URL") or DEFAULT_URL


def default_queue() -> str:
    """The job queue that the environment names (_CAROD_BROKER_QUEUE), else `grid`."""
    return os.environ.get("_CAROD_BROKER_QUEUE") or DEFAULT_QUEUE


class Grid:
    """A grid of execute nodes, reached through a broker. Use with `async with`.

    With `reply_queue`, replies go to a durable queue of that name, which outlives connection and process:
    after a lost connection the grid connects again and its jobs go on; results of an earlier process are had
    by `attach`. Without one, replies go to a queue that ends with the connection: jobs under way then fail
    with BrokerLost, and the grid connects again for new ones.

    `in_flight` bounds the jobs that a `map` has out at a time. Raises BadEndpoint for a URL that can't be
    one.
    """

    def __init__(
        self,
        url: str | None = None,
        queue: str | None = None,
        *,
        reply_queue: str | None = None,
        in_flight: int = 100,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        connect_timeout: float = 10.0,
    ) -> None:
        self.endpoint = Endpoint(
            url or default_url(), "carod client", connect_timeout=connect_timeout,
            ca_file=ca_file, cert_file=cert_file, key_file=key_file,
        )  # fmt: skip
        self.queue = queue or default_queue()
        self.in_flight = in_flight
        self._transport = open_transport(self.endpoint)
        self._named_reply_queue = reply_queue
        self._reply_queue = ""
        self._handles: dict[str, Handle] = {}
        self._finished: dict[str, None] = {}
        self._unclaimed: dict[str, Delivery] = {}
        self._questions: dict[str, asyncio.Future[Message]] = {}
        self._up = asyncio.Event()
        self._closed = False
        self._keeper: asyncio.Task[None] | None = None
        self._deaf: asyncio.Future[str]

    async def __aenter__(self) -> Self:
        """Connect. Raises BrokerLost (nobody there) or BrokerRefused (credentials, vhost, TLS)."""
        try:
            await self._connect()
        except BaseException as error:
            await self._transport.close()
            if isinstance(error, ConnectionLost):
                raise BrokerLost(f"{error}; is a broker running there? (CAROD_BROKER names another)") from None
            if isinstance(error, TransportError):
                raise from_transport(error) from None
            raise
        self._keeper = asyncio.create_task(self._keep_connected(), name="carod_client connection")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect. Whoever still waits for a job gets a GridError; the jobs themselves go on."""
        self._closed = True
        assert self._keeper is not None
        self._fail_all("the grid was closed before its result came")
        self._keeper.cancel()
        try:
            with suppress(asyncio.CancelledError):
                await self._keeper
        finally:
            self._up.clear()
            await self._transport.close()

    # -- jobs ------------------------------------------------------------------------------------------------

    async def run(self, cmd: AnyPath, *args: str, **options: Unpack[JobOptions]) -> Result:
        """Run a job and wait for its result; `submit` and `await` in one. Cancelled, it awaits its job no
        more.
        """
        handle = await self.submit(cmd, *args, **options)
        try:
            return await handle
        finally:
            handle.forget()

    async def submit(self, cmd: AnyPath, *args: str, **options: Unpack[JobOptions]) -> Handle:
        """Send a job and come back once the broker has it. See `JobOptions` for the options.

        Raises BadJob (it can't be described; nothing was sent), NoQueue (no node ever ran there),
        BrokerRefused, BrokerLost (it may or may not have arrived), JobTimeout (the broker did not take it in
        time).
        """
        parcel = description.parcel(cmd, options.get("inputs", ()), options.get("stdin"))
        body = parcel.body() if parcel.at_once else await asyncio.to_thread(parcel.body)
        try:
            return await self.send(parcel, args, body, options)
        finally:
            release(body)

    def map(
        self,
        cmd: AnyPath,
        items: Iterable[T],
        *,
        args: Args[T] | None = None,
        inputs: Inputs | Callable[[T], Inputs] = (),
        attributes: Mapping[str, Any] | Callable[[T], Mapping[str, Any]] = MappingProxyType({}),
        env: Mapping[str, str] | Callable[[T], Mapping[str, str]] = MappingProxyType({}),
        stdin: bytes | Callable[[T], bytes] | None = None,
        in_flight: int | None = None,
        ordered: bool = False,
        on_error: Callable[[GridError], None] | None = None,
        **options: Unpack[CommonOptions],
    ) -> AsyncGenerator[Result, None]:
        """Run `cmd` once for each item; `async for result in grid.map(...)` as they end, each with its
        `item`.

        `args` is a list in which `{item}` stands for the item, or a function of the item; without it the item
        is the one argument. `inputs`, `attributes`, `env` and `stdin` are the same for all, or functions of
        the item. At most `in_flight` jobs are out, and items are drawn only as results are taken. With
        `ordered`, results come in the items' order. A job that gives no result ends the sweep with its error,
        which knows its `item` and `index`; with `on_error` it is handed to that, and the sweep goes on.
        Whoever leaves the loop early should wrap it in `contextlib.aclosing`: jobs that are out then go on,
        but are awaited no more.
        """
        sweep = Sweep(
            self, cmd, items, args, inputs, attributes, env, stdin,
            self.in_flight if in_flight is None else in_flight, ordered, on_error, options,
        )  # fmt: skip
        return sweep.run()

    async def send(
        self,
        parcel: Parcel,
        args: Iterable[str],
        body: Body,
        options: JobOptions,
        on_done: Callable[[Handle], None] | None = None,
    ) -> Handle:
        """`submit` with the inputs packed already: for many jobs with the same ones. `body` stays the
        caller's.
        """
        timeout = description.checked_seconds("timeout", options.get("timeout"))
        expires = description.checked_seconds("expires", options.get("expires"))
        job_id = description.checked_id(options.get("message_id") or str(uuid.uuid4()))
        if job_id in self._handles:
            raise BadJob(f"message_id {job_id!r} is that of a job under way; each job needs one of its own")
        ad = description.describe(
            parcel, args, attributes=options.get("attributes"), env=options.get("env"),
            outputs=options.get("outputs"), requirements=options.get("requirements"),
        )  # fmt: skip
        priority, durable = _priority(options.get("priority")), options.get("durable")
        await self._connected()
        message = job_message(
            ad, reply_to=self._reply_queue, message_id=job_id, body=body, expiration=expires,
            priority=priority, durable=self._named_reply_queue is not None if durable is None else durable,
        )  # fmt: skip
        handle = Handle(
            self, job_id, timeout=timeout, expires=expires, check=options.get("check", False),
            on_update=options.get("on_update"), on_done=self._done(on_done),
        )  # fmt: skip
        self._handles[job_id] = handle  # before it is sent: its reply may overtake the broker's confirm
        try:
            async with asyncio.timeout(timeout):
                await self._transport.publish(message, Address("", self.queue))
        except BaseException as error:
            self._handles.pop(job_id, None)
            handle.drop()
            raise self._why_not_sent(error, job_id, timeout) from None
        return handle

    def attach(self, job_id: str, *, timeout: float | None = None, check: bool = False) -> Handle:
        """A handle for a job that an earlier process sent with the same durable `reply_queue`."""
        if self._named_reply_queue is None:
            raise GridError(f"job {job_id}: only a Grid with a reply_queue can be sent earlier replies")
        if job_id in self._handles:
            return self._handles[job_id]
        handle = Handle(self, job_id, timeout=timeout, check=check, on_done=self._done(None))
        self._handles[job_id] = handle
        waiting = self._unclaimed.pop(job_id, None)
        if waiting is not None:
            self._on_delivery(waiting)
        return handle

    async def control(
        self,
        action: Action | str,
        job_id: str,
        *,
        reason: str = "",
        name: str = "",
        value: str | int | float | bool | None = None,
        timeout: float = CONTROL_PATIENCE,
    ) -> ClassAd:
        """Have the node that runs a job do something to it: Remove, Hold, Suspend, Continue, Vacate, Query, ...

        `name` and `value` (ClassAd source) are for SetAttribute. What the node answers comes back, for Query the
        job's ad. Raises GridError with the node's text when it refuses, or when no node that runs the job
        answers within `timeout` seconds: it waits in the queue then, or is over.
        """
        request = Request(Action(action), job_id, name, value, reason)
        await self._connected()
        message = request.to_message()
        message.reply_to, message.correlation_id = self._reply_queue, message.message_id
        question = message.message_id or ""
        replied: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._questions[question] = replied
        try:
            async with asyncio.timeout(timeout):
                await self._transport.publish(message, Address(f"{self.queue}.control", job_key(job_id)))
                answer = Answer.from_message(await replied)
        except (TimeoutError, Unroutable):
            raise GridError(
                f"{request.action.value} job {job_id}: no node runs it; it still waits in the queue, or is over"
            ) from None
        except TransportError as error:
            raise from_transport(error) from None
        finally:
            del self._questions[question]
        if answer.status != 0:
            raise GridError(f"{request.action.value} job {job_id}: node {answer.node} refused: {answer.error}")
        return _answer_ad(request.action, answer)

    # -- replies ---------------------------------------------------------------------------------------------

    def _on_delivery(self, delivery: Delivery) -> None:
        """Hand a reply to whom it concerns. On a durable queue a result stays the broker's until somebody has
        it.
        """
        message = delivery.message
        job_id = message.correlation_id or ""
        question = self._questions.get(job_id)
        if question is not None:
            if not question.done():
                question.set_result(message)
        elif (handle := self._handles.get(job_id)) is not None:
            try:
                handle.take(Reply.from_message(message))
            except ValueError as error:
                handle.fail(GridError(f"job {job_id}: the node's reply can't be read: {error}"))
        elif self._named_reply_queue is not None and job_id not in self._finished and _is_final(message):
            self._unclaimed[job_id] = delivery
            return
        if self._named_reply_queue is not None:
            with suppress(ConnectionLost):  # then it comes again, and is known to be finished
                delivery.settle(Outcome.ACCEPTED)

    def _done(self, also: Callable[[Handle], None] | None) -> Callable[[Handle], None]:
        def done(handle: Handle) -> None:
            self._handles.pop(handle.id, None)
            if handle.replies and handle.replies[-1].final:
                self._finished[handle.id] = None
                if len(self._finished) > REMEMBERED:
                    del self._finished[next(iter(self._finished))]
            if also is not None:
                also(handle)

        return done

    def _fail_all(self, why: str) -> None:
        for handle in list(self._handles.values()):
            handle.fail(BrokerLost(f"job {handle.id}: {why}"))

    # -- the connection --------------------------------------------------------------------------------------

    def _why_not_sent(self, error: BaseException, job_id: str, timeout: float | None) -> BaseException:
        broker = self.endpoint.safe_url
        if isinstance(error, Unroutable):
            return NoQueue(
                f"no queue {self.queue!r} on broker {broker}: is a node running? (carod start --queue {self.queue})"
            )
        if isinstance(error, TimeoutError):
            return JobTimeout(f"job {job_id}: broker {broker} did not take it within {timeout:g} s", job_id)
        if isinstance(error, ConnectionLost):
            return BrokerLost(f"job {job_id} may or may not have been sent: {error}")
        return from_transport(error) if isinstance(error, TransportError) else error

    async def _connect(self) -> None:
        await self._transport.connect()
        await self._listen()

    async def _listen(self) -> None:
        """Have a reply queue, and take from it."""
        durable = self._named_reply_queue is not None
        wanted = Queue(self._named_reply_queue or "", durable, exclusive=not durable, auto_delete=not durable)
        self._reply_queue, _ = await self._transport.declare(wanted)
        self._deaf = deaf = asyncio.get_running_loop().create_future()

        def ended(why: str) -> None:
            if not deaf.done():
                deaf.set_result(why)

        await self._transport.consume(self._reply_queue, self._on_delivery, credit=0, settled=not durable, on_end=ended)
        self._up.set()

    async def _connected(self) -> None:
        """Wait, as long as a connection may take, until there is one. Raises BrokerLost."""
        if self._closed or self._keeper is None:
            raise GridError("this Grid is not open; use it inside `async with Grid(...) as grid:`")
        try:
            async with asyncio.timeout(self.endpoint.connect_timeout):
                await self._up.wait()
        except TimeoutError:
            raise BrokerLost(
                f"the connection to broker {self.endpoint.safe_url} was lost, and the broker was not "
                f"back within {self.endpoint.connect_timeout:g} s"
            ) from None

    async def _keep_connected(self) -> None:
        try:
            while True:
                why = await self._until_deaf()
                self._up.clear()
                self._unclaimed.clear()  # the broker offers them again
                log.warning("connection to broker %s lost: %s", self.endpoint.safe_url, why)
                if self._named_reply_queue is None:
                    self._fail_all(
                        f"the connection to broker {self.endpoint.safe_url} was lost ({why}); the job may "
                        "still run, but its result can't reach us; a Grid with a reply_queue survives this"
                    )
                try:
                    await self._listen()  # if only the queue was lost
                except TransportError:
                    await self._reconnect()
                log.warning("connected to broker %s again", self.endpoint.safe_url)
        finally:
            self._fail_all("the grid no longer listens for it")

    async def _until_deaf(self) -> str:
        """Wait until replies can't reach us any more (no connection, or somebody deleted the queue); say why."""
        closed = asyncio.ensure_future(self._transport.wait_closed())
        try:
            await asyncio.wait((closed, self._deaf), return_when=asyncio.FIRST_COMPLETED)
            return self._deaf.result() if self._deaf.done() else closed.result()
        except ConnectionLost as error:
            return str(error)
        finally:
            closed.cancel()
            await asyncio.wait((closed,))

    async def _reconnect(self) -> None:
        pause = FIRST_RETRY
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            try:
                await self._connect()
                return
            except (TransportError, BadEndpoint) as error:
                log.info("still no connection: %s", error)
                await self._transport.close()
            pause = min(2 * pause, LAST_RETRY)


def _is_final(message: Message) -> bool:
    try:
        return Reply.from_message(message).final
    except ValueError:
        return False


def _answer_ad(action: Action, answer: Answer) -> ClassAd:
    """A node's answer: for Query a job ad, else a few plain values."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("Status", "Error", "Node")}
    if action is not Action.QUERY:
        return ClassAd(headers)
    ad = ClassAd()
    try:
        read_headers(headers, ad)
    except ValueError as error:
        raise GridError(f"the answer of node {answer.node} can't be read: {error}") from None
    return ad


def _priority(priority: int | None) -> int | None:
    if priority is not None and (isinstance(priority, bool) or priority not in range(256)):
        raise BadJob(f"priority={priority!r} is not an integer from 0 to 255")
    return priority
