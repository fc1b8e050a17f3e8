"""The commands of a submit description and the attributes that they become (HTCondor manual, condor_submit).

A `Maker` gives the attributes that come of some commands, from a `Reader` of their values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from carod.classad import UNDEFINED, parse, unparse
from carod_client.submit_language import values
from carod_client.submit_language.errors import Place, SubmitError
from carod_client.submit_language.macros import Macros

Attributes = dict[str, Any]


@dataclass(slots=True)
class Reader:
    """The commands' values, expanded. `places` says where each was set last, by its name in lower case."""

    macros: Macros
    places: Mapping[str, Place]
    here: Place

    def text(self, *names: str) -> str | None:
        """The value of the first of these that is set; None if none is, or it is empty."""
        for name in names:
            raw = self.macros.get(name)
            if raw is not None:
                return self.macros.expand(raw, self.place(name)).strip() or None
        return None

    def place(self, *names: str) -> Place:
        return next((self.places[name] for name in names if name in self.places), self.here)

    def read(self, convert: Callable[[str], Any], *names: str) -> Any:
        """The value as `convert` has it, None if it is not set. Raises SubmitError."""
        text = self.text(*names)
        if text is None:
            return None
        try:
            return convert(text)
        except SubmitError:
            raise
        except ValueError as error:
            name = next(name for name in names if self.macros.get(name) is not None)
            raise SubmitError(self.place(name), f"{name}: {error}") from None

    def flag(self, name: str) -> bool | None:
        found = self.read(values.boolean, name)
        return found if isinstance(found, bool) else None


Maker = Callable[[Reader], Attributes]


@dataclass(frozen=True, slots=True)
class Simple:
    """A command that becomes one attribute, which is a name for it, too."""

    name: str
    attribute: str
    convert: Callable[[str], Any]

    def __call__(self, reader: Reader) -> Attributes:
        value = reader.read(self.convert, self.name, self.attribute.lower())
        return {} if value is None or value is UNDEFINED else {self.attribute: value}


SIMPLE = [
    *(
        Simple(name, attribute, values.expression)
        for name, attribute in (
            ("requirements", "Requirements"), ("rank", "Rank"), ("request_cpus", "RequestCpus"),
            ("periodic_hold", "PeriodicHold"), ("periodic_hold_reason", "PeriodicHoldReason"),
            ("periodic_hold_subcode", "PeriodicHoldSubCode"), ("periodic_release", "PeriodicRelease"),
            ("periodic_remove", "PeriodicRemove"), ("periodic_vacate", "PeriodicVacate"),
            ("on_exit_hold", "OnExitHold"), ("on_exit_hold_reason", "OnExitHoldReason"),
            ("on_exit_hold_subcode", "OnExitHoldSubCode"),
            ("leave_in_queue", "LeaveJobInQueue"), ("allowed_execute_duration", "AllowedExecuteDuration"),
            ("allowed_job_duration", "AllowedJobDuration"), ("kill_sig_timeout", "KillSigTimeout"),
            ("job_max_vacate_time", "JobMaxVacateTime"), ("next_job_start_delay", "NextJobStartDelay"),
            ("job_lease_duration", "JobLeaseDuration"), ("keep_claim_idle", "KeepClaimIdle"),
            ("max_transfer_input_mb", "MaxTransferInputMB"), ("max_transfer_output_mb", "MaxTransferOutputMB"),
            ("deferral_time", "DeferralTime"), ("max_job_retirement_time", "MaxJobRetirementTime"),
        )
    ),
    *(
        Simple(name, attribute, str)
        for name, attribute in (
            ("batch_name", "JobBatchName"), ("description", "JobDescription"), ("notify_user", "NotifyUser"),
            ("accounting_group", "AcctGroup"), ("accounting_group_user", "AcctGroupUser"),
            ("concurrency_limits", "ConcurrencyLimits"), ("submit_event_notes", "SubmitEventNotes"),
            ("email_attributes", "EmailAttributes"), ("hook_keyword", "HookKeyword"),
            ("cron_minute", "CronMinute"), ("cron_hour", "CronHour"), ("cron_day_of_month", "CronDayOfMonth"),
            ("cron_month", "CronMonth"), ("cron_day_of_week", "CronDayOfWeek"),
        )
    ),
    Simple("request_memory", "RequestMemory", values.memory),
    Simple("request_disk", "RequestDisk", values.disk),
    Simple("image_size", "ImageSize", values.disk),
    Simple("priority", "JobPrio", values.integer),
    Simple("coresize", "CoreSize", values.integer),
    Simple("max_idle", "JobMaterializeMaxIdle", values.integer),
    Simple("max_materialize", "JobMaterializeLimit", values.integer),
    Simple("kill_sig", "KillSig", values.signal_name),
    Simple("remove_kill_sig", "RemoveKillSig", values.signal_name),
    Simple("hold_kill_sig", "HoldKillSig", values.signal_name),
    Simple("nice_user", "NiceUser", values.boolean),
    Simple("want_graceful_removal", "WantGracefulRemoval", values.boolean),
    Simple("noop_job", "IsNoopJob", values.boolean),
    Simple("run_as_owner", "RunAsOwner", values.boolean),
    Simple("transfer_executable", "TransferExecutable", values.boolean),
    Simple("preserve_relative_paths", "PreserveRelativePaths", values.boolean),
    Simple("universe", "JobUniverse", values.universe),
]  # fmt: skip


def executable(reader: Reader) -> Attributes:
    """Cmd: as a path on this machine, as HTCondor has it; a program that is not sent along stays as it is written."""
    text = reader.text("executable", "cmd")
    if text is None:
        raise SubmitError(reader.here, "no executable is set above this queue; write executable = PROGRAM")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if reader.flag("transfer_executable") is False:
        return {"Cmd": text}
    return {"Cmd": os.path.normpath(os.path.join(os.getcwd(), text))}


def job_arguments(reader: Reader) -> Attributes:
    found = reader.read(values.arguments, "arguments", "args")
    return found or {}


def job_environment(reader: Reader) -> Attributes:
    variables = reader.read(values.environment, "environment", "env") or {}
    taken = reader.read(lambda text: values.chosen_environment(text, os.environ), "getenv", "get_env") or {}
    return {"Environment": values.joined_environment(taken | variables)} if taken or variables else {}


def initial_directory(reader: Reader) -> str:
    directory = reader.text("initialdir", "initial_dir", "iwd", "job_iwd") or ""
    return os.path.normpath(os.path.join(os.getcwd(), directory))


def files(reader: Reader) -> Attributes:
    """Iwd, the streams' files as they are written, the log's full path, what is sent and what comes back."""
    iwd = initial_directory(reader)
    made: Attributes = {"Iwd": iwd}
    for names, attribute in (
        (("input", "stdin", "in"), "In"),
        (("output", "stdout", "out"), "Out"),
        (("error", "stderr", "err"), "Err"),
    ):
        path = reader.text(*names)
        if path is not None and path != os.devnull:
            made[attribute] = path
    log = reader.text("log", "userlog")
    if log is not None:
        made["UserLog"] = os.path.normpath(os.path.join(iwd, log))
    inputs = reader.read(_paths, "transfer_input_files", "transferinputfiles", "transfer_input", "transferinput")
    if inputs:
        made["TransferInput"] = ",".join(inputs)
    outputs = reader.read(
        values.listed, "transfer_output_files", "transferoutputfiles", "transfer_output", "transferoutput"
    )
    if outputs:
        made["TransferOutput"] = ",".join(outputs)
    remaps = reader.text("transfer_output_remaps")
    if remaps is not None:
        made["TransferOutputRemaps"] = remaps.strip('"')
    return made


def transfer(reader: Reader) -> Attributes:
    should = (reader.text("should_transfer_files") or "").upper()
    if should not in ("", "YES", "NO", "IF_NEEDED", "TRUE", "FALSE"):
        raise SubmitError(
            reader.place("should_transfer_files"), f"should_transfer_files: {should!r} is none of YES, NO, IF_NEEDED"
        )
    when = (reader.text("when_to_transfer_output") or "").upper()
    if when not in ("", "ON_EXIT", "ON_EXIT_OR_EVICT", "ON_SUCCESS"):
        raise SubmitError(
            reader.place("when_to_transfer_output"),
            f"when_to_transfer_output: {when!r} is none of ON_EXIT, ON_EXIT_OR_EVICT, ON_SUCCESS",
        )
    should = {"TRUE": "YES", "FALSE": "NO"}.get(should, should)
    made = {"ShouldTransferFiles": should} if should else {}
    return made | ({"WhenToTransferOutput": when} if when else {})


def hold(reader: Reader) -> Attributes:
    if not reader.flag("hold"):
        return {}
    return {"JobStatus": 5, "HoldReason": "submitted on hold at user's request", "HoldReasonCode": 15}


def retries(reader: Reader) -> Attributes:
    """HTCondor's three commands for running a job again, and OnExitRemove, which they are made of."""
    given = reader.read(values.expression, "on_exit_remove", "onexitremove")
    most = reader.read(values.integer, "max_retries")
    success = reader.read(values.integer, "success_exit_code")
    until = reader.read(values.expression, "retry_until")
    if most is None and success is None and until is None:
        return {} if given is None else {"OnExitRemove": given}
    made: Attributes = {"JobMaxRetries": 2 if most is None else most}
    if reader.text("on_exit_hold", "onexithold") is None:
        made["OnExitHold"] = False
    conditions = ["NumJobCompletions > JobMaxRetries"]
    if success is None:
        conditions.append("ExitCode =?= 0")
    else:
        made["JobSuccessExitCode"] = success
        conditions.append("ExitCode =?= JobSuccessExitCode")
    if until is not None:
        conditions.append(f"ExitCode =?= {until}" if isinstance(until, int) else f"({until})")
    if given is not None:
        conditions.append(f"({unparse(given)})")
    return made | {"OnExitRemove": parse(" || ".join(conditions))}


def notification(reader: Reader) -> Attributes:
    text = reader.text("notification")
    if text is None:
        return {}
    kinds = {"never": 0, "always": 1, "complete": 2, "error": 3}
    if text.lower() not in kinds:
        raise SubmitError(reader.place("notification"), f"notification: {text!r} is none of {', '.join(kinds)}")
    return {"JobNotification": kinds[text.lower()]}


MAKERS: list[Maker] = [
    executable, job_arguments, job_environment, files, transfer, hold, retries, notification, *SIMPLE
]  # fmt: skip

KNOWN = frozenset(
    [name for simple in SIMPLE for name in (simple.name, simple.attribute.lower())]
    + """executable cmd arguments args environment env getenv get_env initialdir initial_dir iwd job_iwd input stdin in
    output stdout out error stderr err log userlog transfer_input_files transferinputfiles transfer_input transferinput
    transfer_output_files transferoutputfiles transfer_output transferoutput transfer_output_remaps
    should_transfer_files when_to_transfer_output hold max_retries success_exit_code retry_until on_exit_remove
    onexitremove notification stream_input stream_output stream_error log_xml copy_to_spool skip_filechecks
    jobbatchname transfer_error compress_files append_files""".split()
)
"""Every name that is a command, in lower case; another one is a macro, or a slip."""

WITHOUT_EFFECT = {
    **dict.fromkeys(
        """periodic_hold periodic_release periodic_remove periodic_vacate on_exit_hold on_exit_remove max_retries
        retry_until success_exit_code""".split(),
        "is in the job's ad, but neither agent nor node evaluates it yet",
    ),
    **dict.fromkeys(
        "deferral_time cron_minute cron_hour cron_day_of_month cron_month cron_day_of_week".split(),
        "is not looked at: a job starts as soon as a slot is free",
    ),
    **dict.fromkeys("stream_input stream_output stream_error".split(), "is not looked at: `carod tail` shows output"),
    **dict.fromkeys(
        "concurrency_limits nice_user next_job_start_delay max_idle max_materialize keep_claim_idle".split(),
        "is not looked at: nothing here limits how many of your jobs run",
    ),
    "notification": "is not looked at: no mail is sent; the log, or `carod wait`, tells",
    "notify_user": "is not looked at: no mail is sent; the log, or `carod wait`, tells",
    "log_xml": "is not looked at: logs are text",
    "compress_files": "is not looked at: files travel in a zip",
    "append_files": "is not looked at",
    "copy_to_spool": "is not looked at",
    "noop_job": "is not looked at: the job runs",
    "job_lease_duration": "is not looked at: LEASE is the node's",
}
"""Commands of HTCondor that do nothing here, and why."""


def _paths(text: str) -> list[str]:
    paths = values.listed(text)
    for path in paths:
        if "://" in path:
            raise ValueError(f"{path!r} is a URL; files of this machine are sent, fetch it in the job")
    return paths
