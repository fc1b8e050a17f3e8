"""Brokers that a session is connected to, and the agents on them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from carod.amqp import Endpoint, TransportError
from qmf.link import AgentState, Indication, Link, QmfError
from qmf.objects import Object

if TYPE_CHECKING:
    from qmf.console import Session

logger = logging.getLogger("carod.qmf")

RETRY_MIN, RETRY_MAX = 1.0, 30.0
"""Seconds between tries to reach a broker, with manageConnections."""


class Agent:
    """An agent that a broker knows of."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker, self.session = broker, broker.session
        self.agentBank = self.label = name

    def getAgentBank(self) -> str:
        """Its name."""
        return self.agentBank

    def getBrokerBank(self) -> int:
        return 1

    def getBroker(self) -> Broker:
        return self.broker

    def getObjects(self, **query: Any) -> list[Object]:
        """As Session.getObjects, from this agent only. Raises QmfError."""
        return self.session.getObjects(_agent=self, **query)

    @property
    def state(self) -> AgentState | None:
        """What it last said of itself; None if it is gone."""
        return self.broker.link.agents.get(self.agentBank)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Agent) and (self.broker, self.agentBank) == (other.broker, other.agentBank)

    def __hash__(self) -> int:
        return hash(self.agentBank)

    def __repr__(self) -> str:
        return f"Agent({self.agentBank}) at {self.broker.getUrl()}"


class Broker:
    """A connection to a broker, as addBroker returns it."""

    def __init__(self, session: Session, endpoint: Endpoint, topics: list[str]) -> None:
        self.session, self._endpoint = session, endpoint
        self.link = Link(endpoint, topics, self._indicated, self._known)
        self._error: str | None = None
        self._keeping: asyncio.Task[None] | None = None

    def isConnected(self) -> bool:
        return self.link.connected

    def getError(self) -> str | None:
        """Why it was not reached when it was last tried."""
        return self._error

    def getUrl(self) -> str:
        return f"{self._endpoint.host}:{self._endpoint.port}"

    def getFullUrl(self) -> str:
        """The URL without its password."""
        return self._endpoint.safe_url

    def getAgents(self) -> list[Agent]:
        return self.session.getAgents(self)

    def __repr__(self) -> str:
        return f"Broker connected at: {self.getUrl()}" if self.isConnected() else "Disconnected Broker"

    async def _connect(self) -> None:
        try:
            await self.link.open()
        except TransportError as error:
            self._error = str(error)
            raise QmfError(str(error)) from None
        self._error = None

    async def _keep(self) -> None:
        """Connect, and again whenever the connection ends."""
        delay = RETRY_MIN
        while True:
            try:
                await self._connect()
            except QmfError as error:
                logger.warning("%s; next try in %g s", error, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_MAX)
                continue
            delay = RETRY_MIN
            self.session._tell(lambda console: console.brokerConnected(self))
            self._error = await self.link.closed()
            self.session._tell(lambda console: console.brokerDisconnected(self))

    def _indicated(self, indication: Indication) -> None:
        self.session._indicated(Agent(self, indication.agent), indication)

    def _known(self, name: str, there: bool) -> None:
        agent = Agent(self, name)
        self.session._tell(lambda console: console.newAgent(agent) if there else console.delAgent(agent))

    async def _close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self.link.close()
