"""Text from the wire that means harm ends in an error or a value: no crash, no RecursionError, no hang.

Each case runs in a process of its own, so that a hang is one failed test; the limit is generous, not a measurement.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WATCHDOG = 30

PREAMBLE = """
from carod.classad import *
from carod.classad import UNDEFINED, ERROR

def outcome(text, my=None):
    try:
        value = parse(text).evaluate(ClassAd.parse(my) if my is not None else None)
    except ClassAdSyntaxError as error:
        print("syntax error:", str(error)[:90])
    else:
        print(repr(value)[:60])

def attribute(text, name):
    print(repr(ClassAd.parse(text).evaluate(name))[:60])

def chain(step, last, links=60):
    lines = ["a%d = " % i + step.replace("#", "a%d" % (i + 1)) for i in range(links)]
    return "[" + "; ".join(lines) + "; a60 = " + last + "]"

BIG = 5_000_000
"""

CASES = {
    # text or nesting -> what is printed
    "parentheses": ("outcome('(' * 20000 + '1' + ')' * 20000)", "syntax error: nested deeper than 300"),
    "open parentheses": ("outcome('(' * 20000)", "syntax error: nested deeper than 300"),
    "lists": ("outcome('{' * 20000 + '}' * 20000)", "syntax error: nested deeper than 300"),
    "ads": ("outcome('[a=' * 20000 + '1' + ']' * 20000)", "syntax error: nested deeper than 300"),
    "signs": ("outcome('-' * 20000 + '1')", "syntax error: nested deeper than 300"),
    "negations": ("outcome('!' * 20000 + 'true')", "syntax error: nested deeper than 300"),
    "selections": ("outcome('a' + '.a' * 20000)", "syntax error: nested deeper than 300"),
    "subscripts": ("outcome('a' + '[0]' * 20000)", "syntax error: nested deeper than 300"),
    "conditions": ("outcome('a ? b : ' * 20000 + 'c')", "syntax error: nested deeper than 300"),
    "calls": ("outcome('int(' * 20000 + '1' + ')' * 20000)", "syntax error: nested deeper than 300"),
    "long sum": ("outcome('1' + ' + 1' * 20000)", "20001"),
    "long condition": ("outcome('true' + ' && true' * 20000)", "True"),
    "too long a sum": ("outcome('1' + '+1' * 1_000_000)", "syntax error: more than 100000 tokens"),
    "deepest parentheses": ("outcome('(' * 299 + '1' + ')' * 299)", "1"),
    "deepest lists": ("outcome('size(' + '{' * 95 + '}' * 95 + ')')", "1"),
    # references
    "cycle": ("attribute('[a = b; b = a]', 'a')", "UNDEFINED"),
    "list of itself": ("attribute('[L = {1, L}]', 'L')", "ERROR"),
    "ad of itself": ("attribute('[a = [b = MY.b.c; c = a]; d = a.b]', 'd')", ""),
    "exponential sum": ("attribute(chain('# + #', '1'), 'a0')", "ERROR"),
    "exponential string": ("""attribute(chain('strcat(#, #)', '"xxxxxxxx"'), 'a0')""", "ERROR"),
    "exponential list": ("attribute(chain('{#, #}', '1'), 'a0')", "ERROR"),
    "exponential references": ("attribute(chain('# + #', 'x')[:-1] + '; r = unresolved(a0)]', 'r')", "ERROR"),
    "long chain": ("attribute('[' + '; '.join(f'a{i} = a{i+1} + 1' for i in range(9000)) + ']', 'a0')", "ERROR"),
    "eval of itself": ("""attribute('[a = "eval(a) + eval(a)"; b = eval(a)]', 'b')""", "ERROR"),
    # regular expressions
    "nested repeats": ("""outcome('regexp("^(a|aa)+$", "' + 'a' * 60 + 'b")')""", "ERROR"),
    "doubled repeats": ("""outcome('regexp("(x+x+)+y", "' + 'x' * 5000 + '")')""", "ERROR"),
    "optional repeats": ("""outcome('regexp("(?:a?){4000}a{4000}", "' + 'a' * 4000 + '")')""", "ERROR"),
    "repeated in a list": (
        """outcome('regexpMember("^(a|a?)+$", {' + ', '.join(['"' + 'a' * 60 + 'b"'] * 500) + '})')""",
        "",
    ),
    "counted repeats": (
        """outcome('regexp("((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}b", "' + 'a' * 5000 + '")')""",
        "",
    ),
    "nested groups": ("""outcome('regexp("' + '(' * 2000 + ')' * 2000 + '", "a")')""", "ERROR"),
    "long pattern": ("""outcome('regexp("' + 'a' * 1_000_000 + '", "a")')""", "ERROR"),
    # size
    "string": ("""print(len(parse_value('"' + 'x' * BIG + '"')))""", "5000000"),
    "string of escapes": (r"""print(len(parse_value('"' + '\\n' * (BIG // 2) + '"')))""", "2500000"),
    "string in an expression": ("""outcome('size(strcat("' + 'x' * BIG + '", "y"))')""", "5000001"),
    "open string": ("""outcome('"' + 'x' * BIG)""", 'syntax error: no closing "'),
    "open string of escapes": (r"""outcome('"' + '\\x' * (BIG // 2))""", 'syntax error: no closing "'),
    "many strings": ("""outcome('a ' + '"" ' * (BIG // 3))""", "syntax error"),
    "digits": ("outcome('1' * BIG)", "syntax error: an integer that does not fit in 64 bits"),
    "name": ("outcome('a' * BIG)", "UNDEFINED"),
    "blanks": ("outcome(' ' * BIG)", "syntax error: unexpected end"),
    "comments": ("outcome('/**/' * (BIG // 4))", "syntax error: unexpected end"),
    "open comment": ("outcome('/*' * (BIG // 2))", "syntax error"),
    "lines": ("print(len(ClassAd.parse('a = 1\\n' * (BIG // 6))))", "1"),
    "backslashes": (
        r"""
try:
    ClassAd.parse('a = ' + '\\' * BIG)
except ClassAdSyntaxError as error:
    print("syntax error:", str(error)[:60])
""",
        "syntax error",
    ),
    "growing replacement": (
        """outcome('replaceAll("a", "' + 'a' * 1_000_000 + '", "' + 'b' * 1000 + '")')""",
        "ERROR",
    ),
    "comparisons of long strings": (
        """
ad = ClassAd({"S": "A" * (BIG // 2)})
ad["r"] = parse("S == s" + ' || S == "b"' * 20000)
print(ad.evaluate("r"))
ad["r"] = parse('S == "b"' + ' || S == "b"' * 20000)
print(ad.evaluate("r"))
""",
        "True\nERROR",
    ),
    "versions": ("""outcome('versioncmp("' + '1' * 4_000_000 + '", "' + '1' * 4_000_000 + '2")')""", "ERROR"),
    "format": ("""outcome('formatTime(0, "' + '%c' * 500000 + '")')""", "ERROR"),
    "power": ("outcome('pow(9, 999999999) << 99999999999')", ""),
    "environment": ("""outcome('size(mergeEnvironment("' + "a='' " * 500000 + '"))')""", "2"),
    # a stack that is nearly full already
    "full stack": (
        """
import sys
def deep(levels):
    if levels:
        return deep(levels - 1)
    return parse("(" * 90 + "a" + "+1)" * 90).evaluate(ClassAd({"a": 1}))
parse("1 + a")
for levels in range(100, sys.getrecursionlimit() - 60, 20):
    try:
        assert deep(levels) in (91, ERROR)
    except ClassAdSyntaxError as error:
        assert "no stack left" in str(error)
print("survived")
""",
        "survived",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_text_ends_in_an_error_or_a_value(case: str) -> None:
    code, expected = CASES[case]
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith(expected), done.stdout
    assert done.stderr == ""
