"""After a cut-off, or a death: what became of our jobs elsewhere meanwhile, and what of ours was never sent."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Container

from carod.amqp import Message, Refused, TransportError
from carod.classad import ClassAd
from carod.control import Action, Asker, Request, node_key
from carod.job import Job
from carod.log import event
from carod.node.custody import ASK, LAST_ASK, Custody
from carod.node.journal import Journal
from carod.node.post import Post
from carod.starter.starter import Starter

log = logging.getLogger("carod.reunion")
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
        if not starters:
            return
        await asyncio.sleep(LAST_ASK + ASK)  # who asked before we could hear it has decided by now
        outcomes = await asyncio.gather(*map(self._compare_start, starters), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _compare_start(self, starter: Starter) -> None:
        """The first start wins; a result that is on its way elsewhere wins, too."""
        winner = ""
        for _ in range(COMPARISONS):
            owner = await self._custody.who_has(starter.job)
            if owner is None:
                return
            winner, theirs = owner.node, owner.headers.get("JobStartDate")
            first = isinstance(theirs, float) and (theirs, winner) < (starter.started_at, self._name)
            if first or owner.headers.get("State") == "done":
                break
            event(log, "job runs twice", logging.WARNING, job=starter.job.id, other=owner.node)
            starter.job.ad["DuplicateStart"] = owner.node
            request = Request(Action.YIELD, starter.job.id, node=self._name, sender=self._user)
            answers = await self._asker.ask(request, node_key(owner.node), LAST_ASK)
            if answers and answers[0].status == 0:
                return
        starter.give_way(winner, unsent=True)

    async def announce_done(self, count: int) -> None:
        """Tell the others what was finished last, here or in an earlier life: the broker may not know it is settled."""
        for key in self._journal.last_done(count):
            await self._custody.announce(key, self._user)

    async def send_what_is_left(self, running: Container[str]) -> None:
        """Results that an earlier life of this node could not send, or did not see confirmed. Outlives connections."""
        await asyncio.gather(*(self._send_left(*left, running) for left in self._journal.unconfirmed()))

    async def _send_left(self, message: Message, reply_to: str, key: str, running: Container[str]) -> None:
        job = message.correlation_id or ""
        incarnation = int(key.rpartition("#")[2]) if key != job else 0
        sent = job not in running and await self._nobody_has(Job(job, ClassAd(), reply_to, incarnation=incarnation))
        event(log, "result of an earlier life", job=job, sent=sent)
        if sent:
            try:
                await self._post.deliver(message, reply_to)
            except Refused as error:
                await self._post.bury(dataclasses.replace(message, reply_to=reply_to), str(error))
            self._journal.finished(job, key)
            await self._custody.announce(key, self._user)
        self._journal.dispatched(key)

    async def _nobody_has(self, job: Job) -> bool:
        while True:
            await self._online.wait()
            try:
                return await self._custody.who_has(job, LAST_ASK) is None
            except TransportError:
                await asyncio.sleep(ASK)  # whoever watches the connection may not know yet
