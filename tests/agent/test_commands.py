"""The commands of HTCondor's users, against a real agent and node: submit, q, hold, fetch and the others."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import htcondor2
import pytest
from carod_client.agent import Agent
from click.testing import CliRunner, Result

from carod.classad import ClassAd
from carod.cli import main
from tests.agent.agents import AgentProcess

PATIENCE = 60.0
Carod = Callable[..., Result]


@pytest.fixture
def tag() -> str:
    """What tells this test's jobs from others'."""
    return f"tag-{secrets.token_hex(4)}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def carod(agent: AgentProcess, home: Path, monkeypatch: pytest.MonkeyPatch) -> Carod:
    """Runs `carod` with these arguments."""
    monkeypatch.setenv("CAROD_BROKER", agent.url)
    monkeypatch.setenv("_CAROD_BROKER_QUEUE", agent.queue)

    def run(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(main, list(arguments), input=stdin, prog_name="carod")
        assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
        return result

    return run


@pytest.fixture
def submit(carod: Carod, home: Path, tag: str) -> Iterator[Callable[[str], int]]:
    """Submits a description, tagged: its cluster. What is left of the jobs is removed."""

    def run(text: str) -> int:
        (home / "job.sub").write_text(f'+Tag = "{tag}"\n{text}')
        said = carod("submit", "job.sub").stdout
        return int(said.rstrip(".\n").rpartition(" ")[2])

    yield run
    carod("rm", "-constraint", f'Tag == "{tag}"')


@pytest.fixture
def until(carod: Carod, tag: str) -> Callable[..., None]:
    """Waits until so many of the test's jobs have a status."""

    def wait(count: int, *statuses: int) -> None:
        end = time.monotonic() + PATIENCE
        condition = f'Tag == "{tag}" && ({" || ".join(f"JobStatus == {status}" for status in statuses)})'
        while True:
            found = [
                line
                for command in ("q", "history")
                for line in carod(command, "-constraint", condition, "-af:j").stdout.split()
            ]
            if len(found) == count:
                return
            assert time.monotonic() < end, (found, carod("q", "-long").stdout)

    return wait


SLEEPER = "executable = /bin/sleep\narguments = 600\n"


def test_a_description_is_submitted_run_and_fetched(
    submit: Callable[[str], int], until: Callable[..., None], carod: Carod, home: Path
) -> None:
    (home / "job.sh").write_text("#!/bin/sh\necho out $1 $2; cat in.txt; echo $1 >made.$1; exit $1\n")
    (home / "in.txt").write_text("input\n")
    cluster = submit(
        """
        executable = job.sh
        arguments = $(Process) $(Cluster)
        output = out.$(Process)
        log = job.log
        transfer_input_files = in.txt
        queue 2
        """
    )
    assert carod("wait", "-wait", str(PATIENCE), "job.log").stdout == "All jobs done.\n"
    until(2, 4)
    carod("fetch", str(cluster))
    assert [(home / f"out.{n}").read_text() for n in range(2)] == [f"out {n} {cluster}\ninput\n" for n in range(2)]
    assert (home / "made.1").read_text() == "1\n"
    assert carod("fetch", f"{cluster}.1", "made.1").stdout == "1\n"
    assert carod("fetch", "-list", f"{cluster}.1").stdout.split()[-1] == "made.1"
    carod("fetch", str(cluster), "-o", "got")
    assert sorted(os.listdir("got/1")) == ["made.1", "out.1"]
    assert carod("tail", "-maxbytes", "3", f"{cluster}.0").stdout == "ut\n"
    kinds = [(int(event.type), event.proc) for event in htcondor2.JobEventLog("job.log").events(0)]
    assert [kind for kind, proc in kinds if proc == 1] == [0, 1, 5]
    history = carod("history", str(cluster), "-af", "ProcId", "ExitCode").stdout
    assert sorted(history.splitlines()) == ["0 0", "1 1"]


def test_jobs_with_other_files_share_a_cluster(
    submit: Callable[[str], int], until: Callable[..., None], carod: Carod, home: Path
) -> None:
    for name in "ab":
        (home / name).write_text(f"this is {name}\n")
    cluster = submit(
        """
        executable = /bin/cat
        arguments = $(file)
        transfer_input_files = $(file)
        queue 2 file in (a, b)
        """
    )
    until(4, 4)
    printed = [carod("fetch", f"{cluster}.{proc}", "_condor_stdout").stdout for proc in range(4)]
    assert printed == ["this is a\n"] * 2 + ["this is b\n"] * 2


def test_another_executable_is_another_cluster(submit: Callable[[str], int], carod: Carod, tag: str) -> None:
    last = submit("executable = /bin/true\nqueue 2\nexecutable = /bin/false\nqueue")
    told = carod("q", "-constraint", f'Tag == "{tag}"', "-af", "ClusterId").stdout.split()
    told += carod("history", "-constraint", f'Tag == "{tag}"', "-af", "ClusterId").stdout.split()
    assert sorted(map(int, told)) == [last - 1, last - 1, last]


def test_q_lists_what_runs_and_what_is_held(
    submit: Callable[[str], int], until: Callable[..., None], carod: Carod, agent: AgentProcess, tag: str
) -> None:
    cluster = submit(SLEEPER + "priority = 7\nqueue")
    until(1, 2)
    listed = carod("q", str(cluster)).stdout.splitlines()
    assert listed[2].startswith(f"-- Schedd: {agent.name} : <127.0.0.1:")
    assert listed[3] == " ID      OWNER            SUBMITTED     RUN_TIME ST PRI SIZE CMD"
    assert listed[4].split()[:1] == [f"{cluster}.0"]
    assert listed[4].split()[5:7] == ["R", "7"]
    assert listed[-1] == "1 jobs; 0 completed, 0 removed, 0 idle, 1 running, 0 held, 0 suspended"
    assert carod("q", "-run", f"{cluster}.0").stdout.splitlines()[4].split()[-1].startswith("slot")
    carod("hold", str(cluster), "--reason", "no licence")
    assert carod("q", "-hold", str(cluster)).stdout.splitlines()[4].endswith(" no licence")
    assert carod("q", "-hold", f"{cluster}.9").stdout.splitlines()[-1].startswith("0 jobs; ")
    carod("rm", str(cluster))
    until(1, 3)


def test_q_prints_as_it_is_asked(submit: Callable[[str], int], carod: Carod, tag: str) -> None:
    cluster = submit(SLEEPER + "+Words = strcat(Tag, 1)\nqueue 2")
    mine = ("-constraint", f'Tag == "{tag}"')
    assert carod("q", *mine, "-af:j", "Tag").stdout == f"{cluster}.0 {tag}\n{cluster}.1 {tag}\n"
    assert carod("q", *mine, "-format", "%d.", "ClusterId", "-format", "%d\\n", "ProcId").stdout == (
        f"{cluster}.0\n{cluster}.1\n"
    )
    assert carod("q", *mine, "-limit", "1", "-af", "Words").stdout == f"{tag}1\n"
    ads = json.loads(carod("q", *mine, "-json").stdout)
    assert [(ad["ProcId"], ad["Words"]) for ad in ads] == [(n, "/Expr(strcat(Tag, 1))/") for n in range(2)]
    assert [json.loads(line)["ProcId"] for line in carod("q", *mine, "-jsonl").stdout.splitlines()] == [0, 1]
    assert f'Tag = "{tag}"\n' in carod("q", "-long", f"{cluster}.1").stdout
    assert (
        carod("rm", "-constraint", f'Tag == "{tag}"').stdout == f'2 jobs matching Tag == "{tag}" marked for removal.\n'
    )


def test_a_job_that_is_submitted_on_hold_waits_for_its_release(
    submit: Callable[[str], int], until: Callable[..., None], carod: Carod
) -> None:
    cluster = submit("executable = /bin/true\nhold = true\nqueue")
    told = carod("q", str(cluster), "-af", "JobStatus", "HoldReasonCode", "NumJobStarts", "HoldReason").stdout
    assert told == "5 15 undefined submitted on hold at user's request\n"
    assert "1 held" in carod("q", str(cluster)).stdout
    carod("release", str(cluster))
    until(1, 4)
    assert "hold: a job on the queue can't be held" in carod("submit", "--direct", "job.sub", code=125).stderr


def test_orders_name_a_job_a_cluster_or_a_constraint(
    submit: Callable[[str], int], until: Callable[..., None], carod: Carod, tag: str
) -> None:
    cluster = submit(SLEEPER + "queue 2")
    until(2, 2)
    assert carod("suspend", f"{cluster}.0").stdout == f"Job {cluster}.0 suspended.\n"
    assert carod("continue", str(cluster)).stdout == f"Cluster {cluster} continued.\n"
    mine = f'Tag == "{tag}"'
    assert carod("hold", "-constraint", mine).stdout == f"2 jobs matching {mine} held.\n"
    assert carod("release", f"{cluster}.1").stdout == f"Job {cluster}.1 released.\n"
    until(1, 2)
    said = [json.loads(line) for line in carod("rm", "--json", str(cluster)).stdout.splitlines()]
    assert [(each["job"], each["ok"]) for each in said] == [(f"{cluster}.{n}", True) for n in range(2)]
    until(2, 3)


def test_what_can_not_be_done_is_said(submit: Callable[[str], int], until: Callable[..., None], carod: Carod) -> None:
    cluster = submit("executable = /bin/true\nqueue")
    until(1, 4)
    assert "is Completed; only a job that is Idle" in carod("hold", f"{cluster}.0", code=1).stderr
    assert f"cluster {cluster} has no jobs in the queue" in carod("rm", str(cluster), code=3).stderr
    assert "job 99999.0 is unknown" in carod("rm", "99999.0", code=3).stderr
    assert "another agent" in carod("rm", "other#1.0", code=3).stderr
    assert "job 99999.0 is unknown" in carod("tail", "99999.0", code=3).stderr
    assert "has no file 'nope'" in carod("fetch", f"{cluster}.0", "nope", code=1).stderr
    assert "-constraint: unexpected" in carod("q", "-constraint", "a ==", code=2).stderr
    assert "choose one of -format, -af" in carod("q", "-json", "-af", "Owner", code=2).stderr
    assert "name jobs (CLUSTER.PROC" in carod("hold", code=2).stderr
    assert "no agent nobody answers" in carod("q", "--name", "nobody", code=3).stderr


def test_qedit_changes_ads(submit: Callable[[str], int], until: Callable[..., None], carod: Carod, tag: str) -> None:
    cluster = submit(SLEEPER + "requirements = false\nqueue 2")
    said = carod("qedit", str(cluster), "Note", '"seen"', "JobPrio", "-5").stdout
    assert said == 'Set attribute "Note" for 2 matching jobs.\nSet attribute "JobPrio" for 2 matching jobs.\n'
    assert carod("q", str(cluster), "-af", "Note", "JobPrio").stdout == "seen -5\n" * 2
    assert "ClusterId" in carod("qedit", f"{cluster}.0", "ClusterId", "7", code=1).stderr
    assert "a string needs its quotes" in carod("qedit", f"{cluster}.0", "Note", "a b", code=2).stderr
    assert "no job in the queue matches" in carod("qedit", "99999", "Note", "1", code=3).stderr
    carod("qedit", "-constraint", f'Tag == "{tag}"', "Requirements", "true")
    until(2, 2)
    carod("rm", str(cluster))


def test_status_lists_the_nodes_slots_and_their_jobs(
    submit: Callable[[str], int], until: Callable[..., None], carod: Carod
) -> None:
    cluster = submit(SLEEPER + "queue")
    until(1, 2)
    end = time.monotonic() + PATIENCE
    while f"#{cluster}.0" not in (claimed := carod("status", "-claimed").stdout):
        assert time.monotonic() < end, claimed
    assert carod("status").stdout.split()[:8] == "Name OpSys Arch State Activity LoadAv Mem ActvtyTime".split()
    assert carod("status", "-total").stdout.splitlines()[-1].split()[:4] == ["Total", "2", "0", "1"]
    names = carod("status", "-af", "Name").stdout.split()
    assert [name.partition("@")[0] for name in sorted(names)] == ["slot1", "slot2"]
    assert carod("status", names[0], "-constraint", "Memory < 0", "-af", "Name").stdout == ""
    carod("rm", str(cluster))


def test_without_an_agent_jobs_go_straight_to_the_queue_and_that_is_said(
    carod: Carod,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    broker_url: str,
    queue_name: str,
    start_node: Callable[..., object],
) -> None:
    start_node("--slots", "1")
    monkeypatch.setenv("CAROD_BROKER", broker_url)
    monkeypatch.setenv("_CAROD_BROKER_QUEUE", queue_name)
    (home / "job.sub").write_text("executable = /bin/echo\narguments = hello\noutput = out\nqueue")
    said = carod("submit", "job.sub")
    assert (home / "out").read_text() == "hello\n"
    assert f"no agent for queue {queue_name} answers at broker" in said.stderr
    assert f"the jobs go straight to queue {queue_name}, and this command stays until they end" in said.stderr
    assert "no agent for queue" in carod("q", code=3).stderr
    assert "1" in carod("status", "-total").stdout


def test_the_agent_writes_to_no_file_that_is_not_a_log(
    carod: Carod, until: Callable[..., None], home: Path, agent: AgentProcess, tag: str
) -> None:
    keys = home / "authorized_keys"
    keys.write_text("ssh-ed25519 AAAA\n")
    link = home / "link"
    link.symlink_to(home / "begun")
    (home / "begun").write_text("000 (001.000.000) 2026-01-01 00:00:00 Job submitted from host: <x>\n...\n")
    before = (home / "begun").read_text()
    paths = [str(path) for path in (keys, link, home / "absent", home)] + ["relative", "/dev/null"]
    with Agent.find(agent.url, agent.queue) as connected:
        for path in paths:
            ad = ClassAd({"Cmd": "/bin/true", "Owner": "x", "Tag": tag, "UserLog": path})
            connected.submit([ad], connected.begin())
    until(len(paths), 4)
    agent.wait_for("user log not written")
    assert keys.read_text() == "ssh-ed25519 AAAA\n"
    assert (home / "begun").read_text() == before
    assert not (home / "absent").exists()
