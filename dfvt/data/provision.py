"""A data set on the node that trains on it: looked at once a node, copied from shared storage if need be."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from filelock import FileLock
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from dfvt.data.coco import describe_dataset
from dfvt.data.manifest import DatasetManifest
from dfvt.data.storage import NUM_COPYING_THREADS, is_address, open_address

SECONDS_BETWEEN_LINES = 10.0
Say = Callable[[str], None]


def provide_dataset(manifest: DatasetManifest, source: str | None, say: Say) -> None:
    """Makes sure that this machine has the data set of a manifest at the manifest's `root`.

    Processes of one machine wait for the first of them. What was compared with the manifest's hash before is
    not read again unless it changed.

    Args:
        source: a folder with the same layout, as a path or an address that pyarrow knows (s3://, gs://, …),
            from which what is missing is copied.
        say: is told how a copy goes.

    Raises:
        FileNotFoundError: the data set is not here, and there is no source, or the source lacks it.
        ValueError: other data are here, or came from the source.
    """
    root = manifest.root.absolute()
    place = hashlib.sha256(str(root).encode()).hexdigest()[:16]
    known = Path(tempfile.gettempdir()) / f"dfvt-data-{place}.json"
    with FileLock(known.with_suffix(".lock")):
        if not root.exists():
            if source is None:
                raise FileNotFoundError(
                    f"the node {socket.gethostname()} has no data set in {root}: put it there, or name the "
                    "storage to copy it from as data_source"
                )
            copy_dataset(manifest, source, root, say)
        seen = {"data_hash": manifest.data_hash, "changed": last_changes(manifest)}
        if known.is_file() and json.loads(known.read_text(encoding="utf-8")) == seen:
            return
        require_hash(manifest, root, f"the node {socket.gethostname()}")
        known.write_text(json.dumps(seen), encoding="utf-8")


def parts_of(manifest: DatasetManifest) -> list[Path]:
    """The files and folders of a data set, relative to its root."""
    return [manifest.train_annotations, manifest.val_annotations, manifest.train_images, manifest.val_images]


def last_changes(manifest: DatasetManifest) -> str:
    """Return a hash of the size and the times of last change of every file of a data set.

    The folders' own times are not enough: they stay the same when an image is written over in place. The
    time of the last change of status (ctime) counts too, because `rsync` and `cp -p` set the other one back.
    Asking for this takes about a second for the 123,000 files of COCO, where reading them takes minutes.

    Returns:
        64 hexadecimal digits; another value as soon as a file is added, removed, or changed.
    """
    seen = hashlib.sha256()
    root = manifest.root.absolute()
    for part in parts_of(manifest):
        for path in every_file(root / part):
            stat = path.stat()
            seen.update(
                f"{path}\0{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n".encode(
                    "utf-8", "surrogateescape"
                )
            )
    return seen.hexdigest()


def every_file(path: Path) -> Iterator[Path]:
    """Yield `path` itself, or the files in it and in its subfolders, in the order of their names."""
    if not path.is_dir():
        yield from [path] if path.exists() else []
        return
    visited: set[str] = set()
    for folder, names, files in os.walk(path, followlinks=True):
        visited.add(os.path.realpath(folder))
        # a link to a folder above would have no end
        names[:] = [name for name in sorted(names) if os.path.realpath(Path(folder, name)) not in visited]
        yield from (file for name in sorted(files) if (file := Path(folder, name)).exists())


def require_hash(manifest: DatasetManifest, root: Path, where: str) -> None:
    """Reads the data set in `root`, every image of it.

    Raises:
        ValueError: it is not that of the manifest.
    """
    found = describe_dataset(
        manifest.name,
        root,
        train_annotations=manifest.train_annotations,
        train_images=manifest.train_images,
        val_annotations=manifest.val_annotations,
        val_images=manifest.val_images,
        generated=manifest.generated,
    ).data_hash
    if found != manifest.data_hash:
        raise ValueError(
            f"{where} has other data in {root} (hash {found[:12]}) than was prepared "
            f"({manifest.data_hash[:12]}): remove them there, or prepare these"
        )


def copy_dataset(manifest: DatasetManifest, source: str, root: Path, say: Say) -> None:
    """Copies a data set; `root` appears when it is complete, a copy that was interrupted goes on.

    Raises:
        FileNotFoundError: the source lacks a part.
        ValueError: the source's content is not that of the manifest, or its address is none.
    """
    try:
        storage, base = open_address(source if is_address(source) else Path(source).absolute().as_uri())
    except ValueError as error:
        raise ValueError(f"data_source {error}") from error
    folder = root.with_name(f".{root.name}.partial")
    files = list(
        chain.from_iterable(files_of(storage, f"{base}/{part.as_posix()}") for part in parts_of(manifest))
    )
    total = sum(file.size for file in files)
    say(f"copies {len(files)} files, {total / 1e9:.2f} GB, from {source} to {root}")

    def copy(file: FileInfo) -> int:
        target = folder / Path(file.path).relative_to(base)
        if not (target.is_file() and target.stat().st_size == file.size):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            with storage.open_input_stream(file.path) as stream, partial.open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            partial.replace(target)
        return int(file.size)

    done, last_line = 0, time.monotonic()
    with ThreadPoolExecutor(NUM_COPYING_THREADS) as pool:
        for number, size in enumerate(pool.map(copy, files), 1):
            done += size
            if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                say(f"{number} of {len(files)} files, {done / total:.0%}")
    require_hash(manifest, folder, f"data_source {source}")
    folder.replace(root)
    say(f"the data set is in {root}")


def files_of(storage: FileSystem, path: str) -> list[FileInfo]:
    """A file, or all files in a folder.

    Raises:
        FileNotFoundError: there is neither.
    """
    info = storage.get_file_info(path)
    if info.type == FileType.File:
        return [info]
    if info.type != FileType.Directory:
        raise FileNotFoundError(f"data_source has no {path}: it needs the layout of the data set here")
    found = storage.get_file_info(FileSelector(path, recursive=True))
    return [file for file in found if file.type == FileType.File]
