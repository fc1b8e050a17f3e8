"""What consoles ask for: queries and methods, checked against the schema and handed to the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from carod.qmf import (
    Argument,
    BadPredicate,
    Content,
    Kind,
    Method,
    Opcode,
    SchemaClass,
    TooLong,
    Type,
    schema_id,
    split_object_name,
)
from carod.qmf.predicate import split
from qmf_agent.model import Code, ManagedObject, MethodError, Model
from qmf_agent.schema import DEFAULT_PACKAGE, SCHEMA
from qmf_agent.wire import Mapper, parts

logger = logging.getLogger("carod.qmf")

MAX_TEXT = 2_000
"""The most characters of an error's text."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One message of an answer; `partial` if more follow."""

    opcode: Opcode
    body: list[Any] | dict[str, Any]
    content: Content | None = None
    partial: bool = False


def refusal(code: int, text: str) -> Answer:
    """The answer that says why not."""
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + "..."
    text = text.encode("utf-8", "replace").decode()
    return Answer(Opcode.EXCEPTION, {"_values": {"error_code": int(code), "error_text": text}})


class Requests:
    """Answers requests; knows nothing of messages, only of their bodies."""

    def __init__(self, model: Model, agent: str) -> None:
        self._model, self._agent = model, agent
        self._turn = asyncio.Lock()

    async def answer(self, opcode: str, body: Any, user: str | None) -> AsyncGenerator[Answer, None]:
        """The messages that answer a request, at least one. Raises nothing."""
        try:
            match opcode:
                case Opcode.QUERY_REQUEST:
                    async with aclosing(self._query(_map(body, "a query"))) as answers:
                        async for each in answers:
                            yield each
                case Opcode.METHOD_REQUEST:
                    yield await self._method(_map(body, "a method request"), user)
                case _:
                    known = f"{Opcode.QUERY_REQUEST} and {Opcode.METHOD_REQUEST}"
                    raise MethodError(Code.BAD_VALUE, f"qmf.opcode {opcode[:60]!r} is unknown; {known} are answered")
        except MethodError as error:
            yield refusal(error.code, error.text)
        except BadPredicate as error:
            yield refusal(Code.BAD_VALUE, str(error))
        except TooLong as error:
            yield refusal(Code.FAILED, f"the answer does not fit a QMF message: {error}")
        except Exception as error:  # a defect must cost its request, not the agent
            logger.exception("request failed", extra={"fields": {"opcode": opcode}})
            yield refusal(Code.FAILED, f"the agent failed at this request ({type(error).__name__}); its log says how")

    # -- queries -----------------------------------------------------------------------------------------------

    async def _query(self, query: Mapping[str, Any]) -> AsyncGenerator[Answer, None]:
        match query.get("_what"):
            case "SCHEMA_ID":
                yield Answer(Opcode.QUERY_RESPONSE, _schema_ids(), Content.SCHEMA_ID)
                return
            case "OBJECT" if "_object_id" in query:
                pages = self._by_id(_map(query["_object_id"], "_object_id"))
            case "OBJECT":
                pages = self._by_class(_map(query.get("_schema_id", {}), "_schema_id"), query.get("_where"))
            case what:
                raise MethodError(Code.BAD_VALUE, f"_what: {str(what)[:60]!r}: it is OBJECT or SCHEMA_ID")
        held: list[Any] | None = None
        await self._turn_over()
        async with aclosing(pages):
            async for page in pages:
                for part in parts(page):
                    if held is not None:
                        yield Answer(Opcode.QUERY_RESPONSE, held, Content.DATA, partial=True)
                        await self._turn_over()
                    held = part
        yield Answer(Opcode.QUERY_RESPONSE, held or [], Content.DATA)

    async def _turn_over(self) -> None:
        """Let the event loop turn before the next part, and only one of many queries work in each turn.

        A locate has 20 ms to be answered in, however many long answers are being made.
        """
        async with self._turn:
            await asyncio.sleep(0)

    async def _by_id(self, wanted: Mapping[str, Any]) -> AsyncGenerator[Iterable[dict[str, Any]], None]:
        schema, name = self._named(wanted)
        if schema is not None and (found := await self._model.find(schema.name, name)) is not None:
            yield [Mapper(self._agent, schema.package).object(schema, found)]

    async def _by_class(self, wanted: Mapping[str, Any], where: Any) -> AsyncGenerator[Iterable[dict[str, Any]], None]:
        class_name = _text(wanted.get("_class_name"), "_schema_id: _class_name")
        package = _text(wanted.get("_package_name", DEFAULT_PACKAGE), "_schema_id: _package_name")
        equal, rest = split(where) if where else ({}, None)
        schema = SCHEMA.get((package, class_name.lower()))
        if schema is None or schema.kind is not Kind.DATA:
            return
        mapper = Mapper(self._agent, package)
        async with aclosing(_pages(self._model.objects(schema.name, equal or None))) as pages:
            async for page in pages:
                meant = page if rest is None else [each for each in page if rest(each.values)]
                yield (mapper.object(schema, each) for each in meant)

    def _named(self, object_id: Mapping[str, Any]) -> tuple[SchemaClass | None, str]:
        """Schema and name of the object that an id names; None if it is no object of this agent."""
        text = _text(object_id.get("_object_name"), "_object_id: _object_name")
        package, class_name, name = split_object_name(text)
        ours = object_id.get("_agent_name") in (None, self._agent)
        return SCHEMA.get((package, class_name.lower())) if ours else None, name

    # -- methods -----------------------------------------------------------------------------------------------

    async def _method(self, request: Mapping[str, Any], user: str | None) -> Answer:
        object_id = _map(request.get("_object_id"), "_object_id")
        schema, name = self._named(object_id)
        if schema is None:
            shown = str(object_id.get("_object_name"))[:80]
            raise MethodError(Code.UNKNOWN_OBJECT, f"agent {self._agent} has no object {shown!r}")
        method = _method_of(schema, _text(request.get("_method_name"), "_method_name"))
        arguments = _arguments(method, _map(request.get("_arguments", {}), "_arguments"))
        out = await self._model.call(schema.name, name, method.name, arguments, user)
        return Answer(Opcode.METHOD_RESPONSE, {"_arguments": Mapper(self._agent, schema.package).value(out)})


def _schema_ids() -> list[dict[str, Any]]:
    return [
        schema_id(package, name, _type="_data" if each.kind is Kind.DATA else "_event", _hash=each.hash)
        for (package, name), each in SCHEMA.items()
    ]


async def _pages(objects: AsyncIterator[list[ManagedObject]]) -> AsyncGenerator[list[ManagedObject], None]:
    """A model may hand out its pages by any iterator; one that can be closed is, also when nobody reads on."""
    try:
        async for page in objects:
            yield page
    finally:
        close = getattr(objects, "aclose", None)
        if close is not None:
            await close()


def _map(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MethodError(Code.BAD_VALUE, f"{what} is a map, not {_shown(value)}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise MethodError(Code.BAD_VALUE, f"{what} is a string, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return "absent" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"


def _method_of(schema: SchemaClass, name: str) -> Method:
    for method in schema.methods:
        if method.name == name:
            return method
    known = ", ".join(method.name for method in schema.methods) or "none"
    raise MethodError(Code.UNKNOWN_METHOD, f"{schema.name} has no method {name[:60]!r}; it has {known}")


def _arguments(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """The in arguments, with defaults for those left out. Raises MethodError for a missing, odd or unknown one."""
    arguments = {}
    for argument in method.inputs:
        value = given.get(argument.name)
        if value is None:
            if argument.default is None:
                raise MethodError(Code.BAD_VALUE, f"{method.name}: argument {argument.name} is missing")
            value = argument.default
        arguments[argument.name] = _checked(method, argument, value)
    unknown = given.keys() - arguments.keys() - {argument.name for argument in method.arguments}
    if unknown:
        known = ", ".join(argument.name for argument in method.inputs) or "none"
        odd = ", ".join(sorted(unknown))[:80]
        raise MethodError(Code.BAD_VALUE, f"{method.name} has no argument {odd}; it takes {known}")
    return arguments


_INTEGERS = frozenset((Type.U8, Type.U16, Type.U32, Type.U64, Type.S8, Type.S16, Type.S32, Type.S64))
_UNSIGNED = frozenset((Type.U8, Type.U16, Type.U32, Type.U64))


def _checked(method: Method, argument: Argument, value: Any) -> Any:
    if argument.binary:
        wanted = "bytes"
        if isinstance(value, str):
            return value.encode()
        fits = isinstance(value, bytes)
    elif argument.type in (Type.SSTR, Type.LSTR):
        wanted, fits = "a string", isinstance(value, str)
        if fits and argument.type is Type.SSTR and len(value.encode()) > 255:
            raise MethodError(Code.BAD_VALUE, f"{method.name}: {argument.name} has more than 255 bytes: {value[:40]!r}")
    elif argument.type in _INTEGERS:
        wanted, fits = "an integer", isinstance(value, int) and not isinstance(value, bool)
        if fits and argument.type in _UNSIGNED and value < 0:
            wanted, fits = "an integer from 0 on", False
    elif argument.type is Type.MAP:
        wanted, fits = "a map", isinstance(value, dict)
    elif argument.type is Type.LIST:
        wanted, fits = "a list", isinstance(value, list)
    else:
        wanted, fits = "something else", True
    if not fits:
        raise MethodError(Code.BAD_VALUE, f"{method.name}: {argument.name} is {wanted}, not {_shown(value)}")
    return value
