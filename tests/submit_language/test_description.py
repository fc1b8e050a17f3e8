"""Submit descriptions beyond what HTCondor's library shows: errors, warnings, several queues, hostile text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from carod_client.submit_language import Description, SubmitError, SubmitJob


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs(text: str) -> list[SubmitJob]:
    return list(Description(text, "x.sub").jobs(count(1).__next__))


def warnings(text: str) -> list[str]:
    description = Description(text, "x.sub")
    list(description.jobs(lambda: 1))
    return description.warnings


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("executable = /bin/true\nrequest_memory = 12 Q\nqueue", 2, "request_memory: '12 Q' is neither a size"),
        ("executable = /bin/true\nrequirements = (Memory > 3\nqueue", 2, "requirements: "),
        ("executable = /bin/true\n+A = b c\nqueue", 2, "A: unexpected 'c' at column 3 of 'b c'; a string needs"),
        ("executable = /bin/true\nkill_sig = SIGNONE\nqueue", 2, "kill_sig: 'SIGNONE' is no signal"),
        ("universe = grid\nexecutable = x\nqueue", 1, "universe: no node runs the grid universe; vanilla and local"),
        ("universe = vanila\nexecutable = x\nqueue", 1, "universe: there is no 'vanila' universe"),
        ("executable = x\nqueue many", 2, "queue: 'many' is no number of jobs; write `queue 10`"),
        ("executable = x\nqueue 99999999999", 2, "queue: 99999999999 jobs; a number from 0 to 10,000,000 is meant"),
        ("executable = x\nqueue a, A in (1 2)", 2, "queue: a variable is named twice in a, A"),
        ("executable = x\nqueue a from (\n1\n", 2, "the end of the file comes before the line ')'"),
        ("executable = x\nqueue a from nope.txt", 2, "queue: 'nope.txt': No such file or directory; paths are"),
        ("executable = x\nqueue a from ls |", 2, "queue: items from a program, 'ls |', are not supported"),
        ("executable = x\nqueue a in [::0] (b)", 2, "queue: slice '[::0]' has step 0"),
        ("include : other.sub\nqueue", 1, "'include' is not supported; write its lines into this file"),
        ("use template : x\nqueue", 1, "'use' is not supported"),
        ("executable = x\nhello\nqueue", 2, "this is neither `NAME = VALUE` nor `queue ...` nor a comment"),
        ("executable = x\nargs = $(a\nqueue", 2, "'$(a' has no closing ')'"),
        ("executable = x\nargs = $NOPE(a)\nqueue", 2, "$NOPE() is no macro function; there are: BASENAME"),
        ("executable = x\nargs = $INT(a,%n)\na=1\nqueue", 2, "format '%n' does not suit 1"),
        ("executable = x\nargs = $INT(a,%999999d)\na=1\nqueue", 2, "format '%999999d' does not suit 1"),
        ("executable = x\na = $(b)\nb = $(a)\nargs = $(a)\nqueue", 4, "goes round in a circle"),
        ("executable = x\n", 2, "nothing is queued; write a line `queue` at the end"),
        ("queue", 1, "no executable is set above this queue"),
        ("executable = x\ntransfer_input_files = http://x/y\nqueue", 2, "transfer_input_files: 'http://x/y' is a URL"),
        ("executable = x\nenvironment = \"A\"\nqueue", 2, "environment: 'A' is no NAME=value"),
        ("executable = x\narguments = \"'a\"\nqueue", 2, "arguments: the quote (') at column 1 of \"'a\" is"),
        ("\x7fELF\0\0", 1, "a NUL character: this is no text; is it the program itself?"),
    ],
)  # fmt: skip
def test_an_error_names_file_line_and_mend(text: str, line: int, problem: str) -> None:
    with pytest.raises(SubmitError) as caught:
        jobs(text)
    said = str(caught.value)
    assert said.startswith(f"x.sub:{line}: ")
    assert problem in said
    assert said.partition("\n    ")[2] in text or "\0" in text


def test_values_stay_from_queue_to_queue() -> None:
    text = "executable = /bin/sleep\nargs = 1\nqueue 2\nargs = 2\nqueue\n"
    assert [(job.cluster, job.proc, job.ad["Args"]) for job in jobs(text)] == [(1, 0, "1"), (1, 1, "1"), (1, 2, "2")]


def test_another_executable_begins_another_cluster() -> None:
    text = "executable = /bin/a\nqueue 2\nexecutable = /bin/b\nqueue\nexecutable = /bin/b\nqueue"
    assert [(job.cluster, job.proc) for job in jobs(text)] == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_job_is_made_of_what_is_above_its_queue() -> None:
    first, second = jobs("executable = /bin/a\nqueue\n+Late = 3\nrank = Memory\nqueue")
    assert ("Late" in first.ad, "Rank" in first.ad) == (False, False)
    assert (second.ad["Late"], str(second.ad["Rank"])) == (3, "Memory")


def test_only_what_differs_is_made_anew_and_all_of_that() -> None:
    text = """
    executable = /bin/$(prog)
    arguments = $(middle)
    middle = <$(x)>
    +Outer = "$(Process)-$(Cluster)"
    output = same
    environment = N=$(Step)
    queue 2 prog, x from (
      a one
      b two
    )"""
    made = [(job.cluster, job.ad["Cmd"], job.ad["Args"], job.ad["Outer"], job.ad["Environment"]) for job in jobs(text)]
    assert made == [
        (1, "/bin/a", "<one>", "0-1", "N=0"), (1, "/bin/a", "<one>", "1-1", "N=1"),
        (2, "/bin/b", "<two>", "0-2", "N=0"), (2, "/bin/b", "<two>", "1-2", "N=1"),
    ]  # fmt: skip


def test_an_attribute_goes_over_a_command_that_varies() -> None:
    text = 'executable = /bin/a\noutput = $(Process)\n+Out = "mine"\nqueue 3'
    assert [job.ad["Out"] for job in jobs(text)] == ["mine"] * 3


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        ("request_memroy = 1", "x.sub:2: request_memroy: no node sets such a resource aside; is request_memory meant?"),
        ("exectuable = b", "x.sub:2: exectuable is neither a command nor used as $(exectuable); is executable meant?"),
        ("colour = red", "x.sub:2: colour is neither a command nor used as $(colour); for an attribute write +colour"),
        ("colour = red\nargs = $(colour)", ""),
        ("args = $(what)", "x.sub:2: $(what) has no value and is left empty; write $(what:DEFAULT) if that is meant"),
        ("args = $(what:)", ""),
        ("periodic_hold = true", "x.sub:2: periodic_hold is in the job's ad, but neither agent nor node evaluates it"),
        ("request_licences = 2", "x.sub:2: request_licences: no node sets such a resource aside"),
        ("notification = always", "x.sub:2: notification is not looked at: no mail is sent"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_warned_of(lines: str, warned: str) -> None:
    said = warnings(f"executable = /bin/true\n{lines}\nqueue")
    assert len(said) == bool(warned)
    assert "".join(said).startswith(warned)


def test_items_come_from_a_file_with_commas_or_blanks(directory: Path) -> None:
    (directory / "items").write_text("a b c\n\n d , e f\ng\n")
    text = "executable = /bin/a\narguments = <$(x)|$(y)>\nqueue x y from items"
    assert [job.ad["Args"] for job in jobs(text)] == ["<a|b c>", "<d|e f>", "<g|>"]


def test_appended_lines_come_before_the_first_queue() -> None:
    description = Description("executable = /bin/a\nargs = 1\nqueue", "x.sub", ["args = 2", "+Tag = 7"])
    (job,) = description.jobs(lambda: 1)
    assert (job.ad["Args"], job.ad["Tag"]) == ("2", 7)
    with pytest.raises(SubmitError, match=r"'oops' \(appended\):1: this is neither"):
        Description("executable = /bin/a\nqueue", "x.sub", ["oops"])


def test_names_that_double_each_other_do_not_fill_the_machine() -> None:
    doubling = "\n".join(f"a{n} = $(a{n + 1})$(a{n + 1})" for n in range(40))
    with pytest.raises(SubmitError, match=r"a value of more than 1,048,576 characters|round in a circle"):
        jobs(f"executable = /bin/a\n{doubling}\na40 = xxxxxxxx\nargs = $(a0)\nqueue")


def test_a_hundred_thousand_jobs_are_made_one_by_one() -> None:
    made: Iterator[SubmitJob] = Description("executable = /bin/a\nargs = $(Process)\nqueue 100000").jobs(lambda: 1)
    started = time.monotonic()
    assert sum(1 for _ in made) == 100_000
    print(f"{100_000 / (time.monotonic() - started):.0f} ads a second")
