"""Ours and HTCondor's evaluator agree, expression by expression."""

from __future__ import annotations

from pathlib import Path

import pytest

from carod.classad import ClassAd, matches, symmetric_match
from tests.classad.oracle import classad2, comparable, ours, their_attribute, theirs

_LINES = Path(__file__).with_name("expressions.txt").read_text(encoding="utf-8").splitlines()
EXPRESSIONS = [line for line in _LINES if line and not line.startswith("#")]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_the_value_is_htcondors(text: str) -> None:
    assert ours(text) == theirs(text)


# Every built-in function that HTCondor has: an unknown name gives an error whatever its arguments are.
FUNCTIONS = """
    absTime allCompare anyCompare argsToList avg bool ceil ceiling countMatches currentTime dayTime debug envV1ToV2
    eval evalInEachContext floor formatTime getDayOfMonth getDayOfWeek getDayOfYear getDays getHours getMinutes
    getMonth getSeconds getYear identicalMember ifThenElse int interval isAbstime isBoolean isClassAd isError
    isInteger isList isReal isReltime isString isUndefined join listToArgs max member mergeEnvironment min pow
    quantize random real regexp regexpMember regexps relTime replace replaceAll round size split splitSlotName
    splitTime splitUserName strcat strcmp stricmp string stringListAvg stringListIMember stringListISubsetMatch
    stringListMax stringListMember stringListMin stringListSize stringListSubsetMatch stringListSum
    stringList_regexpMember stringListsIntersect substr sum time timeZoneOffset toLower toUpper unparse unresolved
    userHome userMap versionEQ versionGE versionGT versionLE versionLT version_in_range versioncmp
""".split()

ARGUMENTS = ["1", "-2", "2.5", '"a"', '"A,b"', "true", "undefined", "error", "{1}", '{"a", "b"}', "[a = 1]", "nope"]
# They depend on the clock or chance.
VOLATILE = {"currenttime", "daytime", "random", "time", "timezoneoffset"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_any_arguments_as_htcondors_does(name: str) -> None:
    calls = [f"{name}()"] + [f"{name}({one})" for one in ARGUMENTS]
    calls += [f"{name}({one}, {other})" for one in ARGUMENTS for other in ARGUMENTS]
    calls += [
        f"{name}({one}, {other}, {third})" for one in ARGUMENTS[:8] for other in ARGUMENTS for third in ARGUMENTS[::2]
    ]
    calls += [f'{name}("a", {one}, "b", {other})' for one in ARGUMENTS for other in ARGUMENTS]
    calls += [f"{name}(1, 2, 3, 4, 5)"]
    if name.lower() in VOLATILE or name in ("absTime", "formatTime"):
        calls = [call for call in calls if call != f"{name}()"]
    if name == "random":
        calls = [call for call in calls if call not in ("random(2.5)", "random(1)")]
    if name == "absTime":
        # A string beside an offset: HTCondor hands the string through, the manual forbids it, ours is an error.
        calls = [call for call in calls if not call.startswith('absTime("') or call.count(",") == 0]
    if name == "formatTime":
        # Python's strftime() takes day 0 for the first.
        calls = [call for call in calls if "[a = 1]" not in call]
    different = [call for call in calls if ours(call) != theirs(call)]
    assert different == []


MINE = """[
    a = 1; b = MY.a; c = TARGET.x; d = x; only = 7; q = e.f; y = TARGET.z; cyc = TARGET.cyc2;
    e = [a = 5; f = a; g = MY.a; h = x; i = TARGET.x; j = .a; k = parent.a; l = self.a; m = toplevel.a; n = root.a;
         o = c; p = MY.c];
    self2 = self.a; lst = {a, x, [f = a; g = x]}; absr = .a; absx = .x; L = {1, L[0]};
    Requirements = TARGET.x == 10; 'odd name' = a + 1; s = "a";
]"""
OTHER = """[
    x = 10; z = only; w = MY.x; v = TARGET.a; u = a; zz = MY.only; cyc2 = TARGET.cyc; a = 99; s = "b";
    Requirements = TARGET.a == 1;
]"""

SCOPED = """
    a | b | c | d | e.f | e.g | e.h | e.i | e.j | e.k | e.l | e.m | e.n | e.o | e.p | q | y | x | TARGET.x | TARGET.w
    TARGET.v | TARGET.u | TARGET.zz | TARGET.z | cyc | self2 | lst[0] | lst[1] | lst[2].f | lst[2].g | MY.x
    TARGET.only | TARGET.nope | absr | absx | .a | .x | MY.MY.a | TARGET.TARGET.a | TARGET.MY.x | my.a | Target.x
    e["f"] | e["h"] | u | w | v | zz | self.a | eval("a") | eval("x") | eval("TARGET.x") | unparse(b) | unparse(x)
    unparse(e.f) | unparse(Requirements) | unresolved(Requirements) | L[1] | L[0] | other.x | size(MY) | MY["a"]
    TARGET["x"] | [a = 77; z = a].z | [a = 77; z = MY.a].z | [z = x].z | [z = TARGET.x].z | {a, x}[1]
    ifThenElse(x == 10, a, 0) | isUndefined(x) | member(x, {10}) | parent.a | super.a | [b = 1; c = [d = parent.b]].c.d
    [b = 1; c = [d = parent.parent.a]].c.d | e.a | e.only | e.x | lst[2].a | {MY, TARGET}.a | join(",", lst)
    evalInEachContext(a, {e, [a = 3], []}) | evalInEachContext(only, {e, [a = 3], TARGET}) | string(lst) | 'odd name'
    evalInEachContext(a + 0, {e, [a = 3], []}) | evalInEachContext(x, {MY, TARGET}) | MY.'odd name' | s == TARGET.s
    countMatches(x == 10, {MY, TARGET}) | unresolved(d) | unresolved(c) | unresolved(lst) | unresolved(b)
    unresolved(Requirements, "^x") | unresolved(Requirements, "^y") | unresolved(Requirements, "X") | unresolved(nope)
    unresolved(nope, "x") | unresolved(Requirements, 1) | unresolved(cyc) | strcat(s, TARGET.s) | MY.a + TARGET.a
    a =?= MY.a && x =?= TARGET.x | isError(MY.nope.x) | TARGET.Requirements | Requirements | MY.Requirements is true
"""
SCOPED_EXPRESSIONS = [text.strip() for line in SCOPED.strip().splitlines() for text in line.split(" | ")]


@pytest.mark.parametrize("target", [None, OTHER], ids=["alone", "matched"])
@pytest.mark.parametrize("text", SCOPED_EXPRESSIONS)
def test_a_name_is_found_where_htcondor_finds_it(text: str, target: str | None) -> None:
    assert ours(text, MINE, target) == theirs(text, MINE, target)


CYCLES = [
    "[a = b; b = a]",
    "[a = a + 1]",
    "[a = MY.a]",
    "[a = {a}[0]]",
    "[a = ifThenElse(true, a, 1)]",
    "[a = [b = a].b]",
    "[a = isUndefined(a)]",
    "[a = isError(a)]",
    "[a = b; b = a is undefined]",
    "[a = 1 || a]",
    "[a = false || a]",
    "[a = true && a]",
    '[a = strcat("x", a)]',
    '[a = eval("a")]',
    "[a = a ?: 1]",
    "[a = b ?: 1; b = c; c = b]",
    "[a = size({a})]",
    "[a = x.y; x = [y = a]]",
    "[a = b == 1; b = a]",
    "[a = isUndefined(b); b = isUndefined(a)]",
    "[a = member(1, {a, 1})]",
    "[a = b + b; b = c + c; c = 1]",
]


@pytest.mark.parametrize("ad", CYCLES)
def test_an_attribute_that_needs_itself_is_undefined_inside_itself(ad: str) -> None:
    assert comparable(ClassAd.parse(ad).evaluate("a")) == their_attribute(ad, "a")


@pytest.mark.parametrize("links", [50, 100, 150, 200])
def test_a_chain_of_attributes_as_long_as_htcondor_follows_is_followed(links: int) -> None:
    ad = "[" + "; ".join(f"a{i} = a{i + 1} + 1" for i in range(links)) + f"; a{links} = 0]"
    assert comparable(ClassAd.parse(ad).evaluate("a0")) == their_attribute(ad, "a0") == ("int", links)


REQUIREMENTS = ["1", "0", "2.5", "0.0", '"true"', '""', "undefined", "error", "true", "false", "{1}", "[a = 1]"]
REQUIREMENTS += ["TARGET.m >= 10", "m >= 10", "m < 10", "MY.m is undefined", "nope", "nope =?= undefined", "m / 0"]


@pytest.mark.parametrize("requirements", REQUIREMENTS)
def test_what_matches_is_htcondors_rule(requirements: str) -> None:
    job, machine = f"[Requirements = {requirements}; n = 3]", "[m = 10; requirements = TARGET.n == 3]"
    their_job, their_machine = classad2.ClassAd(job), classad2.ClassAd(machine)
    our_job, our_machine = ClassAd.parse(job), ClassAd.parse(machine)
    assert matches(our_job, our_machine) == their_machine.matches(their_job)
    assert symmetric_match(our_job, our_machine) == their_job.symmetricMatch(their_machine)
    assert matches(our_machine, our_job)
    assert not matches(our_machine, our_job, "Rank")
