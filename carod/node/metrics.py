"""Prometheus metrics, off unless METRICS_ADDRESS is set: then prometheus-client is needed, else not even loaded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from carod.config import ConfigError

if TYPE_CHECKING:
    from carod.starter.starter import End, Starter

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
"""Seconds; from a job that does nothing to one that takes hours."""


class Metrics:
    """Counts of jobs by outcome and their times; does nothing until `serve`."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._server: Any = None
        self._on = False

    def serve(self, address: str, running: dict[str, Any]) -> int:
        """Answer HTTP at HOST:PORT, from a thread; the port comes back. Raises ConfigError."""
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
        except ImportError:
            raise ConfigError(
                "METRICS_ADDRESS: prometheus-client is not installed; pip install 'carod[metrics]'"
            ) from None
        host, _, port = address.rpartition(":")
        if not port.isdigit():
            raise ConfigError(f"METRICS_ADDRESS = {address!r}: HOST:PORT is needed, such as 127.0.0.1:9100")
        registry = CollectorRegistry()
        self._jobs = Counter("carod_jobs", "Jobs by how they ended", ["outcome"], registry=registry)
        Gauge("carod_running", "Jobs that run now", registry=registry).set_function(lambda: len(running))
        Gauge("carod_slots", "Slots of this node", registry=registry).set(self._slots)
        self._queued = Histogram(
            "carod_queue_to_start_seconds", "From the message's timestamp (else its arrival) to the job's start",
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self._ran = Histogram("carod_start_to_exit_seconds", "How long jobs ran", buckets=BUCKETS, registry=registry)
        self._confirmed = Histogram(
            "carod_exit_to_confirmed_seconds", "From a job's exit to the broker's confirm of its final reply",
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        try:
            self._server, _ = start_http_server(int(port), host or "127.0.0.1", registry=registry)
        except OSError as error:
            raise ConfigError(f"METRICS_ADDRESS = {address!r}: {error.strerror}") from None
        self._on = True
        return int(self._server.server_port)

    def observe(self, starter: Starter, end: End) -> None:
        """Count a job's end; its final reply is confirmed now."""
        if not self._on:
            return
        self._jobs.labels(end.value).inc()
        if end.value == "unfit":  # it never ran
            return
        if starter.started_at:
            queued_at = starter.delivery.message.timestamp or starter.accepted_at
            self._queued.observe(max(0.0, starter.started_at - queued_at))
        if starter.started_at and starter.ended_at:
            self._ran.observe(starter.ended_at - starter.started_at)
            self._confirmed.observe(max(0.0, time.time() - starter.ended_at))

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
