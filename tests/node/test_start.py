"""`carod start`: what keeps a node from starting is told in a line that says how to mend it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.node.client import Client
from tests.node.conftest import Node, needs_root

Start = Callable[..., Node]


def failure(node: Node) -> str:
    """What a node that does not start says, on one line, with no traceback."""
    assert node.wait() == 1
    assert "Traceback" not in node.log
    lines = [line for line in node.lines if not line.startswith("{")]
    assert len(lines) == 1, node.log
    return lines[0]


def test_a_second_node_with_the_same_explicit_name_is_refused(start_node: Start) -> None:
    start_node("--name", "twin")
    text = failure(start_node("--name", "twin", ready=False))
    assert "'twin' runs on this machine already; choose another --name" in text


def test_two_nodes_of_the_default_name_run_on_one_machine(broker_url: str, queue_name: str, execute: Path) -> None:
    nodes = []
    try:
        for _ in range(2):
            nodes.append(Node("--broker", broker_url, "--queue", queue_name, "--execute", str(execute), "--slots", "1",
                              "--log-format", "json"))  # fmt: skip
            nodes[-1].wait_for("ready")
        names = [node.events("ready")[0]["node"] for node in nodes]
        assert names == [socket.gethostname(), f"{socket.gethostname()}-2"]
    finally:
        for node in nodes:
            node.stop()


def test_a_wrong_password_is_told(start_node: Start, broker_url: str) -> None:
    url = re.sub(r"//.*@", "//guest:wr0ngsecret@", broker_url)
    text = failure(start_node("--broker", url, ready=False))
    assert "refused the connection" in text
    assert "password" in text
    assert "wr0ngsecret" not in text


def test_an_unknown_vhost_is_told(start_node: Start, broker_url: str) -> None:
    text = failure(start_node("--broker", f"{broker_url.rstrip('/')}/no-such-vhost", ready=False))
    assert "no-such-vhost" in text


def test_a_broker_that_is_away_is_tried_again(start_node: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    node = start_node("--broker", f"amqp://guest:hidden@127.0.0.1:{port}/", ready=False, RECONNECT_DELAY_MAX="0.1")
    event = node.wait_for("broker away", 3)
    assert str(port) in event["reason"]
    assert "hidden" not in node.log


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("http://localhost/", "scheme 'http'"), ("localhost:5672", "write amqp://"), ("amqp://", "names no host"),
        ("amqp://host:port/", "write amqp://"), ("amqp://host:99999/", "write amqp://"), ("", "write amqp://"),
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_one_is_told_with_what_would_do(start_node: Start, url: str, part: str) -> None:
    assert part in failure(start_node("--broker", url, ready=False))


def test_a_tls_file_that_is_missing_is_told(start_node: Start) -> None:
    text = failure(start_node("--broker", "amqps://localhost/", ready=False, CAROD_BROKER_CA_FILE="/no/such.pem"))
    assert "'/no/such.pem'" in text


def test_a_start_expression_that_does_not_parse_is_told(start_node: Start) -> None:
    text = failure(start_node(ready=False, START="Memory > 10)"))
    assert "START" in text
    assert "Memory > 10)" in text
    assert "column 12" in text


def test_an_execute_directory_that_cannot_be_made_is_told(start_node: Start) -> None:
    assert "EXECUTE = '/proc/x'" in failure(start_node("--execute", "/proc/x", ready=False))


@needs_root
def test_an_execute_directory_that_jobs_cannot_enter_is_told(start_node: Start) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as closed:  # mode 0700
        text = failure(start_node("--execute", f"{closed}/execute", ready=False))
    assert "EXECUTE" in text
    assert closed in text
    assert "'nobody' can't enter" in text


@needs_root
@pytest.mark.parametrize("user", ["nosuchuser", "root"])
def test_a_slot_user_that_cannot_be_is_told(start_node: Start, user: str) -> None:
    assert f"'{user}'" in failure(start_node(ready=False, SLOT_USER=user))


@pytest.mark.parametrize("address", ["127.0.0.1:", "127.0.0.1:nine", "192.0.2.1:9100"])
def test_a_metrics_address_that_cannot_be_is_told(start_node: Start, address: str) -> None:
    assert "METRICS_ADDRESS" in failure(start_node("--metrics", address, ready=False))


@pytest.mark.parametrize(("option", "value"), [("--slots", "0"), ("--slots", "x"), ("--log-format", "xml")])
def test_an_option_that_cannot_be_is_told(option: str, value: str) -> None:
    node = Node(option, value)
    assert node.wait() == 2
    assert option in node.log
    node.stop()


async def test_a_queue_that_exists_with_other_arguments_is_used_as_it_is_and_that_is_logged(
    start_node: Start, new_client: Client, queue_name: str
) -> None:
    await new_client.channel.queue_declare(queue_name, durable=False, arguments={"x-max-priority": 3})
    node = start_node()
    assert node.events("queue exists with other arguments and is used as it is", queue=queue_name, level="warning")
    assert (await new_client.run({"Cmd": "/bin/true"})).status == 4


async def test_a_node_lets_itself_in_with_its_certificate(
    new_rabbitmq: Callable[..., PrivateRabbitMQ], execute: Path
) -> None:
    broker = new_rabbitmq(tls=True)
    assert broker.certificates is not None
    files = {"CA": broker.certificates.ca, "CERT": broker.certificates.client, "KEY": broker.certificates.client_key}
    environ = {f"_CAROD_CAROD_BROKER_{name}_FILE": str(path) for name, path in files.items()}
    arguments = ("--broker", broker.tls_url, "--execute", str(execute), "--name", "tls", "--log-format", "json")
    node = Node(*arguments, environ=environ)
    try:
        node.wait_for("ready")
        client = await Client.connect(broker.url, "grid")
        assert (await client.run({"Cmd": "/bin/true"})).status == 4
        await client.close()
    finally:
        node.stop()
    node = Node(*arguments, environ=environ | {"_CAROD_CAROD_BROKER_CA_FILE": str(broker.certificates.client)})
    try:
        reason = node.wait_for("broker away")["reason"] if node.process.poll() is None else node.log
        assert "certificate" in reason
    finally:
        node.stop()


def read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


async def test_metrics_count_jobs_by_how_they_ended(start_node: Start, new_client: Client) -> None:
    node = start_node("--slots", "3", "--metrics", "127.0.0.1:0")
    port = node.events("metrics")[0]["port"]
    for headers in ({"Cmd": "/bin/true"}, {"Cmd": "/bin/false"}, {"Cmd": "missing"}):
        await new_client.run(headers)
    await node.seen("job unfit")
    text = await asyncio.to_thread(read, f"http://127.0.0.1:{port}/metrics")
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['carod_jobs_total{outcome="exited"}'] == "2.0"
    assert lines["carod_slots"] == "3.0"
    assert lines["carod_running"] in ("0.0", "1.0")
    assert lines["carod_start_to_exit_seconds_count"] == "2.0"
    assert {"carod_queue_to_start_seconds_count", "carod_exit_to_confirmed_seconds_count"} <= set(lines)


async def test_the_log_is_json_with_each_state_of_a_job_once(client: Client, node: Node) -> None:
    job = await client.submit({"Cmd": "/bin/true"})
    await client.end(job)
    await node.seen("job exited", job=job)
    events = [json.loads(line) for line in node.lines if job in line]
    assert [event["event"] for event in events] == ["job running", "job exited"]
    for event in events:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        assert (event["level"], event["slot"][:4]) == ("info", "slot")
    assert (events[1]["ExitCode"], events[1]["status"]) == (0, 4)


async def test_text_from_the_wire_cannot_break_a_line_of_the_log(
    start_node: Start, new_client: Client, broker_url: str, queue_name: str, execute: Path
) -> None:
    node = Node(
        "--broker", broker_url, "--queue", queue_name, "--execute", str(execute), "--name", "text", "--slots", "1"
    )
    try:
        await asyncio.to_thread(node.wait_for, " ready ")
        job = 'evil\n2026-01-01 00:00:00.000 ERROR all="lost" \x1b[31m'
        assert (await new_client.run({"Cmd": "/bin/true"}, message_id=job)).status == 4
        assert (await new_client.run({"Cmd": "no\nsuch"})).status == 5
        node.stop()
        form = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (INFO|WARNING|ERROR) [a-z].*")
        assert [line for line in node.lines if not form.fullmatch(line)] == []
        assert "\x1b" not in node.log
        assert 'job="evil\\n2026' in node.log
    finally:
        node.stop()
