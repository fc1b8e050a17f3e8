"""What a job ad asks of a slot, checked and in plain values: the one place where attributes become actions.

Each error names the attribute, its value and the mend (docs/reference/wire-contract.md, section 2, "Attributes the
node acts on").
"""

from __future__ import annotations

import math
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from carod.arguments import (
    ArgumentsError,
    split_arguments,
    split_environment,
    split_old_arguments,
    split_old_environment,
)
from carod.classad import UNDEFINED, ClassAd, Expr, Value, unparse
from carod.config import Config
from carod.job import HoldReasonCode, Job, JobError

UNIVERSES = {5: "vanilla", 12: "local"}
OTHER_UNIVERSES = {
    1: "standard", 2: "pipe", 3: "linda", 4: "PVM", 6: "PVM daemon", 7: "scheduler", 8: "MPI", 9: "grid",
    10: "java", 11: "parallel", 13: "VM",
}  # fmt: skip
CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SIGNALS = {item.name.removeprefix("SIG"): int(item) for item in signal.Signals}
Default = TypeVar("Default")
Words = TypeVar("Words", list[str], dict[str, str])
DEFAULT_OUT, DEFAULT_ERR = "_condor_stdout", "_condor_stderr"


@dataclass(slots=True)
class Launch:
    """A job ad in plain values. Times in seconds, memory in MiB; None where the ad sets no limit."""

    cmd: str
    args: list[str]
    env: dict[str, str]
    iwd: str
    stdin: str
    stdout: str
    stderr: str
    outputs: list[str] | None
    user: str
    cpus: int | None
    memory: int | None
    duration: float | None
    lease: float | None
    kill_signal: int
    remove_signal: int
    hold_signal: int
    kill_timeout: float


def read_launch(job: Job, slot: ClassAd, config: Config) -> Launch:
    """What to start for a job. Raises JobError, with the code to hold the job with."""
    reader = _Reader(job.ad, slot)
    if job.problem is not None:
        raise job.problem
    universe = reader.integer("JobUniverse", 5)
    if universe not in UNIVERSES:
        name = OTHER_UNIVERSES.get(universe, "unknown")
        raise JobError(f"JobUniverse: {universe} ({name}) is not run here; 5 (vanilla) and 12 (local) are")
    cmd = reader.text("Cmd")
    if not cmd:
        raise JobError("Cmd: the job names no program; set it to a path", HoldReasonCode.FAILED_TO_CREATE_PROCESS)
    kill_signal = reader.signal("KillSig", signal.SIGTERM)
    return Launch(
        cmd=cmd,
        args=reader.arguments(),
        env=reader.environment(),
        iwd=reader.text("Iwd") or "",
        stdin=reader.text("In") or os.devnull,
        stdout=reader.text("Out") or DEFAULT_OUT,
        stderr=reader.text("Err") or DEFAULT_ERR,
        outputs=reader.names("TransferOutput"),
        user=_user(reader, config),
        cpus=reader.integer("RequestCpus", None),
        memory=reader.integer("RequestMemory", None),
        duration=reader.number("AllowedExecuteDuration", None),
        lease=reader.number("JobLeaseDuration", None),
        kill_signal=kill_signal,
        remove_signal=reader.signal("RemoveKillSig", kill_signal),
        hold_signal=reader.signal("HoldKillSig", kill_signal),
        kill_timeout=reader.number("KillSigTimeout", config.killing_timeout),
    )


def _user(reader: _Reader, config: Config) -> str:
    """Whom a root node runs the job as; what an ordinary node does with it is nothing."""
    owner = reader.text("Owner") or ""
    if config.starter_allow_runas_owner and owner:
        allowed = {name.strip() for name in config.allowed_owners.split(",")} - {""}
        if owner not in allowed or owner == "root":
            raise JobError(
                f"Owner: {owner!r} is not among ALLOWED_OWNERS = {config.allowed_owners!r} of this node; "
                "leave Owner out to run as its SLOT_USER",
                HoldReasonCode.FAILED_TO_ACCESS_USER_ACCOUNT,
            )
        return owner
    return config.slot_user


class _Reader:
    """Attributes of a job ad by type, evaluated against the slot's ad."""

    def __init__(self, ad: ClassAd, slot: ClassAd) -> None:
        self.ad, self.slot = ad, slot

    def value(self, name: str) -> Value:
        value = self.ad.get(name, UNDEFINED)
        return self.ad.evaluate(name, self.slot) if isinstance(value, Expr) else value

    def text(self, name: str) -> str | None:
        value = self.value(name)
        if value is UNDEFINED:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.wrong(name, value, "a string")
        text = str(value)
        if "\0" in text:
            raise self.wrong(name, value, "text without NUL characters")
        return text

    def integer(self, name: str, default: Default) -> int | Default:
        value = self.value(name)
        if value is UNDEFINED:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(name, value, "a whole number not below 0")
        return value

    def number(self, name: str, default: Default) -> float | Default:
        value = self.value(name)
        if value is UNDEFINED:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.wrong(name, value, "a number not below 0")
        return float(value)

    def names(self, name: str) -> list[str] | None:
        text = self.text(name)
        if text is None:
            return None
        return [item for item in (part.strip() for part in text.split(",")) if item]

    def arguments(self) -> list[str]:
        """`Arguments` (new syntax) wins over `Args` (old syntax), as in HTCondor."""
        return self._split("Arguments", split_arguments) or self._split("Args", split_old_arguments) or []

    def environment(self) -> dict[str, str]:
        """`Environment` (new syntax) wins over `Env` (old syntax)."""
        return self._split("Environment", split_environment) or self._split("Env", split_old_environment) or {}

    def _split(self, name: str, split: Callable[[str], Words]) -> Words | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            return split(text)
        except ArgumentsError as error:
            raise JobError(f"{name}: {error}") from None

    def signal(self, name: str, default: int) -> int:
        """A signal by number or name, with or without SIG."""
        text = self.text(name)
        if text is None:
            return default
        text = text.strip().upper()
        number = int(text) if re.fullmatch(r"\d{1,3}", text) else _SIGNALS.get(text.removeprefix("SIG"), 0)
        if number not in _SIGNALS.values():
            raise JobError(f"{name}: {text[:40]!r} is no signal of this system; give a name like SIGTERM or its number")
        return number

    def wrong(self, name: str, value: Value, wanted: str) -> JobError:
        source = self.ad.get(name)
        text = unparse(value)
        given = f"{unparse(source)} = {text}" if isinstance(source, Expr) else text
        return JobError(f"{name}: {wanted} is needed, not {given[:200]}")
