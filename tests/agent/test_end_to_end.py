"""A console, an agent, a broker and a node, all of them real: what a script does to its jobs."""

from __future__ import annotations

import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qmf.console import Broker, Console, Event, Object, Session

from qmf_agent.model import Code
from tests.agent.agents import AgentProcess

PATIENCE = 60.0
"""Seconds for what takes a fraction of one on a machine that is not busy."""
IDLE, RUNNING, REMOVED, COMPLETED, HELD, SUSPENDED = 1, 2, 3, 4, 5, 7
SEED_SCRIPT = Path(__file__).with_name("seed_script.py")


class Life(Console):
    """Follows jobs by the agent's events."""

    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()

    def event(self, broker: Broker, event: Event) -> None:
        self.events.put(event)

    def until(self, job: str, status: int) -> Event:
        """Wait until a job has a status."""
        while True:
            happened = self.events.get(timeout=PATIENCE)
            if (happened.arguments["CustomId"], happened.arguments["JobStatus"]) == (job, status):
                return happened


class Script:
    """A script's session, with the scheduler that it found."""

    def __init__(self, session: Session, life: Life, scheduler: Object) -> None:
        self.session, self.life, self.scheduler = session, life, scheduler

    def submit(self, cmd: str, args: str = "", **more: object) -> str:
        ad = {"Cmd": cmd, "Args": args, "Owner": "nobody", **more}
        result = self.scheduler.Submit(ad)
        assert result.status == 0, result.text
        return str(result.Id)

    def job(self, custom: str) -> Object:
        (job,) = self.session.getObjects(_class="job", _package="mrg.grid", CustomId=custom)
        return job

    def order(self, method: str, *arguments: object) -> None:
        result = getattr(self.scheduler, method)(*arguments)
        assert result.status == 0, f"{method}: {result.text}"


@pytest.fixture
def script(agent_url: str, agent: AgentProcess) -> Iterator[Script]:
    life = Life()
    with Session(life, rcvObjects=False) as session:
        session.addBroker(agent_url)
        (scheduler,) = session.getObjects(_class="scheduler", _package="mrg.grid", Name=agent.name)
        yield Script(session, life, scheduler)


def test_the_script_of_2009_submits_a_job_that_runs(agent_url: str, script: Script) -> None:
    text = SEED_SCRIPT.read_text().replace("amqp://localhost:5672", agent_url).replace('"120"', '"2"')
    ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=PATIENCE)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Job status: " in ran.stdout and "  Cmd = /bin/sleep\n" in ran.stdout
    script.life.until(ran.stdout.splitlines()[0].removeprefix("Submitted job: "), COMPLETED)


def test_the_later_form_of_an_ad_is_understood(script: Script) -> None:
    custom = script.submit(
        "/bin/echo", "Hello Grid!", Iwd="/tmp", JobUniverse=5, Requirements="TRUE",
        **{"!!descriptors": {"Requirements": "com.redhat.grid.Expression"}},
    )  # fmt: skip
    script.life.until(custom, COMPLETED)
    assert script.job(custom).ExitCode == 0


def test_a_finished_jobs_result_ad_and_summary_are_to_be_had(script: Script) -> None:
    custom = script.submit("/bin/echo", "Hello Grid!", Submission="Hello")
    script.life.until(custom, COMPLETED)
    job = script.job(custom)
    assert (job.JobStatus, job.ExitCode) == (COMPLETED, 0)
    assert job.Fetch("_condor_stdout", 0, 0).Data == b"Hello Grid!\n"
    assert job.GetAd().Ad["Cmd"] == "/bin/echo"
    assert job._submissionRef_.Name == "Hello"
    summaries = job._submissionRef_.GetJobSummaries().Jobs
    assert custom in str(summaries)


def test_a_running_job_is_suspended_continued_changed_held_released_and_removed(script: Script) -> None:
    life = script.life
    custom = script.submit("/bin/sleep", "600")
    life.until(custom, RUNNING)
    script.order("SuspendJob", custom)
    life.until(custom, SUSPENDED)
    script.order("ContinueJob", custom)
    life.until(custom, RUNNING)
    script.order("SetJobAttribute", custom, "Mood", '"good"')
    assert script.job(custom).Mood == "good"
    script.order("HoldJob", custom, "for a test")
    assert life.until(custom, HELD).arguments["Reason"] == "for a test"
    job = script.job(custom)
    assert (job.JobStatus, job.HoldReason, job.Mood) == (HELD, "for a test", "good")
    script.order("ReleaseJob", custom, "go on")
    life.until(custom, RUNNING)
    script.order("RemoveJob", custom, "enough")
    life.until(custom, REMOVED)
    job.update()
    assert (job.JobStatus, job.RemoveReason) == (REMOVED, "enough")


def test_a_waiting_job_is_held_released_changed_and_removed(script: Script) -> None:
    life = script.life
    never = {"TYPE": 0, "VALUE": "FALSE"}
    custom, other = (script.submit("/bin/true", Requirements=never) for _ in range(2))
    script.order("HoldJob", custom, "not yet")
    life.until(custom, HELD)
    assert script.scheduler.SuspendJob(custom, "").status == Code.WRONG_STATE
    script.order("ReleaseJob", custom, "")
    life.until(custom, IDLE)
    script.order("SetJobAttribute", custom, "Requirements", "TRUE")
    life.until(custom, COMPLETED)
    script.order("RemoveJob", other, "not wanted")
    life.until(other, REMOVED)
    assert script.scheduler.HoldJob(other, "").status == Code.WRONG_STATE


def test_what_a_method_refuses_has_a_code_and_a_text(script: Script) -> None:
    custom = script.submit("/bin/true", Requirements={"TYPE": 0, "VALUE": "FALSE"})
    for method, arguments, code, said in (
        ("HoldJob", ("999999.0", ""), Code.UNKNOWN_JOB, "999999"),
        ("SetJobAttribute", (custom, "Rank", "1 +"), Code.BAD_VALUE, "column"),
        ("SetJobAttribute", (custom, "ClusterId", "7"), Code.PROTECTED, "ClusterId"),
        ("Submit", ({"Owner": "nobody"},), Code.BAD_VALUE, "Cmd"),
    ):
        result = getattr(script.scheduler, method)(*arguments)
        assert result.status == code and said in result.text, result
    script.order("RemoveJob", custom, "")


def test_many_jobs_are_submitted_at_once_and_found_by_their_submission(script: Script) -> None:
    ads = [{"Cmd": "/bin/true", "Owner": "nobody", "Args": str(number), "Submission": "Many"} for number in range(300)]
    results = script.scheduler.SubmitMany(ads)
    assert {result.status for result in results} == {0}
    found = script.session.getObjects(_class="job", _package="mrg.grid", Submission="Many")
    assert sorted(job.CustomId for job in found) == sorted(result.Id for result in results)
    assert {job.Args for job in found} == {str(number) for number in range(300)}
    removed = script.scheduler.RemoveJobMany([(result.Id, "enough") for result in results])
    assert {result.status for result in removed} <= {0, Code.WRONG_STATE}  # some were done by then


def test_schedulers_slots_and_the_collector_tell_of_the_pool(script: Script) -> None:
    slots = script.session.getObjects(_class="slot", _package="mrg.grid")
    assert {slot.State for slot in slots} <= {"Claimed", "Unclaimed", "Owner"} and slots
    (collector,) = script.session.getObjects(_class="collector", _package="mrg.grid")
    assert collector.HostsTotal == len(slots)
    script.scheduler.update()
    assert script.scheduler.TotalJobAds >= 0
    echoed = script.scheduler.echo(7, "Hello")
    assert (echoed.sequence, echoed.body) == (7, "Hello")
