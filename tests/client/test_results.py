"""What comes back: reading it, and unpacking it where nothing can escape."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest
from carod_client import BadArchive, Results


def archive(*entries: tuple[str, bytes, int]) -> Results:
    """A zip of (name, content, mode) entries, made without the checks of the node."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = mode << 16
            file.writestr(info, content)
    return Results(buffer.getvalue())


def link(name: str, target: str) -> tuple[str, bytes, int]:
    return name, target.encode(), stat.S_IFLNK | 0o777


def test_nothing_came_back() -> None:
    assert (Results(b"").names(), len(Results(b""))) == ([], 0)


def test_files_are_read_by_name_and_a_missing_one_says_what_there_is() -> None:
    results = archive(("a/b.txt", b"hello", 0o644), ("c", b"", 0o644))
    assert (results.names(), results.read("a/b.txt")) == (["a/b.txt", "c"], b"hello")
    with pytest.raises(KeyError, match=r"no file 'd' came back; there are: a/b\.txt, c"):
        results.read("d")


def test_extracting_keeps_permission_bits_but_not_setuid(tmp_path: Path) -> None:
    results = archive(("run", b"x", 0o4755), ("d/", b"", stat.S_IFDIR | 0o750), ("d/private", b"y", 0o600))
    assert results.extract(tmp_path / "new" / "out") == [tmp_path / "new/out/run", tmp_path / "new/out/d/private"]
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (tmp_path / "new/out").rglob("*")}
    assert modes == {"run": 0o755, "d": 0o750, "private": 0o600}


def test_extracting_again_replaces_what_is_there(tmp_path: Path) -> None:
    archive(("a", b"old", 0o400)).extract(tmp_path)
    archive(("a", b"new", 0o644)).extract(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize(
    "entry",
    [
        ("../up", b"", 0o644),
        ("a/../../up", b"", 0o644),
        ("/etc/cron.d/x", b"", 0o644),
        ("..\\up", b"", 0o644),
        ("pipe", b"", stat.S_IFIFO | 0o644),
        link("out", "/etc"),
        link("out", "../x"),
        link("a/out", "../../x"),
        link("out", "a/../../x"),
    ],
)
def test_an_entry_that_would_leave_the_directory_is_refused_before_anything_is_written(
    tmp_path: Path, entry: tuple[str, bytes, int]
) -> None:
    with pytest.raises(BadArchive, match=r"nothing (was )?unpacked"):
        archive(("good", b"", 0o644), entry).extract(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_through_a_link_in_the_zip(tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match="below a link"):
        archive(link("d", "."), ("d/file", b"", 0o644)).extract(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_through_a_link_that_was_there_before(tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.mkdir()
    out.mkdir()
    (out / "d").symlink_to(victim)
    (victim / "kept").write_text("kept")
    (out / "f").symlink_to(victim / "kept")
    archive(("f", b"new", 0o644)).extract(out)
    assert ((victim / "kept").read_text(), (out / "f").read_bytes()) == ("kept", b"new")
    with pytest.raises(BadArchive, match="is a link or a file where a directory must be"):
        archive(("d/file", b"", 0o644)).extract(out)
    assert os.listdir(victim) == ["kept"]


def test_a_link_that_stays_inside_is_kept_as_a_link(tmp_path: Path) -> None:
    archive(link("d/latest", "../run-1"), ("run-1", b"x", 0o644)).extract(tmp_path)
    assert (os.readlink(tmp_path / "d/latest"), (tmp_path / "d/latest").read_bytes()) == ("../run-1", b"x")


def test_what_is_no_zip_or_a_damaged_one_is_said_so() -> None:
    with pytest.raises(BadArchive, match="the 9 bytes that came back are no zip"):
        Results(b"ERROR: no")
    damaged = bytearray(archive(("a", b"x" * 100, 0o644)).body)
    damaged[40] ^= 0xFF
    with pytest.raises(BadArchive, match="file 'a' can't be read"):
        Results(bytes(damaged)).read("a")
