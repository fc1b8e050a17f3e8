"""Building the zip that is a job's body."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
from carod_client import BadJob
from carod_client.inputs import HELD_IN_MEMORY, Inputs, build, members, release

from carod.amqp import Body


def zipped(inputs: Inputs) -> Body:
    return build(members(inputs))


def names(inputs: Inputs) -> list[str]:
    body = zipped(inputs)
    assert isinstance(body, bytes)
    return zipfile.ZipFile(io.BytesIO(body)).namelist() if body else []


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("job.sh").write_text("#!/bin/sh\n")
    Path("job.sh").chmod(0o755)
    Path("data/empty").mkdir(parents=True)
    Path("data/a.txt").write_text("a")
    return tmp_path


def test_no_inputs_make_an_empty_body() -> None:
    assert zipped([]) == b""


def test_a_file_keeps_its_permission_bits() -> None:
    body = zipped(["job.sh"])
    assert isinstance(body, bytes)
    (entry,) = zipfile.ZipFile(io.BytesIO(body)).infolist()
    assert (entry.filename, entry.external_attr >> 16 & 0o777) == ("job.sh", 0o755)


def test_a_directory_comes_with_its_name_and_with_its_empty_directories() -> None:
    assert names(["data"]) == ["data/", "data/a.txt", "data/empty/"]


def test_a_directory_with_a_slash_gives_its_contents() -> None:
    assert names(["data/"]) == ["a.txt", "empty/"]


def test_the_current_directory_gives_its_contents() -> None:
    assert names(["."]) == ["data/", "data/a.txt", "data/empty/", "job.sh"]


def test_pairs_and_mappings_give_content_or_another_name() -> None:
    assert names([("x/y.txt", b"hello")]) == ["x/y.txt"]
    assert names({"other.sh": "job.sh", "b": b""}) == ["b", "other.sh"]


def test_the_same_inputs_make_the_same_bytes() -> None:
    first = zipped(["data", "job.sh"])
    os.utime("job.sh", (1, 1))
    assert zipped(["job.sh", "data"]) == first


def test_a_large_zip_is_a_file_that_is_gone_once_released() -> None:
    Path("noise").write_bytes(os.urandom(HELD_IN_MEMORY + 1))
    body = zipped(["noise"])
    assert not isinstance(body, bytes)
    body.seek(0)
    assert zipfile.ZipFile(body).read("noise") == Path("noise").read_bytes()
    release(body)
    assert body.closed


def test_links_are_followed_and_one_into_its_own_directory_is_refused() -> None:
    Path("data/link").symlink_to("../job.sh")
    assert "data/link" in names(["data"])
    Path("data/loop").symlink_to(".")
    with pytest.raises(BadJob, match=r"'data/loop' is a link to a directory it lies in"):
        zipped(["data"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["missing"], "input 'missing': No such file or directory"),
        ("job.sh", r"inputs are a list: inputs=\['job.sh'\]"),
        (["job.sh", ("job.sh", b"")], "two inputs are both named 'job.sh'"),
        ([("a", b""), ("a/b", b"")], "'a/b' lies below 'a'"),
        ([("../up", b"")], "'../up' does not lie in the job's directory"),
        ([("/etc/passwd", b"")], "'/etc/passwd' does not lie in the job's directory"),
        ([("name", "text")], "input 'text': No such file"),
        ([3], "input 3 is a int"),
    ],
)
def test_an_input_that_cannot_be_sent_is_named(inputs: Inputs, message: str) -> None:
    with pytest.raises(BadJob, match=message):
        zipped(inputs)


def test_a_pipe_is_refused_not_read() -> None:
    os.mkfifo("data/pipe")
    with pytest.raises(BadJob, match="'data/pipe' is neither a file nor a directory"):
        zipped(["data"])
