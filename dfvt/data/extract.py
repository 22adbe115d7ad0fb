"""Unpacks zip archives: in parallel, verified, and nothing outside the folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import ClassVar
from zipfile import BadZipFile, ZipFile, ZipInfo

CHUNK_BYTES = 2**20
FILES_PER_TASK = 256
MAX_RATIO = 200  # of unpacked to packed bytes; JSON of annotations has about 5
# What zipfile raises for archives that are damaged, or newer than it
DAMAGE = (BadZipFile, EOFError, NotImplementedError, IndexError, UnicodeDecodeError, zlib.error, struct.error)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

Advance = Callable[[int, int], None]  # files done, files in all


def extract(
    archive: Path,
    folder: Path,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    num_processes: int | None = None,
    on_progress: Advance = lambda done, total: None,
) -> list[Path]:
    """Unpacks the files of a zip archive whose names are `wanted`; returns where they are, below `folder`.

    Files are written into a folder of their own, and have their names when all of them are complete and
    their CRC-32 are right. One that is there with the archive's size and CRC-32, in either place, is left as
    it is, so that an extraction that was interrupted goes on.

    Raises:
        RuntimeError: the disk is full.
        ValueError: the archive is damaged, or holds what no archive of a data set should: paths that leave
            the folder, links, the same name twice, encrypted files, far more bytes than it has itself.
    """
    entries = [entry for entry in list_entries(archive) if wanted(entry.filename)]
    names = [entry.filename for entry in entries]
    aside = aside_of(archive, folder)
    prepare(aside, names)
    num_processes = num_processes or len(os.sched_getaffinity(0))
    tasks = [names[start : start + FILES_PER_TASK] for start in range(0, len(names), FILES_PER_TASK)]
    done = 0
    if num_processes == 1 or len(tasks) < 2:
        unpacker = Unpacker(archive, folder)
        for task in tasks:
            done += unpacker.unpack(task)
            on_progress(done, len(names))
    else:
        with ProcessPoolExecutor(
            num_processes,
            mp_context=multiprocessing.get_context("fork"),
            initializer=begin_process,
            initargs=(archive, folder),
        ) as executor:
            futures = [executor.submit(unpack_in_process, task) for task in tasks]
            try:
                for future in as_completed(futures):
                    done += future.result()
                    on_progress(done, len(names))
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise
    move_into(aside, folder)
    return [folder / name for name in names]


def aside_of(archive: Path, folder: Path) -> Path:
    """Where the files of an archive are written: a file that is moved from there alone would take as long
    as one that is written.
    """
    return folder / f".{archive.name}.partial"


def prepare(aside: Path, names: Sequence[str]) -> None:
    """Makes the folders of `names`, and removes what another archive of that name may have left."""
    kept = {aside / name for name in names}
    for path in [path for path in aside.rglob("*") if path.is_file() and path not in kept]:
        path.unlink()
    for parent in {path.parent for path in kept} | {aside}:
        parent.mkdir(parents=True, exist_ok=True)


def move_into(source: Path, folder: Path) -> None:
    """Moves what `source` holds into `folder`, whole folders at once where there is none of that name."""
    for path in source.iterdir():
        target = folder / path.name
        if path.is_dir() and target.is_dir():
            move_into(path, target)
        else:
            path.replace(target)
    source.rmdir()


def list_entries(archive: Path) -> list[ZipInfo]:
    """The files that an archive says it holds.

    Raises:
        ValueError: see `extract`.
    """
    try:
        with ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.filename.endswith("/")]
    except (*DAMAGE, OSError) as error:
        raise ValueError(f"{archive} is no zip archive that can be read ({error})") from error
    for entry in entries:
        problem = problem_of(entry)
        if problem:
            raise ValueError(f"{archive} holds {entry.filename!r}, {problem}: it is not unpacked")
    (name, count), *_ = Counter(entry.filename for entry in entries).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(f"{archive} holds {name!r} {count} times: it is not unpacked")
    unpacked, packed = sum(entry.file_size for entry in entries), archive.stat().st_size
    if unpacked > MAX_RATIO * packed:
        raise ValueError(f"{archive} has {packed:,} bytes and would fill {unpacked:,}: it is not unpacked")
    return entries


def problem_of(entry: ZipInfo) -> str | None:
    """What makes an entry unfit to be unpacked."""
    path = PurePosixPath(entry.filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not entry.filename:
        return "which is no name"
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or "\0" in entry.orig_filename:
        return "which leaves the folder"
    if kind not in (0, stat.S_IFREG):
        return "which is no file, but a link or a device"
    if entry.flag_bits & 0x1:
        return "which is encrypted"
    if entry.compress_type not in METHODS:
        return f"whose compression method {entry.compress_type} is unknown here"
    return None


class Unpacker:
    """An archive that one process has open: reading its list takes a second for a hundred thousand files."""

    of_process: ClassVar[Unpacker]

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder, self.aside = archive, folder, aside_of(archive, folder)
        self.opened = ZipFile(archive)

    def unpack(self, names: Sequence[str]) -> int:
        """Unpacks the files of these names that are not there yet; returns how many names there are.

        Raises:
            ValueError: one is damaged.
        """
        for name in names:
            entry, target = self.opened.getinfo(name), self.aside / name
            if not is_unpacked(entry, self.folder / name) and not is_unpacked(entry, target):
                try:
                    unpack_one(self.opened, entry, target)
                except BadZipFile as error:
                    raise ValueError(
                        f"{self.archive} is damaged at {name} ({error}): fetch it again"
                    ) from error
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    raise RuntimeError(
                        f"{self.folder} has no space left for {name}: free some, and start again to go on"
                    ) from error
        return len(names)


def begin_process(archive: Path, folder: Path) -> None:
    Unpacker.of_process = Unpacker(archive, folder)


def unpack_in_process(names: Sequence[str]) -> int:
    return Unpacker.of_process.unpack(names)


def is_unpacked(entry: ZipInfo, target: Path) -> bool:
    """Whether a file is what the archive holds, by size and CRC-32."""
    try:
        found = target.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != entry.file_size:
        return False
    crc = 0
    with target.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc == entry.CRC


def read_entry(opened: ZipFile, entry: ZipInfo) -> Iterator[bytes]:
    """The bytes of a file in an archive.

    Raises:
        BadZipFile: whatever zipfile stumbles over when it reads what a damaged archive says.
    """
    try:
        with opened.open(entry) as source:
            while chunk := source.read(CHUNK_BYTES):
                yield chunk
    except (*DAMAGE, OSError, ValueError) as error:
        raise BadZipFile(str(error)) from error


def unpack_one(opened: ZipFile, entry: ZipInfo, target: Path) -> None:
    """Writes one file; zipfile compares its CRC-32 and size."""
    try:
        with target.open("wb") as file:
            num_bytes = sum(file.write(chunk) for chunk in read_entry(opened, entry))
        if num_bytes != entry.file_size:
            raise BadZipFile(f"{num_bytes} bytes instead of {entry.file_size}")
    except BaseException:
        target.unlink(missing_ok=True)
        raise
