"""COCO 2017 from its archives, here of generated images: whole in the end, whatever comes between."""

from __future__ import annotations

import hashlib
from pathlib import Path
from zipfile import ZipFile

import pytest

from dfvt.data import coco2017
from dfvt.data.coco2017 import ARCHIVES, Archive, provide_coco2017, require_space
from dfvt.data.manifest import DatasetManifest

ANNOTATIONS = "annotations/instances_train2017.json"


def pack(root: Path, folder: Path) -> tuple[Archive, ...]:
    """The files of a data set as COCO packs them, with one that nothing here needs."""
    archives = []
    for path, names in (
        ("zips/train2017.zip", ["train2017"]),
        ("zips/val2017.zip", ["val2017"]),
        ("annotations/annotations_trainval2017.zip", ["annotations"]),
    ):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with ZipFile(target, "w") as archive:
            for name in names:
                for file in sorted((root / name).iterdir()):
                    archive.write(file, f"{name}/{file.name}")
            if "annotations" in names:
                archive.writestr("annotations/captions_val2017.json", "{}")
        content = target.read_bytes()
        archives.append(Archive(path, len(content), hashlib.md5(content).hexdigest()))
    return tuple(archives)


@pytest.fixture
def archives(shapes: DatasetManifest, tmp_path: Path) -> tuple[Archive, ...]:
    return pack(shapes.root, tmp_path / "served")


def names_in(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_the_folder_is_whole_and_the_archives_are_gone(
    shapes: DatasetManifest, archives: tuple[Archive, ...], tmp_path: Path
) -> None:
    served = (tmp_path / "served").as_uri() + "/"
    provide_coco2017(tmp_path / "coco", [served], tmp_path / "downloads", archives=archives)
    assert names_in(tmp_path / "coco") == names_in(shapes.root)
    assert [path.name for path in (tmp_path / "downloads").glob("*.zip")] == []
    provide_coco2017(
        tmp_path / "again", [served], tmp_path / "downloads", archives=archives, keep_archives=True
    )
    assert len(list((tmp_path / "downloads").glob("*.zip"))) == 3


def test_interrupted_it_goes_on_and_the_annotations_come_last(
    shapes: DatasetManifest,
    archives: tuple[Archive, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = (tmp_path / "served").as_uri() + "/"
    extract, unpacked = coco2017.extract, []

    def interrupted(archive: Path, *arguments: object, **options: object) -> object:
        if archive.name == "annotations_trainval2017.zip" and len(unpacked) < 3:
            unpacked.append("interrupted")
            raise KeyboardInterrupt
        unpacked.append(archive.name)
        return extract(archive, *arguments, **options)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(coco2017, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        provide_coco2017(tmp_path / "coco", [served], tmp_path / "downloads", archives=archives)
    assert ANNOTATIONS not in names_in(tmp_path / "coco")
    (tmp_path / "served/zips/train2017.zip").unlink()  # was unpacked: nobody asks for it again
    provide_coco2017(tmp_path / "coco", [served], tmp_path / "downloads", archives=archives)
    assert names_in(tmp_path / "coco") == names_in(shapes.root)
    assert unpacked == ["train2017.zip", "val2017.zip", "interrupted", "annotations_trainval2017.zip"]


def test_a_wrong_archive_leaves_no_data_set(archives: tuple[Archive, ...], tmp_path: Path) -> None:
    served = (tmp_path / "served").as_uri() + "/"
    wrong = (*archives[:2], Archive(archives[2].path, archives[2].size, "0" * 32))
    with pytest.raises(ValueError, match=f"its md5 is {archives[2].md5}, not 0000"):
        provide_coco2017(tmp_path / "coco", [served], tmp_path / "downloads", archives=wrong)
    assert ANNOTATIONS not in names_in(tmp_path / "coco")


def test_there_must_be_room_for_archives_and_images_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 30 * 2**30})())
    with pytest.raises(ValueError, match=r"COCO 2017 needs 39\.\d GiB in .* but 30\.0 GiB are free"):
        require_space(ARCHIVES, ARCHIVES, tmp_path, tmp_path)
    require_space(ARCHIVES[1:], ARCHIVES[1:], tmp_path, tmp_path)
    (tmp_path / ".train2017.zip.partial/train2017").mkdir(parents=True)
    with (tmp_path / ".train2017.zip.partial/train2017/000000000009.jpg").open("wb") as file:
        file.truncate(12 * 2**30)  # of an extraction that was interrupted
    require_space(ARCHIVES, ARCHIVES, tmp_path, tmp_path)
