"""`carod submit FILE.sub` straight to the queue, run as its users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import htcondor2
import pytest

Submit = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = [sys.executable, "-m", "carod.cli", "submit"]
PATIENCE = 120.0


@pytest.fixture
def environment(broker_url: str, node_queue: str, tmp_path: Path) -> dict[str, str]:
    named = {"CAROD_BROKER": broker_url, "_CAROD_BROKER_QUEUE": node_queue, "XDG_STATE_HOME": str(tmp_path / "state")}
    return os.environ | named


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the user submits."""
    path = tmp_path / "home"
    path.mkdir()
    (path / "job.sh").write_text("#!/bin/sh\necho out $@; cat in.txt; echo err >&2; echo $1 > made.$1; exit $1\n")
    (path / "in.txt").write_text("input\n")
    return path


@pytest.fixture
def submit(environment: dict[str, str], home: Path) -> Submit:
    """Writes job.sub and runs `carod submit` on it."""

    def run(text: str, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        (home / "job.sub").write_text(text)
        return subprocess.run(
            [*COMMAND, "--direct", *options, "job.sub"], env=environment, cwd=home, capture_output=True, text=True,
            timeout=PATIENCE, check=False, **settings,
        )  # fmt: skip

    return run


SWEEP = """
executable = job.sh
arguments  = $(Process) $(name)
output     = out.$(Process)
error      = err.$(Process)
log        = job.log
transfer_input_files = in.txt
queue name in (ann, bob)
"""


def events(log: Path) -> list[tuple[int, int, int]]:
    return [(int(event.type), event.cluster, event.proc) for event in htcondor2.JobEventLog(str(log)).events(0)]


def test_output_error_files_and_log_are_where_the_description_says(submit: Submit, home: Path) -> None:
    done = submit(SWEEP)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "Submitting job(s)..\n2 job(s) submitted to cluster 1.\n"
    assert [(home / f"out.{n}").read_text() for n in range(2)] == ["out 0 ann\ninput\n", "out 1 bob\ninput\n"]
    assert [(home / f"err.{n}").read_text() for n in range(2)] == ["err\n"] * 2
    assert [(home / f"made.{n}").read_text() for n in range(2)] == ["0\n", "1\n"]
    seen = events(home / "job.log")
    assert [kind for kind, *_ in seen if kind == 0] == [0, 0]
    for proc in range(2):
        assert [kind for kind, cluster, number in seen if (cluster, number) == (1, proc)] == [0, 1, 5]


def test_inputs_stay_as_they_are(submit: Submit, home: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in home.iterdir()}
    assert submit(SWEEP).returncode == 1
    after = {path.name: path.stat().st_mtime_ns for path in home.iterdir()}
    assert {name: after[name] for name in before} == before


def test_each_submission_has_a_cluster_of_its_own(submit: Submit) -> None:
    text = "executable = /bin/true\nqueue"
    assert [submit(text).stdout.splitlines()[-1] for _ in range(2)] == [
        "1 job(s) submitted to cluster 1.",
        "1 job(s) submitted to cluster 2.",
    ]


def test_initialdir_is_where_files_come_from_and_go_to(submit: Submit, home: Path) -> None:
    (home / "d").mkdir()
    (home / "d/in.txt").write_text("below\n")
    (home / "d/stdin").write_text("standard input\n")
    text = """
    executable = job.sh
    arguments = 0
    initialdir = d
    input = stdin
    output = all
    error = all
    log = log
    transfer_input_files = in.txt
    transfer_output_remaps = "made.0 = renamed"
    queue"""
    assert submit(text).returncode == 0
    assert (home / "d/all").read_text() == "out 0\nbelow\nerr\n"
    assert (home / "d/renamed").read_text() == "0\n"
    assert sorted(path.name for path in (home / "d").iterdir()) == ["all", "in.txt", "log", "renamed", "stdin"]


def test_standard_input_is_the_file_that_is_named(submit: Submit, home: Path) -> None:
    assert submit("executable = /bin/cat\ninput = in.txt\noutput = out\nqueue").returncode == 0
    assert (home / "out").read_text() == "input\n"


def test_a_held_job_is_in_the_log_and_in_the_exit_code(submit: Submit, home: Path) -> None:
    done = submit("executable = /usr/bin/no-such-program\nlog = log\nqueue")
    assert done.returncode == 125
    assert "no-such-program" in done.stderr
    (*_, last) = htcondor2.JobEventLog(str(home / "log")).events(0)
    assert (int(last.type), last["HoldReasonCode"]) == (12, 6)
    assert "no-such-program" in last["HoldReason"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("executable = gone.sh\nqueue", "job.sub:2: executable: '{home}/gone.sh': No such file or directory; for"),
        ("executable = job.sh\ninput = gone\nqueue", "job.sub:3: input: '{home}/gone': No such file or directory"),
        ("executable = job.sh\ntransfer_input_files = gone\nqueue", "job.sub:3: input '{home}/gone': No such file"),
        ("executable = job.sh\noutput = d/x\nqueue", "job.sub:3: output: directory '{home}/d' is not there; make it"),
        ("executable = job.sh\ninitialdir = d\nqueue", "job.sub:3: initialdir: '{home}/d' is no directory; make"),
    ],
)  # fmt: skip
def test_nothing_is_submitted_if_one_job_could_not_be(submit: Submit, home: Path, text: str, problem: str) -> None:
    done = submit(f"executable = job.sh\nlog = log\nqueue\n{text}")
    assert (done.returncode, done.stdout) == (125, "")
    line, _, rest = problem.partition(": ")
    name, _, number = line.partition(":")
    assert f"{name}:{int(number) + 3}: {rest.format(home=home)}" in done.stderr
    assert not (home / "log").exists()


def test_dump_prints_the_ads_and_submits_nothing(submit: Submit, home: Path) -> None:
    done = submit(SWEEP, "-append", "+Tag = 7", "-dump")
    first, second, end = done.stdout.split("\n\n")
    assert (done.returncode, end) == (0, "")
    assert f'Cmd = "{home}/job.sh"\n' in first
    assert [line for line in second.splitlines() if line.startswith(("Args", "ProcId", "Tag", "Out"))] == [
        'Args = "1 bob"', 'Out = "out.1"', "ProcId = 1", "Tag = 7",
    ]  # fmt: skip
    assert not (home / "job.log").exists()


def test_dump_to_a_file_as_condor_submit_has_it(submit: Submit, home: Path) -> None:
    done = submit(SWEEP, "-dump", "job.ad")
    assert (done.returncode, done.stdout) == (0, "Storing job ClassAd(s)..\n")
    assert (home / "job.ad").read_text().count("\nCmd = ") == 2


def test_a_description_comes_from_standard_input(environment: dict[str, str], home: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--direct", "-"], env=environment, cwd=home, input=SWEEP, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, (home / "out.1").read_text()) == (1, "out 1 bob\ninput\n")


def test_after_two_dashes_it_is_a_program_whatever_its_name(environment: dict[str, str], home: Path) -> None:
    (home / "job.sub").write_text("#!/bin/sh\necho ran\n")
    done = subprocess.run(
        [*COMMAND, "--", "./job.sub"], env=environment, cwd=home, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ran\n")


def test_json_tells_of_each_job(submit: Submit) -> None:
    said = [json.loads(line) for line in submit(SWEEP, "--json").stdout.splitlines()]
    results = [event for event in said if event["event"] == "result"]
    assert sorted((event["n"], event["exit_code"]) for event in results) == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("-i", "x", "job.sub"), "--input is for programs"),
        (("job.sub", "other"), "one description at a time"),
        (("--dump", "/bin/true"), "--append, --dump, --direct and --name are for submit descriptions"),
        (("none.sub",), "none.sub: No such file or directory; a program of that name is run by `carod submit --"),
    ],
)  # fmt: skip
def test_wrong_usage_is_said(environment: dict[str, str], home: Path, arguments: tuple[str, ...], problem: str) -> None:
    (home / "job.sub").write_text("executable = /bin/true\nqueue")
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment, cwd=home, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, problem in " ".join(done.stderr.split())) == (125, True), done.stderr


def test_ctrl_c_removes_what_runs_and_the_log_says_so(environment: dict[str, str], home: Path) -> None:
    (home / "job.sub").write_text("executable = /bin/sleep\nargs = 600\nlog = log\nqueue")
    process = subprocess.Popen(
        [*COMMAND, "--direct", "--json", "job.sub"], env=environment, cwd=home, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["status"] == "running"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "1 running removed" in said) == (130, True)
    assert [kind for kind, *_ in events(home / "log")] == [0, 1, 9]
