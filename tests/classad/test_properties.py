"""Properties over random expressions, literals and text."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from carod.classad import ERROR, UNDEFINED, ClassAd, ClassAdSyntaxError, Expr, parse, parse_value, unparse
from carod.classad.expr import Literal
from carod.classad.parser import _parse
from tests.classad.oracle import NO_UTF8, comparable, ours, theirs

# The same examples in every run: a failure must be the commit's, not the day's.
settings.register_profile("classad", deadline=None, derandomize=True, max_examples=300)
settings.load_profile("classad")

INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-5, 70)
REALS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12)
SCALARS = st.one_of(INTEGERS, REALS, TEXTS, st.booleans(), st.sampled_from([UNDEFINED, ERROR]))
# ASCII only: cut in the middle, UTF-8 is no text to HTCondor's Python module.
SOURCES = st.one_of(
    INTEGERS.map(unparse),
    REALS.map(unparse),
    st.text("aAbB ,.@\\\"'\n", max_size=6).map(unparse),
    st.sampled_from(["true", "false", "undefined", "error", "a", "b", "MY.a", "TARGET.b", "nope", "s", "l", "n.a"]),
)
BINARY = "+ - * / % & | ^ << >> >>> < <= > >= == != =?= =!= is isnt && ||".split()
FUNCTIONS = {
    1: "int real string bool floor ceiling round size sum avg min max toUpper toLower isUndefined isError isString "
    "eval interval stringListSize stringListSum stringListMax envV1ToV2".split(),
    2: "strcat join substr strcmp stricmp versionLE pow quantize member identicalMember "
    "stringListMember stringListSubsetMatch stringListsIntersect evalInEachContext countMatches".split(),
    3: "ifThenElse strcat join substr anyCompare version_in_range stringListIMember".split(),
}


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    calls = [
        st.builds(lambda name, args: f"{name}({', '.join(args)})", st.sampled_from(names), st.tuples(*[inner] * count))
        for count, names in FUNCTIONS.items()
    ]
    return st.one_of(
        st.builds(lambda left, symbol, right: f"{left} {symbol} {right}", inner, st.sampled_from(BINARY), inner),
        st.builds(lambda symbol, operand: f"{symbol}{operand}", st.sampled_from("-+!~"), inner),
        st.builds("({})".format, inner),
        st.builds("({}) ? ({}) : ({})".format, inner, inner, inner),
        st.builds("{} ?: ({})".format, inner, inner),
        st.lists(inner, max_size=3).map(lambda items: "{" + ", ".join(items) + "}"),
        st.builds("[c = {}; d = {}]".format, inner, inner),
        st.builds("({})[{}]".format, inner, inner),
        st.builds("({}).{}".format, inner, st.sampled_from("abc")),
        *calls,
    )


# HTCondor's module crashes on ".name" of a list that a function made and on some attributes that need themselves:
# so no functions here that make lists, and no reference to the attributes of a random ad.
EXPRESSIONS = st.recursive(SOURCES, _grow, max_leaves=12)
MINE = '[a = 3; b = a + TARGET.b; s = "Str"; l = {1, 2.5, "x", a}; n = [a = 7; b = a]]'
OTHER = '[b = 4; a = "other"; l = {MY.b}; s = MY.a]'


def _shape(value: Any) -> Any:
    """HTCondor's module hands out lists and ads unevaluated and without their scope: only their size is known."""
    if isinstance(value, dict):
        return sorted(value)
    return len(value) if isinstance(value, list) else value


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    return type(left) is type(right) and left == right


@given(EXPRESSIONS)
@settings(max_examples=1500)
def test_a_random_expression_has_htcondors_value(text: str) -> None:
    expected = theirs(text, MINE, OTHER)
    if expected != NO_UTF8:
        assert _shape(ours(text, MINE, OTHER)) == _shape(expected)


@given(EXPRESSIONS)
@settings(max_examples=500)
def test_an_expressions_text_parses_to_the_same_tree(text: str) -> None:
    tree = parse(text)
    again = parse(str(tree))
    assert again == tree
    assert str(again) == str(tree)
    assert comparable(again.evaluate(ClassAd.parse(MINE))) == comparable(tree.evaluate(ClassAd.parse(MINE)))


@given(EXPRESSIONS)
def test_htcondor_reads_our_text_of_an_expression_as_the_same(text: str) -> None:
    expected = theirs(text, MINE, OTHER)
    if expected != NO_UTF8:
        assert _shape(theirs(str(parse(text)), MINE, OTHER)) == _shape(expected)


@given(SCALARS)
def test_a_literal_reads_back_as_itself_by_header_path_and_by_grammar(value: Any) -> None:
    text = unparse(value)
    assert _same(parse_value(text), value)
    by_grammar = _parse(f" {text}")
    assert isinstance(by_grammar, Literal)
    assert _same(by_grammar.value, value)


@given(SCALARS)
def test_htcondor_reads_our_text_of_a_literal_as_the_same_value(value: Any) -> None:
    assert theirs(unparse(value)) == comparable(value)


LITERALS = st.text("0123456789.eE+-\"'\\ntrufalsdiTx \t", max_size=10) | st.from_regex(
    r'-?[0-9]*\.?[0-9]*([eE][+-]?[0-9]*)?|"(\\.|[a-z])*"| *(true|FALSE|Undefined|error) *', fullmatch=True
)


@given(LITERALS)
@settings(max_examples=2000)
def test_the_header_path_agrees_with_the_grammar(text: str) -> None:
    try:
        expected: Any = _parse(text)
    except ClassAdSyntaxError:
        expected = ClassAdSyntaxError
    try:
        value: Any = parse_value(text)
    except ClassAdSyntaxError:
        value = ClassAdSyntaxError
    if isinstance(expected, Literal):
        assert _same(value, expected.value)
    else:
        assert value == expected


@given(st.text(max_size=60) | st.text("()[]{}=?:!<>&|+-*/%~^.,;\"'\\ aisnt01e\n", max_size=60))
@settings(max_examples=2000)
def test_any_text_is_an_expression_or_a_syntax_error(text: str) -> None:
    try:
        tree = parse(text)
    except ClassAdSyntaxError as error:
        assert error.text == text
        assert 1 <= error.line <= text.count("\n") + 1
        assert 1 <= error.column <= len(text) + 1
    else:
        assert isinstance(tree, Expr)
        tree.evaluate(ClassAd.parse(MINE))
        assert parse(str(tree)) == tree


@given(st.text(max_size=80) | st.text("ab=[]\"';\\\n# 1", max_size=80))
@settings(max_examples=1000)
def test_any_text_is_an_ad_or_a_syntax_error(text: str) -> None:
    try:
        ad = ClassAd.parse(text)
    except ClassAdSyntaxError:
        return
    assert ClassAd.parse(str(ad)) == ad


@given(st.dictionaries(st.text(min_size=1, max_size=6).filter(lambda name: "\0" not in name), SCALARS, max_size=5))
def test_an_ad_of_any_names_and_values_survives_its_text(values: dict[str, Any]) -> None:
    ad = ClassAd(values)
    again = ClassAd.parse(str(ad))
    assert list(again) == list(ad)
    assert all(_same(again[name], ad[name]) for name in ad)


PATTERNS = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\w", r"\d", "x", " "]),
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("({})".format, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{1,2}", "*?", "++"])),
        st.builds("{}|{}".format, inner, inner),
    ),
    max_leaves=6,
)


ANCHORED = st.builds("{}{}{}".format, st.sampled_from(["", "^"]), PATTERNS, st.sampled_from(["", "$", r"\b"]))


@given(ANCHORED, st.text("abx 1\n", max_size=8), st.sampled_from(["", "i", "m", "s", "x", "im"]))
@settings(max_examples=500)
def test_a_regular_expression_matches_what_htcondors_matches(pattern: str, text: str, options: str) -> None:
    call = f"({unparse(pattern)}, {unparse(text)}, {unparse(options)})"
    assert ours("regexp" + call) == theirs("regexp" + call)
    call = f"({unparse(pattern)}, {unparse(text)}, {unparse('<' + chr(92) + '0>')}, {unparse(options)})"
    for function in ("regexps", "replace", "replaceAll"):
        assert ours(function + call) == theirs(function + call)
