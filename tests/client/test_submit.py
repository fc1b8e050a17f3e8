"""`carod submit`, run as its users run it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import Gate

Submit = Callable[..., subprocess.CompletedProcess[str]]
PATIENCE = 120.0
COMMAND = [sys.executable, "-m", "carod.cli", "submit"]


@pytest.fixture
def environment(broker_url: str, node_queue: str) -> dict[str, str]:
    """Where the shared node is, said by the environment."""
    return os.environ | {"CAROD_BROKER": broker_url, "_CAROD_BROKER_QUEUE": node_queue, "TERM": "xterm"}


@pytest.fixture
def submit(environment: dict[str, str], tmp_path: Path) -> Submit:
    """Runs `carod submit` with these arguments, in an empty directory, its output in pipes."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True,
            timeout=PATIENCE, check=False, **options,
        )  # fmt: skip

    return run


def said(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_in_a_pipe_there_is_nothing_but_the_jobs_output(submit: Submit) -> None:
    assert said(submit("--", "/bin/sh", "-c", "echo out; echo err >&2")) == (0, "out\n", "err\n")


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", 143)])
def test_the_exit_code_is_the_jobs(submit: Submit, script: str, code: int) -> None:
    assert said(submit("--", "/bin/sh", "-c", script)) == (code, "", "")


def test_the_double_dash_may_be_left_out(submit: Submit) -> None:
    assert said(submit("/bin/echo", "--count", "3")) == (0, "--count 3\n", "")


def test_inputs_are_sent_and_results_unpacked(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("hello")
    (tmp_path / "job.sh").write_text("#!/bin/sh\ntr a-z A-Z <in.txt >out.txt\n")
    assert said(submit("-i", "in.txt", "-o", "got", "--", "./job.sh")) == (0, "", "")
    assert (tmp_path / "got/out.txt").read_text() == "HELLO"


def test_stdin_environment_and_attributes_reach_the_job(submit: Submit) -> None:
    script = 'cat; echo "$GREETING"; grep ^Tag .job.ad'
    done = submit(
        "--stdin", "-", "-e", "GREETING=good day", "-a", 'Tag="x y"', "--", "/bin/sh", "-c", script, input="in\n"
    )
    assert said(done) == (0, 'in\ngood day\nTag = "x y"\n', "")


def test_a_sweep_prints_in_the_jobs_order_and_ends_with_the_highest_code(submit: Submit) -> None:
    done = submit("--count", "5", "--", "/bin/sh", "-c", 'echo {n} $(grep "^ProcId" .job.ad); exit {n}')
    assert said(done) == (4, "".join(f"{n} ProcId = {n}\n" for n in range(5)), "")


def test_a_sweeps_inputs_and_results_have_its_numbers(submit: Submit, tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(f"input {n}")
    assert said(submit("-n", "3", "-i", "{n}.txt", "-o", "got", "--", "/bin/cp", "{n}.txt", "copy")) == (0, "", "")
    assert [(tmp_path / f"got/{n}/copy").read_text() for n in range(3)] == ["input 0", "input 1", "input 2"]


def test_json_gives_updates_and_the_result(submit: Submit) -> None:
    done = submit("--json", "--", "/bin/sh", "-c", "echo out; exit 3")
    update, result = objects(done.stdout)
    assert (done.returncode, update["event"], update["status"]) == (3, "update", "running")
    assert update["id"] == result["id"]
    assert (result["event"], result["exit_code"], result["stdout"]) == ("result", 3, "out\n")


def test_json_of_a_sweep_numbers_its_jobs_and_ends_with_a_summary(submit: Submit) -> None:
    *events, summary = objects(submit("--json", "-n", "3", "--", "/bin/true").stdout)
    assert {event["n"] for event in events if event["event"] == "result"} == {0, 1, 2}
    assert (summary["event"], summary["jobs"], summary["outcomes"]) == ("summary", 3, {"exit code 0": 3})


def test_a_held_job_ends_with_125_and_the_reason(submit: Submit) -> None:
    code, out, err = said(submit("--", "/no-such-program"))
    assert (code, out) == (125, "")
    assert err.startswith("carod: job ")
    assert " is held: " in err
    assert "no-such-program" in err
    (error,) = [event for event in objects(submit("--json", "--", "/no-such-program").stdout) if "error" in event]
    assert (error["error"], "no-such-program" in error["reason"]) == ("JobRejected", True)


def test_in_a_sweep_each_failure_is_told_and_the_others_go_on(submit: Submit) -> None:
    code, out, err = said(submit("-n", "2", "-i", "{n}.txt", "--", "/bin/echo", "{n}"))
    assert (code, out) == (125, "")
    assert [line.split(": No such")[0] for line in err.splitlines()] == [
        "carod: job 0: input '0.txt'",
        "carod: job 1: input '1.txt'",
    ]


def test_a_timeout_ends_with_124_and_removes_the_job(submit: Submit, gate: Gate) -> None:
    assert submit("--", "/bin/true").returncode == 0  # nothing of other tests is before us in the queue
    code, out, err = said(submit("--timeout", "0.5", "--", "/bin/cat", gate.path))
    assert (code, out, err.partition(": ")[2].partition(": ")[2]) == (
        124,
        "",
        "no result within 0.5 s; it was removed\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "echo"], "command 'echo' is neither an absolute path nor one of the inputs"),
        (["-i", "missing", "--", "/bin/true"], "input 'missing': No such file"),
        (["--queue", "test-nobody", "--", "/bin/true"], "no queue 'test-nobody'"),
        (["--broker", "amqp://127.0.0.1:1/", "--", "/bin/true"], "is a broker running there?"),
        (["--broker", "http://x/", "--", "/bin/true"], "scheme 'http' is not one of amqp, amqps"),
        (["-a", "Requirements=Memory >", "--", "/bin/true"], "Requirements: "),
        (["-a", "Requirements", "--", "/bin/true"], "'Requirements' is not NAME=EXPR"),
        (["-e", "X", "--", "/bin/true"], "'X' is not NAME=VALUE"),
        (["--no-such-option"], "--no-such-option"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_done_ends_with_125_and_says_what(submit: Submit, arguments: list[str], message: str) -> None:
    code, out, err = said(submit(*arguments))
    assert (code, out, message in err) == (125, "", True)
    assert "Traceback" not in err


def test_a_reader_that_goes_away_ends_it_quietly(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, "-n", "200", "--", "/bin/echo", "x" * 2000],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == ""
    assert process.wait(PATIENCE) == 128 + signal.SIGPIPE


def test_ctrl_c_ends_with_130_and_removes_the_job(environment: dict[str, str], gate: Gate) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--json", "--", "/bin/cat", gate.path],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["status"] == "running"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, "carod: interrupted; jobs: 1 running removed\n")


def test_at_a_terminal_there_are_status_lines_a_bar_and_a_table(environment: dict[str, str]) -> None:
    shown = at_terminal([*COMMAND, "--", "/bin/echo", "Hello"], environment)
    assert all(text in shown for text in ("sent to queue", "running on slot", "Hello", "exit code 0 after"))
    shown = at_terminal([*COMMAND, "-n", "4", "--", "/bin/true"], environment)
    assert all(text in shown for text in ("4/4", "4 jobs in", "exit code 0", "on the node, median"))
    assert at_terminal([*COMMAND, "-q", "-n", "2", "--", "/bin/echo", "Hello"], environment) == "Hello\r\n" * 2


def at_terminal(command: list[str], environment: dict[str, str]) -> str:
    """What a command shows on a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, env=environment | {"COLUMNS": "120"}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 1 << 16):
            shown += data
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(ours)
    process.wait(PATIENCE)
    return shown.decode()
