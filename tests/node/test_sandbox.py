"""What comes in stays in the job's directory, what goes out comes from there: hostile archives, and odd results."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carod.starter.sandbox import Limits, SandboxError, collect, unpack
from tests.node.client import zipped

LIMITS = Limits(1 << 20, 100)


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """The job's directory; beside it lies what no archive may touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (tmp_path / "box").mkdir()
    return tmp_path / "box"


def tar(*members: tuple[tarfile.TarInfo, bytes], compress: str = "") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=f"w:{compress}") as archive:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.SYMTYPE, target), b""


def put(box: Path, archive: bytes, limits: Limits = LIMITS, executable: str | None = None) -> None:
    unpack(io.BytesIO(archive), str(box), limits, executable)


def refusal(box: Path, archive: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(SandboxError) as caught:
        put(box, archive, limits)
    return str(caught.value)


def untouched(box: Path) -> bool:
    """Whether all that lies outside is as the fixture left it."""
    outside = box.parent
    names = sorted(str(path.relative_to(outside)) for path in outside.rglob("*") if box not in (path, *path.parents))
    return names == ["outside", "outside/secret"] and (outside / "outside/secret").read_text() == "secret"


# -- in --------------------------------------------------------------------------------------------------------


def test_a_zip_without_permission_bits_makes_cmd_executable_and_all_files_readable(box: Path) -> None:
    put(box, zipped({"run.sh": "#!/bin/sh\n", "sub/data": "x"}), executable="./run.sh")
    assert stat.S_IMODE((box / "run.sh").stat().st_mode) == 0o744
    assert stat.S_IMODE((box / "sub/data").stat().st_mode) == 0o644


def test_permission_bits_that_an_archive_has_are_kept(box: Path) -> None:
    put(box, zipped({"a": "x", "b": "y"}, {"a": 0o750, "b": 0o600}))
    assert [stat.S_IMODE((box / name).stat().st_mode) for name in "ab"] == [0o750, 0o600]


@pytest.mark.parametrize("compress", ["", "gz"])
def test_tar_and_tar_gz_are_told_apart_by_content(box: Path, compress: str) -> None:
    put(
        box,
        tar(
            (member("d", tarfile.DIRTYPE), b""), (member("d/f", mode=0o755), b"x"), link("l", "d/f"), compress=compress
        ),
    )
    assert (box / "l").read_text() == "x"
    assert (box / "d/f").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..", "./../evil", "a/b/../../../evil"])
@pytest.mark.parametrize("make", [lambda name: zipped({name: "x"}), lambda name: tar((member(name), b"x"))])
def test_a_name_that_leads_out_is_refused_and_named(box: Path, make, name: str) -> None:
    assert repr(name) in refusal(box, make(name))
    assert untouched(box)


@pytest.mark.parametrize("target", ["..", "../outside", "/etc", "/", "a/../../outside", "./..", "a/b/../../.."])
def test_a_link_that_leads_out_is_refused_and_named(box: Path, target: str) -> None:
    reason = refusal(box, tar(link("l", target)))
    assert "'l'" in reason
    assert target in reason


def test_a_link_that_leads_out_through_another_link_is_refused(box: Path) -> None:
    for archive in (
        tar(link("here", "."), link("up", "here/.."), (member("up/evil"), b"x")),
        tar(link("up", "here/.."), link("here", "."), (member("up/evil"), b"x")),
        tar(link("d/e/f", "../.."), link("up", "d/e/f/..")),
    ):
        assert "leads out" in refusal(box, archive)
        assert untouched(box)


def test_links_that_stay_inside_are_kept(box: Path) -> None:
    put(box, tar((member("a/b/f"), b"x"), link("a/b/up", "../../top"), (member("top"), b"top"), link("dir", "a/./b/")))
    assert (box / "a/b/up").read_text() == "top"
    assert (box / "dir/f").read_text() == "x"


def test_a_file_through_a_link_is_refused(box: Path) -> None:
    assert "link" in refusal(box, tar((member("d", tarfile.DIRTYPE), b""), link("l", "d"), (member("l/f"), b"x")))
    assert not list((box / "d").iterdir())


def test_a_file_over_a_link_is_refused(box: Path) -> None:
    (box.parent / "outside/secret").chmod(0o666)
    assert "'l'" in refusal(box, tar(link("l", "x"), (member("l"), b"evil")))
    assert not (box / "x").exists()


def test_hard_links_inside_are_kept(box: Path) -> None:
    put(box, tar((member("a"), b"x"), (member("b", tarfile.LNKTYPE, "a"), b"")))
    assert (box / "b").read_text() == "x"


@pytest.mark.parametrize("target", ["../outside/secret", "/etc/passwd", "a/../../outside/secret", "missing"])
def test_a_hard_link_that_leads_out_is_refused(box: Path, target: str) -> None:
    assert "'h'" in refusal(box, tar((member("h", tarfile.LNKTYPE, target), b"")))
    assert not (box / "h").exists()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_refused(box: Path, kind: bytes) -> None:
    assert "device or a pipe" in refusal(box, tar((member("dev", kind), b"")))
    assert not list(box.iterdir())


def test_an_archive_that_unpacks_to_too_much_is_refused_whatever_it_claims(box: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(4 << 20))
    assert "MAX_UNPACKED_SIZE = 1048576" in refusal(box, target.getvalue())
    assert (box / "bomb").stat().st_size <= 1 << 20
    bomb = tar((member("bomb2"), bytes(4 << 20)), compress="gz")
    assert "MAX_UNPACKED_SIZE = 1048576" in refusal(box, bomb)


def test_an_archive_of_too_many_entries_is_refused(box: Path) -> None:
    assert "MAX_UNPACKED_FILES = 100" in refusal(box, zipped({f"f{n}": "" for n in range(101)}))


def test_directories_that_a_name_implies_count_as_entries(box: Path) -> None:
    assert "MAX_UNPACKED_FILES = 100" in refusal(box, zipped({"/".join(["d"] * 200): ""}))


def test_a_tar_record_that_claims_gigabytes_is_refused_before_it_is_read(box: Path) -> None:
    info = member("x", tarfile.XHDTYPE)
    info.size = 4 << 30
    archive = gzip.compress(info.tobuf() + bytes(1 << 20))
    assert "4294967296 bytes" in refusal(box, archive)


@pytest.mark.parametrize("name", ["x" * 300, "d/" + "x" * 300 + "/f", "a\0b"])
def test_a_name_that_the_file_system_does_not_take_is_named(box: Path, name: str) -> None:
    data = tar((member(name), b"x")) if "\0" not in name else zipped({name: "x"})
    if "\0" in name:  # zipfile ends the name there
        put(box, data)
        assert (box / "a").exists()
    else:
        assert name[:100] in refusal(box, data)


@pytest.mark.parametrize(
    "body",
    [b"garbage", b"PK\x03\x04 and no more", b"\x1f\x8b\x08", b"\x1f\x8b\x08" + bytes(50), b"x" * 2000, b"\0" * 1024],
)
def test_a_body_that_is_no_archive_is_refused_with_what_would_do(box: Path, body: bytes) -> None:
    reason = refusal(box, body)
    assert "damaged" in reason or "send the files as one of these" in reason


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_damaged_in_any_compression_is_refused(box: Path, method: int) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.writestr("f", os.urandom(2000) + bytes(2000))
    data = bytearray(target.getvalue())
    data[60:400] = bytes(340)
    assert "damaged" in refusal(box, bytes(data))


def encrypt(archive: bytes) -> bytes:
    """Set the bit that says "encrypted" in both headers of a zip's only entry."""
    data = bytearray(archive)
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def test_an_encrypted_zip_is_refused(box: Path) -> None:
    assert "encrypted" in refusal(box, encrypt(zipped({"f": "x"})))


def test_an_empty_zip_is_fine(box: Path) -> None:
    put(box, zipped({}))
    assert not list(box.iterdir())


names = st.lists(st.sampled_from(["..", ".", "a", "b", "l", "m", "", "outside", "box"]), min_size=1, max_size=5).map(
    "/".join
)
members = st.tuples(
    names, st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]), names | st.just("/")
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(members, min_size=1, max_size=8))
def test_whatever_a_tar_holds_nothing_is_created_outside(tmp_path_factory, entries) -> None:
    top = tmp_path_factory.mktemp("t")
    (top / "outside").mkdir()
    (top / "outside/secret").write_text("secret")
    box = top / "box"
    box.mkdir()
    archive = tar(
        *((member(name, kind, target), b"x" if kind == tarfile.REGTYPE else b"") for name, kind, target in entries)
    )
    with contextlib.suppress(SandboxError):
        put(box, archive)
    assert untouched(box)
    for path in box.rglob("*"):
        if path.is_symlink():
            leads_to = os.path.realpath(path.parent / os.readlink(path))
            assert leads_to == str(box) or leads_to.startswith(f"{box}/")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(names, st.booleans(), names), min_size=1, max_size=6))
def test_whatever_a_zip_holds_nothing_is_created_outside(tmp_path_factory, entries) -> None:
    top = tmp_path_factory.mktemp("z")
    (top / "outside").mkdir()
    (top / "outside/secret").write_text("secret")
    box = top / "box"
    box.mkdir()
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w") as archive:
        warnings.simplefilter("ignore")
        for name, is_link, content in entries:
            info = zipfile.ZipInfo(name or "x")
            info.external_attr = (0o120777 if is_link else 0o100644) << 16
            archive.writestr(info, content)
    with contextlib.suppress(SandboxError):
        put(box, target.getvalue())
    assert untouched(box)


ARCHIVES = [zipped({"a": "x" * 300, "b/c": "y"}), tar((member("a"), b"x" * 300), link("l", "a")),
            tar((member("a"), b"x" * 300), compress="gz")]  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(ARCHIVES),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    st.floats(0.01, 1),
)
def test_a_damaged_archive_is_unpacked_or_refused(tmp_path_factory, archive, changes, part) -> None:
    data = bytearray(archive[: max(1, int(len(archive) * part))])
    for at, value in changes:
        data[int(at * len(data))] = value
    try:
        put(tmp_path_factory.mktemp("d"), bytes(data))
    except SandboxError as error:
        assert str(error)


# -- out -------------------------------------------------------------------------------------------------------


def result(box: Path, size: int = 1 << 30, **options):
    found = collect(str(box), size, **options)
    body = found.zipped if isinstance(found.zipped, bytes) else (found.zipped.seek(0), found.zipped.read())[1]
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        return {info.filename: archive.read(info) for info in archive.infolist()}, found


def test_everything_in_the_directory_is_returned_but_the_nodes_own_files(box: Path) -> None:
    (box / "d/e").mkdir(parents=True)
    (box / "d/e/f").write_bytes(b"x" * 1000)
    (box / "empty").mkdir()
    for name in (".job.ad", ".machine.ad", ".hidden"):
        (box / name).write_text(name)
    files, found = result(box)
    assert set(files) == {"d/e/f", "empty/", ".hidden"}
    assert not found.refused


def test_links_inside_are_returned_as_links_and_links_out_are_refused(box: Path) -> None:
    (box / "f").write_text("x")
    (box / "d").mkdir()
    for name, target in {
        "good": "f", "d/up": "../f", "dangling": "nowhere", "abs": str(box / "f"),
        "out": "../outside/secret", "here": ".", "sly": "here/../../outside",
    }.items():  # fmt: skip
        (box / name).symlink_to(target)
    files, found = result(box)
    assert {name: files[name] for name in ("good", "d/up", "dangling")} == {
        "good": b"f", "d/up": b"../f", "dangling": b"nowhere"
    }  # fmt: skip
    assert sorted(found.refused) == ["abs", "out", "sly"]


def test_pipes_are_refused_and_named(box: Path) -> None:
    os.mkfifo(box / "pipe")
    files, found = result(box)
    assert (files, found.refused) == ({}, ["pipe"])


def test_what_does_not_fit_is_left_out_and_named(box: Path) -> None:
    for name, size in {"a": 10, "big": 500_000, "c": 10, "d": 70_000}.items():
        (box / name).write_bytes(os.urandom(size))
    files, found = result(box, 100_000)
    assert (set(files), found.left_out) == ({"a", "c", "d"}, ["big"])
    assert len(found.zipped if isinstance(found.zipped, bytes) else found.zipped.read()) <= 100_000


@pytest.mark.parametrize("size", range(600, 1400, 37))
def test_a_result_is_never_larger_than_its_limit(box: Path, size: int) -> None:
    for number in range(8):
        (box / f"file{number}").write_bytes(os.urandom(50 * number))
    _, found = result(box, size)
    assert isinstance(found.zipped, bytes)
    assert len(found.zipped) <= size


def test_names_of_transfer_output_that_lie_outside_are_refused(box: Path) -> None:
    (box / "d").mkdir()
    (box / "d/f").write_text("x")
    (box / "d/link").symlink_to("../g")
    (box / "g").write_text("g")
    (box / "out").symlink_to("/etc")
    names = ["/etc/shadow", "../outside/secret", "out/passwd", "out", "missing", "d", ".", "", "d/../../outside/secret"]
    files, found = result(box, names=names)
    assert files == {"d/f": b"x", "d/link": b"../g"}
    assert found.refused == [name for name in names if name != "d"]


def test_names_that_are_not_utf8_are_returned_with_replacements(box: Path) -> None:
    Path(os.fsdecode(os.fsencode(box) + b"/na\xefve")).write_text("x")
    os.mkfifo(os.fsencode(box) + b"/pi\xffpe")
    files, found = result(box)
    assert files == {"na�ve": b"x"}
    assert found.refused == ["pi�pe"]


def test_many_refused_names_are_counted_not_told(box: Path) -> None:
    for number in range(500):
        os.mkfifo(box / f"pipe{number:03}")
    _, found = result(box)
    assert (len(found.refused), found.refused[-1]) == (101, "and 400 more")


def test_a_file_of_any_date_is_returned(box: Path) -> None:
    for year, seconds in {"old": 0, "new": 1 << 33}.items():
        (box / year).write_text("x")
        os.utime(box / year, (seconds, seconds))
    assert set(result(box)[0]) == {"old", "new"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(st.characters(blacklist_characters="/\0", codec="utf-8"), min_size=1, max_size=20)
                       .filter(lambda name: name not in (".", "..") and len(name.encode()) < 200),
                       st.binary(max_size=400), max_size=8))  # fmt: skip
def test_a_result_unpacks_to_what_was_there(tmp_path_factory, files: dict[str, bytes]) -> None:
    box, again = tmp_path_factory.mktemp("r"), tmp_path_factory.mktemp("s")
    for name, content in files.items():
        (box / name).write_bytes(content)
    found = collect(str(box), 1 << 30)
    assert isinstance(found.zipped, bytes)
    put(again, found.zipped)
    wanted = {name: content for name, content in files.items() if name not in (".job.ad", ".machine.ad")}
    assert {path.name: path.read_bytes() for path in again.iterdir()} == wanted
