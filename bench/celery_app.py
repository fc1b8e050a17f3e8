"""The peer: what a Python user would take instead, a Celery task that runs the same command by subprocess.

It answers with an exit code: no status while it runs, no working directory, no confirm. The worker imports `app`,
with broker and queue from the environment.
"""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from celery import Celery  # type: ignore[import-untyped]

URL, QUEUE = "BENCH_CELERY_URL", "BENCH_CELERY_QUEUE"
PATIENCE = 60.0
"""Seconds that one result may take."""


def make_app(url: str, queue: str) -> Any:
    """An app whose names on the broker all begin with `queue`, so that they can be deleted."""
    made = Celery("bench", broker=url, backend="rpc://")
    made.conf.update(
        task_default_queue=queue,
        control_exchange=queue,
        event_exchange=f"{queue}.events",
        broker_connection_retry_on_startup=True,
    )

    @made.task(name="run")  # type: ignore[untyped-decorator]
    def run(command: str) -> int:
        return subprocess.run([command], capture_output=True, check=False).returncode

    return made


def exchanges(queue: str) -> list[str]:
    """The exchanges that an app leaves behind."""
    return [queue, f"{queue}.events", f"{queue}.pidbox", f"reply.{queue}.pidbox"]


class CeleryLoad:
    """Measures like `load.Load`, through Celery's own client. Times in seconds."""

    def __init__(self, url: str, queue: str, command: str = "/bin/true") -> None:
        self._app, self._command = make_app(url, queue), command

    def _submit(self) -> Any:
        return self._app.tasks["run"].delay(self._command)

    def sequential(self, jobs: int) -> list[float]:
        """Latency of each job, one after the other."""
        latencies = []
        for _ in range(jobs):
            began = time.perf_counter()
            self._submit().get(timeout=PATIENCE)
            latencies.append(time.perf_counter() - began)
        return latencies

    def burst(self, jobs: int) -> float:
        """Seconds from the first submission to the last result."""
        began = time.perf_counter()
        results = [self._submit() for _ in range(jobs)]
        for result in results:
            result.get(timeout=PATIENCE)
        return time.perf_counter() - began

    def close(self) -> None:
        self._app.close()


if URL in os.environ:
    app = make_app(os.environ[URL], os.environ[QUEUE])
