"""Agents as processes of their own, and a console that has many requests under way at a time."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from carod.amqp import Address, Delivery, Endpoint, Message, Queue, Transport, TransportError, open_transport
from carod.qmf import DIRECT, AgentName, Opcode, read_body
from carod.qmf.names import OPCODE, PARTIAL
from tests.node.conftest import Node

AGENT = Path(sys.executable).with_name("qmf-agent")
PATIENCE = 30.0
"""Seconds for what takes milliseconds on a machine that is not busy."""
DONE = (3, 4)


class AgentProcess(Node):
    """`qmf-agent start` as a process, its log read as it is written; it may be killed and started again."""

    def __init__(self, url: str, queue: str, spool: Path, name: str, **knobs: Any) -> None:
        self.url, self.queue, self.spool, self.name, self.knobs = url, queue, spool, name, knobs
        self._start()

    def _start(self) -> None:
        import threading

        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("_CAROD", "CAROD"))}
        knobs = {"PING_INTERVAL": 0.5, "QMF_PUBLISH_INTERVAL": 0.2} | self.knobs
        self.process = subprocess.Popen(
            [AGENT, "start", "--broker", self.url, "--queue", self.queue, "--name", self.name, "--spool",
             str(self.spool), "--log-format", "json"],
            env={**kept, "HOME": "/nonexistent", **{f"_CAROD_{name}": str(value) for name, value in knobs.items()}},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines = []
        self._changed, self._ended = threading.Condition(), False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def start_again(self) -> None:
        """Start it anew, after it has ended, on the same spool."""
        self.stop()
        self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def agent(self) -> AgentName:
        return AgentName("com.redhat.grid", "scheduler", self.name)

    @property
    def rss(self) -> int:
        """Resident set size, bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        return 0


@contextmanager
def an_agent_process(
    url: str, queue: str, spool: Path, name: str | None = None, **knobs: Any
) -> Iterator[AgentProcess]:
    """An agent, ready for consoles; knobs go by the environment."""
    process = AgentProcess(url, queue, spool, name or f"agent-{secrets.token_hex(4)}", **knobs)
    try:
        process.wait_for("ready")
        yield process
    finally:
        process.process.send_signal(signal.SIGCONT)
        process.stop()


class MethodFailed(Exception):
    """A method that answered an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


class NoAnswer(Exception):
    """The agent did not answer: it may or may not have done what it was asked."""


class Console:
    """Calls an agent's methods and queries its objects; any number at a time. `user` goes into the requests."""

    def __init__(self, transport: Transport, agent: AgentName, user: str | None = None) -> None:
        self.transport, self.agent, self.user = transport, agent, user
        self._key = f"console-{uuid.uuid4()}"
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Queue[Message]] = {}

    async def open(self) -> Self:
        bound = Address(DIRECT, self._key)
        queue, _ = await self.transport.declare(
            Queue("", durable=False, exclusive=True, auto_delete=True, bindings=(bound,))
        )
        await self.transport.consume(queue, self._arrived, credit=0, settled=True)
        return self

    def _arrived(self, delivery: Delivery) -> None:
        waiting = self._waiting.get(delivery.message.correlation_id or "")
        if waiting is not None:
            waiting.put_nowait(delivery.message)

    async def ask(self, opcode: Opcode, value: Any, patience: float = PATIENCE) -> list[Message]:
        """A request's answers, in all their parts."""
        number = str(next(self._numbers))
        answers = self._waiting[number] = asyncio.Queue()
        message = Message(
            b"", {OPCODE: str(opcode)}, str(uuid.uuid4()), number, f"{DIRECT}/{self._key}", value=value,
            user_id=self.user,
        )  # fmt: skip
        try:
            await self.transport.publish(message, self.agent.address)
            parts = []
            async with asyncio.timeout(patience):
                while not parts or PARTIAL in parts[-1].headers:
                    parts.append(await answers.get())
            return parts
        except (TimeoutError, TransportError) as error:
            raise NoAnswer(str(error)) from None
        finally:
            del self._waiting[number]

    async def call(self, name: str, method: str, patience: float = PATIENCE, **arguments: Any) -> dict[str, Any]:
        """Call a method of an object, e.g. of `job:NAME`: its out arguments."""
        request = {
            "_object_id": {"_object_name": f"com.redhat.grid:{name}"}, "_method_name": method, "_arguments": arguments
        }  # fmt: skip
        (message,) = await self.ask(Opcode.METHOD_REQUEST, request, patience)
        body: Any = read_body(message, 64 << 20, 10_000_000)
        if message.headers[OPCODE] == Opcode.EXCEPTION:
            raise MethodFailed(body["_values"]["error_code"], body["_values"]["error_text"])
        out: dict[str, Any] = dict(body["_arguments"])
        if isinstance(out.get("Data"), str):  # binary that is text, too, arrives as text
            out["Data"] = out["Data"].encode()
        return out

    async def do(self, method: str, patience: float = PATIENCE, **arguments: Any) -> dict[str, Any]:
        """Call a method of the scheduler."""
        return await self.call(f"scheduler:{self.agent.instance}", method, patience, **arguments)

    async def submit(self, **ad: Any) -> str:
        """Submit a job: its id."""
        return str((await self.do("Submit", Ad={"Owner": "tester", "Cmd": "/bin/true"} | ad))["Id"])

    async def objects(self, class_name: str, **where: Any) -> list[dict[str, Any]]:
        """The values of a class's objects that have these properties."""
        query: dict[str, Any] = {"_what": "OBJECT", "_schema_id": {"_class_name": class_name.lower()}}
        if where:
            terms = [
                ["eq", name, ["quote", value] if isinstance(value, str) else value] for name, value in where.items()
            ]
            query["_where"] = ["and", *terms]
        found: list[dict[str, Any]] = []
        for message in await self.ask(Opcode.QUERY_REQUEST, query):
            body: Any = read_body(message, 64 << 20, 10_000_000)
            assert message.headers[OPCODE] == Opcode.QUERY_RESPONSE, body
            found += [each["_values"] for each in body]
        return found

    async def job(self, job: str) -> dict[str, Any]:
        (found,) = await self.objects("Job", CustomId=job)
        return found

    async def until(self, job: str, *statuses: int) -> dict[str, Any]:
        """Ask until a job has one of these statuses: its values."""
        end = time.monotonic() + PATIENCE
        while (values := await self.job(job))["JobStatus"] not in statuses:
            assert time.monotonic() < end, f"not {statuses} within {PATIENCE} s: {values}"
            await asyncio.sleep(0.02)
        return values


@asynccontextmanager
async def a_console(url: str, agent: AgentName, user: str | None = None) -> AsyncIterator[Console]:
    transport = open_transport(Endpoint(url))
    await transport.connect()
    try:
        yield await Console(transport, agent, user).open()
    finally:
        await transport.close()
