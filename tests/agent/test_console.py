"""The console, used as scripts use it: blocking calls from a thread that knows no event loop."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from qmf.console import (
    Agent,
    AgentGone,
    Broker,
    Console,
    Event,
    MethodResult,
    Object,
    ObjectId,
    QmfError,
    Session,
    TimedOut,
)

from carod.qmf import Type
from qmf_agent.model import Code
from tests.agent.protocol import PATIENCE, DictModel, an_agent
from tests.brokers.rabbitmq import PrivateRabbitMQ

T = TypeVar("T")
SEED_SCRIPT = Path(__file__).with_name("seed_script.py")


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.wait_for(asyncio.to_thread(work, *arguments), 3 * PATIENCE)


class Watched(Console):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seen: queue.Queue[tuple[str, Any]] = queue.Queue()

    def brokerConnected(self, broker: Broker) -> None:  # noqa: N802
        self.seen.put(("connected", broker))

    def brokerDisconnected(self, broker: Broker) -> None:  # noqa: N802
        self.seen.put(("disconnected", broker))

    def newAgent(self, agent: Agent) -> None:  # noqa: N802
        self.seen.put(("new", agent))

    def delAgent(self, agent: Agent) -> None:  # noqa: N802
        self.seen.put(("gone", agent))

    def objectProps(self, broker: Broker, record: Object) -> None:  # noqa: N802
        self.seen.put(("object", record))

    def event(self, broker: Broker, event: Event) -> None:
        self.seen.put(("event", event))

    def heartbeat(self, agent: Agent, timestamp: int) -> None:
        self.seen.put(("heartbeat", agent))

    def methodResponse(self, broker: Broker, seq: int, response: MethodResult) -> None:  # noqa: N802
        self.seen.put(("response", (seq, response)))

    def next(self, kind: str) -> Any:
        while True:
            seen, what = self.seen.get(timeout=PATIENCE)
            if seen == kind:
                return what


@pytest.fixture
async def agent(console_url: str) -> AsyncIterator[tuple[str, DictModel]]:
    async with an_agent(console_url) as (model, _):
        yield console_url, model


def scheduler_of(session: Session, model: DictModel) -> Object:
    (found,) = session.getObjects(_class="scheduler", _package="mrg.grid", Name=model.name)
    return found


async def test_the_script_of_2009_submits_a_job_and_finds_it(agent: tuple[str, DictModel]) -> None:
    url, model = agent
    script = SEED_SCRIPT.read_text().replace("amqp://localhost:5672", url)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=2 * PATIENCE)

    ran = await in_thread(run)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"Submitted job: {model.name}#1.0\nJob status: Idle\nJob properties:\n")
    assert "  Cmd = /bin/sleep\n" in ran.stdout
    assert model.calls[0][1]["Ad"]["Requirements"] == {"TYPE": 0, "VALUE": "TRUE"}


async def test_an_object_has_its_properties_methods_schema_and_id(agent: tuple[str, DictModel]) -> None:
    url, model = agent

    def script() -> None:
        with Session() as session:
            broker = session.addBroker(url)
            assert session.getBrokers() == [broker] and broker.isConnected()
            scheduler = scheduler_of(session, model)
            assert (scheduler.Name, scheduler.Pool, scheduler.TotalIdleJobs) == (model.name, "grid", 0)
            assert scheduler.Machine is None  # in the schema, but this object does not have it
            assert [(str(prop), value) for prop, value in scheduler.getProperties()] == [
                ("Name", model.name),
                ("Pool", "grid"),
            ]
            assert [(str(stat), value) for stat, value in scheduler.getStatistics()] == [("TotalIdleJobs", 0)]
            assert "HoldJob(Id, Reason)" in [str(method) for method in scheduler.getMethods()]
            assert scheduler.getSchema().getKey().getClassName() == "scheduler"
            assert scheduler.getObjectId().getAgentBank() == f"com.redhat.grid:scheduler:{model.name}"
            with pytest.raises(AttributeError, match="NoSuchThing"):
                scheduler.NoSuchThing  # noqa: B018

    await in_thread(script)


async def test_a_property_that_the_schema_does_not_name_is_there_too(agent: tuple[str, DictModel]) -> None:
    url, model = agent
    model.add("Job", "x#1.0", CustomId="x#1.0", Fancy=1.5, Notes="much")

    def script() -> None:
        with Session() as session:
            session.addBroker(url)
            (job,) = session.getObjects(_class="job", _package="mrg.grid")
            assert (job.Fancy, job.Notes) == (1.5, "much")
            assert [(prop.name, prop.type) for prop, _ in job.getProperties()][1:] == [
                ("Fancy", Type.DOUBLE),
                ("Notes", Type.LSTR),
            ]

    await in_thread(script)


async def test_objects_are_chosen_by_any_property(agent: tuple[str, DictModel]) -> None:
    url, model = agent
    for number in range(50):
        model.add("Job", f"x#{number}.0", CustomId=f"x#{number}.0", Owner=f"user{number % 5}", JobStatus=number % 2)

    def script() -> None:
        with Session() as session:
            session.addBroker(url)
            found = session.getObjects(_class="job", _package="mrg.grid", Owner="user3", JobStatus=1)
            assert sorted(job.CustomId for job in found) == ["x#13.0", "x#23.0", "x#3.0", "x#33.0", "x#43.0"]
            assert session.getObjects(_class="job", _package="mrg.grid", NoSuch=1) == []
            (key,) = [key for key in session.getClasses("com.redhat.grid") if key.getClassName() == "job"]
            assert len(session.getObjects(_key=key)) == 50
            schema = session.getSchema(key)
            assert schema is not None
            assert len(session.getObjects(_schema=schema, Owner="user3")) == 10

    await in_thread(script)


async def test_packages_and_classes_are_those_of_the_agents(agent: tuple[str, DictModel]) -> None:
    url, _ = agent

    def script() -> None:
        with Session() as session:
            session.addBroker(url)
            assert session.getPackages() == ["com.redhat.grid", "mrg.grid"]
            names = [key.getClassName() for key in session.getClasses("mrg.grid")]
            assert names == sorted(names) and {"job", "scheduler", "submission", "collector"} <= set(names)
            assert session.getClasses("org.apache.qpid.broker") == []

    await in_thread(script)


async def test_references_are_resolved(agent: tuple[str, DictModel]) -> None:
    url, model = agent

    def script() -> None:
        with Session() as session:
            session.addBroker(url)
            (submitter,) = session.getObjects(_class="submitter", _package="mrg.grid")
            assert isinstance(submitter.schedulerRef, ObjectId)
            (scheduler,) = session.getObjects(_objectId=submitter.schedulerRef)
            assert scheduler.Name == submitter._schedulerRef_.Name == model.name
            assert scheduler.getObjectId() == submitter.schedulerRef
            assert session.getObjects(_class="submitter", schedulerRef=submitter.schedulerRef, _package="mrg.grid")

    await in_thread(script)


async def test_a_method_gives_status_text_and_out_arguments(agent: tuple[str, DictModel]) -> None:
    url, model = agent

    def script() -> None:
        with Session() as session:
            session.addBroker(url)
            scheduler = scheduler_of(session, model)
            result = scheduler.Submit({"Cmd": "/bin/true"})
            assert (result.status, result.text, result.Id) == (0, "OK", f"{model.name}#1.0")
            assert result.outArgs == {"Id": f"{model.name}#1.0"}
            assert scheduler.HoldJob(result.Id, "because").status == 0
            (job,) = session.getObjects(_class="job", _package="mrg.grid", CustomId=result.Id)
            assert (job.JobStatus, job.HoldReason) == (5, "because")
            failed = scheduler.HoldJob(Id="none", Reason="x")
            assert (failed.status, failed.text, failed.Id) == (Code.UNKNOWN_JOB, "no job 'none'", None)
            assert scheduler.HoldJob(result.Id).status == 0  # Reason has a default
            for arguments in ((), (1, 2, 3)):
                with pytest.raises(TypeError, match=r"HoldJob\(Id, Reason\) takes 1 to 2 arguments"):
                    scheduler.HoldJob(*arguments)
            assert job.Fetch("out", 0, 0).Data == b"\x00\xff" * 10

    await in_thread(script)


async def test_a_list_of_calls_is_answered_in_its_order(agent: tuple[str, DictModel]) -> None:
    url, model = agent

    def script() -> None:
        with Session() as session:
            session.addBroker(url)
            scheduler = scheduler_of(session, model)
            results = scheduler.SubmitMany([{"Cmd": f"/bin/{number}"} for number in range(500)])
            assert [result.Id for result in results] == [f"{model.name}#{number}.0" for number in range(1, 501)]
            held = scheduler.HoldJobMany([(results[0].Id, "x"), ("none", "x")])
            assert [result.status for result in held] == [0, Code.UNKNOWN_JOB]

    await in_thread(script)


async def test_update_shows_the_object_as_it_is_now(agent: tuple[str, DictModel]) -> None:
    url, model = agent
    custom = model.submit({"Cmd": "/bin/true"})

    def script() -> None:
        with Session() as session:
            session.addBroker(url)
            (job,) = session.getObjects(_class="job", _package="mrg.grid")
            model._hold(custom, "because")
            assert job.JobStatus == 1
            job.update()
            assert (job.JobStatus, job.HoldReason) == (5, "because")
            del model.classes["Job"][custom]
            with pytest.raises(QmfError, match="no longer exists"):
                job.update()

    await in_thread(script)


async def test_a_console_is_told_of_agents_objects_and_events(agent: tuple[str, DictModel]) -> None:
    url, model = agent
    loop = asyncio.get_running_loop()

    def script() -> None:
        watched = Watched()
        with Session(watched) as session:
            session.addBroker(url)
            assert model.name in watched.next("new").getAgentBank()
            scheduler = scheduler_of(session, model)
            number = scheduler.Submit({"Cmd": "/bin/true"}, _async=True)
            answered, result = watched.next("response")
            assert (answered, result.status) == (number, 0)
            changed = watched.next("object")
            assert changed.CustomId == result.Id
            loop.call_soon_threadsafe(model._hold, result.Id, "because")
            happened = watched.next("event")
            assert happened.getClassKey().getClassName() == "jobstatuschange"
            assert happened.getArguments()["JobStatus"] == 5

    await in_thread(script)


async def test_with_user_bindings_a_console_hears_of_its_classes_only(agent: tuple[str, DictModel]) -> None:
    url, model = agent
    loop = asyncio.get_running_loop()

    def script() -> None:
        watched = Watched()
        with Session(watched, rcvEvents=False, userBindings=True) as session:
            session.bindClass("com.redhat.grid", "Slot")
            session.addBroker(url)
            loop.call_soon_threadsafe(model.submit, {})
            loop.call_soon_threadsafe(lambda: model.add("Slot", "slot1@x", Name="slot1@x"))
            assert watched.next("object").getClassKey().getClassName() == "slot"
            session.bindPackage("com.redhat.grid")
            loop.call_soon_threadsafe(model.submit, {})
            while watched.next("object").getClassKey().getClassName() != "job":
                pass

    await in_thread(script)


async def test_an_agent_that_ends_is_noticed_by_the_next_call(console_url: str) -> None:
    session = Session()
    async with an_agent(console_url) as (model, _):
        await in_thread(session.addBroker, console_url)
        scheduler = await in_thread(scheduler_of, session, model)

    def script() -> None:
        with session:
            with pytest.raises(AgentGone, match=model.name):
                scheduler.Submit({})
            assert model.name not in str(session.getAgents())

    await in_thread(script)


async def test_a_restart_of_the_agent_ends_what_waits_for_it(console_url: str) -> None:
    session = Session()
    async with an_agent(console_url, instance="restarts") as (model, _):
        await in_thread(session.addBroker, console_url)
        scheduler = await in_thread(scheduler_of, session, model)
        waiting = asyncio.create_task(in_thread(scheduler.create))
        await asyncio.wait_for(model.called.wait(), PATIENCE)
    async with an_agent(console_url, instance="restarts", epoch=1):
        with pytest.raises(AgentGone, match="restarted before it answered"):
            await waiting
        assert (await in_thread(scheduler.Submit, {})).status == 0
    await in_thread(session.close)


async def test_a_call_waits_no_longer_than_it_is_told(agent: tuple[str, DictModel]) -> None:
    url, model = agent

    def script() -> None:
        with Session() as session:
            session.addBroker(url)
            with pytest.raises(TimedOut, match=r"within 0\.1 s"):
                scheduler_of(session, model).create(_timeout=0.1)

    await in_thread(script)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("amqp://127.0.0.1:1", "127.0.0.1:1"),
        ("ftp://127.0.0.1", "scheme 'ftp'"),
        ("amqp://guest/wrong@HOST", "refused"),
    ],
)
async def test_a_broker_that_can_not_be_had_is_an_error(broker_url: str, target: str, said: str) -> None:
    with Session() as session, pytest.raises(QmfError, match=said):
        await in_thread(session.addBroker, target.replace("HOST", broker_url.rpartition("@")[2].rstrip("/")))


async def test_a_broker_is_named_as_the_original_names_it(broker_url: str) -> None:
    host = broker_url.rpartition("@")[2].rstrip("/")

    def script() -> None:
        for target in (f"guest/guest@{host}", f"amqp://guest/guest@{host}", host):
            with Session() as session:
                broker = session.addBroker(target, mechanisms="PLAIN")
                assert broker.getUrl() == host
                session.delBroker(broker)
                assert session.getBrokers() == [] and not broker.isConnected()

    await in_thread(script)


async def test_without_any_agent_there_are_no_objects(console_url: str) -> None:
    def script() -> None:
        with Session() as session:
            with pytest.raises(TypeError, match="_class"):
                session.getObjects()
            session.addBroker(console_url)
            assert session.getObjects(_class="job", _package="mrg.grid") == []

    await in_thread(script)


async def test_a_lost_connection_ends_what_waits_and_is_made_again_if_wanted(rabbitmq: PrivateRabbitMQ) -> None:
    def script() -> None:
        plain, watched = Session(), Watched()
        with plain, Session(watched, manageConnections=True) as managed:
            kept = managed.addBroker(rabbitmq.url)
            watched.next("connected")
            plain.addBroker(rabbitmq.url)
            rabbitmq.ctl("close_all_connections", "a test")
            watched.next("disconnected")
            with pytest.raises(QmfError, match="connect"):
                plain.getObjects(_class="job")
            watched.next("connected")
            assert kept.isConnected() and managed.getObjects(_class="job") == []

    await in_thread(script)
