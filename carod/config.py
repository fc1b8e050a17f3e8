"""Every knob: its name, type, default and meaning, and where its value comes from.

HTCondor's habits (manual, "Introduction to Configuration"): `NAME = value` a line, names without case, `$(NAME)`
and `$(NAME:default)` stand for other names' values, `$ENV(NAME)` for the environment's, a backslash at a line's end
continues it, files in `config.d` come after the main file in the order of their names, then `_CAROD_NAME` in the
environment, then the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

MAX_EXPANSIONS = 1000
C = TypeVar("C")


class ConfigError(ValueError):
    """A setting that can't be; the text names file and line, the knob, its value and what would do."""


def knob(default: Any, meaning: str, unit: str = "") -> Any:
    return field(default=default, metadata={"meaning": meaning, "unit": unit})


def _default_execute() -> str:
    if os.geteuid() == 0:
        return "/var/lib/carod/execute"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{state}/carod/execute"


@dataclass(frozen=True, slots=True)
class Config:
    """All knobs; a field's name in capitals is the knob's."""

    carod_broker_url: str = knob(
        "amqp://guest:guest@127.0.0.1:5672/",
        "the broker: amqp[s]://user:password@host:port/vhost, or amqp[s]10:// for AMQP 1.0",
    )
    carod_broker_protocol: str = knob("", "0-9-1 or 1.0, whatever the URL's scheme says; empty: as it says")
    carod_broker_queue: str = knob("grid", "the job queue; every other name on the broker derives from it")
    carod_broker_heartbeat: int = knob(30, "a broker silent for so long is gone", "s")
    carod_broker_ca_file: str = knob("", "CA certificates (PEM) that sign the broker's, for amqps://")
    carod_broker_cert_file: str = knob(
        "", "client certificate (PEM); without a user in the URL it is the identity (EXTERNAL)"
    )
    carod_broker_key_file: str = knob("", "key (PEM) of the client certificate")
    startd_name: str = knob("", "the node's name, unique on its broker; empty: the host's name")
    num_slots: int = knob(0, "jobs run side by side; 0: one a CPU")
    execute: str = knob(
        "",
        "directory for the jobs' directories; empty: /var/lib/carod/execute as root, else below ~/.local/state",
    )
    start: str = knob("TRUE", "ClassAd expression: does this slot take this job (MY=slot, TARGET=job)")
    startd_attrs: str = knob("", "names of further knobs to show in the slot ads, comma-separated")
    slot_user: str = knob("nobody", "the user that a root node's jobs run as")
    starter_allow_runas_owner: bool = knob(False, "a root node runs a job as its Owner if ALLOWED_OWNERS names it")
    allowed_owners: str = knob("", "users that jobs may run as, comma-separated; never root")
    base_cgroup: str = knob(
        "", "a cgroup (v2) directory that the node may divide among its slots; empty: its own, if delegated"
    )
    starter_initial_update_interval: float = knob(8.0, "from a job's start to its first update", "s")
    starter_update_interval: float = knob(300.0, "between updates of a running job", "s")
    starter_memory_interval: float = knob(1.0, "between looks at the memory of a job with RequestMemory", "s")
    killing_timeout: float = knob(
        20.0, "from a job's kill signal to SIGKILL, where the job names no KillSigTimeout", "s"
    )
    shutdown_graceful_timeout: float = knob(60.0, "after SIGTERM, jobs may end by themselves for so long", "s")
    max_unpacked_size: int = knob(4 << 30, "the most that a job's input archive may unpack to", "bytes")
    max_unpacked_files: int = knob(100_000, "the most entries in a job's input archive")
    max_result_size: int = knob(
        120 << 20, "the largest result zip; keep it below the broker's max_message_size", "bytes"
    )
    max_job_starts: int = knob(5, "a job started so often without an end is held, unless its MaxJobStarts says else")
    adoption_wait: float = knob(10.0, "a redelivered job waits so long for its node before it is run again", "s")
    lease_time: float = knob(35.0, "what a node does not take from its own queue goes back to the job queue", "s")
    ack_timeout: float = knob(
        1800.0, "the broker's consumer_timeout; deliveries of running jobs are renewed at half of it", "s"
    )
    queue_super_users: str = knob("", "users whose control messages count for everybody's jobs, comma-separated")
    reject_delay_min: float = knob(
        0.2, "a job this node refuses is held back for so long before the queue has it again", "s"
    )
    reject_delay_max: float = knob(30.0, "the most that REJECT_DELAY_MIN doubles to", "s")
    reconnect_delay_max: float = knob(30.0, "the longest wait between tries to reach a broker that is away", "s")
    metrics_address: str = knob("", "HOST:PORT for Prometheus metrics; empty: none")
    log_format: str = knob("text", "text or json")
    log_level: str = knob("info", "debug, info, warning or error")

    @property
    def node_name(self) -> str:
        return self.startd_name or socket.gethostname()

    @property
    def slots(self) -> int:
        return self.num_slots or len(os.sched_getaffinity(0))

    @property
    def execute_directory(self) -> str:
        return os.path.abspath(os.path.expanduser(self.execute or _default_execute()))


Knobs = dict[str, "dataclasses.Field[Any]"]


def knobs(kind: type) -> Knobs:
    """The knobs that a class of configurations has, by name."""
    return {field.name.upper(): field for field in dataclasses.fields(kind)}


KNOBS = knobs(Config)


def same_knob(name: str) -> Any:
    """A knob of another daemon that is this one of the node's: the same default and meaning."""
    field = KNOBS[name]
    return knob(field.default, field.metadata["meaning"], field.metadata["unit"])


@dataclass(frozen=True, slots=True)
class Files:
    """Where a daemon's configuration is looked for.

    `variable` is the environment's name of the main file, else it is the first of `main` that exists; those of
    the directory `further` beside it come after it.
    """

    main: tuple[str, ...]
    variable: str
    further: str


FILES = Files(("/etc/carod/carod.conf", "~/.config/carod/carod.conf"), "CAROD_CONFIG", "config.d")


@dataclass(frozen=True, slots=True)
class Setting:
    """One knob as it stands: `source` says where its value comes from."""

    name: str
    kind: str
    default: Any
    value: Any
    source: str
    meaning: str


@dataclass(slots=True)
class Settings(Generic[C]):
    """A configuration and how it came about. `macros` holds every name that any file sets, also those of no knob."""

    config: C
    table: list[Setting]
    macros: dict[str, str]
    warnings: list[str]


@dataclass(slots=True)
class _Raw:
    text: str
    source: str


def load(
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Settings[Config]:
    """Read the node's configuration. `overrides` are the command line's, by knob name. Raises ConfigError."""
    settings = read(Config, FILES, file, environ, overrides)
    _check(settings)
    return settings


def read(
    kind: type[C],
    files: Files,
    file: str | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] | None,
) -> Settings[C]:
    """Read a configuration of any `kind`, of which only the values' types are checked. Raises ConfigError."""
    known = knobs(kind)
    raw: dict[str, _Raw] = {}
    for path in _files(file, files, environ):
        _read_file(path, raw)
    if environ.get("CAROD_BROKER"):  # what clients and the demo go by
        raw["CAROD_BROKER_URL"] = _Raw(environ["CAROD_BROKER"], "environment CAROD_BROKER")
    for name, text in environ.items():
        if name.upper().startswith("_CAROD_"):
            target = name.upper()[len("_CAROD_") :]
            target = f"CAROD_{target}" if f"CAROD_{target}" in known else target  # _CAROD_BROKER_URL reads well, too
            raw[target] = _Raw(text, f"environment {name}")
    for name, value in (overrides or {}).items():
        raw[name] = _Raw(str(value), "command line")
    macros = {name: item.text for name, item in raw.items()}
    defaults = {name: str(entry.default) for name, entry in known.items()}
    values: dict[str, Any] = {}
    table = []
    for name, entry in known.items():
        value, source = entry.default, "default"
        if name in raw:
            value = _convert(name, entry, expand(raw[name].text, macros, environ, defaults), raw[name].source)
            source = raw[name].source
        values[entry.name] = value
        table.append(Setting(name, _kind(entry), entry.default, value, source, entry.metadata["meaning"]))
    used = {name.strip().upper() for name in str(values.get("startd_attrs", "")).split(",")}
    return Settings(kind(**values), table, macros, _warnings(raw, known, used))


def _files(file: str | None, files: Files, environ: Mapping[str, str]) -> list[Path]:
    named = file or environ.get(files.variable)
    if named:
        if not os.path.isfile(named):
            raise ConfigError(f"configuration file {named!r} does not exist; --config and {files.variable} name a file")
        main = Path(named)
    else:
        found = [Path(path).expanduser() for path in files.main if os.path.isfile(os.path.expanduser(path))]
        if not found:
            return []
        main = found[0]
    further = main.parent / files.further
    return [
        main,
        *sorted(path for path in further.glob("*") if path.is_file() and not _LEFT_BEHIND.fullmatch(path.name)),
    ]


_LEFT_BEHIND = re.compile(r"\..*|#.*|.*~|.*\.(rpmsave|rpmnew|rpmorig|dpkg-\w+|bak|orig|swp|sample)")
"""What editors and packages leave in config.d (as HTCondor's LOCAL_CONFIG_DIR_EXCLUDE_REGEXP)."""


_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*(.*?)\s*$", re.DOTALL)


def _read_file(path: Path, raw: dict[str, _Raw]) -> None:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {str(path)!r}: {error}") from None
    pending, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not pending:
            begun = number
            if not line.strip() or line.lstrip().startswith("#"):
                continue
        pending += line[:-1] + " " if line.endswith("\\") else line
        if line.endswith("\\"):
            continue
        matched = _LINE.match(pending)
        if matched is None:
            raise ConfigError(f"{path}, line {begun}: {pending.strip()[:80]!r} is not NAME = value")
        raw[matched[1].upper()] = _Raw(matched[2], f"{path}, line {begun}")
        pending = ""


_MACRO = re.compile(r"\$(ENV)?\(([A-Za-z_][A-Za-z0-9_.]*)(?::([^()]*))?\)")


def expand(text: str, macros: Mapping[str, str], environ: Mapping[str, str], defaults: Mapping[str, str]) -> str:
    """Replace $(NAME), $(NAME:default) and $ENV(NAME); a name without value is empty. Raises ConfigError on a ring.

    `defaults` are the knobs' own, for names that nothing sets.
    """
    for _ in range(MAX_EXPANSIONS):
        matched = _MACRO.search(text)
        if matched is None:
            return text
        env, name, default = matched.groups()
        value = environ.get(name) if env else macros.get(name.upper(), defaults.get(name.upper()))
        text = text[: matched.start()] + (value if value is not None else default or "") + text[matched.end() :]
        if len(text) > 1 << 20:
            break
    raise ConfigError(f"{text[:80]!r}...: its $(NAME) stand for each other without end")


def _kind(field: dataclasses.Field[Any]) -> str:
    unit = field.metadata["unit"]
    return f"{field.type}, {unit}" if unit else str(field.type)


def _convert(name: str, field: dataclasses.Field[Any], text: str, source: str) -> Any:
    try:
        match field.type:
            case "bool":
                return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
            case "int":
                return _bytes(text) if field.metadata["unit"] == "bytes" else int(text)
            case "float":
                return float(text)
        return text
    except (ValueError, KeyError):
        wanted = {"bool": "TRUE or FALSE", "int": "a whole number", "float": "a number"}[str(field.type)]
        raise ConfigError(f"{name} = {text!r} ({source}): {wanted} is needed, such as {field.default}") from None


def _bytes(text: str) -> int:
    """Bytes, also as 512K, 100M, 4G."""
    matched = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if matched is None:
        raise ValueError(text)
    return int(matched[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[matched[2].upper()]


def refuse(settings: Settings[Any], name: str, mend: str) -> None:
    """Raises the ConfigError for a knob whose value can't be."""
    setting = next(setting for setting in settings.table if setting.name == name)
    raise ConfigError(f"{name} = {setting.value!r} ({setting.source}): {mend}")


def check_shared(settings: Settings[Any]) -> None:
    """What holds for every daemon's knobs. Raises ConfigError."""
    config = settings.config
    if not re.fullmatch(r"[^\s/]{1,120}", config.carod_broker_queue):
        refuse(settings, "CAROD_BROKER_QUEUE", "1 to 120 characters without spaces or slashes")
    if config.log_format not in ("text", "json"):
        refuse(settings, "LOG_FORMAT", "text or json")
    if config.log_level not in ("debug", "info", "warning", "error"):
        refuse(settings, "LOG_LEVEL", "debug, info, warning or error")
    for setting in settings.table:
        if isinstance(setting.value, int | float) and not 0 <= setting.value < math.inf:
            refuse(settings, setting.name, "a finite number, not below 0")
    if not 1 <= config.carod_broker_heartbeat <= 3600:
        refuse(settings, "CAROD_BROKER_HEARTBEAT", "from 1 to 3600 s")


def _check(settings: Settings[Config]) -> None:
    config = settings.config
    if not 0 <= config.num_slots <= 1024:
        refuse(settings, "NUM_SLOTS", "from 0 (one a CPU) to 1024")
    if not re.fullmatch(NAME, config.startd_name):
        refuse(settings, "STARTD_NAME", NAME_MEND)
    check_shared(settings)


NAME = r"[^\s/*#]{0,120}"
NAME_MEND = "up to 120 characters, no spaces, slashes, * or #: it becomes part of a queue's name"


def _warnings(raw: Mapping[str, _Raw], known: Collection[str], used: set[str]) -> list[str]:
    """Names that nothing reads, which are most often misspelt knobs."""
    used = used | {name.upper() for item in raw.values() for _, name, _ in _MACRO.findall(item.text)}
    warnings = []
    for name, item in raw.items():
        if name not in known and name not in used:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            warnings.append(f"{item.source}: nothing reads {name}{hint}")
    return warnings
