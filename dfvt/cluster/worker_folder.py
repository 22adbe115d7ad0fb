"""A training's folder on a node that works on a copy: fetched before it begins, put back while it goes on."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from mmcv import Config

from dfvt.cluster.population import BEST
from dfvt.cluster.records import working_folder
from dfvt.data.storage import Mirror, StorageFolder
from dfvt.engine.callbacks import Callback
from dfvt.engine.config_text import read_config_text
from dfvt.engine.curves import TRAIN_FILE, VAL_FILE
from dfvt.engine.states import STATE_FILE

ATTEMPT = ".attempt"
STATES = "*.pth"


class Uploads(Callback):
    """Put what a training writes where it is kept, in a thread of its own; a state after its curves.

    A failure to put a state is no reason to end the training: it is told to `say`, and the next state is
    tried. At the end all files must be there.

    Args:
        mirror: the folder that the training writes to, and the storage that keeps its files.
        say: takes a sentence for each failure.
    """

    def __init__(self, mirror: Mirror, say: Callable[[str], None]) -> None:
        self.mirror, self.say = mirror, say
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="uploads")
        self.last: Future[None] | None = None

    def submit(self) -> Future[None]:
        """Put all files, after those that are under way; what only waits to be put, goes with them."""
        if self.last:
            self.last.cancel()
        self.last = self.thread.submit(self.put)
        return self.last

    def put(self) -> None:
        """Put all files that there are now.

        Raises:
            Exception: what the storage or the disk refused. It is said here too: only the end of the
                training waits for the result.
        """
        try:
            self.put_all()
        except ValueError as error:
            self.say(f"{error}: the training goes on")
            raise
        except Exception as error:
            self.say(
                f"the state of the training cannot be put into {self.mirror.remote} "
                f"({type(error).__name__}: {error}): the training goes on"
            )
            raise

    def put_all(self) -> None:
        assert self.mirror.remote
        state = self.mirror.folder / STATE_FILE
        held = state.with_name(f".{STATE_FILE}")  # of now, whatever replaces it meanwhile
        held.unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # the training keeps none, or makes room for the next one
            os.link(state, held)
        self.mirror.put(TRAIN_FILE, VAL_FILE, BEST)
        if held.is_file():
            self.mirror.remote.put(held, STATE_FILE)

    def on_checkpoint(self, path: Path, step: int) -> None:
        self.submit()

    def on_end(self, checkpoint: Path) -> None:
        self.submit().result()
        self.mirror.put(checkpoint.name)

    def close(self) -> None:
        """Waits for what is under way."""
        self.thread.shutdown()


@dataclass(frozen=True)
class WorkingCopy:
    """Where a worker trains, and the callbacks of the first one that keep what it writes."""

    folder: Path
    uploads: Sequence[Callback] = ()


@contextmanager
def working_copy(
    work_dir: Path,
    remote: StorageFolder | None,
    attempt: str,
    say: Callable[[str], None],
    *,
    rank: int,
    local_rank: int,
) -> Iterator[WorkingCopy]:
    """The folder that a worker trains in: `work_dir`, or where `remote` is given a copy of what is there.

    The processes of a machine share a copy, which the first of them to come makes in each `attempt`.
    `say` is told what the storage did not take.

    Raises:
        ValueError: the storage does not answer.
    """
    if remote is None:
        yield WorkingCopy(work_dir)
        return
    folder = working_folder(remote / "worker")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        known = folder / ATTEMPT
        if not (known.is_file() and known.read_text(encoding="utf-8") == attempt):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            Mirror(folder, remote).fetch(STATES, TRAIN_FILE, VAL_FILE)
            known.write_text(attempt, encoding="utf-8")
    uploads = [Uploads(Mirror(folder, remote), say)] if rank == 0 else []
    try:
        yield WorkingCopy(folder, uploads)
    finally:
        for upload in uploads:
            upload.close()
        if local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def put_weights(configs: Iterable[str], storage: StorageFolder) -> None:
    """Puts the weights that the configs begin with where nodes without them find them."""
    for text in configs:
        weights = read_config_text(text).model.get("pretrained")
        if weights and (path := Path(weights)).is_file():
            known = storage.info(name_of(path))
            if known is None or known.size != path.stat().st_size:
                storage.put(path, name_of(path))


def provide_weights(cfg: Config, storage: StorageFolder | None) -> None:
    """Makes sure that this machine has the weights that a config begins with, at the same path.

    Raises:
        ValueError: the storage does not answer.
    """
    weights = cfg.model.get("pretrained")
    if not storage or not weights or (path := Path(weights)).is_file():
        return
    lock = working_folder(storage).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if not path.is_file() and storage.info(name_of(path)):
            storage.fetch(name_of(path), path)


def name_of(path: Path) -> str:
    """What a file of weights is called where the weights of all variants are."""
    return f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}{path.suffix}"
