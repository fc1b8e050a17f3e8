"""A job as HTCondor's queue has it -> what a node gets; and its result -> the submitter's files.

A node knows nothing of the submitter's machine: what the ad says of its paths travels as SUBMIT_Iwd, SUBMIT_Out and so
on (HTCondor's own names, for spooled jobs), and is what brings the result home.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from carod.amqp import Body
from carod.classad import ClassAd
from carod.job import JobStatus
from carod_client.description import STDIN_NAME
from carod_client.errors import BadJob
from carod_client.inputs import BUILT_AT_ONCE, Member, build, members, release
from carod_client.results import Results
from carod_client.submit_language.description import SubmitJob
from carod_client.submit_language.errors import SubmitError
from carod_client.submit_language.values import listed

EVERYWHERE = ("/bin/", "/sbin/", "/usr/", "/lib/", "/opt/")
"""Directories whose programs are taken to be the node's own; any other executable is sent along."""
STAYS_HERE = (
    "Iwd", "In", "Out", "Err", "TransferInput", "TransferExecutable", "ShouldTransferFiles", "WhenToTransferOutput",
    "JobStatus", "HoldReason", "HoldReasonCode", "EnteredCurrentStatus",
)  # fmt: skip
KEPT = ("Iwd", "Out", "Err", "TransferInput")
"""What the result's way home is found by."""
DEFAULTS = {"Out": "_condor_stdout", "Err": "_condor_stderr"}
SHARED = "NO"
"""ShouldTransferFiles: submitter and node have the same files; nothing is sent."""


@dataclass(frozen=True, slots=True)
class Shipment:
    """A job's ad as a node is to have it, and the input files."""

    ad: ClassAd
    members: list[Member]

    @property
    def at_once(self) -> bool:
        """Whether it is small enough to be zipped without a thread."""
        return sum(member.size for member in self.members) <= BUILT_AT_ONCE


class Packer:
    """Makes shipments; jobs in a row that have the same inputs share one zip. Use with `closing`."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._members: list[Member] = []
        self._body: Body | None = None

    def close(self) -> None:
        """Let go of the last zip."""
        if self._body is not None:
            release(self._body)
            self._body = None

    def shipment(self, job: SubmitJob) -> Shipment:
        """What is to be sent. Raises SubmitError naming an input that can't be read."""
        source = job.ad
        names = ("Cmd", "TransferExecutable", "TransferInput", "In", "Iwd", "ShouldTransferFiles")
        key = tuple(source.get(name) for name in names)
        if key != self._key:
            self.close()
            self._key = ()
            try:
                self._members = list(_members(source))
            except BadJob as error:
                raise SubmitError(job.place, str(error)) from None
            self._key = key
        return Shipment(_wire_ad(source), self._members)

    def body(self, shipment: Shipment) -> Body:
        """The zip of the last shipment's inputs."""
        if self._body is None:
            self._body = build(shipment.members)
        elif not isinstance(self._body, bytes):
            self._body.seek(0)
        return self._body


def is_sent(ad: ClassAd) -> bool:
    """Whether the executable travels with the job."""
    if ad.get("TransferExecutable") is not None:
        return ad["TransferExecutable"] is True
    return ad.get("ShouldTransferFiles") != SHARED and not str(ad["Cmd"]).startswith(EVERYWHERE)


def _wire_ad(source: ClassAd) -> ClassAd:
    ad = source.copy()
    held = source.get("JobStatus") == JobStatus.HELD
    for name in STAYS_HERE:
        ad.pop(name, None)
    if held:
        ad["JobStatus"] = int(JobStatus.HELD)
    for name in KEPT:
        if name in source:
            ad[f"SUBMIT_{name}"] = source[name]
    if is_sent(source):
        ad["Cmd"] = os.path.basename(str(source["Cmd"]))
    if source.get("ShouldTransferFiles") == SHARED:
        ad["Iwd"] = source["Iwd"]
    if "In" in source:
        ad["In"] = STDIN_NAME
    return ad


def _members(source: ClassAd) -> Iterator[Member]:
    iwd = str(source["Iwd"])
    inputs = [os.path.join(iwd, path) for path in listed(str(source.get("TransferInput", "")))]
    found = members(inputs) if source.get("ShouldTransferFiles") != SHARED else []
    if is_sent(source):
        program = Path(str(source["Cmd"]))
        own = _file(program.name, program, "executable")
        found = [member for member in found if member.name != own.name]
        found.append(Member(own.name, own.mode | 0o755, own.size, own.path))
    if "In" in source:
        found.append(_file(STDIN_NAME, Path(iwd, str(source["In"])), "input"))
    yield from found


def _file(name: str, path: Path, command: str) -> Member:
    try:
        info = path.stat()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        mend = "; for a program of the node's own write transfer_executable = false" if command == "executable" else ""
        raise BadJob(f"{command}: {str(path)!r}: {why}{mend}") from None
    if not stat.S_ISREG(info.st_mode) or not os.access(path, os.R_OK):
        raise BadJob(f"{command}: {str(path)!r} is not a file that can be read")
    return Member(name, info.st_mode, info.st_size, path)


# -- the way home --------------------------------------------------------------------------------------------------


def check_home(job: SubmitJob) -> None:
    """Raise SubmitError if the result could not be written: HTCondor finds that out before it submits, too."""
    iwd = Path(str(job.ad["Iwd"]))
    if not iwd.is_dir():
        raise SubmitError(job.place, f"initialdir: {str(iwd)!r} is no directory; make it first")
    for name, command in (("Out", "output"), ("Err", "error"), ("UserLog", "log")):
        if name in job.ad:
            parent = (iwd / str(job.ad[name])).parent
            if not parent.is_dir():
                raise SubmitError(job.place, f"{command}: directory {str(parent)!r} is not there; make it first")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise SubmitError(job.place, f"{command}: nothing can be written to {str(parent)!r}")


def bring_home(ad: ClassAd, results: Results, directory: Path | None = None) -> list[Path]:
    """Write a result's files to where the job's submitter wants them, and say which: output, error, all that is new.

    Inputs that came back as they were sent, and the executable, are left out. With `directory` everything goes there
    instead of the initial directory, and so do output and error. Raises BadArchive or OSError.
    """
    iwd = directory or Path(_text(ad, "SUBMIT_Iwd") or os.getcwd())
    names = set(results.names())
    written = []
    streams: dict[Path, list[str]] = {}
    for attribute, default in DEFAULTS.items():
        there = _text(ad, attribute) or default
        wanted = _text(ad, f"SUBMIT_{attribute}")
        if wanted and there in names:
            target = iwd / (os.path.basename(wanted) if directory else wanted)
            streams.setdefault(target, []).append(there)
        names.discard(there)
    for target, parts in streams.items():  # output and error may be one file
        target.write_bytes(b"".join(results.read(part) for part in parts))
        written.append(target)
    names -= {STDIN_NAME, *([cmd] if (cmd := _text(ad, "Cmd")) and not os.path.isabs(cmd) else [])}
    names -= set(_unchanged(ad, results))
    for name, other in _remaps(ad).items():
        if name in names:
            target = iwd / (os.path.basename(other) if directory else other)
            target.write_bytes(results.read(name))
            written.append(target)
            names.discard(name)
    return written + results.extract(iwd, only=names)


def _unchanged(ad: ClassAd, results: Results) -> Iterator[str]:
    """Inputs that came back as they were."""
    iwd = _text(ad, "SUBMIT_Iwd")
    paths = [os.path.join(iwd, path) for path in listed(_text(ad, "SUBMIT_TransferInput"))]
    if not paths:
        return
    try:
        sent = members(paths)
    except BadJob:  # they are gone meanwhile
        return
    for member in sent:
        checksum = results.checksum(member.name)
        if checksum is not None and member.path is not None and checksum == _checksum(member.path):
            yield member.name


def _checksum(path: Path) -> tuple[int, int] | None:
    size = checksum = 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 18):
                checksum = zlib.crc32(block, checksum)
                size += len(block)
    except OSError:
        return None
    return size, checksum


def _remaps(ad: ClassAd) -> dict[str, str]:
    """`"name = path; other = path"`, as HTCondor writes them."""
    remaps = {}
    for pair in _text(ad, "TransferOutputRemaps").split(";"):
        name, equals, path = pair.partition("=")
        if equals and "://" not in path:
            remaps[name.strip()] = path.strip()
    return remaps


def _text(ad: ClassAd, name: str) -> str:
    value = ad.get(name)
    return value if isinstance(value, str) else ""
