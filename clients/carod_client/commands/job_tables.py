"""Jobs and slots as HTCondor's tools list them, in their columns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

from carod.classad import ClassAd
from carod.job import JobStatus
from carod_client.commands.printing import integer, job_id, text

LETTERS = {
    JobStatus.IDLE: "I", JobStatus.RUNNING: "R", JobStatus.REMOVED: "X", JobStatus.COMPLETED: "C", JobStatus.HELD: "H",
    JobStatus.TRANSFERRING_OUTPUT: ">", JobStatus.SUSPENDED: "S",
}  # fmt: skip
CMD_WIDTH = 18

Row = Callable[[ClassAd, float, bool], str]

QUEUE_HEADING = " ID      OWNER            SUBMITTED     RUN_TIME ST PRI SIZE CMD"
RUN_HEADING = " ID      OWNER            SUBMITTED     RUN_TIME HOST(S)"
HOLD_HEADING = " ID      OWNER           HELD_SINCE HOLD_REASON"
HISTORY_HEADING = " ID      OWNER            SUBMITTED     RUN_TIME ST   COMPLETED CMD"


def queue_row(ad: ClassAd, now: float, wide: bool) -> str:
    size = integer(ad, "ResidentSetSize") or integer(ad, "ImageSize")
    return (
        f"{_head(ad, now)} {_letter(ad):<2} {integer(ad, 'JobPrio'):<3} {size / 1024:<4.1f} {_command(ad, wide)}"
    )  # fmt: skip


def run_row(ad: ClassAd, now: float, wide: bool) -> str:
    return f"{_head(ad, now)} {text(ad, 'RemoteHost') or '[????????????????]'}"


def hold_row(ad: ClassAd, now: float, wide: bool) -> str:
    reason = text(ad, "HoldReason")
    return f"{_id(ad)} {_owner(ad)} {date(integer(ad, 'EnteredCurrentStatus'))} {reason if wide else reason[:80]}"


def history_row(ad: ClassAd, now: float, wide: bool) -> str:
    ended = integer(ad, "CompletionDate") or integer(ad, "EnteredCurrentStatus")
    return f"{_head(ad, now)} {_letter(ad):<2} {date(ended)} {_command(ad, wide)}"


def lines(heading: str, row: Row, ads: Iterable[ClassAd], now: float, wide: bool) -> Iterator[str]:
    """A table, a line at a time."""
    yield heading + "\n"
    for ad in ads:
        yield row(ad, now, wide).rstrip() + "\n"


def totals(statuses: Iterable[int]) -> str:
    """condor_q's last line."""
    counts = Counter(statuses)
    parts = ", ".join(
        f"{counts[status]} {name}"
        for status, name in (
            (JobStatus.COMPLETED, "completed"), (JobStatus.REMOVED, "removed"), (JobStatus.IDLE, "idle"),
            (JobStatus.RUNNING, "running"), (JobStatus.HELD, "held"), (JobStatus.SUSPENDED, "suspended"),
        )
    )  # fmt: skip
    return f"{counts.total()} jobs; {parts}"


def _head(ad: ClassAd, now: float) -> str:
    return f"{_id(ad)} {_owner(ad)} {date(integer(ad, 'QDate'))} {span(run_time(ad, now)):>12}"


def _id(ad: ClassAd) -> str:
    cluster, _, proc = job_id(ad).partition(".")
    return f"{cluster:>4}.{proc:<3}"


def _owner(ad: ClassAd) -> str:
    return f"{text(ad, 'Owner')[:14]:<14}"


def _letter(ad: ClassAd) -> str:
    status = integer(ad, "JobStatus")
    return LETTERS[JobStatus(status)] if status in set(JobStatus) else "?"


def _command(ad: ClassAd, wide: bool) -> str:
    program = PurePosixPath(text(ad, "Cmd")).name
    words = text(ad, "Arguments") or text(ad, "Args")
    shown = f"{program} {words}".strip()
    return shown if wide else shown[:CMD_WIDTH]


def run_time(ad: ClassAd, now: float) -> int:
    """Seconds that the job ran: so far, or until it ended; those of lives before are RemoteWallClockTime's."""
    started = integer(ad, "JobCurrentStartDate") or integer(ad, "JobStartDate")
    if integer(ad, "JobStatus") in (JobStatus.RUNNING, JobStatus.SUSPENDED, JobStatus.TRANSFERRING_OUTPUT):
        return max(0, int(now) - started) if started else 0
    return max(integer(ad, "JobDuration"), integer(ad, "RemoteWallClockTime"), 0)


def span(seconds: int) -> str:
    """`0+00:00:03`."""
    days, rest = divmod(max(0, seconds), 86400)
    return f"{days}+{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


def date(when: int) -> str:
    """`11/21 04:30`, eleven characters with the blank before a month of one digit."""
    try:
        local = time.localtime(when)
    except (OverflowError, OSError, ValueError):
        local = None
    if not when or local is None:
        return f"{'???':>11}"
    return f"{local.tm_mon:>2}/{f'{local.tm_mday} {local.tm_hour:02}:{local.tm_min:02}':<8}"


# -- slots -----------------------------------------------------------------------------------------------------------


STATES = ("Owner", "Claimed", "Unclaimed", "Matched", "Preempting", "Drained")


def slot_order(ad: ClassAd) -> tuple[str, int, str]:
    return text(ad, "Machine"), integer(ad, "SlotID"), text(ad, "Name")


def slot_lines(slots: Iterable[ClassAd], now: float, *, only_totals: bool = False) -> Iterator[str]:
    """condor_status's table and its totals; nothing where there are no slots."""
    ads = sorted(slots, key=slot_order)
    if not ads:
        return
    if not only_totals:
        heading = ("Name", "OpSys", "Arch", "State", "Activity", "LoadAv", "Mem", "ActvtyTime")
        yield from columns(heading, [_slot(ad, now) for ad in ads], right=("LoadAv", "Mem", "ActvtyTime"))
        yield "\n"
    yield from _slot_totals(ads)


def columns(heading: tuple[str, ...], rows: list[tuple[str, ...]], right: tuple[str, ...] = ()) -> Iterator[str]:
    """Columns as wide as what is in them."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    for number, row in enumerate([heading, *rows]):
        fields = [
            field.rjust(width) if name in right else field.ljust(width)
            for field, width, name in zip(row, widths, heading, strict=True)
        ]
        yield " ".join(fields).rstrip() + "\n" + "\n" * (number == 0)


def _slot(ad: ClassAd, now: float) -> tuple[str, ...]:
    load = ad.evaluate("LoadAvg")
    since = integer(ad, "EnteredCurrentActivity") or integer(ad, "EnteredCurrentState")
    return (
        text(ad, "Name"), text(ad, "OpSys"), text(ad, "Arch"), text(ad, "State"), text(ad, "Activity"),
        f"{load:.3f}" if isinstance(load, int | float) else "", str(integer(ad, "Memory")) if "Memory" in ad else "",
        span(int(now) - since) if since else "",
    )  # fmt: skip


def _slot_totals(ads: list[ClassAd]) -> Iterator[str]:
    kinds = sorted({f"{text(ad, 'Arch')}/{text(ad, 'OpSys')}" for ad in ads})
    width = max(15, *map(len, kinds))
    columns = ("Machines", *STATES)
    yield f"{'':{width}} {' '.join(columns)}\n\n"
    for kind in [*kinds, "Total"]:
        states = [
            text(ad, "State") for ad in ads if kind in ("Total", f"{text(ad, 'Arch')}/{text(ad, 'OpSys')}")
        ]  # fmt: skip
        numbers = [len(states), *(states.count(state) for state in STATES)]
        counts = " ".join(f"{number:>{len(column)}}" for number, column in zip(numbers, columns, strict=True))
        yield f"{kind:>{width}} {counts}\n" + ("\n" if kind == kinds[-1] else "")
