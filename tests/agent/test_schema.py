"""The table of classes, and the binary form in which consoles get it."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carod.qmf import BadEncoding, Kind, Property, SchemaClass, SchemaRequest, Type
from carod.qmf.codec import Reader, Writer
from carod.qmf.schema import decode_answer, refusal
from qmf_agent.schema import SCHEMA, TABLE

SCALARS = st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=300) | st.uuids()
MAPS = st.dictionaries(st.text(max_size=20), SCALARS | st.floats(allow_nan=False), max_size=8)


def test_every_class_is_served_alike_under_both_packages() -> None:
    assert {package for package, _ in SCHEMA} == {"mrg.grid", "com.redhat.grid"}
    for each in TABLE:
        one, other = (SCHEMA[package, each.name.lower()] for package in ("mrg.grid", "com.redhat.grid"))
        assert (one.properties, one.methods) == (other.properties, other.methods)
        assert one.hash != other.hash


def test_the_classes_and_methods_that_scripts_rely_on_are_there() -> None:
    scheduler, job = SCHEMA["mrg.grid", "scheduler"], SCHEMA["mrg.grid", "job"]
    assert {"Submit", "SubmitJob", "SetJobAttribute", "HoldJob", "ReleaseJob", "RemoveJob", "SuspendJob", "ContinueJob",
            "echo", "create", "send", "submit"} <= {method.name for method in scheduler.methods}  # fmt: skip
    assert {"CustomId", "JobStatus", "GlobalJobId", "ClusterId", "ProcId", "QDate", "EnteredCurrentStatus",
            "Submission", "Owner", "Cmd", "Args", "Iwd"} <= {each.name for each in job.properties}  # fmt: skip
    signatures = {str(method) for method in (*scheduler.methods, *SCHEMA["mrg.grid", "jobserver"].methods)}
    # The original console counts: a method that takes one more can't be called from an old script.
    assert {"Submit(Ad)", "SubmitJob(Ad)", "SetJobAttribute(Id, Name, Value)", "HoldJob(Id, Reason)", "create()",
            "RemoveJob(Id, Reason)", "send(Id, Data)", "submit(Id, Ad)", "echo(sequence, body)", "GetJobAd(Id)",
            "FetchJobData(Id, File, Start, End)"} <= signatures  # fmt: skip
    assert [str(method) for method in job.methods] == ["GetAd()", "Fetch(File, Start, End)"]
    assert {"submission", "jobserver", "submitter", "slot", "collector"} <= {name for _, name in SCHEMA}


def test_no_class_has_two_members_of_one_name() -> None:
    for each in TABLE:
        names = [member.name for member in (*each.properties, *each.statistics)]
        names += [method.name for method in each.methods]
        assert len(names) == len(set(names)), each.name


def test_a_hash_depends_on_all_of_a_class_and_on_nothing_else() -> None:
    job = SCHEMA["mrg.grid", "job"]
    assert job.hash.version == 5
    assert replace(job, hash=uuid.uuid4()).hashed().hash != uuid.UUID(int=0)
    assert replace(job, hash=uuid.UUID(int=0)).hashed() == job
    first = job.properties[0]
    changed = replace(job, hash=uuid.UUID(int=0), properties=(replace(first, desc="other"), *job.properties[1:]))
    assert changed.hashed().hash != job.hash


@pytest.mark.parametrize("key", SCHEMA, ids=lambda key: ":".join(key))
def test_a_class_survives_its_binary_form(key: tuple[str, str]) -> None:
    wanted = SCHEMA[key]
    sequence, got = decode_answer(wanted.answer(99))
    assert sequence == 99 and got is not None
    assert (got.package, got.name, got.kind, got.hash) == (
        wanted.package,
        wanted.name.lower(),
        wanted.kind,
        wanted.hash,
    )
    assert got.statistics == wanted.statistics
    assert [(each.name, each.type, each.index) for each in got.properties] == [
        (each.name, each.type, each.index if wanted.kind is Kind.DATA else False) for each in wanted.properties
    ]
    assert [str(method) for method in got.methods] == [str(method) for method in wanted.methods]
    for ours, theirs in zip(wanted.methods, got.methods, strict=True):
        assert [(each.name, each.dir, each.default, each.binary) for each in ours.arguments] == [
            (each.name, each.dir, each.default, each.binary) for each in theirs.arguments
        ]


def test_the_answer_begins_as_consoles_expect_it() -> None:
    small = SchemaClass("p", "Thing", (Property("Name", Type.SSTR, index=True),)).hashed()
    head = b"AM2s\x00\x00\x00\x07\x01\x01p\x05thing" + small.hash.bytes + b"\x00\x01\x00\x00\x00\x00"
    assert small.answer(7).startswith(head)
    assert Reader(small.answer(7)[len(head) :]).map() == {
        "name": "Name",
        "type": 6,
        "access": 1,
        "index": 1,
        "optional": 0,
    }


@given(MAPS)
def test_a_map_survives_its_encoding(values: dict[str, object]) -> None:
    out = Writer()
    out.map(values)
    assert Reader(out.encoded).map() == values


@given(st.binary(max_size=300))
def test_any_bytes_are_a_schema_or_refused(data: bytes) -> None:
    for decode in (SchemaRequest.decode, decode_answer, lambda data: Reader(data).map()):
        for head in (b"", b"AM2S", b"AM2s\0\0\0\1\1\1p\1c"):
            try:
                decode(head + data)
            except BadEncoding as error:
                assert str(error)


def test_a_request_survives_its_binary_form() -> None:
    request = SchemaRequest(1, "mrg.grid", "job", uuid.uuid4())
    assert SchemaRequest.decode(request.encode()) == request
    assert decode_answer(refusal(5, 1, "no such class" * 20)) == (5, None)
