"""Text in and out: errors that help, literals, old and new style, times."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from carod.classad import ERROR, UNDEFINED, ClassAd, ClassAdSyntaxError, Expr, parse, parse_value, unparse
from tests.classad.oracle import classad2, comparable, theirs

ERRORS = {
    "Memory > 10)": "unexpected ')' at column 12 of 'Memory > 10)'",
    "Memory >": "unexpected end at column 9 of 'Memory >'",
    "": "unexpected end at column 1 of ''",
    "a b": "unexpected 'b' at column 3 of 'a b'",
    "5 MB": "unexpected 'MB' at column 3 of '5 MB'",
    "5MB": "unexpected '5MB' at column 1 of '5MB'",
    '"open': """no closing " at column 1 of '"open'""",
    "a +\n  * b": "unexpected '*' at line 2, column 3 of '  * b'",
    "a = 1": "unexpected '=' at column 3 of 'a = 1'",
    "a && && b": "unexpected '&&' at column 6 of 'a && && b'",
    "#": "unexpected '#' at column 1 of '#'",
    "99999999999999999999": "an integer that does not fit in 64 bits (write it as a real) at column 1",
    "a == 99999999999999999999": "an integer that does not fit in 64 bits (write it as a real) at column 6",
    'absTime("soon")': "'soon' is no time like 2020-01-31T09:00:00-06:00 at column 1",
    'a < relTime("x")': "'x' is no time like 1+02:03:04 at column 5",
    r'"a\0b"': "a NUL character in a string at column 1",
    "x" * 100 + " ) " + "y" * 100: "unexpected ')' at column 102 of '..." + "x" * 39 + " ) " + "y" * 18 + "...'",
}


@pytest.mark.parametrize("text", ERRORS)
def test_a_syntax_error_names_what_where_and_the_text(text: str) -> None:
    with pytest.raises(ClassAdSyntaxError) as caught:
        parse(text)
    assert str(caught.value).startswith(ERRORS[text])
    assert isinstance(caught.value, ValueError)
    assert caught.value.text == text
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.line, again.column) == (str(caught.value), caught.value.line, caught.value.column)


def test_an_error_in_an_old_style_line_has_the_place_in_the_whole_text() -> None:
    with pytest.raises(ClassAdSyntaxError) as caught:
        ClassAd.parse("A = 1\nB = (2 + 3\nC = 4\n")
    assert (caught.value.line, caught.value.column) == (2, 11)


LITERALS: list[tuple[str, Any]] = [
    ("5", 5),
    (" -5 ", -5),
    ("2.5", 2.5),
    (".5e1", 5.0),
    ("1E+16", 1e16),
    ("TRUE", True),
    ("False", False),
    ("Undefined", UNDEFINED),
    ("ERROR", ERROR),
    ('"a \\"b\\" \\n\\101"', 'a "b" \nA'),
    ('"caf\\303\\251"', "café"),
    ('"a" "b"', "ab"),
    ('absTime("2020-01-31T09:00:00-06:00")', datetime(2020, 1, 31, 15, tzinfo=UTC)),
    ('relTime("1+02:03:04.5")', timedelta(days=1, hours=2, minutes=3, seconds=4.5)),
]


@pytest.mark.parametrize(("text", "value"), LITERALS)
def test_a_literal_is_pythons_own_value(text: str, value: Any) -> None:
    read = parse_value(text)
    assert type(read) is type(value)
    assert read == value
    assert parse(text).evaluate() == value


WRITTEN: list[tuple[Any, str]] = [
    (5, "5"),
    (True, "true"),
    (2.0, "2.0"),
    (1e16, "1E+16"),
    (0.1, "0.1"),
    (float("inf"), 'real("INF")'),
    ('say "x"\\\n\t\x01é', '"say \\"x\\"\\\\\\n\\t\\001é"'),
    ([1, "a", [True]], '{ 1, "a", { true } }'),
    (ClassAd({"a": 1, "b c": ClassAd()}), "[ a = 1; 'b c' = [  ] ]"),
    (UNDEFINED, "undefined"),
    (datetime(2020, 1, 31, 9, tzinfo=timezone(timedelta(hours=-6))), 'absTime("2020-01-31T09:00:00-06:00")'),
    (timedelta(days=-1, seconds=5), 'relTime("-23:59:55")'),
    (timedelta(seconds=93784.25), 'relTime("1+02:03:04.25")'),
    (parse("a=?=1?b.c[2]:{f( -x )}"), "a =?= 1 ? b.c[2] : { f(-x) }"),
]


@pytest.mark.parametrize(("value", "text"), WRITTEN)
def test_a_value_is_written_as_source_that_reads_back(value: Any, text: str) -> None:
    assert unparse(value) == text
    assert unparse(parse(text).evaluate()) == text or isinstance(value, Expr)
    if not isinstance(value, Expr | timedelta):
        assert theirs(text) == comparable(value)


def test_what_is_no_value_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="object is no ClassAd value"):
        unparse(object())  # type: ignore[arg-type]


OLD_STYLE = r"""
# a comment
MyType = "Job"
Cmd = "C:\temp\run.exe"
Dir = "C:\temp\"
Say = "a \"b\""
Requirements = (TARGET.OpSys == "LINUX") && isUndefined(x)

'odd name' = { 1, 2.5 }
Nested = [ a = 1; b = "x" ]
true = 1.0
"""


def test_old_style_text_is_read_as_htcondor_reads_it() -> None:
    text = OLD_STYLE.replace("'odd name'", "odd_name").replace("\ntrue =", "\nfoo =")
    ours = ClassAd.parse(text)
    expected = classad2._parseOne(text, classad2.Parser.Old) if hasattr(classad2, "_parseOne") else None
    assert ours["Cmd"] == "C:\\temp\\run.exe"
    assert ours["Dir"] == "C:\\temp\\"
    assert ours["Say"] == 'a "b"'
    if expected is not None:
        for name in ours:
            assert comparable(ours.evaluate(name)) == theirs(name, repr(expected))


def test_old_style_text_survives_writing_and_reading() -> None:
    text = OLD_STYLE.replace("\ntrue =", "\n'true' =")
    ad = ClassAd.parse(text)
    again = ClassAd.parse(ad.to_text())
    assert again == ad
    assert list(again) == list(ad)
    assert again.to_text() == ad.to_text()
    assert 'Cmd = "C:\\temp\\run.exe"\n' in ad.to_text()


def test_htcondor_reads_our_old_style_text_as_the_same_ad() -> None:
    ad = ClassAd(
        {"a": 1, "r": 0.1, "s": 'x\\y "z" é', "l": [1, "b"], "e": parse("a =?= b && !c"), "n": ClassAd({"k": 2})}
    )
    from classad2._class_ad import _parseOne
    from classad2._parser_type import ParserType

    theirs_ad = _parseOne(ad.to_text(), ParserType.Old)
    assert comparable(ClassAd.parse(repr(theirs_ad)).evaluate("s")) == ("str", 'x\\y "z" é')
    assert ClassAd.parse(repr(theirs_ad)) == ClassAd.parse(str(ad))


def test_a_line_end_in_a_string_is_a_space_in_old_style() -> None:
    assert ClassAd({"a": "x\ny\r\nz"}).to_text() == 'a = "x y z"\n'


@pytest.mark.parametrize(
    "text", ["A\n", "A = \n", "= 1\n", "1A = 1\n", "A == 1\n", "A = 1; B = 2\n", "[a = 1", "[a = 1].a"]
)
def test_text_that_is_no_ad_is_refused(text: str) -> None:
    with pytest.raises(ClassAdSyntaxError):
        ClassAd.parse(text)


@pytest.mark.parametrize("text", ["[]", "[a = 1]", "[a = 1;]", "[;a = 1;; b = 2]", " /* c */ [a = 1] // d", "", "\n"])
def test_an_ad_may_have_stray_semicolons_comments_or_nothing(text: str) -> None:
    assert ClassAd.parse(text) == ClassAd.parse(str(ClassAd.parse(text)))


def test_expressions_and_ads_survive_copy_and_pickle() -> None:
    ad = ClassAd.parse("[a = 1; e = a + TARGET.b; u = undefined; n = [x = {1, y}]]")
    for again in (copy.copy(ad), copy.deepcopy(ad), pickle.loads(pickle.dumps(ad))):
        assert again == ad
        assert again["u"] is UNDEFINED
