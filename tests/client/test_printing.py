"""How ads are printed: HTCondor's formats, whatever a user asks for and a job's ad holds."""

from __future__ import annotations

import json

import classad2
import pytest
from carod_client.commands import job_tables
from carod_client.commands.printing import (
    NO_FIT,
    AutoFormat,
    BadFormat,
    Format,
    json_array,
    json_object,
    long_text,
)

from carod.classad import ClassAd

AD = ClassAd.parse(
    """[ClusterId = 12; ProcId = 3; Owner = "matt"; Cmd = "/bin/qpidd.sh"; Load = 2.5; Neg = -1; Big = 4294967296;
    Flag = true; Twice = Load * 2; Text = "a\\nb\\007c"; Esc = "\\033[2J"; List = {1, "a"}; Bad = error; Letter = 65;
    Inf = real("INF")]"""
)


def shown(form: str, attribute: str) -> str:
    return Format.read(form, attribute).text(AD)


@pytest.mark.parametrize(
    ("form", "attribute", "text"),
    [
        ("%s", "Owner", "matt"),
        ("qpidd running at %s\\n", "Owner", "qpidd running at matt\n"),
        ("%d.", "ClusterId", "12."),
        ("%5d|", "ClusterId", "   12|"),
        ("%-5d|", "ClusterId", "12   |"),
        ("%05d", "ClusterId", "00012"),
        ("%+d", "ClusterId", "+12"),
        ("%.3d", "ClusterId", "012"),
        ("%ld", "ClusterId", "12"),
        ("%x %%", "ClusterId", "c %"),
        ("%#X", "ClusterId", "0XC"),
        ("%u", "Neg", "18446744073709551615"),
        ("%d", "Load", "2"),
        ("%6.2f|", "Load", "  2.50|"),
        ("%e", "Load", "2.500000e+00"),
        ("%g", "ClusterId", "12"),
        ("%d", "Flag", "1"),
        ("%s", "Flag", "true"),
        ("%v", "Twice", "5.0"),
        ("%d", "Twice", "5"),
        ("%V", "Owner", '"matt"'),
        ("%v", "Owner", "matt"),
        ("%s", "List", '{ 1, "a" }'),
        ("%-6s|", "Owner", "matt  |"),
        ("%6.2s|", "Owner", "    ma|"),
        ("%c", "Letter", "A"),
        ("%s", "ClusterId + ProcId", "15"),
        ("%s", "Bad", "error"),
        ("%s", "Nope", ""),
        ("never %s\\n", "Nope", ""),
        ("%V", "Nope", "undefined"),
        ("plain\\t\\x41\\101\\\\\\n", "Owner", "plain\tAA\\\n"),
        ("%d", "Owner", NO_FIT),
        ("%d", "Inf", "real(\"INF\")"),
        ("%s", "Text", "a?b?c"),
        ("%s", "Esc", "?[2J"),
    ],
)  # fmt: skip
def test_a_format_prints_what_printf_would(form: str, attribute: str, text: str) -> None:
    assert shown(form, attribute) == text


@pytest.mark.parametrize(
    ("form", "attribute", "problem"),
    [
        ("%n", "Owner", "%n is no directive; there are s, d, i"),
        ("%s%s", "Owner", "one directive is needed"),
        ("%", "Owner", "one directive is needed"),
        ("%*d", "Owner", "one directive is needed"),
        ("%1$s", "Owner", "one directive is needed"),
        ("%99999999d", "ClusterId", "at most 4096 characters for a value"),
        ("%.99999999f", "Load", "at most 4096 characters for a value"),
        ("%p", "Owner", "%p is no directive"),
        ("%s", "Owner ==", "'Owner ==' is neither an attribute's name nor an expression"),
    ],
)
def test_a_format_that_means_nothing_is_refused(form: str, attribute: str, problem: str) -> None:
    with pytest.raises(BadFormat, match=r"^") as caught:
        Format.read(form, attribute)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("options", "names", "text"),
    [
        ("", ["ClusterId", "Owner", "Nope"], "12 matt undefined\n"),
        (",", ["ClusterId", "Owner"], "12, matt\n"),
        ("t", ["ClusterId", "Owner"], "12\tmatt\n"),
        ("n", ["ClusterId", "Owner"], "12\nmatt\n"),
        ("l", ["ClusterId", "Owner"], "ClusterId = 12 Owner = matt\n"),
        ("ln", ["ClusterId", "Owner"], "ClusterId = 12\nOwner = matt\n"),
        ("V", ["Owner", "Flag"], '"matt" true\n'),
        ("r", ["Twice", "Nope"], "Load * 2 undefined\n"),
        ("", ["Twice", "Load > 2"], "5.0 true\n"),
        ("j", ["Owner"], "12.3 matt\n"),
        ("j", [], "12.3\n"),
        ("h", ["ClusterId", "Owner"], "ClusterId Owner\n12        matt\n"),
        ("hj", ["Owner"], "ID   Owner\n12.3 matt\n"),
        ("g", ["Owner"], "matt\n\n"),
        ("", ["Text"], "a?b?c\n"),
    ],
)
def test_autoformat_prints_a_line_for_each_ad(options: str, names: list[str], text: str) -> None:
    assert "".join(AutoFormat.read(options, names).lines([AD])) == text


@pytest.mark.parametrize(
    ("options", "names", "problem"),
    [
        ("z", ["Owner"], "'z' is no option of it; there are"),
        ("", [], "attributes are missing; write -af ClusterId ProcId"),
        ("", ["a b"], "'a b' is neither an attribute's name nor an expression"),
    ],
)
def test_autoformat_that_means_nothing_is_refused(options: str, names: list[str], problem: str) -> None:
    with pytest.raises(BadFormat) as caught:
        AutoFormat.read(options, names)
    assert problem in str(caught.value)


def test_long_prints_an_attribute_a_line_that_htcondor_reads() -> None:
    text = long_text(AD)
    assert text.startswith("Bad = error\nBig = 4294967296\nClusterId = 12\n")
    assert text.endswith("\n\n")
    theirs = classad2.parseOne(text)
    assert (theirs["Owner"], theirs["Text"], theirs.eval("Twice")) == ("matt", "a b\x07c", 5.0)


def test_json_is_htcondors() -> None:
    ad = ClassAd.parse(
        '[a = 1; b = x + 1; c = "q\\"u\\n/"; d = 1.5; e = true; f = undefined; g = {1, "a"}; h = [z = 1]]'
    )
    theirs = classad2.ClassAd(str(ad))
    assert json_object(ad) == json.loads(theirs.printJson())
    assert json.loads("".join(json_array([ad, ad]))) == [json_object(ad)] * 2
    assert json.loads("".join(json_array([]))) == []


# -- tables --------------------------------------------------------------------------------------------------------

NOW = 1_274_206_899
JOB = ClassAd({"ClusterId": 2, "ProcId": 0, "Owner": "matt", "Cmd": "/home/matt/qpidd.sh", "JobStatus": 2, "QDate": NOW,
               "JobStartDate": NOW - 3, "RemoteHost": "slot1@woods"})  # fmt: skip


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def test_q_prints_condor_qs_columns() -> None:
    lines = job_tables.lines(job_tables.QUEUE_HEADING, job_tables.queue_row, [JOB], NOW, False)
    assert "".join(lines) == (
        " ID      OWNER            SUBMITTED     RUN_TIME ST PRI SIZE CMD\n"
        "   2.0   matt            5/18 18:21   0+00:00:03 R  0   0.0  qpidd.sh\n"
    )


def test_q_run_prints_condor_qs_columns() -> None:
    lines = job_tables.lines(job_tables.RUN_HEADING, job_tables.run_row, [JOB], NOW, False)
    assert "".join(lines) == (
        " ID      OWNER            SUBMITTED     RUN_TIME HOST(S)\n"
        "   2.0   matt            5/18 18:21   0+00:00:03 slot1@woods\n"
    )


def test_a_long_command_is_cut_off_unless_asked_for() -> None:
    ad = ClassAd({**JOB, "Cmd": "/bin/EC2_Instance-ami-60bd4609", "Args": "x y"})
    assert job_tables.queue_row(ad, NOW, False).endswith(" EC2_Instance-ami-6")
    assert job_tables.queue_row(ad, NOW, True).endswith(" EC2_Instance-ami-60bd4609 x y")


def test_a_job_of_nonsense_is_listed_all_the_same() -> None:
    ad = ClassAd({"ClusterId": "x", "Owner": 5, "Cmd": "\x1b[2J", "JobStatus": 99, "QDate": 1 << 60, "JobPrio": "a",
                  "HoldReason": "a\nb", "JobStartDate": -5})  # fmt: skip
    for row in (job_tables.queue_row, job_tables.run_row, job_tables.hold_row, job_tables.history_row):
        line = row(ad, NOW, True)
        assert line.isprintable()
        assert line.startswith("   0.0 ")


def test_the_last_line_counts_jobs_by_state() -> None:
    assert job_tables.totals([1, 1, 2, 5, 7]) == (
        "5 jobs; 0 completed, 0 removed, 2 idle, 1 running, 1 held, 1 suspended"
    )


def test_status_prints_condor_statuss_table_and_totals() -> None:
    slots = [
        ClassAd({"Name": f"slot{n}@woods", "Machine": "woods", "SlotID": n, "OpSys": "LINUX", "Arch": "X86_64",
                 "State": state, "Activity": "Idle", "LoadAvg": 0.25, "Memory": 987, "EnteredCurrentState": NOW - 22})
        for n, state in ((10, "Unclaimed"), (9, "Claimed"))
    ]  # fmt: skip
    assert "".join(job_tables.slot_lines(slots, NOW)) == (
        "Name         OpSys Arch   State     Activity LoadAv Mem ActvtyTime\n"
        "\n"
        "slot9@woods  LINUX X86_64 Claimed   Idle      0.250 987 0+00:00:22\n"
        "slot10@woods LINUX X86_64 Unclaimed Idle      0.250 987 0+00:00:22\n"
        "\n"
        "                Machines Owner Claimed Unclaimed Matched Preempting Drained\n"
        "\n"
        "   X86_64/LINUX        2     0       1         1       0          0       0\n"
        "\n"
        "          Total        2     0       1         1       0          0       0\n"
    )
    assert "".join(job_tables.slot_lines([], NOW)) == ""
