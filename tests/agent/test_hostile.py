"""Consoles that mean harm, or are broken: the agent answers with an exception or drops with a log line, and lives."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qmf.loop import Loop

from carod.amqp import Address, Message, Queue
from carod.qmf import DIRECT, Opcode
from carod.qmf.names import OPCODE, VERSION_1
from qmf_agent.bus import Bus
from qmf_agent.model import Code
from qmf_agent.schema import SCHEMA
from tests.agent.agents import AgentProcess
from tests.agent.protocol import PATIENCE, DictModel, RawConsole, a_console, an_agent, method_request
from tests.node.wire import Wire, properties, raw_table, text

LIVES = {"_what": "OBJECT", "_schema_id": {"_class_name": "scheduler"}}


@pytest.fixture
async def attacked(console_url: str, queue_name: str) -> AsyncIterator[tuple[DictModel, Bus, RawConsole]]:
    """An agent of a job queue that is there, and a console; after the test the agent must still answer."""
    async with an_agent(console_url, queue=queue_name) as (model, bus), a_console(console_url, bus.name) as console:
        direct = [Address("amq.direct", key) for key in (queue_name, f"{queue_name}_key")]
        await console.transport.declare(Queue(queue_name, bindings=tuple(direct)))
        yield model, bus, console
        async with a_console(console_url, bus.name) as friend:
            assert len((await friend.ask(Opcode.QUERY_REQUEST, LIVES))[1]) == 1


Attacked = tuple[DictModel, Bus, RawConsole]

BODIES: list[tuple[bytes, str]] = [
    (b"{", "not JSON"),
    (b"\xff\xfe\x00", "not JSON"),
    (b"[" * 200_000, "nested too deeply"),
    (b'{"_what": "OBJECT", "_what": "SCHEMA_ID"}', "there twice"),
    (b'{"_what": NaN}', "NaN"),
    (b'"text"', "not a map or a list"),
    (b"[]", "is a map, not list"),
    (b"{}", "_what|_object_id"),
    (b'{"_what": "SCHEMA_ID", "x": "' + b"a" * 65_536 + b'"}', "65536 bytes"),
    (b'{"_what": "x", "y": [' + b"0," * 60_000 + b"0]}", "too many values"),
    (b'{"_what": "' + b"x" * 5_000_000 + b'"}', "more than 1048576 bytes"),
]


@pytest.mark.parametrize("opcode", [Opcode.QUERY_REQUEST, Opcode.METHOD_REQUEST])
async def test_a_malformed_body_is_answered_with_an_exception(attacked: Attacked, opcode: Opcode) -> None:
    _, _, console = attacked
    for body, said in BODIES:
        await console.send(console.message(opcode, body=body, content_type="application/json"))
        message, answer = await console.answer()
        assert message.headers[OPCODE] == Opcode.EXCEPTION
        assert answer["_values"]["error_code"] == Code.BAD_VALUE
        assert any(part in answer["_values"]["error_text"] for part in said.split("|")), answer


async def test_values_of_the_wrong_type_are_answered_with_an_exception(attacked: Attacked) -> None:
    model, _, console = attacked
    scheduler = method_request(f"scheduler:{model.name}", "Submit", Ad={})
    for query in (
        {"_what": 5},
        {"_what": ["OBJECT"]},
        {"_what": "EVERYTHING"},
        {"_what": "OBJECT"},
        {"_what": "OBJECT", "_schema_id": "job"},
        {"_what": "OBJECT", "_schema_id": {"_class_name": 7}},
        {"_what": "OBJECT", "_schema_id": {"_class_name": "job", "_package_name": {}}},
        {"_what": "OBJECT", "_object_id": "x"},
        {"_what": "OBJECT", "_object_id": {"_object_name": None}},
        {"_what": "OBJECT", "_schema_id": {"_class_name": "job"}, "_where": "x"},
        {"_what": "OBJECT", "_schema_id": {"_class_name": "job"}, "_where": ["eq", [], []]},
    ):
        assert (await console.error(Opcode.QUERY_REQUEST, query))[0] == Code.BAD_VALUE, query
    for change in (
        {"_object_id": None},
        {"_object_id": []},
        {"_object_id": {"_object_name": 7}},
        {"_method_name": 7},
        {"_method_name": None},
        {"_arguments": "text"},
        {"_arguments": {"Ad": 5}},
        {"_arguments": {"Ad": {}, "": 1}},
    ):
        assert (await console.error(Opcode.METHOD_REQUEST, scheduler | change))[0] == Code.BAD_VALUE, change
    assert not model.calls


async def test_an_unknown_opcode_is_answered_with_an_exception(attacked: Attacked) -> None:
    _, _, console = attacked
    for opcode in ("", "_no_such", "_query_response", "_exception", "x" * 60_000):
        code, text = await console.error(opcode, {})
        assert code == Code.BAD_VALUE and "is unknown" in text and len(text) < 300


async def test_a_broken_request_for_a_class_is_refused(attacked: Attacked) -> None:
    _, _, console = attacked
    for body in (b"", b"AM2S", b"AM2B\0\0\0\1", b"AM2S\0\0\0\1\xffshort", b"\xff" * 1000):
        await console.send(console.message("", body=body, content_type=VERSION_1))
        message = await asyncio.wait_for(console.arrived.get(), PATIENCE)
        assert isinstance(message.body, bytes) and message.body.startswith(b"AM2z")


async def test_a_forged_reply_to_reaches_no_queue_of_the_grid(
    attacked: Attacked, queue_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, bus, console = attacked
    transport = console.transport
    await transport.declare(Queue(f"{queue_name}.dead"))
    submit = method_request(f"scheduler:{model.name}", "Submit", Ad={"Cmd": "/bin/true"})
    forged = [
        queue_name, f"amq.direct/{queue_name}", f"amq.direct/{queue_name}_key", f"/queues/{queue_name}",
        "/queues/" + "".join(f"%{ord(each):02x}" for each in queue_name), f"/exchanges/amq.direct/{queue_name}_key",
        f"/queue/{queue_name}", f"{queue_name}.dead", f"/queues/{queue_name}.dead", f"{queue_name}.control/all",
        "qmf.default.topic/agent.ind.heartbeat", "amq.topic/x", "amq.fanout/", "/exchanges/amq.fanout/x",
        str(bus.name), f"{DIRECT}/{bus.name}", f"qmf.{bus.name}", "no-such-exchange/key", "/", "//",
        "/exchanges//x", "", "/queues/", "%", "/queues/%ff%fe", "é/ü", "x" * 255, "e" * 130 + "/" + "k" * 120,
    ]  # fmt: skip
    caplog.set_level(logging.INFO, "carod.qmf")
    for reply_to in forged:
        await console.send(console.message(Opcode.METHOD_REQUEST, submit, reply_to=reply_to or None))
    for _ in range(1_000):
        await console.ask(Opcode.QUERY_REQUEST, LIVES)
        if sum(each.message.endswith("dropped") for each in caplog.records) == len(forged):
            break
    assert await transport.depth(queue_name) == await transport.depth(f"{queue_name}.dead") == 0
    dropped = [each for each in caplog.records if each.message.endswith("dropped")]
    refused = [each.fields["reply_to"] for each in dropped if each.message == "request dropped"]  # type: ignore[attr-defined]
    assert set(forged[:17]) <= set(refused)
    assert len(dropped) == len(forged)
    assert len(model.calls) == len(forged) - len(refused)  # who can't be told is not served
    await transport.delete(f"{queue_name}.dead")


async def test_an_answer_that_nobody_waits_for_any_more_is_dropped(
    attacked: Attacked, caplog: pytest.LogCaptureFixture
) -> None:
    model, _, console = attacked
    for number in range(1_000):
        model.add("Job", f"x#{number}.0", CustomId=f"x#{number}.0")
    caplog.set_level(logging.INFO, "carod.qmf")
    query = {"_what": "OBJECT", "_schema_id": {"_class_name": "job"}}
    await console.send(console.message(Opcode.QUERY_REQUEST, query, reply_to=f"{DIRECT}/gone"))
    await console.ask(Opcode.QUERY_REQUEST, LIVES)
    dropped = [each for each in caplog.records if each.message == "answer dropped"]
    assert len(dropped) == 1  # and not one for each of its ten parts


async def test_properties_that_lie_are_dropped_with_a_log_line(
    broker_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with an_agent(broker_url) as (_, bus), a_console(broker_url, bus.name) as console:
        wire = await Wire.connect(broker_url)
        queue = f"qmf.{bus.name}"
        reply_to = f"{DIRECT}/{console.key}".encode()
        deep = b"t\x01"
        for _ in range(40):
            deep = b"F" + raw_table({b"a": deep})
        for headers in (raw_table({b"a": deep}), raw_table({b"qmf.opcode": text(b"\xff\xfe")})):
            await wire.publish(queue, properties(headers=headers, reply_to=reply_to, correlation_id=b"\xff\xfe"), b"{}")
        await wire.publish(queue, b"\x00\x00", b"{}")
        await wire.close()
        message, _ = await console.answer()  # the second's headers can be read
        assert message.headers[OPCODE] == Opcode.EXCEPTION
        assert len(await console.call(f"scheduler:{bus.name.instance}", "echo", sequence=1, body="")) == 1
        assert len([each for each in caplog.records if each.message == "request dropped"]) == 2


async def test_a_flood_of_rubbish_is_worked_off(attacked: Attacked) -> None:
    _, _, console = attacked
    rubbish = console.message("_rubbish", body=b"[1, 2", content_type="application/json")
    await asyncio.gather(*(console.send(rubbish) for _ in range(3_000)))
    for _ in range(3_000):
        message, _ = await console.answer()
        assert message.headers[OPCODE] == Opcode.EXCEPTION


async def test_a_hostile_locate_is_not_answered(attacked: Attacked, caplog: pytest.LogCaptureFixture) -> None:
    _, _, console = attacked
    for value in (["eq"], ["re_match", "_name", "(x+x+)+y"], "text", 5, [["quote"]]):
        await console.locate(value if isinstance(value, list) else [value])
    await console.locate(["eq", "_name", ["quote", str(console.agent)]])
    await console.answer()
    assert console.arrived.empty()


# -- generated messages --------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    ["_what", "_schema_id", "_object_id", "_where", "_method_name", "_arguments", "_class_name", "_package_name",
     "_object_name", "_agent_name", "_hash", "Ad", "Id", "Reason", "Name", "Value", "TYPE", "VALUE", "!!descriptors"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["OBJECT", "SCHEMA_ID", "job", "scheduler", "mrg.grid", "com.redhat.grid", "Submit", "SubmitJobs", "HoldJob",
     "echo", "SetJobAttribute", "QueryJobs", "GetSteps", "create", "send", "submit", "Fetch", "eq", "and", "quote", "#"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-(1 << 65), 1 << 65) | st.floats() | st.text(max_size=20) | WORDS
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=6),
    max_leaves=25,
)


@st.composite
def requests(draw: st.DrawFn, agent: str) -> dict[str, Any]:
    """A request that looks like one, up to a point."""
    package, name = draw(st.sampled_from(sorted(SCHEMA)))
    methods = [method.name for method in SCHEMA[package, name].methods] or ["none"]
    method = draw(st.sampled_from(methods))
    known = {arg.name for each in SCHEMA[package, name].methods if each.name == method for arg in each.inputs}
    arguments = {arg: draw(JUNK) for arg in sorted(known)}
    instance = draw(st.sampled_from([agent.rpartition(":")[2], "x", f"{agent.rpartition(':')[2]}#1.0"]))
    request: dict[str, Any] = {
        "_what": "OBJECT",
        "_schema_id": {"_class_name": name, "_package_name": package},
        "_where": draw(JUNK),
        "_method_name": method,
        "_arguments": arguments,
    }
    if draw(st.booleans()):
        request["_object_id"] = {"_agent_name": agent, "_object_name": f"{package}:{name}:{instance}"}
    for key in draw(st.lists(st.sampled_from(sorted(request)), max_size=2)):
        request[key] = draw(JUNK)
    return request


class Attacker:
    """A console on a loop of its own, for tests that hypothesis calls."""

    def __init__(self, loop: Loop, console: RawConsole) -> None:
        self.loop, self.console = loop, console

    def sends(self, opcode: str, body: bytes) -> None:
        """Send a request: it is answered, and so is an honest one after it."""
        self.loop.call(self._sends(opcode, body))

    async def _sends(self, opcode: str, body: bytes) -> None:
        message = self.console.message(opcode, body=body, content_type="application/json", correlation_id="hostile")
        await self.console.send(message)
        await self._until("hostile")
        await self.console.send(self.console.message(Opcode.QUERY_REQUEST, LIVES, correlation_id="honest"))
        _, body_of_answer = await self._until("honest")
        assert len(body_of_answer) == 1

    async def _until(self, correlation_id: str) -> tuple[Message, Any]:
        while True:
            message, body = await self.console.answer()
            if message.correlation_id == correlation_id and "partial" not in message.headers:
                assert message.headers[OPCODE] in (Opcode.EXCEPTION, Opcode.QUERY_RESPONSE, Opcode.METHOD_RESPONSE)
                return message, body


@pytest.fixture
def attacker(agent_url: str, agent: AgentProcess) -> Iterator[Attacker]:
    """One who attacks a real agent with its real job queue."""
    loop, stack = Loop("attacker"), AsyncExitStack()
    console = loop.call(stack.enter_async_context(a_console(agent_url, agent.agent)))
    yield Attacker(loop, console)
    loop.call(stack.aclose())
    loop.stop()


GENERATED = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@GENERATED
@given(data=st.data(), opcode=st.sampled_from([Opcode.QUERY_REQUEST, Opcode.METHOD_REQUEST]))
def test_the_agent_lives_through_requests_that_look_like_some(
    attacker: Attacker, data: st.DataObject, opcode: Opcode
) -> None:
    request = data.draw(requests(str(attacker.console.agent)))
    attacker.sends(opcode, json.dumps(request).encode())


@GENERATED
@given(opcode=st.text(max_size=30) | st.sampled_from(list(Opcode)), body=JUNK.map(json.dumps) | st.text(max_size=100))
def test_the_agent_lives_through_any_opcode_and_body(attacker: Attacker, opcode: str, body: str) -> None:
    attacker.sends(opcode, body.encode())
