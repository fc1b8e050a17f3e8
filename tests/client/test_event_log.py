"""The user log: HTCondor's own reader reads what is written here, and what it says can't be forged."""

from __future__ import annotations

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import htcondor2
import pytest

from carod import eventlog
from carod.classad import ClassAd
from carod.eventlog import EventKind, EventLog, EventLogError, EventReader

USED = ClassAd(
    {
        "ExitCode": 3, "RemoteUserCpu": 93784.5, "RemoteSysCpu": 61.0, "RequestCpus": 2, "RequestMemory": 64,
        "ResidentSetSize": 3000, "DiskUsage": 7,
    }
)  # fmt: skip


def by_htcondor(path: Path) -> list[dict[str, object]]:
    return [dict(event) | {"type": int(event.type)} for event in htcondor2.JobEventLog(str(path)).events(0)]


def write(path: Path, *events: tuple[EventKind, list[str]], cluster: int = 12, proc: int = 3) -> None:
    with EventLog(path) as log:
        for kind, lines in events:
            log.write(kind, cluster, proc, lines, 1_700_000_000)


def test_htcondor_reads_a_job_that_ends_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(
        path,
        (EventKind.SUBMIT, eventlog.submitted("127.0.0.1:5672", "a note")),
        (EventKind.EXECUTE, eventlog.executing("slot1@node7")),
        (EventKind.TERMINATED, eventlog.terminated(USED)),
    )
    submit, execute, end = by_htcondor(path)
    assert (submit["type"], submit["Cluster"], submit["Proc"], submit["SubmitHost"], submit["LogNotes"]) == (
        0, 12, 3, "<127.0.0.1:5672>", "a note",
    )  # fmt: skip
    assert (execute["type"], execute["ExecuteHost"], execute["SlotName"]) == (1, "<node7>", "slot1@node7")
    assert (end["type"], end["TerminatedNormally"], end["ReturnValue"]) == (5, True, 3)
    assert end["RunRemoteUsage"] == end["TotalRemoteUsage"] == "Usr 1 02:03:04, Sys 0 00:01:01"
    assert (end["RequestCpus"], end["RequestMemory"], end["MemoryUsage"], end["DiskUsage"]) == (2, 64, 3, 7)


def test_htcondor_reads_a_job_that_a_signal_ended(tmp_path: Path) -> None:
    write(
        tmp_path / "log", (EventKind.TERMINATED, eventlog.terminated(ClassAd({"ExitBySignal": True, "ExitSignal": 9})))
    )
    (end,) = by_htcondor(tmp_path / "log")
    assert (end["TerminatedNormally"], end["TerminatedBySignal"]) == (False, 9)


def test_htcondor_reads_what_else_becomes_of_a_job(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(
        path,
        (EventKind.EVICTED, eventlog.evicted(USED)),
        (EventKind.IMAGE_SIZE, eventlog.image_size(ClassAd({"ImageSize": 5000, "ResidentSetSize": 3000}))),
        (EventKind.SUSPENDED, eventlog.suspended(4)),
        (EventKind.UNSUSPENDED, eventlog.unsuspended()),
        (EventKind.HELD, eventlog.held("no licence", 1, 2)),
        (EventKind.RELEASED, eventlog.released("via carod release (by user ann)")),
        (EventKind.ABORTED, eventlog.aborted("via carod rm")),
    )
    evicted, image, suspended, unsuspended, held, released, aborted = by_htcondor(path)
    assert (evicted["type"], evicted["Checkpointed"], evicted["RunRemoteUsage"]) == (
        4, False, "Usr 1 02:03:04, Sys 0 00:01:01",
    )  # fmt: skip
    assert (image["type"], image["Size"], image["ResidentSetSize"]) == (6, 5000, 3000)
    assert (suspended["type"], suspended["NumberOfPIDs"], unsuspended["type"]) == (10, 4, 11)
    assert (held["type"], held["HoldReason"], held["HoldReasonCode"], held["HoldReasonSubCode"]) == (
        12, "no licence", 1, 2,
    )  # fmt: skip
    assert (released["type"], released["Reason"]) == (13, "via carod release (by user ann)")
    assert (aborted["type"], aborted["Reason"]) == (9, "via carod rm")


@pytest.mark.parametrize(
    "reason", ["x\n...\n005 (012.003.000) 2026-01-01 00:00:00 Job terminated.", "\r...\x1b[2J", "é" * 9000]
)
def test_a_reason_is_one_line_and_ends_no_event(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "log"
    write(path, (EventKind.HELD, eventlog.held(reason, 21)), (EventKind.ABORTED, eventlog.aborted(reason)))
    assert [event["type"] for event in by_htcondor(path)] == [12, 9]
    assert [event.kind for event in EventReader(path).new()] == [12, 9]


def test_an_ad_of_nonsense_still_makes_an_event(tmp_path: Path) -> None:
    ad = ClassAd({"ExitCode": "x", "RemoteUserCpu": -1.0, "RemoteSysCpu": 1e300, "RequestCpus": True, "ImageSize": [1]})
    write(
        tmp_path / "log",
        (EventKind.TERMINATED, eventlog.terminated(ad)),
        (EventKind.IMAGE_SIZE, eventlog.image_size(ad)),
    )
    assert [event["type"] for event in by_htcondor(tmp_path / "log")] == [5, 6]


def test_writers_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def add(cluster: int) -> None:
        for proc in range(50):
            write(path, (EventKind.TERMINATED, eventlog.terminated(USED)), cluster=cluster, proc=proc)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(1, 5)))
    assert sorted((event["Cluster"], event["Proc"]) for event in by_htcondor(path)) == [
        (cluster, proc) for cluster in range(1, 5) for proc in range(50)
    ]


def test_a_reader_follows_a_log_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = EventReader(path)
    assert list(reader.new()) == []
    write(path, (EventKind.SUBMIT, eventlog.submitted("x")))
    assert [event.job for event in reader.new()] == ["12.3"]
    text = eventlog.event_text(EventKind.TERMINATED, 12, 3, eventlog.terminated(USED), 0)
    with path.open("a") as file:
        file.write(text[:50])
    assert list(reader.new()) == []
    with path.open("a") as file:
        file.write(text[50:])
    assert [event.kind for event in reader.new()] == [5]


def test_a_file_that_is_no_log_is_complained_of(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("hello\n...\n")
    with pytest.raises(EventLogError, match="'hello' begins no event"):
        list(EventReader(tmp_path / "log").new())
    with pytest.raises(EventLogError, match="Is a directory; give another file: log = FILE"):
        EventLog(tmp_path)


def test_a_full_disk_leaves_no_half_event(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, (EventKind.SUBMIT, eventlog.submitted("x")))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(EventLogError, match="File too large; give another file"):
            write(path, (EventKind.TERMINATED, eventlog.terminated(USED)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
