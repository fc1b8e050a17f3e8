"""Names on the broker (wire contract, section 1), and how a node shows there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.node.conftest import Node


@pytest.fixture
def broker_url(rabbitmq: PrivateRabbitMQ) -> str:
    """The private broker, for these tests ask it what it has."""
    return rabbitmq.url


def _rows(rabbitmq: PrivateRabbitMQ, *listing: str) -> list[list[str]]:
    return [line.split("\t") for line in rabbitmq.ctl("-q", "--no-table-headers", *listing).splitlines()]


def test_only_the_names_of_the_contract_are_declared(
    rabbitmq: PrivateRabbitMQ, queue_name: str, start_node: Callable[..., Node]
) -> None:
    queues_before = {name for (name,) in _rows(rabbitmq, "list_queues", "name")}
    exchanges_before = {name for (name,) in _rows(rabbitmq, "list_exchanges", "name")}
    start_node("--name", "n1")
    queues = {name for (name,) in _rows(rabbitmq, "list_queues", "name")} - queues_before
    exchanges = {name for (name,) in _rows(rabbitmq, "list_exchanges", "name")} - exchanges_before
    own = {name for name in queues if not name.startswith("amq.gen-")}
    assert own == {queue_name, f"{queue_name}.dead", f"{queue_name}.parked", f"{queue_name}.node.n1"}
    assert len(queues - own) == 2  # the node's ear on the control exchange, and where its own questions are answered
    assert exchanges == {f"{queue_name}.control"}


def test_the_job_queue_is_bound_to_amq_direct_with_both_of_its_keys(
    rabbitmq: PrivateRabbitMQ, queue_name: str, start_node: Callable[..., Node]
) -> None:
    start_node()
    rows = _rows(rabbitmq, "list_bindings", "source_name", "destination_name", "routing_key")
    keys = {key for source, destination, key in rows if source == "amq.direct" and destination == queue_name}
    assert keys == {queue_name, f"{queue_name}_key"}


def test_the_broker_shows_which_node_a_connection_is(
    rabbitmq: PrivateRabbitMQ, start_node: Callable[..., Node]
) -> None:
    start_node("--name", "shown-7")
    shown = "\n".join("\t".join(row) for row in _rows(rabbitmq, "list_connections", "client_properties"))
    assert '"connection_name","carod shown-7"' in shown
    assert '"product","carod"' in shown
    assert '"information","carod shown-7"' in shown
