"""Folders at an address that pyarrow knows (s3://, gs://, hdfs://, file://, …), and copies of them."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pyarrow import NativeFile
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

# They have no folders to be made.
OBJECT_STORES = ("s3", "gcs", "abfs")
NUM_COPYING_THREADS = 16
KEPT_SECONDS = 300.0  # of a file system: making one may take a request
COPIED_BYTES = 16 << 20  # a request each: of small ones the answers take longer than the bytes


def open_address(address: str) -> tuple[FileSystem, str]:
    """Return the file system of an address, and the path there.

    A file system is used for minutes, and not after an error: so credentials that have expired are read anew.

    Raises:
        ValueError: it is no address that pyarrow knows.
    """
    return _open_address(address, time.monotonic() // KEPT_SECONDS)


@lru_cache
def _open_address(address: str, period: float) -> tuple[FileSystem, str]:
    try:
        storage, base = FileSystem.from_uri(address)
    except (OSError, ValueError) as error:
        raise ValueError(f"{address}: {str(error).splitlines()[0]}") from error
    return storage, base.rstrip("/")


def is_address(text: str) -> bool:
    """Whether a text is an address and no path."""
    return "://" in text


@dataclass(frozen=True)
class StorageFolder:
    """A folder at an address. Its methods raise ValueError in one sentence when the storage refuses."""

    address: str

    def __truediv__(self, name: str) -> StorageFolder:
        parts = urlsplit(self.address)
        return StorageFolder(parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl())

    def __str__(self) -> str:
        return self.address

    @contextmanager
    def opened(self) -> Iterator[tuple[FileSystem, str]]:
        """Its file system and path."""
        try:
            yield open_address(self.address)
        except FileNotFoundError:
            raise
        except OSError as error:
            _open_address.cache_clear()
            raise ValueError(f"{self.address}: {str(error).splitlines()[0]}") from error

    def files(self, *, recursive: bool = False) -> dict[str, FileInfo]:
        """All files in it, by their names relative to it; none where it is not."""
        with self.opened() as (storage, base):
            found = storage.get_file_info(FileSelector(base, allow_not_found=True, recursive=recursive))
            return {
                PurePosixPath(info.path).relative_to(base).as_posix(): info
                for info in found
                if info.type == FileType.File and not info.base_name.endswith(".partial")
            }

    def info(self, name: str) -> FileInfo | None:
        """What is known of a file, None if there is none."""
        with self.opened() as (storage, base):
            info: FileInfo = storage.get_file_info(f"{base}/{name}")
            return info if info.type == FileType.File else None

    def read(self, name: str) -> bytes | None:
        """The content of a small file, None if there is none."""
        try:
            with self.opened() as (storage, base), storage.open_input_stream(f"{base}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, which appears when it is complete."""
        with self.replaced(name) as out:
            out.write(content)

    def fetch(self, name: str, target: Path) -> None:
        """Copies a file here; `target` appears, or is replaced, when it is complete.

        Raises:
            FileNotFoundError: there is none.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        try:
            with (
                self.opened() as (storage, base),
                storage.open_input_stream(f"{base}/{name}") as stream,
                partial.open("wb") as out,
            ):
                shutil.copyfileobj(stream, out, COPIED_BYTES)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def put(self, source: Path, name: str) -> None:
        """Copies a file there, where it appears, or is replaced, when it is complete."""
        with source.open("rb") as file, self.replaced(name) as out:
            shutil.copyfileobj(file, out, COPIED_BYTES)

    @contextmanager
    def replaced(self, name: str) -> Iterator[NativeFile]:
        """A stream into a file, which is the old one until the body has ended, and stays so if it raises.

        In object stores too the new one has another name until it is complete: pyarrow completes an object
        whose stream is left by an error.
        """
        with self.opened() as (storage, base):
            folder, _, last = f"{base}/{name}".rpartition("/")
            if storage.type_name not in OBJECT_STORES:
                storage.create_dir(folder, recursive=True)
            partial = f"{folder}/.{last}.{uuid.uuid4().hex}.partial"
            try:
                with storage.open_output_stream(partial) as stream:
                    yield stream
                storage.move(partial, f"{folder}/{last}")
            except BaseException:
                with suppress(OSError):  # the error that is raised says more
                    storage.delete_file(partial)
                raise

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with self.opened() as (storage, base):
            if self.info(name):
                storage.delete_file(f"{base}/{name}")


@dataclass(frozen=True)
class Mirror:
    """A folder of this machine, and where else its files are, if they are: in `remote`.

    What others read is put there after it is written, and what others wrote is fetched before it is read.
    Without `remote` all see the folder itself, and nothing is to be done.
    """

    folder: Path
    remote: StorageFolder | None = None

    def __truediv__(self, name: str) -> Mirror:
        return Mirror(self.folder / name, self.remote and self.remote / name)

    def fetch(self, *patterns: str, recursive: bool = False) -> None:
        """Makes the files here that match a pattern those of the storage: what it has not goes away."""
        if self.remote is None:
            return
        names = [
            name
            for name in self.remote.files(recursive=recursive)
            if any(fnmatch(name, pattern) for pattern in patterns)
        ]
        for pattern in patterns:
            for stale in self.folder.glob(pattern):
                if stale.is_file() and stale.relative_to(self.folder).as_posix() not in names:
                    stale.unlink()
        remote = self.remote
        with ThreadPoolExecutor(NUM_COPYING_THREADS) as pool:
            list(pool.map(lambda name: remote.fetch(name, self.folder / name), names))

    def put(self, *names: str) -> None:
        """Copies files to the storage, in this order; those that are not here are left out."""
        for name in names:
            if self.remote and (self.folder / name).is_file():
                self.remote.put(self.folder / name, name)

    def remove(self, pattern: str) -> None:
        """Removes the files that match, here and there."""
        for file in self.folder.glob(pattern):
            file.unlink()
        if self.remote:
            for name in self.remote.files():
                if fnmatch(name, pattern):
                    self.remote.remove(name)

    def has(self, name: str) -> bool:
        """Whether a file is there for all to see."""
        return bool(self.remote.info(name)) if self.remote else (self.folder / name).is_file()
