"""The command `carod broker`, and the one that brings a broker to another command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from proton import Message
from proton.utils import BlockingConnection

from tests.brokers.embedded import PrivateEmbedded

COMMAND = [sys.executable, "-m", "carod.cli", "broker"]
WRAPPER = [sys.executable, str(Path(__file__).parents[1] / "brokers" / "embedded.py"), "--"]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command, and its first log line."""
    command = [*COMMAND, "--log-format", "json", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield process, json.loads(process.stderr.readline())
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_it_says_where_it_listens_and_that_it_keeps_nothing() -> None:
    with running("--listen", "127.0.0.1:0") as (_, ready):
        assert ready["event"] == "ready"
        assert ready["broker"].startswith("amqp10://127.0.0.1:")
        assert ready["keeps"] == "nothing across a restart"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to_and_says_goodbye(number: signal.Signals) -> None:
    with running("--listen", "127.0.0.1:0") as (process, ready):
        connection = BlockingConnection(ready["broker"].replace("amqp10", "amqp"), timeout=20)
        process.send_signal(number)
        assert process.wait(20) == 0
        with pytest.raises(Exception, match="the broker is going down"):
            connection.wait(lambda: False, timeout=20)


def test_it_warns_when_other_machines_can_reach_it() -> None:
    with running("--listen", "0.0.0.0:0") as (process, _):
        assert process.stderr is not None
        warning = json.loads(process.stderr.readline())
    assert warning["level"] == "warning"
    assert warning["event"] == "listens to other machines, and lets everybody in: there are no users and no TLS here"


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run([*COMMAND, "--listen", where], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"carod broker: can't listen on {where}: address already in use\n")


@pytest.mark.parametrize("listen", ["5672", ":5672", "localhost:", "localhost:x", "localhost:65536"])
def test_an_address_that_is_none_is_refused_with_one_that_would_do(listen: str) -> None:
    done = subprocess.run([*COMMAND, "--listen", listen], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{listen!r} is no HOST:PORT; write 127.0.0.1:5672" in done.stderr


def test_a_restarted_one_knows_nothing_of_what_was() -> None:
    with PrivateEmbedded() as broker:
        connection = BlockingConnection(broker.url.replace("amqp10", "amqp"), timeout=20)
        name = connection.create_receiver(None, dynamic=True).link.remote_source.address
        broker.kill()
        broker.launch()
        again = BlockingConnection(broker.url.replace("amqp10", "amqp"), timeout=20)
        with pytest.raises(Exception, match="not-found"):
            again.create_sender(name).send(Message())
        again.close()


def test_a_command_has_a_broker_for_as_long_as_it_runs() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CAROD_BROKER"}
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and not listened on
        environment["CAROD_BROKER"] = f"amqp://127.0.0.1:{nobody.getsockname()[1]}"
        asked = "import os; print(os.environ['CAROD_BROKER'])"
        done = subprocess.run(
            [*WRAPPER, sys.executable, "-c", asked], capture_output=True, text=True, check=False, env=environment
        )
    assert done.returncode == 0, done.stderr
    url = done.stdout.strip()
    assert url.startswith("amqp10://127.0.0.1:")
    assert f"it answers at {url}" in done.stderr
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
