"""Job ads as consoles send and get them, and what may stand in them.

An ad is kept as what goes on the wire (docs/reference/wire-contract.md, section 2): attribute names with numbers,
booleans, and for all else ClassAd source text. Two forms of ad are accepted:

    {"Cmd": {"TYPE": 3, "VALUE": "/bin/sleep"}, ...}        0 expression, 1 integer, 2 float, 3 string
    {"Cmd": "/bin/sleep", "!!descriptors": {"Requirements": "com.redhat.grid.Expression"}, ...}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from carod.amqp import HeaderValue
from carod.classad import ClassAd, ClassAdSyntaxError, Expr, parse_value, unparse
from carod.job import MAX_INTEGER, NODE_ATTRIBUTES, STRING_ATTRIBUTES, wire_headers
from qmf_agent.model import Code, MethodError

Ad = dict[str, HeaderValue]

DESCRIPTORS = "!!descriptors"
EXPRESSION = "com.redhat.grid.Expression"
MAX_AD = 60_000
"""The most bytes of an ad: on the way it shares one frame of 131,072 with what a node adds to it."""
MAX_TEXT = 32_000
"""The most characters of one attribute; a console gets it back in a string of at most 65,535 bytes."""
MAX_NAME = 255

PROTECTED = NODE_ATTRIBUTES | frozenset(
    """clusterid procid owner user globaljobid customid qdate jobstatus lastjobstatus enteredcurrentstatus numjobstarts
    jobstartdate submission submitkey mytype targettype wf_req_slot amqpid jobinputsize resultsize""".split()
)
"""Attributes that are the agent's or the node's to set, in lower case (HTCondor manual, PROTECTED_JOB_ATTRS)."""
GIVEN_ONCE = frozenset(("owner", "submission", "submitkey"))
"""Those of PROTECTED that a submitter gives; of the others its own are dropped, as an ad read from a queue has them."""
BOOLEANS = ("requirements", "periodichold", "periodicremove", "periodicrelease", "onexithold", "onexitremove")
INTEGERS = ("jobprio", "jobuniverse", "requestcpus", "requestmemory", "requestdisk", "maxjobstarts")


def read_ad(given: object) -> Ad:
    """The ad in a method's argument. Raises MethodError naming the attribute that can't be read."""
    if isinstance(given, str | bytes):
        return _checked_size(_read_source(_text("Ad", given)))
    if not isinstance(given, Mapping):
        raise _bad(f"Ad: a map of attributes is needed, not {type(given).__name__}")
    descriptors = given.get(DESCRIPTORS, {})
    if not isinstance(descriptors, Mapping):
        raise _bad(f"Ad: {DESCRIPTORS} is a map of attribute names to types, not {type(descriptors).__name__}")
    kinds = {str(name).lower(): str(kind).rpartition(".")[2].lower() for name, kind in descriptors.items()}
    ad = ClassAd()
    for key, value in given.items():
        name = _name(key)
        if name == DESCRIPTORS:
            continue
        if isinstance(value, Mapping):
            ad[name] = _typed(name, value)
        else:
            ad[name] = _plain(name, value, kinds.get(name.lower()) == "expression")
    return _checked_size(wire_headers(ad))


def read_value(name: str, given: object) -> HeaderValue:
    """The value that SetJobAttribute is to set: a number, a boolean, or ClassAd source text.

    Attributes that are strings by definition take bare text, too. Raises MethodError.
    """
    if isinstance(given, bool | int | float):
        return wire_headers({name: _plain(name, given, False)})[name]
    text = _text(name, given)
    if name.lower() in STRING_ATTRIBUTES:
        try:
            value = parse_value(text)
        except ClassAdSyntaxError:
            value = text
        if not isinstance(value, str | Expr) or text.isidentifier():
            value = text
    else:
        value = _expression(name, text)
    _check_kind(name, value)
    return wire_headers({name: value})[name]


def check_ad(ad: Ad) -> None:
    """What a job can't do without, or with. Raises MethodError."""
    names = {name.lower(): name for name in ad}
    for name in ("Cmd",):
        if name.lower() not in names:
            raise _bad(f"{name} is missing: the ad of a job names the program that it runs")
    for lower in (*BOOLEANS, *INTEGERS):
        if lower in names:
            value = ad[names[lower]]
            _check_kind(names[lower], parse_value(value) if isinstance(value, str) else value)
    universe = ad.get(names.get("jobuniverse", ""), 5)
    if universe not in (5, 12):
        raise _bad(f"JobUniverse {universe!s:.40} is not run here: 5 (vanilla) and 12 (local) are")


def shown_ad(ad: Mapping[str, HeaderValue]) -> dict[str, Any]:
    """An ad as GetAd answers it: values, and the names of expressions in `!!descriptors`."""
    shown: dict[str, Any] = {}
    expressions = {}
    for name, value in ad.items():
        shown[name], is_expression = show(value)
        if is_expression:
            expressions[name] = EXPRESSION
    if expressions:
        shown[DESCRIPTORS] = expressions
    return shown


def show(value: HeaderValue) -> tuple[Any, bool]:
    """A kept value as a console sees it: a string without its quotes, an expression as its source (and True)."""
    if not isinstance(value, str):
        return value, False
    if value[:1] == '"':
        parsed = parse_value(value)
        if isinstance(parsed, str):
            return parsed, False
    return value, True


def text_of(ad: Mapping[str, HeaderValue], name: str) -> str | None:
    """A string attribute's value; None if it is missing or no string literal."""
    value = ad.get(name)
    return show(value)[0] if isinstance(value, str) and value[:1] == '"' else None


def quoted(text: str) -> str:
    """A string as it is kept: ClassAd source."""
    return unparse(text)


# -- reading -----------------------------------------------------------------------------------------------------


def _read_source(text: str) -> Ad:
    try:
        return wire_headers(ClassAd.parse(text))
    except ClassAdSyntaxError as error:
        raise _bad(f"Ad: {error}") from None


def _typed(name: str, value: Mapping[Any, Any]) -> Any:
    """The seed's form of a value: {TYPE, VALUE}."""
    if not {"TYPE", "VALUE"} <= value.keys():
        raise _bad(
            f"{name}: a value is {{TYPE: 0..3, VALUE: text}} or the value itself, not a map of {list(value)!s:.60}"
        )
    text = _text(name, value["VALUE"]) if isinstance(value["VALUE"], str | bytes) else str(value["VALUE"])
    kind = value["TYPE"]
    read = _TYPES.get(int(kind)) if str(kind).isdecimal() else None
    if read is None:
        raise _bad(f"{name}: TYPE {kind!s:.40} is none of 0 (expression), 1 (integer), 2 (float), 3 (string)")
    return read(name, text)


def _integer(name: str, text: str) -> int:
    try:
        return _in_range(name, int(text))
    except ValueError:
        raise _bad(f"{name}: {text[:40]!r} is no integer") from None


def _float(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _bad(f"{name}: {text[:40]!r} is no number") from None


def _string(_: str, text: str) -> str:
    return text


def _expression(name: str, text: str) -> Any:
    try:
        return parse_value(text)
    except ClassAdSyntaxError as error:
        raise _bad(f"{name}: {error}; a string needs its quotes in an expression") from None


_TYPES: dict[int, Callable[[str, str], Any]] = {0: _expression, 1: _integer, 2: _float, 3: _string}


def _plain(name: str, value: object, is_expression: bool) -> Any:
    match value:
        case bool() | float() | None:
            return value
        case int():
            return _in_range(name, value)
        case str() | bytes():
            text = _text(name, value)
            return _expression(name, text) if is_expression else text
        case list() | tuple():
            return [_plain(name, item, False) for item in value]
    raise _bad(f"{name}: {type(value).__name__} is no type of a ClassAd value")


def _in_range(name: str, value: int) -> int:
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise _bad(f"{name}: {value!s:.40} is beyond a ClassAd's integers, which end at {MAX_INTEGER}")
    return value


def _text(name: str, value: object) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise _bad(f"{name}: {value!r:.60} is no UTF-8 text") from None
    if not isinstance(text, str):
        raise _bad(f"{name}: text, a number or a boolean is needed, not {type(value).__name__}")
    if len(text) > MAX_TEXT:
        raise _bad(
            f"{name}: {len(text)} characters; an attribute has at most {MAX_TEXT}, files go into the job's input"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _bad(f"{name}: {text[:40]!r} is no text that could be sent as UTF-8") from None
    return text


def _name(key: object) -> str:
    name = _text("an attribute's name", key)
    if name == DESCRIPTORS:
        return name
    if not name or len(name.encode()) > MAX_NAME or not name.isprintable():
        raise _bad(f"{name[:60]!r} can't be an attribute's name: 1 to {MAX_NAME} printable characters")
    if name.startswith("x-") or name in ("CC", "BCC"):
        raise _bad(f"{name[:60]!r} can't be an attribute's name: brokers read it")
    return name


def check_name(key: object) -> str:
    """The name of an attribute that a user wants to set. Raises MethodError, also if it is protected."""
    name = _name(key)
    if name.lower() in PROTECTED or name == DESCRIPTORS:
        raise MethodError(Code.PROTECTED, f"attribute {name} is the agent's or a node's to set, as in HTCondor")
    return name


def _check_kind(name: str, value: object) -> None:
    """Conditions are no strings, counts are integers; an expression may become either."""
    lower = name.lower()
    if isinstance(value, Expr):
        return
    if lower in BOOLEANS and not isinstance(value, bool | int | float):
        raise _bad(f"{name}: {unparse(value)[:60]} is no condition; TRUE, FALSE or an expression is needed")  # type: ignore
    if lower in INTEGERS and (isinstance(value, bool) or not isinstance(value, int)):
        raise _bad(f"{name}: {unparse(value)[:60]} is no integer")  # type: ignore[arg-type]


def _checked_size(ad: Ad) -> Ad:
    size = sum(len(name) + (len(value.encode()) if isinstance(value, str) else 9) for name, value in ad.items())
    if size > MAX_AD:
        raise _bad(f"Ad: about {size} bytes; an ad has at most {MAX_AD}, files go into the job's input")
    return ad


def _bad(text: str) -> MethodError:
    return MethodError(Code.BAD_VALUE, text)
