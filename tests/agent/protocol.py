"""A small model in memory, an agent's bus that serves it on a broker, and a console that sends messages as they are."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from carod.amqp import Address, Delivery, Endpoint, Message, Queue, Transport, open_transport
from carod.qmf import DIRECT, TOPIC, AgentName, Opcode, read_body
from carod.qmf.names import LOCATE_KEY, OPCODE
from qmf_agent.bus import Bus
from qmf_agent.model import Code, Event, Listener, ManagedObject, MethodError, Reference

PATIENCE = 20.0
"""Seconds for what takes milliseconds on a machine that is not busy."""


class DictModel:
    """Objects in dictionaries. Submitted jobs are idle for ever."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.classes: dict[str, dict[str, ManagedObject]] = {}
        self.calls: list[tuple[str, dict[str, Any], str | None]] = []
        self.called = asyncio.Event()
        self.listeners: list[Listener] = []
        self._numbers = itertools.count(1)
        self.add("Scheduler", name, Name=name, Pool="grid", TotalIdleJobs=0)
        self.add("Submitter", f"jane@{name}", Name=f"jane@{name}", schedulerRef=Reference("Scheduler", name))

    def add(self, class_name: str, name: str, /, **values: Any) -> None:
        now = time.time_ns()
        self.classes.setdefault(class_name, {})[name] = ManagedObject(class_name, name, values, now, now)
        self.tell(class_name, name)

    def tell(self, class_name: str, name: str) -> None:
        for listener in self.listeners:
            listener.changed(class_name, name)

    async def objects(
        self, class_name: str, where: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> AsyncGenerator[list[ManagedObject], None]:
        found = [
            each
            for each in self.classes.get(class_name, {}).values()
            if all(each.values.get(name) == value for name, value in (where or {}).items())
        ][:limit]
        for start in range(0, len(found), 200):
            yield found[start : start + 200]

    async def find(self, class_name: str, name: str) -> ManagedObject | None:
        return self.classes.get(class_name, {}).get(name)

    async def call(
        self, class_name: str, name: str, method: str, arguments: Mapping[str, Any], user: str | None
    ) -> dict[str, Any]:
        if await self.find(class_name, name) is None:
            raise MethodError(Code.UNKNOWN_OBJECT, f"no {class_name} {name!r}")
        self.calls.append((method, dict(arguments), user))
        self.called.set()
        match method:
            case "echo":
                return dict(arguments)
            case "Submit" | "SubmitJob":
                return {"Id": self.submit(arguments["Ad"])}
            case "HoldJob":
                return self._hold(arguments["Id"], arguments["Reason"])
            case "create":
                await asyncio.sleep(3600)  # a method that takes its time
            case "Fetch":
                return {"Data": b"\x00\xff" * 10}
            case "GetAd":
                return {"Ad": {"Cmd": "/bin/true", "Long": "x" * 70_000}}
        raise ZeroDivisionError("a defect")

    def submit(self, ad: Mapping[str, Any]) -> str:
        custom = f"{self.name}#{next(self._numbers)}.0"
        plain = {
            name: value["VALUE"] if isinstance(value, dict) else value
            for name, value in ad.items()
            if name != "!!descriptors"
        }
        self.add("Job", custom, **({"CustomId": custom, "JobStatus": 1, "ClusterId": 1} | plain))
        return custom

    def _hold(self, job: str, reason: str) -> dict[str, Any]:
        found = self.classes.get("Job", {}).get(job)
        if found is None:
            raise MethodError(Code.UNKNOWN_JOB, f"no job {job!r}")
        values = found.values | {"JobStatus": 5, "HoldReason": reason}
        self.classes["Job"][job] = replace(found, values=values, updated=time.time_ns())
        self.tell("Job", job)
        for listener in self.listeners:
            listener.happened(Event("JobStatusChange", {"CustomId": job, "JobStatus": 5}, 5, time.time_ns()))
        return {}

    def listen(self, listener: Listener) -> None:
        self.listeners.append(listener)


@asynccontextmanager
async def an_agent(url: str, **settings: Any) -> AsyncIterator[tuple[DictModel, Bus]]:
    """An agent's bus on a broker, ready for consoles. `instance` is its instance's name."""
    name = AgentName("com.redhat.grid", "scheduler", settings.pop("instance", f"test-{secrets.token_hex(4)}"))
    model = settings.pop("model", None) or DictModel(name.instance)
    epoch = settings.pop("epoch", None)
    bus = Bus(model, name, **({"queue": "grid", "publish_interval": 0.1} | settings))
    bus.epoch = epoch or bus.epoch
    transport = open_transport(Endpoint(url))
    await transport.connect()
    running = asyncio.create_task(bus.run(transport))
    try:
        async with a_console(url, bus.name) as console:
            await console.until_there(running)
        yield model, bus
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await transport.close()


class RawConsole:
    """Sends what it is told to, and keeps what comes back."""

    def __init__(self, transport: Transport, agent: AgentName) -> None:
        self.transport, self.agent = transport, agent
        self.key = f"console-{uuid.uuid4()}"
        self.arrived: asyncio.Queue[Message] = asyncio.Queue()

    async def open(self, *bindings: Address) -> None:
        for bound in bindings or (Address(DIRECT, self.key),):
            wanted = Queue("", durable=False, exclusive=True, auto_delete=True, bindings=(bound,))
            queue, _ = await self.transport.declare(wanted)
            await self.transport.consume(queue, self._keep, credit=0, settled=True)

    def _keep(self, delivery: Delivery) -> None:
        self.arrived.put_nowait(delivery.message)

    def message(self, opcode: str, value: Any = None, body: bytes = b"", **properties: Any) -> Message:
        properties = {"reply_to": f"{DIRECT}/{self.key}", "correlation_id": "7"} | properties
        return Message(body, {OPCODE: str(opcode)}, str(uuid.uuid4()), value=value, **properties)

    async def send(self, message: Message, to: Address | None = None) -> None:
        await self.transport.publish(message, to or self.agent.address)

    async def ask(self, opcode: str, value: Any = None, **properties: Any) -> tuple[Message, Any]:
        """Send a request; the next answer and its body."""
        await self.send(self.message(opcode, value, **properties))
        return await self.answer()

    async def answer(self) -> tuple[Message, Any]:
        message = await asyncio.wait_for(self.arrived.get(), PATIENCE)
        return message, read_body(message, 64 << 20, 10_000_000)

    async def error(self, opcode: str, value: Any = None, **properties: Any) -> tuple[int, str]:
        """Send a request that fails; code and text."""
        message, body = await self.ask(opcode, value, **properties)
        assert message.headers[OPCODE] == Opcode.EXCEPTION, body
        return body["_values"]["error_code"], body["_values"]["error_text"]

    async def call(self, name: str, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of an object of package com.redhat.grid, e.g. of `scheduler:NAME`."""
        _, body = await self.ask(Opcode.METHOD_REQUEST, method_request(name, method, **arguments))
        return dict(body)

    async def locate(self, value: Any = None) -> None:
        message = self.message(Opcode.LOCATE_REQUEST, [] if value is None else value)
        await self.transport.publish(message, Address(TOPIC, LOCATE_KEY), confirm=False)  # nobody may be there yet

    async def until_there(self, running: asyncio.Task[None]) -> None:
        """Wait until the agent answers; whatever keeps it from being there is raised."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not running.done():
            await self.locate(["eq", "_name", ["quote", str(self.agent)]])
            try:
                await asyncio.wait_for(self.arrived.get(), 0.2)
            except TimeoutError:
                continue
            return
        if running.done():
            running.result()
        raise AssertionError("the agent does not answer")


def method_request(name: str, method: str, **arguments: Any) -> dict[str, Any]:
    object_id = {"_object_name": f"com.redhat.grid:{name}"}
    return {"_object_id": object_id, "_method_name": method, "_arguments": arguments}


@asynccontextmanager
async def a_console(url: str, agent: AgentName, *bindings: Address) -> AsyncIterator[RawConsole]:
    """A console that gets the answers to its own requests, or what these bindings bring."""
    transport = open_transport(Endpoint(url))
    await transport.connect()
    try:
        console = RawConsole(transport, agent)
        await console.open(*bindings)
        yield console
    finally:
        await transport.close()
