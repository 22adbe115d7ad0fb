"""Archives are unpacked whole, into their folder, or refused."""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvt.data.extract import extract

FILES = {f"train2017/{number:012}.jpg": bytes([number % 256]) * (number % 700) for number in range(900)}


def archive_of(path: Path, files: Mapping[str, bytes] = FILES, method: int = ZIP_STORED) -> Path:
    with ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def content_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("method", [ZIP_STORED, ZIP_DEFLATED])
@pytest.mark.parametrize("num_processes", [1, 3])
def test_every_file_is_unpacked(tmp_path: Path, method: int, num_processes: int) -> None:
    archive = archive_of(tmp_path / "train2017.zip", method=method)
    progress: list[tuple[int, int]] = []
    found = extract(
        archive,
        tmp_path / "out",
        num_processes=num_processes,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert content_of(tmp_path / "out") == FILES
    assert sorted(found) == sorted(tmp_path / "out" / name for name in FILES)
    assert progress[-1] == (900, 900)


def test_what_is_there_and_right_is_not_written_again(tmp_path: Path) -> None:
    archive, out = archive_of(tmp_path / "train2017.zip"), tmp_path / "out"
    extract(archive, out)
    names = list(FILES)
    (out / names[5]).unlink()
    (out / names[600]).write_bytes(b"x" * len(FILES[names[600]]))  # the size is right
    (out / names[701]).write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    extract(archive, out)
    assert content_of(out) == FILES
    changed = {
        path.relative_to(out).as_posix() for path, time in before.items() if path.stat().st_mtime_ns != time
    }
    assert changed == {names[600], names[701]}


def test_interrupted_it_goes_on_and_nothing_has_its_name_before_all_is_right(tmp_path: Path) -> None:
    archive, out = archive_of(tmp_path / "train2017.zip"), tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(archive, out, num_processes=1, on_progress=interrupt)
    assert [path.name for path in out.iterdir()] == [".train2017.zip.partial"]
    aside = out / ".train2017.zip.partial"
    written = sorted(path for path in aside.rglob("*") if path.is_file())
    assert 0 < len(written) < len(FILES)
    written[0].write_bytes(b"x")  # as a kill leaves it
    (aside / "train2017/of another archive").write_bytes(b"x")
    before = {path.name: path.stat().st_ino for path in written}
    extract(archive, out)
    assert content_of(out) == FILES
    assert {path.name for path in out.iterdir()} == {name.split("/")[0] for name in FILES}
    after = {path.name: path.stat().st_ino for path in out.rglob("*") if path.name in before}
    assert after == before, "what was there is not written again"


def test_only_what_is_wanted_is_unpacked(tmp_path: Path) -> None:
    files = {"annotations/instances_val2017.json": b"{}", "annotations/captions_val2017.json": b"[]"}
    archive = archive_of(tmp_path / "annotations.zip", files)
    extract(archive, tmp_path / "out", wanted=lambda name: "instances" in name)
    assert list(content_of(tmp_path / "out")) == ["annotations/instances_val2017.json"]


def link(name: str) -> ZipInfo:
    entry = ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "content", "sentence"),
    [
        (ZipInfo("../outside"), b"x", "leaves the folder"),
        (ZipInfo("/etc/outside"), b"x", "leaves the folder"),
        (ZipInfo("a/../../outside"), b"x", "leaves the folder"),
        (ZipInfo("..\\outside"), b"x", "leaves the folder"),
        (link("train2017"), b"/etc", "a link or a device"),
        (ZipInfo("zeros"), bytes(40_000_000), "would fill 40,"),
        (ZipInfo("inside"), b"y", "2 times"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_no_data_set_holds_is_refused_as_a_whole(
    tmp_path: Path, entry: ZipInfo, content: bytes, sentence: str
) -> None:
    path = tmp_path / "archive.zip"
    with ZipFile(path, "w") as archive:
        archive.writestr("inside", b"x")
        archive.writestr(entry, content, ZIP_DEFLATED)
    with pytest.raises(ValueError, match=sentence) as error:
        extract(path, tmp_path / "in/out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "in").exists() and not (tmp_path / "outside").exists()


def test_entries_that_share_their_bytes_are_no_way_around_the_limit(tmp_path: Path) -> None:
    """The list says 100 bytes, the data 40 million: what the list says counts."""
    path = tmp_path / "liar.zip"
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(40_000_000))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 100)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged at zeros"):
        extract(path, tmp_path / "out")
    assert content_of(tmp_path / "out") == {}


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_archive_gives_right_files_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    files = {f"a/{number}": bytes(range(256)) * number for number in range(4)}
    path = archive_of(folder / "archive.zip", files, data.draw(st.sampled_from([ZIP_STORED, ZIP_DEFLATED])))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        extract(path, folder / "out")
    except ValueError as error:
        assert str(path) in str(error)
    for content_found in content_of(folder / "out").values():
        assert content_found in files.values()


@pytest.mark.parametrize("header", [b"PK\x01\x02", b"PK\x03\x04"])
def test_an_archive_of_a_newer_kind_is_one_sentence(tmp_path: Path, header: bytes) -> None:
    path = archive_of(tmp_path / "archive.zip", {"a": b"x"})
    data = bytearray(path.read_bytes())
    at = data.index(header) + (6 if header == b"PK\x01\x02" else 8)
    data[at] = 255  # the version that is needed, or the compression method
    path.write_bytes(data)
    if header == b"PK\x03\x04":
        extract(path, tmp_path / "out")  # what the list says counts
    else:
        with pytest.raises(ValueError, match="no zip archive that can be read"):
            extract(path, tmp_path / "out")


def test_a_file_without_a_name_is_refused(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "archive.zip", {"a": b""})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 28 : at + 30] = struct.pack("<HH", 0, 1)[:2]  # its length; the byte counts as extra
    data[at + 30 : at + 32] = struct.pack("<H", 1)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"archive\.zip (holds '', which is no name|is no zip archive)"):
        extract(path, tmp_path / "out")


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>")
    with pytest.raises(ValueError, match=r"page.zip is no zip archive"):
        extract(tmp_path / "page.zip", tmp_path / "out")
    with pytest.raises(ValueError, match=r"none.zip is no zip archive"):
        extract(tmp_path / "none.zip", tmp_path / "out")
