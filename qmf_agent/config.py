"""The agent's knobs. Where their values come from is as in `carod.config`."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from carod.config import NAME, NAME_MEND, Files, Settings, check_shared, knob, read, refuse, same_knob

FILES = Files(("/etc/carod/qmf-agent.conf", "~/.config/carod/qmf-agent.conf"), "QMF_AGENT_CONFIG", "qmf-agent.d")


def _default_spool() -> str:
    if os.geteuid() == 0:
        return "/var/lib/carod/spool"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{state}/carod/spool"


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """All knobs of the agent; a field's name in capitals is the knob's."""

    carod_broker_url: str = same_knob("CAROD_BROKER_URL")
    carod_broker_protocol: str = same_knob("CAROD_BROKER_PROTOCOL")
    carod_broker_queue: str = same_knob("CAROD_BROKER_QUEUE")
    carod_broker_heartbeat: int = same_knob("CAROD_BROKER_HEARTBEAT")
    carod_broker_ca_file: str = same_knob("CAROD_BROKER_CA_FILE")
    carod_broker_cert_file: str = same_knob("CAROD_BROKER_CERT_FILE")
    carod_broker_key_file: str = same_knob("CAROD_BROKER_KEY_FILE")
    schedd_name: str = knob("", "the agent's name, which job ids begin with; empty: the host's name")
    spool: str = knob(
        "",
        "directory for job queue, inputs and results; empty: /var/lib/carod/spool as root, else below ~/.local/state",
    )
    spool_quota: int = knob(0, "no job is accepted while inputs and results take more; 0: no bound", "bytes")
    max_input_size: int = knob(
        120 << 20, "the most that a job's input may have; keep it below the broker's max_message_size", "bytes"
    )
    max_jobs_submitted: int = knob(1_000_000, "the most jobs that may be in the queue")
    max_jobs_per_owner: int = knob(0, "the most that one owner may have in the queue; 0: no bound of its own")
    max_jobs_running: int = knob(0, "the most jobs that may be out on the grid, running or waiting; 0: no bound")
    job_window: float = knob(
        2.0, "jobs that wait on the grid for a node, for each slot that answers; the rest stays here"
    )
    job_window_min: int = knob(16, "... and at least so many")
    ping_interval: float = knob(10.0, "between questions to the nodes for their slots", "s")
    control_timeout: float = knob(1.0, "a node has so long to answer an order about its job", "s")
    audit_interval: float = knob(30.0, "between looks for jobs that the grid has lost", "s")
    history_max_age: float = knob(
        7 * 86_400.0, "jobs that are over are forgotten after so long, with their results", "s"
    )
    history_max_count: int = knob(100_000, "jobs that are over and not yet forgotten; of more, the oldest are")
    draft_lifetime: float = knob(3600.0, "inputs that were sent for a job that is not submitted are kept so long", "s")
    queue_super_users: str = knob("", "users who may act on everybody's jobs, comma-separated")
    queue_all_users_trusted: bool = knob(False, "a user may submit jobs whose Owner is someone else")
    condor_fsync: bool = knob(True, "an accepted job is on the disk; FALSE: it survives the agent, but not the machine")
    qmf_heartbeat_interval: float = knob(10.0, "between the agent's signs of life to consoles", "s")
    qmf_publish_interval: float = knob(5.0, "consoles are told of an object's changes once in so long", "s")
    reconnect_delay_max: float = same_knob("RECONNECT_DELAY_MAX")
    log_format: str = same_knob("LOG_FORMAT")
    log_level: str = same_knob("LOG_LEVEL")

    @property
    def name(self) -> str:
        return self.schedd_name or socket.gethostname()

    @property
    def directory(self) -> str:
        """Where this agent's files are: agents of other names have their own."""
        return f"{os.path.abspath(os.path.expanduser(self.spool or _default_spool()))}/{self.name}"

    @property
    def reply_queue(self) -> str:
        """The queue, this agent's own, to which nodes reply."""
        return f"{self.carod_broker_queue}.agent.{self.name}"

    @property
    def super_users(self) -> frozenset[str]:
        return frozenset(name.strip() for name in self.queue_super_users.split(",")) - {""}


def load(
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Settings[AgentConfig]:
    """Read the agent's configuration. `overrides` are the command line's, by knob name. Raises ConfigError."""
    settings = read(AgentConfig, FILES, file, environ, overrides)
    check_shared(settings)
    if not re.fullmatch(NAME, settings.config.schedd_name):
        refuse(settings, "SCHEDD_NAME", NAME_MEND)
    if settings.config.job_window_min < 1:
        refuse(settings, "JOB_WINDOW_MIN", "at least 1, or no job would ever reach the grid")
    for name in ("PING_INTERVAL", "CONTROL_TIMEOUT", "AUDIT_INTERVAL", "QMF_HEARTBEAT_INTERVAL"):
        if getattr(settings.config, name.lower()) < 0.05:
            refuse(settings, name, "at least 0.05 s")
    return settings
