"""COCO 2017: what there is to fetch, and a folder that has it afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import urljoin

from dfvt.data.download import Download, Patience, fetch_all, partial_of, size_of
from dfvt.data.extract import aside_of, extract
from dfvt.data.progress import Bars

PARTS = ("train2017/", "val2017/", "annotations/instances_")  # the archives hold captions and keypoints too


@dataclass(frozen=True)
class Archive:
    """A zip archive: its path below a base address, its bytes and its MD5."""

    path: str
    size: int
    md5: str

    @property
    def name(self) -> str:
        return Path(self.path).name


# Source: https://cocodataset.org/#download; the annotations come last, with them the data set is whole
ARCHIVES = (
    Archive("zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    Archive("zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
    Archive("annotations/annotations_trainval2017.zip", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c"),
)
FOLDERS = ("train2017", "val2017")
UNPACKED_RATIO = 1.05  # JPEGs do not shrink; of the annotations, three times as large, a half is unpacked


def provide_coco2017(
    root: Path,
    base_urls: Sequence[str],
    downloads: Path,
    *,
    archives: Sequence[Archive] = ARCHIVES,
    keep_archives: bool = False,
    say: Callable[[str], None] = lambda line: None,
    patience: Patience | None = None,
) -> None:
    """Fetches COCO 2017 into `downloads` and unpacks it into `root`; called again, it goes on.

    The annotations appear last: where they are, the data set is whole.

    Raises:
        ValueError: no base address has an archive, one is damaged, or there is no room.
        RuntimeError: the disk is full all the same.
    """
    missing = [archive for archive in archives if not is_unpacked(archive, root, downloads)]
    for folder in (downloads, root):  # before gigabytes are on their way
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder):
            pass
    require_space(archives, missing, root, downloads)
    fetches = [
        Download(
            tuple(urljoin(url, archive.path) for url in base_urls),
            downloads / archive.name,
            archive.size,
            f"md5:{archive.md5}",
        )
        for archive in missing
    ]
    with Bars("B") as bars:
        try:
            fetch_all(fetches, patience=patience, on_progress=bars, say=say)
        except ValueError as error:
            raise ValueError(
                f"{error}; name another data.base_url, or "
                "unpack COCO 2017 into a folder and set data.root to it"
            ) from error
    with Bars(" files") as bars:
        for archive in missing:
            extract(
                downloads / archive.name,
                root,
                wanted=lambda name: name.startswith(PARTS),
                on_progress=partial(bars, archive.name),
            )
            note_of(archive, downloads).write_text(json.dumps(unpacked_note(archive, root)), encoding="utf-8")
            if not keep_archives:
                (downloads / archive.name).unlink()
    for archive in archives:
        note_of(archive, downloads).unlink(missing_ok=True)


def note_of(archive: Archive, downloads: Path) -> Path:
    """Where it stands that an archive was unpacked, while others are not yet."""
    return downloads / f".{archive.name}.unpacked"


def unpacked_note(archive: Archive, root: Path) -> dict[str, str]:
    return {"md5": archive.md5, "root": str(root.absolute())}


def is_unpacked(archive: Archive, root: Path, downloads: Path) -> bool:
    """Whether an interrupted call unpacked this archive into this folder."""
    note = note_of(archive, downloads)
    return note.is_file() and json.loads(note.read_text(encoding="utf-8")) == unpacked_note(archive, root)


def require_space(
    archives: Sequence[Archive], missing: Sequence[Archive], root: Path, downloads: Path
) -> None:
    """Refuses to begin when the archives and what they hold do not fit together; what is there counts.

    Raises:
        ValueError: with what is needed and what is free.
    """
    to_come = sum(
        archive.size - max(size_of(downloads / archive.name), size_of(partial_of(downloads / archive.name)))
        for archive in missing
    )
    places = [
        place / part
        for place in (root, *(aside_of(Path(one.name), root) for one in archives))
        for part in FOLDERS
    ]
    unpacked = sum(path.stat().st_size for place in places for path in place.glob("*"))
    to_unpack = max(int(sum(archive.size for archive in archives) * UNPACKED_RATIO) - unpacked, 0)
    needs = {downloads: to_come, root: to_unpack}
    if downloads.stat().st_dev == root.stat().st_dev:
        needs = {root: to_come + to_unpack}
    for folder, need in needs.items():
        free = shutil.disk_usage(folder).free
        if need > free:
            raise ValueError(
                f"COCO 2017 needs {size_text(need)} in {folder.absolute()}, archives and images "
                f"together, but {size_text(free)} are free: free some, or choose another data.root"
            )


def size_text(num_bytes: int) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**29 else f"{num_bytes / 2**20:.1f} MiB"
