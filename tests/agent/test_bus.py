"""What the agent says to consoles, message by message, over both protocols."""

from __future__ import annotations

import asyncio
import struct
import time
import uuid
from typing import Any

import pytest

from carod.amqp import Address, ConnectionLost, Endpoint, Queue, Refused, open_transport
from carod.qmf import DIRECT, TOPIC, AgentName, Opcode, SchemaRequest, Type
from carod.qmf.names import AGENT, CONTENT, OPCODE, PARTIAL, VERSION_1
from carod.qmf.schema import decode_answer
from qmf_agent.bus import Bus
from qmf_agent.model import Code, Event
from qmf_agent.schema import SCHEMA
from tests.agent.protocol import PATIENCE, DictModel, a_console, an_agent


def objects_of(class_name: str, package: str = "mrg.grid", **more: Any) -> dict[str, Any]:
    return {"_what": "OBJECT", "_schema_id": {"_class_name": class_name, "_package_name": package}, **more}


async def test_a_locate_is_answered_with_the_agents_name_and_heartbeat(console_url: str) -> None:
    async with an_agent(console_url) as (_, bus), a_console(console_url, bus.name) as console:
        await console.locate(["eq", "_instance", ["quote", bus.name.instance]])
        message, body = await console.answer()
        values = body["_values"]
        assert message.headers == {OPCODE: Opcode.LOCATE_RESPONSE, AGENT: str(bus.name)}
        assert message.correlation_id == "7"
        assert (values["_vendor"], values["_product"], values["_name"]) == (
            "com.redhat.grid",
            "scheduler",
            str(bus.name),
        )
        assert abs(values["_timestamp"] - time.time_ns()) < 60e9
        assert (values["_heartbeat_interval"], values["_epoch"]) == (10, bus.epoch)


async def test_a_locate_for_another_agent_is_not_answered(console_url: str) -> None:
    async with an_agent(console_url) as (_, bus), a_console(console_url, bus.name) as console:
        await console.locate(["eq", "_vendor", ["quote", "example.org"]])
        await console.locate(["eq", "_name", ["quote", str(bus.name)]])
        await console.answer()
        assert console.arrived.empty()


async def test_a_locate_is_answered_while_requests_queue_up(console_url: str) -> None:
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name) as console:
        for number in range(2_000):
            model.add("Job", f"x#{number}.0", CustomId=f"x#{number}.0", JobStatus=1)
        for _ in range(20):
            await console.send(console.message(Opcode.QUERY_REQUEST, objects_of("job")))
        await console.locate(["eq", "_name", ["quote", str(bus.name)]])
        before = 0
        while (await console.answer())[0].headers[OPCODE] != Opcode.LOCATE_RESPONSE:
            before += 1
        assert before < 100  # of 20 times 20 parts


async def test_heartbeats_come_by_themselves(console_url: str) -> None:
    async with an_agent(console_url, heartbeat=0.05) as (_, bus):
        key = Address(TOPIC, "agent.ind.heartbeat.com_redhat_grid.scheduler")
        async with a_console(console_url, bus.name, key) as console:
            seen = []
            while len(seen) < 3:
                message, body = await console.answer()
                if message.headers[AGENT] == str(bus.name):
                    seen.append(body["_values"]["_timestamp"])
            assert seen == sorted(seen)
            assert message.headers[OPCODE] == Opcode.HEARTBEAT


async def test_schema_ids_name_every_class_under_both_packages(console_url: str) -> None:
    async with an_agent(console_url) as (_, bus), a_console(console_url, bus.name) as console:
        message, ids = await console.ask(Opcode.QUERY_REQUEST, {"_what": "SCHEMA_ID"})
        assert message.headers[CONTENT] == "_schema_id"
        assert {(each["_package_name"], each["_class_name"]) for each in ids} == set(SCHEMA)
        assert ("mrg.grid", "job") in SCHEMA and ("com.redhat.grid", "jobserver") in SCHEMA
        assert {uuid.UUID(str(each["_hash"])) for each in ids} == {each.hash for each in SCHEMA.values()}


async def test_a_query_by_class_gives_objects_of_the_package_asked_for(console_url: str) -> None:
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name) as console:
        message, (scheduler,) = await console.ask(Opcode.QUERY_REQUEST, objects_of("scheduler"))
        assert message.headers == {OPCODE: Opcode.QUERY_RESPONSE, CONTENT: "_data", AGENT: str(bus.name)}
        assert scheduler["_schema_id"]["_package_name"] == "mrg.grid"
        assert scheduler["_object_id"] == {
            "_agent_name": str(bus.name), "_object_name": f"mrg.grid:scheduler:{model.name}", "_agent_epoch": 0,
        }  # fmt: skip
        assert scheduler["_values"] == {"Name": model.name, "Pool": "grid", "TotalIdleJobs": 0}
        assert scheduler["_create_ts"] > 0 and scheduler["_delete_ts"] == 0
        _, (other,) = await console.ask(Opcode.QUERY_REQUEST, objects_of("Scheduler", "com.redhat.grid"))
        assert other["_schema_id"]["_package_name"] == "com.redhat.grid"


async def test_a_query_for_what_there_is_not_is_answered_with_an_empty_list(console_url: str) -> None:
    async with an_agent(console_url) as (_, bus), a_console(console_url, bus.name) as console:
        for query in (
            objects_of("queue", "org.apache.qpid.broker"),
            objects_of("slot"),
            {"_what": "OBJECT", "_object_id": {"_object_name": "mrg.grid:job:none#1.0"}},
            {"_what": "OBJECT", "_object_id": {"_object_name": "no name of ours"}},
            {"_what": "OBJECT", "_object_id": {"_object_name": f"mrg.grid:scheduler:{bus.name.instance}",
                                               "_agent_name": "another:agent:x"}},
        ):  # fmt: skip
            message, body = await console.ask(Opcode.QUERY_REQUEST, query)
            assert (message.headers[OPCODE], body) == (Opcode.QUERY_RESPONSE, [])


async def test_an_object_is_found_by_its_id_and_so_is_what_it_refers_to(console_url: str) -> None:
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name) as console:
        _, (submitter,) = await console.ask(Opcode.QUERY_REQUEST, objects_of("submitter"))
        reference = submitter["_values"]["schedulerRef"]
        _, (scheduler,) = await console.ask(Opcode.QUERY_REQUEST, {"_what": "OBJECT", "_object_id": reference})
        assert scheduler["_values"]["Name"] == model.name
        assert scheduler["_object_id"] == reference


async def test_a_predicate_chooses_objects(console_url: str) -> None:
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name) as console:
        for number in range(10):
            model.add("Job", f"x#{number}.0", CustomId=f"x#{number}.0", JobStatus=1 + number % 2, ClusterId=number)
        where = ["and", ["eq", "JobStatus", ["quote", 2]], ["gt", "ClusterId", ["quote", 4]]]
        _, jobs = await console.ask(Opcode.QUERY_REQUEST, objects_of("job", _where=where))
        assert [job["_values"]["ClusterId"] for job in jobs] == [5, 7, 9]
        code, text = await console.error(Opcode.QUERY_REQUEST, objects_of("job", _where=["re_match", "Cmd", "a*"]))
        assert code == Code.BAD_VALUE and "re_match" in text


async def test_a_long_answer_comes_in_parts_of_which_the_last_says_so(console_url: str) -> None:
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name) as console:
        for number in range(999):
            model.add("Job", f"x#{number}.0", CustomId=f"x#{number}.0", Args="a" * 1000)
        await console.send(console.message(Opcode.QUERY_REQUEST, objects_of("job")))
        names = []
        while True:
            message, body = await console.answer()
            names += [each["_values"]["CustomId"] for each in body]
            if PARTIAL not in message.headers:
                break
            assert 0 < len(body) <= 100
        assert names == [f"x#{number}.0" for number in range(999)]


async def test_a_value_too_long_for_qmf_is_left_out_of_its_object(console_url: str) -> None:
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name) as console:
        model.add("Job", "x#1.0", CustomId="x#1.0", Args="é" * 40_000, Env=None, Rank=float("inf"), Id=1 << 70)
        _, (job,) = await console.ask(Opcode.QUERY_REQUEST, objects_of("job"))
        assert job["_values"] == {"CustomId": "x#1.0", "Rank": 'real("INF")', "Id": str(1 << 70)}


async def test_version_1s_request_for_a_class_is_answered_in_binary(console_url: str) -> None:
    async with an_agent(console_url) as (_, bus), a_console(console_url, bus.name) as console:
        wanted = SCHEMA["mrg.grid", "job"]
        request = SchemaRequest(4711, "mrg.grid", "job", wanted.hash)
        await console.send(console.message("", body=request.encode(), content_type=VERSION_1))
        message = await asyncio.wait_for(console.arrived.get(), PATIENCE)
        assert message.content_type == VERSION_1 and message.headers == {AGENT: str(bus.name)}
        assert isinstance(message.body, bytes)
        assert message.body.startswith(
            b"AM2s" + struct.pack(">I", 4711) + b"\x01\x08mrg.grid\x03job" + wanted.hash.bytes
        )
        counts = struct.unpack_from(">HHH", message.body, 8 + 1 + 9 + 4 + 16)
        assert counts == (len(wanted.properties), len(wanted.statistics), len(wanted.methods))
        sequence, schema = decode_answer(message.body)
        assert sequence == 4711 and schema is not None
        assert [each.name for each in schema.properties][:2] == ["CustomId", "JobStatus"]
        assert schema.methods[1].inputs[1].type is Type.S64


async def test_a_request_for_a_class_that_there_is_not_is_refused(console_url: str) -> None:
    async with an_agent(console_url) as (_, bus), a_console(console_url, bus.name) as console:
        request = SchemaRequest(8, "mrg.grid", "job", uuid.uuid4())
        await console.send(console.message("", body=request.encode(), content_type=VERSION_1))
        message = await asyncio.wait_for(console.arrived.get(), PATIENCE)
        assert isinstance(message.body, bytes)
        assert decode_answer(message.body) == (8, None)


async def test_a_method_is_called_with_its_arguments_and_its_callers_name(console_url: str) -> None:
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name) as console:
        answer = await console.call(f"scheduler:{model.name}", "Submit", Ad={"Cmd": "/bin/true"})
        assert answer == {"_arguments": {"Id": f"{model.name}#1.0"}}
        assert model.calls == [("Submit", {"Ad": {"Cmd": "/bin/true"}}, None)]
        message, _ = await console.ask(
            Opcode.METHOD_REQUEST,
            {"_object_id": {"_object_name": f"mrg.grid:scheduler:{model.name}"}, "_method_name": "HoldJob",
             "_arguments": {"Id": f"{model.name}#1.0"}},
            user_id="guest",
        )  # fmt: skip
        assert message.headers[OPCODE] == Opcode.METHOD_RESPONSE
        assert model.calls[-1] == ("HoldJob", {"Id": f"{model.name}#1.0", "Reason": ""}, "guest")


async def test_binary_arguments_and_results_survive_the_way(console_url: str) -> None:
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name) as console:
        model.add("Job", "x#1.0")
        answer = await console.call("job:x#1.0", "Fetch", File="out", Start=0, End=0)
        assert answer == {"_arguments": {"Data": b"\x00\xff" * 10}}
        assert await console.call(f"scheduler:{model.name}", "send", Id="x", Data=b"PK\xff\x00")
        assert model.calls[-1][1] == {"Id": "x", "Data": b"PK\xff\x00"}


async def test_a_failed_method_is_answered_with_its_code_and_text(console_url: str) -> None:
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name) as console:
        scheduler = f"com.redhat.grid:scheduler:{model.name}"
        cases: list[tuple[str, str, dict[str, Any], Code, str]] = [
            (scheduler, "HoldJob", {"Id": "nothing#1.0"}, Code.UNKNOWN_JOB, "nothing#1.0"),
            (scheduler, "Hold", {}, Code.UNKNOWN_METHOD, "HoldJob"),
            (scheduler, "Submit", {}, Code.BAD_VALUE, "argument Ad is missing"),
            (scheduler, "Submit", {"Ad": "text"}, Code.BAD_VALUE, "Ad is a map, not str 'text'"),
            (scheduler, "Submit", {"Ad": {}, "Other": 1}, Code.BAD_VALUE, "no argument Other"),
            (scheduler, "echo", {"sequence": -1, "body": ""}, Code.BAD_VALUE, "from 0 on"),
            (scheduler, "echo", {"sequence": True, "body": ""}, Code.BAD_VALUE, "an integer, not bool"),
            (scheduler, "HoldJob", {"Id": "x" * 256}, Code.BAD_VALUE, "more than 255 bytes"),
            (scheduler, "submit", {"Id": "1.0", "Ad": {}}, Code.FAILED, "ZeroDivisionError"),
            ("mrg.grid:scheduler:other", "echo", {"sequence": 1, "body": ""}, Code.UNKNOWN_OBJECT, "other"),
            ("mrg.grid:thing:x", "echo", {}, Code.UNKNOWN_OBJECT, "mrg.grid:thing:x"),
        ]
        for name, method, arguments, code, text in cases:
            request = {"_object_id": {"_object_name": name}, "_method_name": method, "_arguments": arguments}
            got = await console.error(Opcode.METHOD_REQUEST, request)
            assert got[0] == code and text in got[1], got


async def test_an_answer_that_does_not_fit_is_an_exception(console_url: str) -> None:
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name) as console:
        model.add("Job", "x#1.0")
        request = {"_object_id": {"_object_name": "mrg.grid:job:x#1.0"}, "_method_name": "GetAd"}
        code, text = await console.error(Opcode.METHOD_REQUEST, request)
        assert (code, "70000 bytes" in text) == (Code.FAILED, True)


async def test_a_changed_object_is_indicated_once_an_interval(console_url: str) -> None:
    key = Address(TOPIC, "agent.ind.data.com_redhat_grid.job.#")
    async with (
        an_agent(console_url, publish_interval=0.3) as (model, bus),
        a_console(console_url, bus.name, key) as console,
    ):
        for status in range(1, 6):
            model.add("Job", "x#1.0", CustomId="x#1.0", JobStatus=status)
        message, (job,) = await console.answer()
        assert (message.headers[OPCODE], message.headers[CONTENT]) == (Opcode.DATA, "_data")
        assert message.correlation_id is None
        assert job["_values"] == {"CustomId": "x#1.0", "JobStatus": 5}
        del model.classes["Job"]["x#1.0"]
        model.tell("Job", "x#1.0")
        _, (gone,) = await console.answer()
        assert gone["_delete_ts"] > 0 and gone["_object_id"] == job["_object_id"]
        assert console.arrived.empty()


async def test_with_an_interval_of_0_no_data_is_indicated_but_events_are(console_url: str) -> None:
    key = Address(TOPIC, "agent.ind.#")
    async with (
        an_agent(console_url, publish_interval=0) as (model, bus),
        a_console(console_url, bus.name, key) as console,
    ):
        custom = model.submit({"Cmd": "/bin/true"})
        for listener in model.listeners:
            listener.happened(Event("JobStatusChange", {"CustomId": custom, "JobStatus": 2}, 6, 12345))
        while True:
            message, body = await console.answer()
            assert message.headers.get(CONTENT) != "_data"
            if message.headers.get(CONTENT) == "_event" and message.headers[AGENT] == str(bus.name):
                break
        (happened,) = body
        assert (happened["_severity"], happened["_timestamp"]) == (6, 12345)
        assert happened["_values"] == {"CustomId": custom, "JobStatus": 2}
        assert happened["_schema_id"]["_class_name"] == "jobstatuschange"


async def test_an_events_key_has_its_name_severity_and_agent(console_url: str) -> None:
    key = Address(TOPIC, "agent.ind.event.com_redhat_grid.jobstatuschange.note.com_redhat_grid.scheduler")
    async with an_agent(console_url) as (model, bus), a_console(console_url, bus.name, key) as console:
        custom = model.submit({})
        model._hold(custom, "because")
        _, (happened,) = await console.answer()
        assert happened["_values"]["CustomId"] == custom


async def test_a_second_agent_of_the_same_name_is_refused(console_url: str) -> None:
    async with an_agent(console_url, instance="twice") as (_, bus):
        transport = open_transport(Endpoint(console_url))
        await transport.connect()
        with pytest.raises(Refused, match="twice"):
            await Bus(DictModel("twice"), bus.name, queue="grid").run(transport)
        await transport.close()
        async with a_console(console_url, bus.name) as console:
            assert (await console.ask(Opcode.QUERY_REQUEST, objects_of("slot")))[1] == []


async def test_a_method_under_way_ends_though_the_connection_is_lost(console_url: str) -> None:
    class Slow(DictModel):
        started, done = asyncio.Event(), asyncio.Event()

        async def call(self, *arguments: Any) -> dict[str, Any]:
            self.started.set()
            await asyncio.sleep(0.2)
            self.done.set()
            return {}

    model = Slow("slow")
    bus = Bus(model, AgentName("com.redhat.grid", "scheduler", "slow"), queue="grid")
    transport = open_transport(Endpoint(console_url))
    await transport.connect()
    running = asyncio.create_task(bus.run(transport))
    async with a_console(console_url, bus.name) as console:
        await console.until_there(running)
        request = {"_object_id": {"_object_name": "mrg.grid:scheduler:slow"}, "_method_name": "create"}
        await console.send(console.message(Opcode.METHOD_REQUEST, request))
        await asyncio.wait_for(model.started.wait(), PATIENCE)
        await transport.close()
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(running, PATIENCE)
        assert model.done.is_set()


async def test_an_object_keeps_its_id_when_the_agent_restarts(console_url: str) -> None:
    ids = []
    for _ in range(2):
        async with an_agent(console_url, instance="again") as (_, bus), a_console(console_url, bus.name) as console:
            _, (scheduler,) = await console.ask(Opcode.QUERY_REQUEST, objects_of("scheduler"))
            ids.append(scheduler["_object_id"])
    assert ids[0] == ids[1]


async def test_requests_on_a_queue_of_the_console_are_answered_there(console_url: str) -> None:
    async with an_agent(console_url) as (_, bus), a_console(console_url, bus.name) as console:
        queue, _ = await console.transport.declare(Queue("", durable=False, exclusive=True, auto_delete=True))
        await console.transport.consume(queue, console._keep, credit=0, settled=True)
        for reply_to in (queue, f"/queues/{queue}", f"{DIRECT}/{console.key}"):
            message, _ = await console.ask(Opcode.QUERY_REQUEST, {"_what": "SCHEMA_ID"}, reply_to=reply_to)
            assert message.headers[OPCODE] == Opcode.QUERY_RESPONSE
