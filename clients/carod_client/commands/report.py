"""What `carod submit` says, and to whom: people at a terminal, machines, or nobody.

Standard output belongs to the jobs (with `--json`, to the objects). Everything else goes to standard error,
and all but errors only where that is a terminal.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table

from carod.job import JobStatus, Reply
from carod_client.errors import JobError, JobHeld, JobRemoved, JobTimeout
from carod_client.results import Result

if TYPE_CHECKING:
    from carod_client.commands.submission import LeftBehind

OWN_FAILURE = 125
"""The exit code for what is not the job's doing, as docker(1) and timeout(1) have it."""


class Report:
    """Everything that one `carod submit` prints. Use with `with` while jobs are under way."""

    def __init__(self, *, as_json: bool, quiet: bool, sweep: int | None, forward: bool = True) -> None:
        """`sweep` is the number of jobs, None for a single one; `forward` passes on what they print."""
        self.console = Console(stderr=True, highlight=False)
        self._json, self._sweep, self._forwards = as_json, sweep, forward
        self._talks = self.console.is_terminal and not quiet and not as_json
        self._started = time.monotonic()
        self._outcomes: Counter[str] = Counter()
        self._elapsed: list[float] = []
        self._durations: list[float] = []
        self._held_back: dict[int, tuple[bytes, bytes]] = {}
        self._next = 0
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if self._talks and self._sweep is not None:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
                console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._bar = self._progress.add_task("jobs", total=self._sweep, rate="")
            self._progress.start()
        elif self._talks:
            self._status = self.console.status("connected")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        if self._progress is not None:
            self._progress.stop()
        if self._status is not None:
            self._status.stop()

    def sent(self, job_id: str, queue: str) -> None:
        """The single job is with the broker."""
        self._say(f"job {job_id} sent to queue {queue}")
        self._doing("waiting for a slot")

    def update(self, reply: Reply) -> None:
        """Any reply, the last one too."""
        if self._json and not reply.final:
            self._object(
                "update", reply.job_id, reply.ad.get("ProcId"), status=reply.status.name.lower(),
                state=reply.state, host=_plain(reply.ad.get("RemoteHost")),
            )  # fmt: skip
        if self._sweep is not None or reply.final:
            return
        if reply.status is JobStatus.RUNNING:
            where = f"on {reply.ad.get('RemoteHost')}" if reply.ad.get("RemoteHost") else ""
            if reply.state is None:
                self._say(f"running {where}".rstrip())
            self._doing(f"running {where}".rstrip())
        elif reply.status is JobStatus.IDLE:
            self._say("evicted, waits for another node" if reply.state else "a slot refused it, waits for another")
            self._doing("waiting for a slot")
        else:
            self._doing(reply.status.name.lower())

    def result(self, result: Result, n: int, where: Path | None) -> None:
        """A job ended. `where` its files are now, if they were unpacked."""
        how = _how(result)
        self._count(how, result.elapsed_seconds, result.duration)
        if self._json:
            self._object(
                "result", result.job_id, self._number(n), exit_code=result.exit_code, signal=result.signal,
                duration=result.duration, queued_seconds=result.queued_seconds,
                elapsed_seconds=result.elapsed_seconds, files=result.results.names(),
                output=str(where) if where else None,
                stdout=result.stdout.decode("utf-8", "replace"), stderr=result.stderr.decode("utf-8",
                "replace"),
            )  # fmt: skip
            return
        self._forward(n, result.stdout, result.stderr)
        if self._sweep is None:
            self._say(f"{how} after {result.duration:.3f} s on the node, {result.elapsed_seconds:.3f} s in all")
            if where:
                count = len(result.results)
                self._say(f"{count} file{'s' if count != 1 else ''} in {where}")

    def failed(self, error: Exception, n: int, where: Path | None) -> None:
        """A job gave no result."""
        self._count(_what(error), None, None)
        if self._json:
            self._error_object(error, self._number(n), output=str(where) if where else None)
            return
        self._forward(n, b"", b"")
        prefix = f"job {n}: " if self._sweep is not None else ""
        self.complain(f"{prefix}{error}{f' (its files are in {where})' if where else ''}")

    def own_failure(self, error: Exception) -> None:
        """Nothing goes on, for this reason."""
        if self._json:
            self._error_object(error, None)
        else:
            self.complain(str(error))

    def interrupted(self, left: LeftBehind) -> None:
        """Ctrl-C, and what became of the jobs."""
        said = [
            f"{count} {what}"
            for count, what in (
                (left.removed, "running removed"),
                (left.running, "running not stopped: no answer from its node"),
                (left.queued, "still in the queue: will run when its turn comes, results go to nobody"),
            )
            if count
        ]
        self.complain("interrupted" + (f"; jobs: {'; '.join(said)}" if said else ""))

    def summary(self) -> None:
        """A sweep is over."""
        seconds = time.monotonic() - self._started
        if self._json:
            numbers = {
                "elapsed_p50": percentile(self._elapsed, 50),
                "elapsed_p99": percentile(self._elapsed, 99),
                "duration_p50": percentile(self._durations, 50),
                "duration_p99": percentile(self._durations, 99),
            }
            self._print_json(
                {
                    "event": "summary",
                    "jobs": self._sweep,
                    "seconds": seconds,
                    "outcomes": self._outcomes,
                    **numbers,
                }
            )
        elif self._talks:
            self._flush()
            if self._progress is not None:
                self._progress.stop()
            self.console.print(self._table(seconds))

    # -- inside ----------------------------------------------------------------------------------------------

    def _table(self, seconds: float) -> Table:
        jobs = sum(self._outcomes.values())
        table = Table(title=f"{jobs} jobs in {seconds:.1f} s, {jobs / seconds:.0f} a second", title_justify="left")
        table.add_column("outcome")
        table.add_column("jobs", justify="right")
        for what, count in self._outcomes.most_common():
            table.add_row(what, str(count))
        if self._elapsed:
            table.add_section()
            for name, times in (("on the node", self._durations), ("from sending to result", self._elapsed)):
                table.add_row(f"{name}, median", f"{percentile(times, 50) * 1000:.1f} ms")
                table.add_row(f"{name}, 99 %", f"{percentile(times, 99) * 1000:.1f} ms")
        return table

    def _number(self, n: int) -> int | None:
        return n if self._sweep is not None else None

    def _count(self, what: str, elapsed: float | None, duration: float | None) -> None:
        self._outcomes[what] += 1
        if elapsed is not None and duration is not None:
            self._elapsed.append(elapsed)
            self._durations.append(duration)
        if self._progress is not None and self._bar is not None:
            done = sum(self._outcomes.values())
            rate = done / (time.monotonic() - self._started)
            self._progress.update(self._bar, completed=done, rate=f"{rate:.0f}/s")

    def _forward(self, n: int, stdout: bytes, stderr: bytes) -> None:
        """Pass on what jobs printed: each job's in one piece, in the order of their numbers."""
        if not self._forwards:
            return
        self._held_back[n] = stdout, stderr
        while self._next in self._held_back:
            self._write(*self._held_back.pop(self._next))
            self._next += 1

    def _flush(self) -> None:
        for n in sorted(self._held_back):
            self._write(*self._held_back.pop(n))

    def _write(self, stdout: bytes, stderr: bytes) -> None:
        if not stdout and not stderr:
            return
        live = self._progress or self._status
        if not (sys.stdout.isatty() or stderr):
            live = None  # what goes elsewhere does not disturb the terminal
        if live is not None:
            live.stop()
        for stream, data in ((sys.stdout, stdout), (sys.stderr, stderr)):
            stream.flush()
            stream.buffer.write(data)
            stream.buffer.flush()
        if live is not None:
            live.start()

    def _say(self, text: str) -> None:
        if self._talks:
            self.console.print(f"[dim]carod: {_escaped(text)}[/dim]", soft_wrap=True)

    def _doing(self, text: str) -> None:
        if self._status is not None:
            self._status.update(f"[dim]{_escaped(text)}[/dim]")

    def complain(self, text: str) -> None:
        self.console.print(f"carod: {text}", markup=False, soft_wrap=True)

    def _error_object(self, error: Exception, n: int | None, **more: Any) -> None:
        if isinstance(error, JobHeld | JobRemoved):
            more["reason"] = error.reason
        if isinstance(error, JobHeld):
            more["code"] = error.code
        job_id = error.job_id if isinstance(error, JobError) else None
        self._object("error", job_id or None, n, error=type(error).__name__, message=str(error), **more)

    def _object(self, event: str, job_id: str | None, n: Any, **values: Any) -> None:
        head = {"event": event, "id": job_id} | ({"n": n} if isinstance(n, int) else {})
        self._print_json(head | values)

    def _print_json(self, values: dict[str, Any]) -> None:
        print(json.dumps({name: _rounded(value) for name, value in values.items()}), flush=True)


def percentile(values: list[float], percent: float) -> float:
    """The value that so many per cent of all do not exceed (nearest rank); 0 for none."""
    if not values:
        return 0.0
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, max(0, -int(-len(ranked) * percent // 100) - 1))]


def _how(result: Result) -> str:
    return f"exit code {result.exit_code}" if result.signal is None else f"killed by signal {result.signal}"


def _what(error: Exception) -> str:
    if isinstance(error, JobTimeout):
        return "timed out"
    return type(error).__name__.removeprefix("Job").lower()


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else None


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
