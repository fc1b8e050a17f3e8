"""From a call's arguments to the job's ClassAd."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from carod_client import BadJob, expr
from carod_client.description import describe, parcel
from hypothesis import given
from hypothesis import strategies as st

from carod.amqp import Message
from carod.arguments import split_arguments, split_environment
from carod.classad import ClassAd
from carod.job import Job, job_message

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))


def described(cmd: str = "/bin/true", args: Iterable[str] = (), **options: Any) -> ClassAd:
    return describe(parcel(cmd), args, **options)


def arrived(ad: ClassAd) -> ClassAd:
    """The ad as a node reads it off the wire."""
    sent = job_message(ad, reply_to="replies")
    return Job.from_message(Message(headers=sent.headers, message_id=sent.message_id, reply_to=sent.reply_to)).ad


@given(st.lists(WORDS))
def test_any_arguments_arrive_at_the_node_as_they_were_given(words: list[str]) -> None:
    assert split_arguments(arrived(described(args=words)).get("Arguments", "")) == words


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), WORDS, min_size=1))
def test_any_environment_arrives_at_the_node_as_it_was_given(variables: dict[str, str]) -> None:
    assert split_environment(arrived(described(env=variables))["Environment"]) == variables


def test_strings_are_strings_and_expressions_are_expressions() -> None:
    ad = arrived(described(attributes={"Tag": "Memory > 1", "Rank": expr("TARGET.Mips"), "N": 3, "Flag": True}))
    assert (ad["Tag"], str(ad["Rank"]), ad["N"], ad["Flag"]) == ("Memory > 1", "TARGET.Mips", 3, True)


def test_requirements_and_outputs_become_their_attributes() -> None:
    ad = described(requirements="TARGET.Memory >= 1024", outputs=["a", "b/c"])
    assert (str(ad["Requirements"]), ad["TransferOutput"]) == ("TARGET.Memory >= 1024", "a, b/c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"args": [3]}, r"argument 3 is a int, not text; write str\(3\)"),
        ({"args": "abc"}, r"args='abc' is one text; write a list"),
        ({"args": ["a\0"]}, "NUL"),
        ({"env": {"A=B": ""}}, "environment variable 'A=B'"),
        ({"attributes": {"two words": 1}}, "attribute name 'two words'"),
        ({"attributes": {"Tag": b"x"}}, "attribute Tag: b'x' is a bytes"),
        ({"attributes": {"Big": 1 << 63}}, "attribute Big: .* does not fit 64 bits"),
        ({"attributes": {"cmd": "/bin/false"}}, "attribute cmd is given twice"),
        ({"requirements": "Memory >"}, "requirements: .*'Memory >'"),
        ({"outputs": ["a,b"]}, "outputs: 'a,b'"),
    ],
)
def test_what_cannot_be_sent_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadJob, match=message):
        described(**options)


def test_a_relative_command_is_found_among_the_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tools").mkdir()
    Path("tools/job.sh").write_text("")
    assert parcel("job.sh", ["tools/job.sh"]).cmd == "job.sh"
    assert parcel("./job.sh", ["tools/job.sh"]).cmd == "job.sh"
    assert parcel("tools/job.sh", ["tools/job.sh"]).cmd == "job.sh"
    assert parcel("tools/job.sh", ["tools"]).cmd == "tools/job.sh"


def test_a_local_command_written_with_a_slash_is_sent_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.sh").write_text("")
    sent = parcel("./job.sh")
    assert (sent.cmd, [member.name for member in sent.members]) == ("job.sh", ["job.sh"])
    with pytest.raises(BadJob, match=r"to send the local file along write \./job\.sh"):
        parcel("job.sh")


def test_a_command_that_nobody_could_find_is_refused_with_its_path_here() -> None:
    with pytest.raises(BadJob, match=r"command 'sh' is neither an absolute path .* such as /.*/sh"):
        parcel("sh")
    with pytest.raises(BadJob, match="command 'no-such-command' is neither"):
        parcel("no-such-command")


def test_stdin_travels_as_an_input_file() -> None:
    sent = parcel("/bin/cat", stdin=b"hello")
    assert [member.content for member in sent.members] == [b"hello"]
    assert describe(sent, [])["In"] == sent.members[0].name
