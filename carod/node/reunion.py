"""After a cut-off, or a death: what became of our jobs elsewhere meanwhile, and what of ours was never sent."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Container

from carod.amqp import Message, Refused, TransportError
from carod.classad import ClassAd
from carod.control import Action, Asker, Request, node_key
from carod.job import Job, wire_headers
from carod.log import event
from carod.node.claims import DONE, RUNNING
from carod.node.custody import ASK, HELLO, LAST_ASK, Custody
from carod.node.journal import Journal
from carod.node.post import Post
from carod.starter.starter import Starter

log = logging.getLogger("carod.reunion")
TOLD = 200
"""Jobs that are done of which a node that comes is told: all others tell it of as many."""
COMPARISONS = 20
"""Times that another node which has our job is asked to yield, before we do."""


class Reunion:
    """A node that is back on its broker, among the others that went on without it."""

    def __init__(
        self,
        custody: Custody,
        asker: Asker,
        post: Post,
        journal: Journal,
        online: asyncio.Event,
        name: str,
        user: str | None,
    ) -> None:
        self._custody, self._asker, self._post, self._journal = custody, asker, post, journal
        self._online, self._name, self._user = online, name, user

    async def compare_starts(self, starters: list[Starter]) -> None:
        """Find the jobs of ours that were started elsewhere while we were cut off. Raises TransportError."""
        outcomes = await asyncio.gather(*map(self._compare_start, starters), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _compare_start(self, starter: Starter) -> None:
        winner, beaten = await self._contest(starter.job, starter.started_at)
        if beaten:
            starter.job.ad["DuplicateStart"] = beaten
        if winner:
            starter.give_way(winner, unsent=True)

    async def _contest(self, job: Job, started_at: float) -> tuple[str, str]:
        """Of two nodes that have a job the first start wins; but a result that is on its way elsewhere wins, too.

        The node that wins, empty if that is us; and the node that started the job, too, and yields to us.
        """
        winner = beaten = ""
        for _ in range(COMPARISONS):
            owner = await self._custody.who_has(job, LAST_ASK, RUNNING)
            if owner is None:
                return "", beaten
            winner, theirs = owner.node, owner.headers.get("JobStartDate")
            first = isinstance(theirs, float) and (theirs, winner) < (started_at, self._name)
            if first or owner.headers.get("State") == DONE:
                break
            event(log, "job runs twice", logging.WARNING, job=job.id, other=owner.node)
            beaten = owner.node
            request = Request(Action.YIELD, job.id, node=self._name, sender=self._user)
            answers = await self._asker.ask(request, node_key(owner.node), LAST_ASK)
            if answers and answers[0].status == 0:
                return "", beaten
        return winner, beaten

    async def introduce(self, count: int) -> None:
        """Tell the others that we are here, and what is done here, or in an earlier life, that may come again.

        That is the last `count` jobs that were finished, too: the broker may not know that they are settled.
        """
        await self._custody.announce(self._journal.last_done(count), self._user, name=HELLO)
        await self._custody.announce(self._journal.doubtful, self._user)

    async def answer_introduction(self, node: str) -> None:
        """Tell a node that has just come what is done, here or elsewhere, and comes again."""
        await self._custody.announce(self._journal.doubtful[-TOLD:], self._user, node_key(node))

    async def tell_done(self, key: str) -> None:
        """Tell the others that a job is done whose delivery comes again."""
        self._journal.doubt(key)
        await self._custody.announce([key], self._user)

    async def send_what_is_left(self, running: Container[str]) -> None:
        """Results that an earlier life of this node could not send, or did not see confirmed. Outlives connections."""
        await asyncio.gather(*(self._send_left(*left, running) for left in self._journal.unconfirmed()))

    async def _send_left(self, message: Message, reply_to: str, key: str, running: Container[str]) -> None:
        job = message.correlation_id or ""
        incarnation = int(key.rpartition("#")[2]) if key != job else 0
        winner, beaten = await self._contest_left(Job(job, ClassAd(), reply_to, incarnation=incarnation))
        sent = job not in running and not winner
        event(log, "result of an earlier life", job=job, sent=sent, other=winner or beaten)
        if sent:
            if beaten:
                duplicate = wire_headers(ClassAd({"DuplicateStart": beaten}))
                message = dataclasses.replace(message, headers={**message.headers, **duplicate})
            try:
                await self._post.deliver(message, reply_to)
            except Refused as error:
                await self._post.bury(dataclasses.replace(message, reply_to=reply_to), str(error))
            self._journal.finished(job, key)
            await self.tell_done(key)
        self._journal.dispatched(key)

    async def _contest_left(self, job: Job) -> tuple[str, str]:
        """The same for a job that has ended: whoever may have read its result, no other is to follow."""
        while True:
            await self._online.wait()
            try:
                return await self._contest(job, 0.0)
            except TransportError:
                await asyncio.sleep(ASK)  # whoever watches the connection may not know yet
