"""A fetch ends in the file that was asked for or in one sentence, whatever the server does."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dfvt.data.download import Download, Patience, fetch, fetch_all

CONTENT = random.Random(0).randbytes(3_000_001)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
QUICK = Patience(connect=2.0, read=0.3, num_tries=4, backoff=0.001)
Fault = Callable[["Handler", int], bool]  # does something wrong at an offset; whether the answer is given


class Server(ThreadingHTTPServer):
    """Serves `content` under every path, and the faults in their order first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.ranges = CONTENT, '"one"', True
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.path, wanted))
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range", "") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if server.faults and server.faults.pop(0)(self, start):
            self.close_connection = True
            return
        self.begin(start)
        self.wfile.write(server.content[start:])

    def begin(self, start: int) -> None:
        size = len(self.server.content)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(size - start))
        self.send_header("ETag", self.server.etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def reset_after(num_bytes: int) -> Fault:
    def fault(handler: Handler, start: int) -> bool:
        handler.begin(start)
        handler.wfile.write(handler.server.content[start : start + num_bytes])
        handler.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.connection.close()
        return True

    return fault


def truncated_after(num_bytes: int) -> Fault:
    def fault(handler: Handler, start: int) -> bool:
        handler.begin(start)
        handler.wfile.write(handler.server.content[start : start + num_bytes])
        return True

    return fault


def answer(status: int, **headers: str) -> Fault:
    def fault(handler: Handler, _: int) -> bool:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.send_header("Connection", "close")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        return True

    return fault


def stall_after(num_bytes: int) -> Fault:
    def fault(handler: Handler, start: int) -> bool:
        handler.begin(start)
        handler.wfile.write(handler.server.content[start : start + num_bytes])
        handler.wfile.flush()
        handler.connection.settimeout(5)
        handler.rfile.read(1)  # until the client leaves
        return True

    return fault


def wrong_bytes(handler: Handler, start: int) -> bool:
    handler.begin(start)
    handler.wfile.write(bytes(len(handler.server.content) - start))
    return True


def changes(handler: Handler, start: int) -> bool:
    """Sends half of another file under the same name, and changes to the right one."""
    handler.server.content, handler.server.etag = CONTENT[::-1], '"zero"'
    reset_after(1_000_000)(handler, start)
    handler.server.content, handler.server.etag = CONTENT, '"one"'
    return True


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def wanted(server: Server, folder: Path, checksum: str | None = SHA256, *mirrors: str) -> Download:
    urls = (f"{server.url}file.zip", *mirrors)
    return Download(urls, folder / "file.zip", len(CONTENT) if checksum else None, checksum)


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".file.zip.lock", ".file.zip.verified"}


@pytest.mark.parametrize("seed", range(50))
def test_a_connection_that_is_reset_anywhere_is_made_again_from_there(
    server: Server, tmp_path: Path, seed: int
) -> None:
    offsets = [random.Random(seed).randrange(len(CONTENT)) for _ in range(2)]
    server.faults = [reset_after(offset) for offset in offsets]
    assert fetch(wanted(server, tmp_path), patience=QUICK) == SHA256
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert leftovers(tmp_path) == {"file.zip"}


RECOVERED = {
    "truncated": [truncated_after(5), truncated_after(2_000_000)],
    "stalls": [stall_after(1_000_000), stall_after(0)],
    "503 twice": [answer(503), answer(503)],
    "429": [answer(429, Retry_After="0")],
    "changed meanwhile": [changes],
    "503, then truncated": [answer(503), truncated_after(70_000), answer(500), truncated_after(70_000)],
}


@pytest.mark.parametrize("faults", RECOVERED.values(), ids=RECOVERED)
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("checksum", [SHA256, MD5, None])
def test_what_passes_is_waited_for(
    server: Server, tmp_path: Path, faults: list[Fault], ranges: bool, checksum: str | None
) -> None:
    server.faults, server.ranges = list(faults), ranges
    said: list[str] = []
    assert fetch(wanted(server, tmp_path, checksum), patience=QUICK, say=said.append) == (checksum or SHA256)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert leftovers(tmp_path) == {"file.zip"}
    assert 1 <= len(said) <= len(faults), "the same is said once"


REFUSED = {
    "404": ([answer(404)], "404 Not Found", 1),
    "403": ([answer(403)], "403 Forbidden", 1),
    "wrong bytes": ([wrong_bytes], f"its sha256 is .*, not {SHA256[7:]}", 1),
    "503 for ever": ([answer(503)] * 9, "4 tries failed, the last one with: 503 Service Unavailable", 4),
    "asks for a day": ([answer(429, Retry_After="86400")], "to come back in 86400 s", 1),
    "redirects for ever": ([answer(302, Location="/file.zip")] * 99, "it redirects without an end", 31),
    "stalls for ever": ([stall_after(0)] * 9, "4 tries failed, the last one with: it stopped sending", 4),
}


@pytest.mark.parametrize(("faults", "sentence", "num_asked"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_pass_is_one_sentence_and_no_file(
    server: Server, tmp_path: Path, faults: list[Fault], sentence: str, num_asked: int
) -> None:
    server.faults = list(faults)
    with pytest.raises(ValueError, match=f"file.zip cannot be fetched: http://.*{sentence}") as error:
        fetch(wanted(server, tmp_path), patience=QUICK)
    assert "\n" not in str(error.value)
    assert len(server.asked) == num_asked
    assert not (tmp_path / "file.zip").exists()


def test_the_next_mirror_has_it(server: Server, tmp_path: Path) -> None:
    server.faults = [wrong_bytes]
    mirror = f"{server.url}mirror/file.zip"
    assert fetch(wanted(server, tmp_path, SHA256, mirror), patience=QUICK) == SHA256
    assert [path for path, _ in server.asked] == ["/file.zip", "/mirror/file.zip"]
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", [answer(404), answer(503)])
def test_what_came_before_outlives_a_server_that_has_nothing(
    server: Server, tmp_path: Path, fault: Fault
) -> None:
    server.faults = [truncated_after(2_000_000), *[fault] * 9]
    with pytest.raises(ValueError, match="cannot be fetched"):
        fetch(wanted(server, tmp_path), patience=QUICK)
    came = (tmp_path / ".file.zip.partial").stat().st_size
    assert came >= 2**20
    with pytest.raises(ValueError, match="cannot be fetched"):
        fetch(wanted(server, tmp_path), patience=QUICK)
    server.faults.clear()
    assert fetch(wanted(server, tmp_path), patience=QUICK) == SHA256
    assert server.asked[-1][1] == f"bytes={came}-"


def test_a_whole_file_that_has_no_name_yet_needs_no_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".file.zip.partial").write_bytes(CONTENT)
    (tmp_path / ".file.zip.origin").write_text(f'{{"size": {len(CONTENT)}, "validator": null}}')
    assert fetch(wanted(server, tmp_path)) == SHA256
    assert server.asked == []


def test_a_server_without_a_validator_is_gone_on_with_when_a_checksum_finds_out(
    server: Server, tmp_path: Path
) -> None:
    server.etag = ""
    server.faults = [truncated_after(1_500_000)]
    assert fetch(wanted(server, tmp_path), patience=QUICK) == SHA256
    assert server.asked[1][1] is not None, "it asked for the rest"
    server.asked.clear()
    server.faults = [truncated_after(1_500_000)]
    fetch(Download((f"{server.url}b",), tmp_path / "b"), patience=QUICK)
    assert server.asked[1][1] is None, "nothing would find out"


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file.zip"
        with pytest.raises(ValueError, match=r"4 tries failed, .*cannot be reached"):
            fetch(Download((url,), tmp_path / "file.zip"), patience=QUICK)


def test_a_file_of_this_machine_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a source.zip").write_bytes(CONTENT)
    download = Download(((tmp_path / "a source.zip").as_uri(),), tmp_path / "to/file.zip", None, MD5)
    assert fetch(download) == MD5
    assert download.target.read_bytes() == CONTENT
    missing = Download(((tmp_path / "none.zip").as_uri(),), tmp_path / "to/none.zip")
    with pytest.raises(ValueError, match="there is no such file"):
        fetch(missing)


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_bytes(CONTENT)
    assert fetch(wanted(server, tmp_path)) == SHA256
    assert fetch(wanted(server, tmp_path, None)) == SHA256
    assert server.asked == []


def test_another_file_of_that_name_is_replaced_only_by_the_right_one(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_bytes(b"mine")
    server.faults = [wrong_bytes]
    with pytest.raises(ValueError, match="its sha256 is"):
        fetch(wanted(server, tmp_path), patience=QUICK)
    assert (tmp_path / "file.zip").read_bytes() == b"mine"
    assert fetch(wanted(server, tmp_path), patience=QUICK) == SHA256
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    (tmp_path / "file.zip").write_bytes(CONTENT[::-1])  # damaged since
    assert fetch(wanted(server, tmp_path), patience=QUICK) == SHA256
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


FETCH = """
import sys
from pathlib import Path
from dfvt.data.download import Download, fetch
print(fetch(Download((sys.argv[1],), Path(sys.argv[2]), None, sys.argv[3])))
"""


def start_fetch(server: Server, folder: Path) -> subprocess.Popen[str]:
    arguments = [f"{server.url}file.zip", str(folder / "file.zip"), SHA256]
    return subprocess.Popen([sys.executable, "-c", FETCH, *arguments], stdout=subprocess.PIPE, text=True)


def test_one_that_was_killed_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.faults = [stall_after(2_000_000)]
    process = start_fetch(server, tmp_path)
    partial = tmp_path / ".file.zip.partial"
    while not partial.exists() or partial.stat().st_size < 2**20:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "file.zip").exists()
    assert fetch(wanted(server, tmp_path), patience=QUICK) == SHA256
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    start = server.asked[-1][1]
    assert start and int(start.removeprefix("bytes=").rstrip("-")) >= 2**20


def test_two_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    processes = [start_fetch(server, tmp_path) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == [SHA256] * 2
    assert len(server.asked) == 1
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_there_must_be_room(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(ValueError, match=r"has 0.0 GiB free, but 0.0 GiB are still to come"):
        fetch(wanted(server, tmp_path), patience=QUICK)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two mebibytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs more rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_meanwhile_is_one_sentence_and_what_came_stays(
    server: Server, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9})())
    with pytest.raises(RuntimeError, match=r"no space is left on its disk: free some, and start again"):
        fetch(wanted(server, small_disk), patience=QUICK)
    assert not (small_disk / "file.zip").exists()
    came = (small_disk / ".file.zip.partial").stat().st_size
    assert came >= 2**20
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert fetch(wanted(server, small_disk), patience=QUICK) == SHA256
    assert (small_disk / "file.zip").read_bytes() == CONTENT
    assert server.asked[-1][1] == f"bytes={came}-"


def test_several_files_are_fetched_together_and_one_that_fails_stops_them(
    server: Server, tmp_path: Path
) -> None:
    downloads = [
        Download((f"{server.url}{name}",), tmp_path / name, None, SHA256) for name in ("a", "b", "c", "d")
    ]
    progress: dict[str, int] = {}

    def note(name: str, done: int, size: int | None) -> None:
        progress[name] = done

    assert fetch_all(downloads, patience=QUICK, on_progress=note) == [SHA256] * 4
    assert progress == dict.fromkeys("abcd", len(CONTENT))
    others = [Download((f"{server.url}{name}",), tmp_path / name, None, MD5) for name in ("e", "f")]
    server.faults = [answer(404)] * 2
    with pytest.raises(ValueError, match="404 Not Found"):
        fetch_all(others, patience=QUICK)
    assert not (tmp_path / "e").exists()


@pytest.mark.timeout(300)  # the server asks for more
def test_a_wait_for_a_server_ends_when_another_file_cannot_be_had(server: Server, tmp_path: Path) -> None:
    server.faults = [answer(503, Retry_After="500")]
    waits = threading.Event()

    def say(line: str) -> None:
        waits.set()

    def fetch_the_other() -> Iterator[Download]:
        yield Download((f"{server.url}late",), tmp_path / "late", None, SHA256)
        assert waits.wait(30)
        yield Download(((tmp_path / "nowhere").as_uri(),), tmp_path / "none", None, SHA256)

    with pytest.raises(ValueError, match="none cannot be fetched"):
        fetch_all(fetch_the_other(), patience=QUICK, say=say)
