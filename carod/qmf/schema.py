"""What a class of managed objects has, and the binary form in which version 1 of QMF asks and answers for it.

The request is `AM2S`, a sequence number (4 bytes), package, class (each with a byte of length) and the schema's hash
(16 bytes); the answer `AM2s`, the number, the kind (1 objects, 2 events), the same, then counts and 0-10 maps.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from carod.qmf.codec import BadEncoding, Reader, Writer

REQUEST, ANSWER, COMPLETE = b"AM2S", b"AM2s", b"AM2z"
BYTES = "bytes"
"""The unit of an argument that is binary: QMF's type codes have none for it."""
NAMESPACE = uuid.UUID("6b8dd1a2-0c5f-5d3a-9a44-5f0f9b1f4b3e")
"""Of the hashes of our schemas (RFC 4122, version 5)."""


class Type(IntEnum):
    """QMF's type codes."""

    U8, U16, U32, U64 = 1, 2, 3, 4
    SSTR, LSTR = 6, 7
    ABSTIME, DELTATIME = 8, 9
    REF = 10
    BOOL = 11
    FLOAT, DOUBLE = 12, 13
    UUID = 14
    MAP = 15
    S8, S16, S32, S64 = 16, 17, 18, 19
    OBJECT, LIST, ARRAY = 20, 21, 22


class Kind(IntEnum):
    DATA = 1
    EVENT = 2


@dataclass(frozen=True, slots=True)
class Property:
    """A property: `index` if it is part of what names the object. `reference` is the class that it refers to."""

    name: str
    type: Type
    desc: str = ""
    unit: str = ""
    index: bool = False
    optional: bool = False
    reference: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Statistic:
    name: str
    type: Type
    desc: str = ""
    unit: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument; `dir` is I, O or IO. With a `default` it may be left out. `binary` ones are bytes."""

    name: str
    type: Type
    dir: str = "I"
    desc: str = ""
    default: str | int | None = None
    binary: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    arguments: tuple[Argument, ...] = ()
    desc: str = ""

    def __str__(self) -> str:
        return f"{self.name}({', '.join(argument.name for argument in self.inputs)})"

    @property
    def inputs(self) -> list[Argument]:
        return [argument for argument in self.arguments if "I" in argument.dir]


@dataclass(frozen=True, slots=True)
class SchemaClass:
    """A class: of objects, or (then `properties` are its arguments) of events. `name` as its users spell it."""

    package: str
    name: str
    properties: tuple[Property, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    methods: tuple[Method, ...] = ()
    kind: Kind = Kind.DATA
    hash: uuid.UUID = field(default=uuid.UUID(int=0))

    def hashed(self) -> SchemaClass:
        """The same with its hash: equal for equal classes, on every machine."""
        return replace(self, hash=uuid.uuid5(NAMESPACE, self._encoded(self._description()).hex()))

    def answer(self, sequence: int) -> bytes:
        """The binary answer to a request for it."""
        return self._encoded(self._description(), ANSWER + sequence.to_bytes(4, "big"))

    def _encoded(self, description: bytes, head: bytes = b"") -> bytes:
        out = Writer()
        out.raw(head)
        out.number(self.kind, 1)
        out.str8(self.package)
        out.str8(self.name.lower())
        out.raw(self.hash.bytes)
        out.raw(description)
        return out.encoded

    def _description(self) -> bytes:
        out = Writer()
        if self.kind is Kind.EVENT:
            out.number(len(self.properties), 2)
            for each in self.properties:
                out.map(_present(name=each.name, type=int(each.type), unit=each.unit, desc=each.desc))
            return out.encoded
        for members in (self.properties, self.statistics, self.methods):
            out.number(len(members), 2)
        for each in self.properties:
            out.map(
                _present(
                    name=each.name, type=int(each.type), access=1, index=int(each.index), optional=int(each.optional),
                    unit=each.unit, desc=each.desc,
                    refPackage=self.package if each.reference else "", refClass=each.reference.lower(),
                )
            )  # fmt: skip
        for statistic in self.statistics:
            named = {"name": statistic.name, "type": int(statistic.type)}
            out.map(_present(**named, unit=statistic.unit, desc=statistic.desc))
        for method in self.methods:
            out.map(_present(name=method.name, argCount=len(method.arguments), desc=method.desc))
            for argument in method.arguments:
                named = {"name": argument.name, "type": int(argument.type), "dir": argument.dir}
                default = {} if argument.default is None else {"default": argument.default}
                out.map(_present(**named, unit=BYTES if argument.binary else "", desc=argument.desc) | default)
        return out.encoded


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != ""}


# -- version 1's messages --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SchemaRequest:
    """A console asks for a class."""

    sequence: int
    package: str
    class_name: str
    hash: uuid.UUID

    def encode(self) -> bytes:
        out = Writer()
        out.raw(REQUEST + self.sequence.to_bytes(4, "big"))
        out.str8(self.package)
        out.str8(self.class_name)
        out.raw(self.hash.bytes)
        return out.encoded

    @classmethod
    def decode(cls, data: bytes) -> SchemaRequest:
        """Raises BadEncoding."""
        reader = Reader(data)
        if reader.take(4) != REQUEST:
            raise BadEncoding(f"{data[:4]!r} is no request for a schema ({REQUEST!r}), the only binary one answered")
        return cls(reader.number(4), reader.str8(), reader.str8(), uuid.UUID(bytes=reader.take(16)))


def refusal(sequence: int, code: int, text: str) -> bytes:
    """Version 1's "command complete" with an error, for a schema that there is not."""
    out = Writer()
    out.raw(COMPLETE + sequence.to_bytes(4, "big"))
    out.number(code, 4)
    out.str8(text[:60])
    return out.encoded


def decode_answer(data: bytes) -> tuple[int, SchemaClass | None]:
    """A request's sequence number and the class asked for, None if it was refused. Raises BadEncoding."""
    reader = Reader(data)
    kind, sequence = reader.take(4), reader.number(4)
    if kind == COMPLETE:
        return sequence, None
    if kind != ANSWER:
        raise BadEncoding(f"{kind!r} is no schema")
    try:
        return sequence, _decode_class(reader)
    except (KeyError, ValueError, TypeError) as error:
        raise BadEncoding(f"schema: {error}") from None


def _decode_class(reader: Reader) -> SchemaClass:
    kind = Kind(reader.number(1))
    package, name, digest = reader.str8(), reader.str8(), uuid.UUID(bytes=reader.take(16))
    if kind is Kind.EVENT:
        arguments = tuple(_property(reader.map()) for _ in range(reader.number(2)))
        return SchemaClass(package, name, arguments, kind=kind, hash=digest)
    counts = [reader.number(2) for _ in range(3)]
    return SchemaClass(
        package, name,
        tuple(_property(reader.map()) for _ in range(counts[0])),
        tuple(_statistic(reader.map()) for _ in range(counts[1])),
        tuple(_method(reader) for _ in range(counts[2])),
        kind, digest,
    )  # fmt: skip


def _property(values: dict[str, Any]) -> Property:
    return Property(
        str(values["name"]), Type(values["type"]), str(values.get("desc", "")), str(values.get("unit", "")),
        bool(values.get("index")), bool(values.get("optional")), str(values.get("refClass", "")),
    )  # fmt: skip


def _statistic(values: dict[str, Any]) -> Statistic:
    return Statistic(
        str(values["name"]), Type(values["type"]), str(values.get("desc", "")), str(values.get("unit", ""))
    )


def _method(reader: Reader) -> Method:
    values = reader.map()
    arguments = tuple(_argument(reader.map()) for _ in range(int(values["argCount"])))
    return Method(str(values["name"]), arguments, str(values.get("desc", "")))


def _argument(values: dict[str, Any]) -> Argument:
    return Argument(
        str(values["name"]), Type(values["type"]), str(values["dir"]).upper(), str(values.get("desc", "")),
        values.get("default"), values.get("unit") == BYTES,
    )  # fmt: skip
