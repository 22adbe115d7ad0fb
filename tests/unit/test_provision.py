"""A node has the data that a training was prepared with, or refuses."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dfvt.data import provision
from dfvt.data.manifest import DatasetManifest
from dfvt.data.provision import provide_dataset


@pytest.fixture
def source(shapes: DatasetManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shared storage with the data set; what a node knows lies in a folder of this test's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Path(shutil.copytree(shapes.root, tmp_path / "storage"))


def on_node(shapes: DatasetManifest, root: Path) -> DatasetManifest:
    return shapes.model_copy(update={"root": root})


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_data_are_copied_once_and_complete(
    shapes: DatasetManifest, source: Path, tmp_path: Path, scheme: str
) -> None:
    manifest, said = on_node(shapes, tmp_path / "node/data"), list[str]()
    with ThreadPoolExecutor(4) as workers:  # of one node
        list(workers.map(lambda _: provide_dataset(manifest, f"{scheme}{source}", said.append), range(4)))
    assert len([line for line in said if "copies" in line]) == 1
    copied = {file.relative_to(manifest.root) for file in manifest.root.rglob("*") if file.is_file()}
    assert copied == {file.relative_to(source) for file in source.rglob("*") if file.is_file()}


def test_data_that_are_there_are_read_once(
    shapes: DatasetManifest, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide_dataset(on_node(shapes, source), None, print)
    monkeypatch.setattr(provision, "require_hash", lambda *_: pytest.fail("read again"))
    provide_dataset(on_node(shapes, source), None, print)


def test_data_that_changed_are_refused(shapes: DatasetManifest, source: Path) -> None:
    manifest = on_node(shapes, source)
    provide_dataset(manifest, None, print)
    next(manifest.train_images_path.iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match="are missing in"):
        provide_dataset(manifest, None, print)


@pytest.mark.parametrize("keeps_time", [False, True])
def test_an_image_that_was_written_over_in_place_is_noticed(
    shapes: DatasetManifest, source: Path, keeps_time: bool
) -> None:
    manifest = on_node(shapes, source)
    provide_dataset(manifest, None, print)
    image, other = sorted(manifest.train_images_path.iterdir())[:2]
    before = image.stat()
    with image.open("r+b") as file:
        file.write(other.read_bytes())
        file.truncate()
    if keeps_time:  # as rsync --times does
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match="has other data in"):
        provide_dataset(manifest, None, print)


def test_links_to_nowhere_and_to_the_folder_itself_are_no_error(
    shapes: DatasetManifest, source: Path
) -> None:
    (source / "train2017/old.jpg").symlink_to(source / "gone.jpg")
    (source / "train2017/up").symlink_to(source / "train2017")
    provide_dataset(on_node(shapes, source), None, print)


def test_other_data_are_refused_and_left_alone(shapes: DatasetManifest, source: Path) -> None:
    manifest = on_node(shapes, source)
    image, other = sorted(manifest.train_images_path.iterdir())[:2]
    shutil.copy(other, image)
    with pytest.raises(ValueError, match="has other data in"):
        provide_dataset(manifest, str(source), print)
    assert image.is_file()


def test_a_source_with_other_data_leaves_nothing_behind_that_would_be_used(
    shapes: DatasetManifest, source: Path, tmp_path: Path
) -> None:
    image, other = sorted((source / shapes.train_images).iterdir())[:2]
    shutil.copy(other, image)
    with pytest.raises(ValueError, match=r"data_source .* has other data"):
        provide_dataset(on_node(shapes, tmp_path / "node"), str(source), print)
    assert not (tmp_path / "node").exists()


def test_an_interrupted_copy_goes_on(
    shapes: DatasetManifest, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = on_node(shapes, tmp_path / "node")
    with monkeypatch.context() as broken:
        broken.setattr(provision, "require_hash", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            provide_dataset(manifest, str(source), print)
    (tmp_path / ".node.partial" / shapes.train_annotations).write_text("half")
    copied: list[int] = []
    monkeypatch.setattr(shutil, "copyfileobj", counted(copied))
    provide_dataset(manifest, str(source), print)
    assert len(copied) == 1


def counted(calls: list[int]):  # type: ignore[no-untyped-def]
    copy = shutil.copyfileobj

    def copyfileobj(*arguments):  # type: ignore[no-untyped-def]
        calls.append(1)
        copy(*arguments)

    return copyfileobj


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (None, "has no data set in"),
        ("nowhere", "data_source has no"),
        ("nonsense://x", "data_source nonsense"),
    ],
)
def test_what_is_nowhere_is_one_sentence(
    shapes: DatasetManifest, source: Path, tmp_path: Path, place: str | None, sentence: str
) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=sentence) as caught:
        provide_dataset(on_node(shapes, tmp_path / "node"), place, print)
    assert "\n" not in str(caught.value)
