"""Fetching beside curl and md5sum, unpacking beside unzip: both sides in turns, on this machine.

Usage: python benchmarks/fetch.py [MEGABYTES NUM_FILES NUM_TURNS]. Prints a Markdown table.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from dfvt.data.download import Download, fetch
from dfvt.data.extract import extract


class SendingHandler(SimpleHTTPRequestHandler):
    """Lets the kernel send files, so that the server takes little from both sides."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        self.wfile.flush()
        self.connection.sendfile(source)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def seconds_of(work: Callable[[], object], left: Path) -> float:
    """Without the removal of what the turn before left, and without the disk's work on that."""
    shutil.rmtree(left, ignore_errors=True)
    left.mkdir()
    os.sync()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(
    ours: Callable[[], object], theirs: Callable[[], object], left: Path, num_turns: int
) -> tuple[float, float]:
    """The median seconds of both; one turn of each before is not counted."""
    pairs = [(seconds_of(ours, left), seconds_of(theirs, left)) for _ in range(num_turns + 1)][1:]
    return statistics.median(one for one, _ in pairs), statistics.median(other for _, other in pairs)


def measure_fetch(folder: Path, num_megabytes: int, num_turns: int) -> tuple[float, float]:
    content = random.Random(0).randbytes(2**20) * num_megabytes
    (folder / "served").mkdir()
    (folder / "served/file.zip").write_bytes(content)
    checksum = f"md5:{hashlib.md5(content).hexdigest()}"
    handler = partial(SendingHandler, directory=str(folder / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
        process.start()
        url, out = f"http://127.0.0.1:{server.server_address[1]}/file.zip", folder / "out"
        target = out / "file.zip"

        def ours() -> None:
            assert fetch(Download((url,), target, len(content), checksum)) == checksum

        def theirs() -> None:
            subprocess.run(["curl", "-sO", url], cwd=out, check=True)
            subprocess.run(["md5sum", "file.zip"], cwd=out, check=True, stdout=subprocess.DEVNULL)

        try:
            return in_turns(ours, theirs, out, num_turns)
        finally:
            process.terminate()


def measure_extraction(folder: Path, num_files: int, num_turns: int) -> tuple[float, float]:
    rng = random.Random(0)
    archive = folder / "images.zip"
    with ZipFile(archive, "w") as opened:
        for number in range(num_files):
            opened.writestr(f"train2017/{number:012}.jpg", rng.randbytes(rng.randrange(4_000, 60_000)))

    def ours() -> None:
        extract(archive, folder / "out")

    def theirs() -> None:
        subprocess.run(["unzip", "-q", str(archive), "-d", str(folder / "out")], check=True)

    return in_turns(ours, theirs, folder / "out", num_turns)


def main() -> None:
    megabytes, num_files, num_turns = map(int, sys.argv[1:] if len(sys.argv) > 1 else (1024, 5000, 9))
    print(f"{platform.processor() or platform.machine()}, median of {num_turns} turns\n")
    print("| | ours | theirs | theirs / ours |\n| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = measure_fetch(Path(folder), megabytes, num_turns)
        what = f"{megabytes} MiB over loopback, verified; curl -O and md5sum"
        print(f"| {what} | {ours:.2f} s | {theirs:.2f} s | {theirs / ours:.2f} |", flush=True)
    for place, root in (("in memory", "/dev/shm"), ("on disk", None)):
        with tempfile.TemporaryDirectory(dir=root) as folder:
            ours, theirs = measure_extraction(Path(folder), num_files, num_turns)
        what = f"{num_files} files of 4 to 60 kB {place}; unzip -q"
        print(f"| {what} | {ours:.2f} s | {theirs:.2f} s | {theirs / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
