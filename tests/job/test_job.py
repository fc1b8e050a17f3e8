"""Messages to jobs and back, without a broker (docs/reference/wire-contract.md, sections 2 and 4)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carod.amqp import Message
from carod.amqp.fields import decode_properties, encode_properties
from carod.classad import UNDEFINED, ClassAd, parse
from carod.job import Job, JobError, JobStatus, NoMessageId, NoReplyTo, Reply, job_message, read_headers, wire_headers

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
names = st.from_regex(r"X[A-Za-z0-9_]{0,10}", fullmatch=True)
values = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), text, st.lists(st.integers(0, 9), max_size=3)
)


@given(st.dictionaries(names, values, max_size=8))
def test_an_ad_comes_over_the_wire_as_it_was(attributes: dict[str, object]) -> None:
    ad = ClassAd(attributes)
    sent = job_message(ad, reply_to="r", message_id="m")
    received = decode_properties(encode_properties(sent), b"")
    again = ClassAd()
    read_headers(received.headers, again)
    for name, value in ad.items():
        if isinstance(value, float):
            got = again.evaluate(name)
            assert (isinstance(got, float) and math.isnan(got)) if math.isnan(value) else got == value
        else:
            assert again[name] == value


@given(
    st.dictionaries(names, values, max_size=8), st.sampled_from(JobStatus), st.sampled_from([None, "Exited", "Running"])
)
def test_a_reply_is_read_as_it_was_sent(attributes: dict[str, object], status: JobStatus, state: str | None) -> None:
    job = Job("the id", ClassAd(attributes), "r")
    message = job.reply(status, state, body=b"zip")
    reply = Reply.from_message(decode_properties(encode_properties(message), b"zip"))
    assert (reply.job_id, reply.status, reply.state, reply.body) == ("the id", status, state, b"zip")
    assert reply.final == (status in (3, 4, 5))


headers = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=20),
        st.binary(max_size=9),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=10), headers, max_size=5))
def test_any_headers_are_an_ad_or_a_job_error(given_headers: dict[str, object]) -> None:
    """And what is read can be written again."""
    job = Job.from_message(Message(headers=given_headers, message_id="m", reply_to="r"))  # type: ignore[arg-type]
    encode_properties(job.reply(JobStatus.RUNNING))
    job.ad.to_text()
    if job.problem is not None:
        assert isinstance(job.problem, JobError)


@pytest.mark.parametrize("headers_", [{}, {"MessageId": "x"}])
def test_no_reply_to_comes_before_no_message_id(headers_: dict[str, str]) -> None:
    with pytest.raises(NoReplyTo, match="set reply_to"):
        Job.from_message(Message(headers=headers_))


@pytest.mark.parametrize("message_id", [None, ""])
def test_a_message_without_id_is_no_job(message_id: str | None) -> None:
    with pytest.raises(NoMessageId, match=r"^ERROR:.*Discarding$"):
        Job.from_message(Message(message_id=message_id, reply_to="r"))


def test_what_could_not_be_decoded_is_told() -> None:
    with pytest.raises(NoReplyTo, match="can't be decoded: 9 bytes"):
        Job.from_message(Message(malformed="9 bytes expected"))


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("TRUE", True),
        ("12", 12),
        ("1.5", 1.5),
        ('"a"', "a"),
        ("undefined", UNDEFINED),
        ("-3", -3),
        ('"\\"q\\""', '"q"'),
    ],
)
def test_source_text_of_a_literal_is_that_literal(source: str, value: object) -> None:
    ad = ClassAd()
    read_headers({"X": source}, ad)
    assert ad["X"] == value


def test_numbers_and_booleans_travel_as_such_and_all_else_as_source_text() -> None:
    ad = {"I": 1, "F": 1.5, "B": True, "S": 'a "b"', "U": UNDEFINED, "E": parse("a + 1"), "N": math.inf}
    assert wire_headers(ad) == {
        "I": 1, "F": 1.5, "B": True, "S": '"a \\"b\\""', "U": "undefined", "E": "a + 1", "N": 'real("INF")',
    }  # fmt: skip


@pytest.mark.parametrize("message", [Message(), Message(headers={"JobStatus": 4}), Message(correlation_id="x")])
def test_what_is_no_reply_of_a_node_is_refused(message: Message) -> None:
    with pytest.raises(ValueError, match="not a node's reply"):
        Reply.from_message(message)
