"""A slot: its ad, what it takes (START, Requirements, requests), and its state."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Mapping
from enum import Enum

import psutil

from carod.amqp import HeaderValue
from carod.classad import ClassAd, ClassAdSyntaxError, Expr, Value, matches, parse_value
from carod.config import Config, ConfigError
from carod.job import wire_headers

REFRESH = 15.0
"""Seconds that LoadAvg, Disk and the like stay as they are; HTCondor's startd looks every 5 to 300 s."""
_ARCH = {"x86_64": "X86_64", "aarch64": "aarch64", "i686": "INTEL"}


class State(Enum):
    """HTCondor's State and Activity of a slot (manual, "Machine States and Activities")."""

    UNCLAIMED = ("Unclaimed", "Idle")
    CLAIMED = ("Claimed", "Busy")
    SUSPENDED = ("Claimed", "Suspended")
    DRAINED = ("Drained", "Retiring")
    OWNER = ("Owner", "Idle")


class Slot:
    """One of a node's slots. Its ad is MY in START and TARGET in a job's Requirements."""

    def __init__(self, number: int, config: Config, macros: Mapping[str, str], directory: str) -> None:
        self.name = f"slot{number}@{config.node_name}"
        self.directory = directory
        self.ad = ClassAd(_machine(config))
        self.ad["Name"] = self.name
        self.ad["SlotID"] = number
        self.ad["Start"] = _expression("START", config.start)
        for name in filter(None, (part.strip() for part in config.startd_attrs.split(","))):
            self.ad[name] = _expression(name, macros.get(name.upper(), "UNDEFINED"))
        self._refreshed = 0.0
        self._shown: dict[State, tuple[dict[str, HeaderValue], str]] = {}
        self.enter(State.UNCLAIMED)
        self.refresh()

    def enter(self, state: State) -> None:
        """Show a state and its activity in the ad."""
        self.state = state
        self.ad["State"], self.ad["Activity"] = state.value

    def refresh(self) -> None:
        """Look again at what changes by itself, if the last look is REFRESH seconds old."""
        now = time.monotonic()
        if self._refreshed and now - self._refreshed < REFRESH:
            return
        self._refreshed = now
        self.ad["LoadAvg"] = round(os.getloadavg()[0], 2)
        self.ad["Disk"] = shutil.disk_usage(self.directory).free // 1024 // int(_number(self.ad["TotalSlots"]))
        self._shown.clear()

    @property
    def headers(self) -> dict[str, HeaderValue]:
        """The ad's attributes as application headers, for the first reply to a job."""
        return self._show()[0]

    @property
    def text(self) -> str:
        """The ad as text, for a job's `.machine.ad`."""
        return self._show()[1]

    def _show(self) -> tuple[dict[str, HeaderValue], str]:
        """Both forms of the ad, made once for each state it is in: every job needs them."""
        shown = self._shown.get(self.state)
        if shown is None:
            shown = self._shown[self.state] = (wire_headers(self.ad), self.ad.to_text())
        return shown

    def cpus(self, count: int) -> list[int]:
        """The CPUs, by the kernel's numbers, for a job that asks for so many: slots begin at different ones."""
        usable = sorted(os.sched_getaffinity(0))
        first = (int(_number(self.ad["SlotID"])) - 1) * int(_number(self.ad["Cpus"]))
        return [usable[(first + index) % len(usable)] for index in range(min(count, len(usable)))]

    def refusal(self, job: ClassAd) -> str:
        """Why this slot does not take a job, empty if it does."""
        for request, offer, unit in (
            ("RequestCpus", "Cpus", ""),
            ("RequestMemory", "Memory", " MiB"),
            ("RequestDisk", "Disk", " KiB"),
        ):
            if request in job:
                wanted, offered = job.evaluate(request, self.ad), _number(self.ad[offer])
                if not isinstance(wanted, int | float) or wanted > offered:
                    return f"{request} = {wanted}, {self.name} has {offered:g}{unit}"
        if "Requirements" in job and not matches(job, self.ad):
            return f"the job's Requirements are not met by {self.name}"
        if not matches(self.ad, job, "Start"):
            return f"START of {self.name} does not take the job"
        return ""


def _machine(config: Config) -> dict[str, Value | Expr]:
    """What is the same for all slots; memory in MiB, divided evenly, and a slot has at least one CPU to offer."""
    cpus, slots = os.cpu_count() or 1, config.slots
    memory = psutil.virtual_memory().total >> 20
    return {
        "MyType": "Machine",
        "Machine": platform.node(),
        "NodeName": config.node_name,
        "OpSys": platform.system().upper(),
        "OpSysAndVer": platform.freedesktop_os_release().get("ID", "") if os.path.exists("/etc/os-release") else "",
        "Arch": _ARCH.get(platform.machine(), platform.machine()),
        "Cpus": max(1, cpus // slots),
        "Memory": memory // slots,
        "TotalCpus": cpus,
        "TotalMemory": memory,
        "TotalSlots": slots,
        "HasFileTransfer": True,
        "DaemonStartTime": int(time.time()),
    }


def _expression(name: str, text: str) -> Value | Expr:
    try:
        return parse_value(text)
    except ClassAdSyntaxError as error:
        raise ConfigError(f"{name} = {text!r}: {error}; a ClassAd expression is needed") from None


def _number(value: Value | Expr) -> float:
    assert isinstance(value, int | float)
    return value
