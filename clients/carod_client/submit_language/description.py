"""A submit description: its text -> job ads, one after the other."""

from __future__ import annotations

import difflib
import os
import pwd
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carod.classad import ClassAd, ClassAdSyntaxError, parse_value
from carod_client.submit_language import values
from carod_client.submit_language.commands import KNOWN, MAKERS, WITHOUT_EFFECT, Maker, Reader
from carod_client.submit_language.errors import Place, SubmitError
from carod_client.submit_language.items import items
from carod_client.submit_language.macros import Macros
from carod_client.submit_language.statements import Assign, Condition, Queue, statements

_ATTRIBUTE = re.compile(r"(?:\+|my\.)(?P<name>[A-Za-z_]\w*)\Z", re.IGNORECASE)
_RESOURCE = re.compile(r"request_?(?P<name>[a-z]\w*)\Z")
_VERSION = re.compile(r"version\s*(?P<symbol>[<>]=?|[=!]=)\s*(?P<version>\d+(?:\.\d+){0,2})\Z")
CONDOR_VERSION = (24, 0, 0)
"""The version that `if version >= ...` is told: the language as HTCondor 24 has it."""
BUILT_IN = frozenset({"requestcpus", "requestmemory", "requestdisk", "request_cpus", "request_memory", "request_disk"})
_FIXED = {"JobStatus": 1, "JobUniverse": 5, "JobPrio": 0, "RequestCpus": 1, "Requirements": True}


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """A job as HTCondor's queue would hold it: paths in its ad are this machine's. `place` is its queue statement."""

    ad: ClassAd
    cluster: int
    proc: int
    place: Place


class Description:
    """A submit description, read once. `jobs` makes the ads; `warnings` are complete when all are made."""

    def __init__(self, text: str, file: str = "<text>", append: Iterable[str] = ()) -> None:
        """`append` are further lines that come before the first queue. Raises SubmitError for a line that can't be.

        Only the lines' form is looked at here; what they say is `jobs`'s to find out.
        """
        self.file = file
        self.warnings: list[str] = []
        self._statements = list(statements(text, file))
        added = [one for line in append for one in statements(line, f"{line!r} (appended)")]
        first = next((at for at, one in enumerate(self._statements) if isinstance(one, Queue)), len(self._statements))
        self._statements[first:first] = added
        if not any(isinstance(one, Queue) for one in self._statements):
            last = text.count("\n") + 1
            raise SubmitError(Place(file, last), "nothing is queued; write a line `queue` at the end")

    @classmethod
    def read(cls, path: str | os.PathLike[str], append: Iterable[str] = ()) -> Description:
        """The description in a file. Raises SubmitError, also for a file that can't be read."""
        name = os.fspath(path)
        try:
            return cls(Path(name).read_text(encoding="utf-8"), name, append)
        except OSError as error:
            mend = f"; a program of that name is run by `carod submit -- {name}`"
            raise SubmitError(Place(name, 0), f"{error.strerror or error}{mend}") from None
        except UnicodeDecodeError as error:
            raise SubmitError(Place(name, 0), f"not UTF-8 text (byte {error.start}); save it as UTF-8") from None

    def jobs(self, new_cluster: Callable[[], int], now: int | None = None) -> Iterator[SubmitJob]:
        """Each job in turn. `new_cluster` gives a number: for the first job, and whenever the executable changes.

        Raises SubmitError where a command's value can't be.
        """
        run = _Run(self, new_cluster, int(time.time()) if now is None else now)
        for statement in self._statements:
            if isinstance(statement, Condition):
                run.condition(statement)
            elif not run.active:
                continue
            elif isinstance(statement, Queue):
                yield from run.queue(statement)
            else:
                run.assign(statement)
        if run.branches:
            raise SubmitError(run.branches[-1].place, "this `if` has no `endif`")
        self.warnings += run.warnings()


@dataclass(slots=True)
class _Branch:
    """One `if`: whether its present part counts, and whether one has counted already."""

    place: Place
    active: bool
    taken: bool
    last: bool = False


class _Run:
    def __init__(self, description: Description, new_cluster: Callable[[], int], now: int) -> None:
        self.description = description
        self.new_cluster = new_cluster
        self.now = now
        self.macros = Macros()
        self.places: dict[str, Place] = {}
        self.attributes: dict[str, tuple[str, str, Place]] = {}
        self.resources: dict[str, str] = {}
        self.branches: list[_Branch] = []
        self.cluster = self.proc = 0
        self.cmd: str | None = None
        self.owner = _owner()
        today = time.localtime(now)
        head = Place(description.file, 0)
        for name, value in {
            "SUBMIT_FILE": description.file, "SUBMIT_TIME": str(now), "YEAR": f"{today.tm_year}",
            "MONTH": f"{today.tm_mon:02}", "DAY": f"{today.tm_mday:02}", "Node": "",
        }.items():  # fmt: skip
            self.macros.set(name, value, head)

    # -- statements ------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        return all(branch.active for branch in self.branches)

    def assign(self, statement: Assign) -> None:
        name = self.macros.expand(statement.name, statement.place)
        attribute = _ATTRIBUTE.match(name)
        if attribute:
            self.attributes[attribute["name"].lower()] = attribute["name"], statement.value, statement.place
            return
        if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
            raise SubmitError(statement.place, f"{name!r} is no name; letters, digits, '_' and '.' make one")
        folded = name.lower()
        resource = _RESOURCE.match(folded)
        if resource and folded not in BUILT_IN:
            self.resources[folded] = name[len(name) - len(resource["name"]) :]
        self.macros.set(name, statement.value, statement.place)
        self.places[folded] = statement.place

    def condition(self, statement: Condition) -> None:
        place = statement.place
        if statement.word == "if":
            outer = self.active
            holds = outer and self._holds(statement)
            self.branches.append(_Branch(place, holds, holds or not outer))
            return
        if not self.branches:
            raise SubmitError(place, f"`{statement.word}` without an `if` above it")
        branch = self.branches[-1]
        if statement.word == "endif":
            self.branches.pop()
            return
        if branch.last:
            raise SubmitError(place, f"`{statement.word}` after the `else` of the `if` in line {branch.place.line}")
        branch.last = statement.word == "else"
        branch.active = not branch.taken and (branch.last or self._holds(statement))
        branch.taken = branch.taken or branch.active

    def _holds(self, statement: Condition) -> bool:
        text = statement.text
        negated = text.startswith("!")
        if negated:
            text = text[1:].strip()
        defined, _, name = text.partition(" ")
        if defined.lower() == "defined":
            name = self.macros.expand(name, statement.place).strip()
            known = bool(self.macros.get(name)) or name.lower() in ("true", "false") or name.isdecimal()
            return bool(name) and known != negated
        text = self.macros.expand(text, statement.place).strip()
        if version := _VERSION.match(text.lower()):
            given = tuple(map(int, version["version"].split(".")))
            ours = CONDOR_VERSION[: len(given)]
            symbol = version["symbol"]
            holds = {
                "<": ours < given, "<=": ours <= given, ">": ours > given, ">=": ours >= given,
                "==": ours == given, "!=": ours != given,
            }[symbol]  # fmt: skip
            return holds != negated
        try:
            return values.boolean(text) != negated
        except ValueError:
            raise SubmitError(
                statement.place,
                f"{text!r} is no condition; there are true, false, numbers, `defined NAME`, `version > 8.9`, and `!`",
            ) from None

    def queue(self, statement: Queue) -> Iterator[SubmitJob]:
        asked = items(statement, self.macros)
        if not len(asked):
            return
        makers = _Makers(self, statement.place)
        for number, (row, step, row_values) in enumerate(asked):
            self._live(row, step, row_values)
            cmd = self._command(statement) if number == 0 or makers.cmd_varies else self.cmd
            if cmd != self.cmd or not self.cluster:
                self.cluster, self.proc, self.cmd = self.new_cluster(), 0, cmd
            self._live(row, step, row_values)
            yield SubmitJob(makers.ad(), self.cluster, self.proc, statement.place)
            self.proc += 1
        self.macros.live.clear()

    def _command(self, statement: Queue) -> str | None:
        return Reader(self.macros, self.places, statement.place).text("executable", "cmd")

    def _live(self, row: int, step: int, row_values: dict[str, str]) -> None:
        cluster, proc = str(self.cluster), str(self.proc)
        self.macros.live = {
            "cluster": cluster, "clusterid": cluster, "process": proc, "procid": proc, "jobid": f"{cluster}.{proc}",
            "step": str(step), "row": str(row), "itemindex": str(row), "item": "",
            **{name.lower(): value for name, value in row_values.items()},
        }  # fmt: skip

    # -- warnings --------------------------------------------------------------------------------------------

    def warnings(self) -> Iterator[str]:
        for name, place in self.places.items():
            if name in WITHOUT_EFFECT:
                yield f"{place}: {name} {WITHOUT_EFFECT[name]}"
            elif name in self.resources:
                close = difflib.get_close_matches(name, ("request_cpus", "request_memory", "request_disk"), 1, 0.75)
                mend = f"is {close[0]} meant?" if close else "name it in requirements, too"
                yield f"{place}: {name}: no node sets such a resource aside; {mend}"
            elif name not in KNOWN and name not in self.macros.used:
                close = difflib.get_close_matches(name, KNOWN, 1, 0.75)
                mend = f"; is {close[0]} meant?" if close else "; for an attribute write +" + name
                yield f"{place}: {name} is neither a command nor used as $({name}){mend}"
        for name, place in self.macros.unknown.items():
            yield f"{place}: $({name}) has no value and is left empty; write $({name}:DEFAULT) if that is meant"


class _Makers:
    """Makes the ads of one queue statement; what is the same for all its jobs is made once."""

    def __init__(self, run: _Run, place: Place) -> None:
        self.run = run
        self.reader = Reader(run.macros, run.places, place)
        self._pending: list[Maker] = [*MAKERS, *map(self._resource, run.resources.items())]
        self._pending += [self._attribute(*given) for given in run.attributes.values()]
        self._base: ClassAd | None = None
        self._varying: list[Maker] = []
        self.cmd_varies = True

    def ad(self) -> ClassAd:
        run = self.run
        if self._base is None:
            ad = self._first()
        else:
            ad = self._base.copy()
            for maker in self._varying:
                for name, value in maker(self.reader).items():
                    ad[name] = value
        ad["ClusterId"], ad["ProcId"] = run.cluster, run.proc
        return ad

    def _first(self) -> ClassAd:
        run = self.run
        ad = ClassAd({"Owner": run.owner, "QDate": run.now, "EnteredCurrentStatus": run.now, **_FIXED})
        base = ad.copy()
        self.cmd_varies = False
        varying: set[str] = set()
        for maker in self._pending:
            run.macros.varied = False
            made = maker(self.reader)
            if run.macros.varied:
                self._varying.append(maker)
                self.cmd_varies = self.cmd_varies or "Cmd" in made
                varying.update(made)
            elif not varying.isdisjoint(made):  # it goes over one that varies, each time anew
                self._varying.append(maker)
            for name, value in made.items():
                ad[name] = value
                if not run.macros.varied:
                    base[name] = value
        self._base = base
        return ad

    def _resource(self, given: tuple[str, str]) -> Maker:
        """`request_gpus` and the like: resources that a site defines itself."""
        command, name = given
        attribute = "RequestGPUs" if name.lower() == "gpus" else f"Request{name}"

        def make(reader: Reader) -> dict[str, Any]:
            value = reader.read(values.expression, command)
            return {} if value is None else {attribute: value}

        return make

    def _attribute(self, name: str, text: str, place: Place) -> Maker:
        def make(reader: Reader) -> dict[str, Any]:
            source = reader.macros.expand(text, place).strip()
            try:
                return {name: parse_value(source or "undefined")}
            except ClassAdSyntaxError as error:
                raise SubmitError(place, f"{name}: {error}; a string needs double quotes") from None

        return make


def _owner() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
