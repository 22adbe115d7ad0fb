"""Downloads that resume, retry, and appear under their name only when they are what was asked for."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from filelock import FileLock
from urllib3 import Retry
from urllib3.exceptions import HTTPError, MaxRetryError, TimeoutError

CHUNK_BYTES = 2**20
PROGRESS_BYTES = 2**16  # with so many new bytes a connection was worth its while: tries are counted anew
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_WAIT = 600.0  # seconds that a server may ask for


class Unavailable(Exception):  # noqa: N818, becomes part of a sentence
    """Why one address does not give the file."""


class TryAgain(Exception):  # noqa: N818, as above
    """A server is not able to answer at present."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__(f"{response.status_code} {response.reason}")
        self.response = response


class Cancelled(Exception):  # noqa: N818, nothing is wrong with it
    """Another file of the same batch failed."""


@dataclass(frozen=True)
class Download:
    """A file to fetch.

    Attributes:
        urls: where it is, `https://`, `http://` or `file://`; the next one counts when one fails.
        target: its final name.
        size: in bytes, if known.
        checksum: as `md5:…` or `sha256:…`, if known.
    """

    urls: tuple[str, ...]
    target: Path
    size: int | None = None
    checksum: str | None = None


@dataclass(frozen=True)
class Patience:
    """How long a fetch waits, and how often it tries when there is no progress; seconds."""

    connect: float = 10.0
    read: float = 30.0
    num_tries: int = 8
    backoff: float = 1.0


@dataclass
class Origin:
    """What a partial file is the beginning of."""

    size: int | None
    validator: str | None  # the server's ETag or date of change


@dataclass
class Stream:
    """What an address gives: the bytes of `origin` from `start` on."""

    origin: Origin
    start: int
    read: Callable[[int], bytes]


Advance = Callable[[str, int, int | None], None]  # a file's name, its bytes so far, its size


def fetch_all(
    downloads: Iterable[Download],
    *,
    num_parallel: int = 3,
    patience: Patience | None = None,
    on_progress: Advance = lambda name, done, size: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Fetches files, several at a time; returns their checksums (SHA-256 where none was given).

    Raises:
        ValueError: a file cannot be had, in one sentence with each address's reason.
        RuntimeError: the disk is full.
    """
    cancelled = threading.Event()

    def fetch_one(download: Download) -> str:
        return fetch(download, patience=patience, on_progress=on_progress, say=say, cancelled=cancelled)

    with ThreadPoolExecutor(num_parallel, thread_name_prefix="fetch") as executor:
        futures = [executor.submit(fetch_one, download) for download in downloads]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # after Ctrl-C too: what is there so far stays
            cancelled.set()
            for future in futures:
                future.cancel()
    errors = [future.exception() for future in futures if not future.cancelled()]
    for error in errors:
        if error and not isinstance(error, Cancelled):
            raise error
    return [future.result() for future in futures]


def fetch(
    download: Download,
    *,
    patience: Patience | None = None,
    on_progress: Advance = lambda name, done, size: None,
    say: Callable[[str], None] = lambda line: None,
    cancelled: threading.Event | None = None,
) -> str:
    """Fetches one file, or finds it there; returns its checksum. A second process waits for the first.

    Raises:
        ValueError, RuntimeError: as `fetch_all`.
        Cancelled: `cancelled` was set.
    """
    target = download.target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        found = checksum_of_verified(download)
        if found:
            return found
        reasons = []
        for url in download.urls:
            attempt = Attempt(
                download, url, patience or Patience(), on_progress, say, cancelled or threading.Event()
            )
            try:
                return attempt.run()
            except Unavailable as reason:
                reasons.append(f"{url}: {reason}")
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise RuntimeError(
                    f"{target} cannot be fetched, no space is left on its disk: free some, and start again "
                    "to go on from there"
                ) from error
        raise ValueError(f"{target.name} cannot be fetched: {'; '.join(reasons)}")


class Attempt:
    """The tries to get a file from one address."""

    def __init__(
        self,
        download: Download,
        url: str,
        patience: Patience,
        on_progress: Advance,
        say: Callable[[str], None],
        cancelled: threading.Event,
    ) -> None:
        self.download, self.url, self.patience = download, url, patience
        self.on_progress, self.say, self.cancelled = on_progress, say, cancelled
        self.algorithm, _, self.wanted = (download.checksum or "sha256:").partition(":")
        self.hash, self.num_hashed = hashlib.new(self.algorithm), 0
        self.partial = partial_of(download.target)
        self.last_line = ""
        self.session = requests.Session()  # proxies and certificates are those of the environment

    def run(self) -> str:
        """Raises Unavailable when the address does not give the file that was asked for."""
        resumed = self.partial.is_file()
        with self.session:
            self.receive()
            try:
                return self.accept()
            except Unavailable:
                if not resumed:
                    raise
            self.receive()  # what was there before may have been another file's beginning
            return self.accept()

    def receive(self) -> None:
        """Completes the partial file; connections that break are made again from where they broke."""
        retry = self.fresh_retry()
        done = size_of(self.partial)
        before = read_origin(self.partial)
        if before and before.size == done:  # whole, but killed before it had its name
            self.hash_up_to(done)
            return
        while True:
            answer = None
            try:
                with self.open(done) as stream:
                    if self.write(stream):
                        return
                problem: Exception = HTTPError("the connection ended early")
            except TryAgain as error:
                problem, answer = error, error.response.raw
            except requests.TooManyRedirects as error:
                raise Unavailable("it redirects without an end") from error
            except (requests.RequestException, HTTPError, ConnectionError, TimeoutError) as error:
                problem = error
            if size_of(self.partial) >= done + PROGRESS_BYTES:
                retry = self.fresh_retry()
            done = size_of(self.partial)
            if answer and (retry.get_retry_after(answer) or 0) > LONGEST_WAIT:
                raise Unavailable(f"{problem}, and to come back in {retry.get_retry_after(answer):.0f} s")
            try:
                retry = retry.increment(
                    "GET", self.url, response=answer, error=None if answer else HTTPError()
                )
            except MaxRetryError as error:
                reason = f"{self.patience.num_tries} tries failed, the last one with: {said(problem)}"
                raise Unavailable(reason) from error
            line = f"{self.url}: {said(problem)}; it is tried again after {done:,} bytes"
            if line != self.last_line:  # an address where nobody answers is tried for minutes
                self.say(line)
                self.last_line = line
            asked_for = retry.get_retry_after(answer) if answer else None
            if self.cancelled.wait(asked_for or retry.get_backoff_time()):
                raise Cancelled

    def fresh_retry(self) -> Retry:
        return Retry(
            total=self.patience.num_tries - 1,
            backoff_factor=self.patience.backoff,
            backoff_jitter=self.patience.backoff,
            backoff_max=60,
            retry_after_max=10**9,  # LONGEST_WAIT decides
            status_forcelist=TRY_AGAIN,
        )

    @contextmanager
    def open(self, offset: int) -> Iterator[Stream]:
        """The bytes from `offset` on, or from the beginning where that cannot be had."""
        parts = urlsplit(self.url)
        if parts.scheme == "file":
            path = Path(unquote(parts.path))
            if not path.is_file():
                raise Unavailable("there is no such file")
            with path.open("rb") as file:
                stat = path.stat()
                origin = Origin(stat.st_size, str(stat.st_mtime_ns))
                known = origin == read_origin(self.partial)
                file.seek(offset if known else 0)
                yield Stream(origin, offset if known else 0, file.read)
            return
        headers = {"Accept-Encoding": "identity"}
        before = read_origin(self.partial)
        if offset and before and (before.validator or self.wanted):  # a checksum finds another file out
            headers |= {"Range": f"bytes={offset}-"}
            headers |= {"If-Range": before.validator} if before.validator else {}
        timeout = (self.patience.connect, self.patience.read)
        with self.session.get(self.url, headers=headers, stream=True, timeout=timeout) as response:
            status = response.status_code
            if status in TRY_AGAIN:
                raise TryAgain(response)
            if status == 416:  # what is there is as long as the file, or longer
                forget(self.partial)
                raise TryAgain(response)
            if status not in (200, 206):
                raise Unavailable(f"{status} {response.reason}")
            start = offset if status == 206 else 0
            length = response.headers.get("Content-Length")
            size = start + int(length) if length and length.isdigit() else None
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if status == 206 and (before is None or (total.isdigit() and int(total) != before.size)):
                forget(self.partial)
                raise TryAgain(response)
            strong = response.headers.get("ETag", "")
            validator = strong if strong.startswith('"') else response.headers.get("Last-Modified")
            yield Stream(Origin(size, validator), start, response.raw.read)

    def write(self, stream: Stream) -> bool:
        """Adds what a stream gives to the partial file; returns whether that is all of it."""
        expected = self.download.size
        if expected is not None and stream.origin.size is not None and stream.origin.size != expected:
            raise Unavailable(f"it has {stream.origin.size:,} bytes, not {expected:,}")
        if not stream.start:
            forget(self.partial)
        require_space(self.partial, (stream.origin.size or 0) - stream.start)
        origin_of(self.partial).write_text(json.dumps(asdict(stream.origin)), encoding="utf-8")
        self.hash_up_to(stream.start)
        done = stream.start
        with self.partial.open("ab") as file, ThreadPoolExecutor(1, thread_name_prefix="hash") as hasher:
            hashed: Future[None] | None = None
            assert file.tell() == stream.start, (file.tell(), stream.start)
            while chunk := stream.read(CHUNK_BYTES):
                if self.cancelled.is_set():
                    raise Cancelled
                if hashed:
                    hashed.result()
                hashed = hasher.submit(self.hash.update, chunk)  # beside the writing and the next reading
                self.num_hashed += len(chunk)
                file.write(chunk)
                done += len(chunk)
                self.on_progress(self.download.target.name, done, stream.origin.size)
        return stream.origin.size is None or done == stream.origin.size

    def hash_up_to(self, start: int) -> None:
        """Makes the hash that of the first `start` bytes of the partial file."""
        if self.num_hashed == start:
            return
        self.hash, self.num_hashed = hashlib.new(self.algorithm), start
        if start:
            with self.partial.open("rb") as file:
                while chunk := file.read(min(CHUNK_BYTES, start - file.tell())):
                    self.hash.update(chunk)

    def accept(self) -> str:
        """Gives the partial file its name if it is what was asked for, and removes it if it is not."""
        actual = self.hash.hexdigest()
        if self.wanted and actual != self.wanted:
            forget(self.partial)
            raise Unavailable(f"its {self.algorithm} is {actual}, not {self.wanted}")
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.download.target)
        forget(self.partial)
        note_verified(self.download.target, f"{self.algorithm}:{actual}")
        return f"{self.algorithm}:{actual}"


def partial_of(target: Path) -> Path:
    """Where the bytes of a file gather that is not whole yet."""
    return target.with_name(f".{target.name}.partial")


def origin_of(partial: Path) -> Path:
    """Where it stands what a partial file is the beginning of."""
    return partial.with_suffix(".origin")


def read_origin(partial: Path) -> Origin | None:
    """What a partial file is the beginning of, if that is known."""
    try:
        return Origin(**json.loads(origin_of(partial).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or one that a kill left half
        return None


def forget(partial: Path) -> None:
    """Removes a partial file."""
    partial.unlink(missing_ok=True)
    origin_of(partial).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """The bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def verified_note_of(target: Path) -> Path:
    """Where it stands that a file was verified."""
    return target.with_name(f".{target.name}.verified")


def note_verified(target: Path, checksum: str) -> None:
    """Notes a file's checksum together with what tells whether it has changed since."""
    stat = target.stat()
    note = {"checksum": checksum, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    verified_note_of(target).write_text(json.dumps(note), encoding="utf-8")


def checksum_of_verified(download: Download) -> str | None:
    """The checksum of a file that is there and is the right one; None where there is none.

    One without a note that it was verified is read; where nobody knows a checksum it is fetched again.
    """
    target = download.target
    if not target.is_file():
        return None
    stat = target.stat()
    with suppress(OSError, ValueError):
        note = json.loads(verified_note_of(target).read_text(encoding="utf-8"))
        unchanged = (note.get("size"), note.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
        if unchanged and download.checksum in (None, note.get("checksum")):
            return str(note["checksum"])
    if download.checksum is None or download.size not in (None, stat.st_size):
        return None
    algorithm, _, wanted = download.checksum.partition(":")
    with target.open("rb") as file:
        if hashlib.file_digest(file, algorithm).hexdigest() != wanted:
            return None
    note_verified(target, download.checksum)
    return download.checksum


def require_space(partial: Path, num_bytes: int) -> None:
    """Refuses to begin what cannot end.

    Raises:
        ValueError: the disk has no room for so many more bytes.
    """
    free = shutil.disk_usage(partial.parent).free
    if num_bytes > free:
        raise ValueError(
            f"{partial.parent} has {free / 2**30:.1f} GiB free, but {num_bytes / 2**30:.1f} GiB are still to "
            "come: free some, or choose another folder"
        )


def said(error: Exception) -> str:
    """An error of requests or urllib3 in a few words."""
    if isinstance(error, requests.ReadTimeout | TimeoutError) or "timed out" in str(error):
        return "it stopped sending"
    if isinstance(error, requests.exceptions.SSLError):
        return f"its certificate is refused ({error})"
    if isinstance(error, requests.ConnectionError):
        return "it cannot be reached, or broke the connection"
    return str(error) or type(error).__name__
