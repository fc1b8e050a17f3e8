"""What `carod submit FILE.sub` does with an agent: it hands over jobs and files, and does not wait for them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from carod import eventlog
from carod.classad import ClassAd
from carod.eventlog import EventKind, EventLog, EventLogError
from carod_client.agent import ADS_AT_ONCE, Agent, JobName
from carod_client.errors import GridError
from carod_client.inputs import Member
from carod_client.submit_language import Description, SubmitJob
from carod_client.submit_language.shipment import Packer


@dataclass(slots=True)
class AgentBatch:
    """One submission. `clusters` has how many jobs of each are with the agent, also when it failed half-way."""

    agent: Agent
    description: Description
    complain: Callable[[str], None]
    clusters: dict[int, int] = field(default_factory=dict)
    _begun: JobName | None = None
    _members: list[Member] | None = None
    _waiting: list[tuple[SubmitJob, ClassAd]] = field(default_factory=list)
    _logs: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Submit all jobs. Jobs in a row with the same files are sent with one copy of them. Raises GridError."""
        with closing(Packer()) as packer:
            for job in self.description.jobs(self._new_cluster):
                shipment = packer.shipment(job)
                fresh = shipment.members is not self._members
                if len(self._waiting) >= ADS_AT_ONCE or (fresh and self._waiting):
                    self._flush()
                assert self._begun is not None
                if fresh:
                    if job.proc:
                        self._begun = self.agent.begin(JobName(job.cluster, 0))
                    if shipment.members:
                        self.agent.send(self._begun, packer.body(shipment))
                    self._members = shipment.members
                self._waiting.append((job, shipment.ad))
            self._flush()

    def _new_cluster(self) -> int:
        self._flush()
        self._members = None
        self._begun = self.agent.begin()
        return self._begun.cluster

    def _flush(self) -> None:
        if not self._waiting:
            return
        assert self._begun is not None
        jobs, self._waiting = self._waiting, []
        for job, _ in jobs:  # before the agent writes of them
            self._log(job)
        names = self.agent.submit([ad for _, ad in jobs], self._begun)
        for (job, _), name in zip(jobs, names, strict=True):
            if (name.cluster, name.proc) != (job.cluster, job.proc):
                raise GridError(
                    f"the agent numbered a job {name}, not {job.cluster}.{job.proc}; its log is wrong there"
                )
        cluster = jobs[0][0].cluster
        self.clusters[cluster] = self.clusters.get(cluster, 0) + len(jobs)

    def _log(self, job: SubmitJob) -> None:
        path = job.ad.get("UserLog")
        if not isinstance(path, str) or path == os.devnull:
            return
        notes = job.ad.get("SubmitEventNotes")
        lines = eventlog.submitted(socket.gethostname(), notes if isinstance(notes, str) else "")
        try:
            with EventLog(path) as log:
                log.write(EventKind.SUBMIT, job.cluster, job.proc, lines)
        except EventLogError as error:
            raise GridError(str(error)) from None
        self._logs.add(path)
