"""What a sweep leaves in its folder: its spec, and a record of each trial. Needs no Ray."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import JsonValue

from dfvt.cluster.heartbeat import beats, heartbeat
from dfvt.cluster.spec import SweepSpec, num_trials_of
from dfvt.data.files import write_whole
from dfvt.data.storage import Mirror, StorageFolder, is_address
from dfvt.settings import TrialDefaults

# Of a job on a cluster: the folder of data set, weights and sweeps, on a file system that all nodes share;
# the commit that it was submitted from, as JSON.
HOME, LINEAGE = "DFVT_HOME", "DFVT_LINEAGE"
DATASET_MANIFEST = Path("data/dataset/manifest.json")
SWEEPS = Path(".dfvt/sweeps")
SPEC_FILE = "spec.json"
TRIALS, RECORD = "trials", "trial.json"
Status = Literal["running", "finished", "stopped", "failed", "interrupted"]
Defaults = Mapping[str, TrialDefaults]  # for each variant what params.yaml trains it with
DEFAULTS = "defaults"  # their key beside those of the spec
LOCK_SECONDS = 1.0  # long enough for one who only looks whether a sweep runs


@dataclass(frozen=True)
class TakeOver:
    """A trial went on from the state that the trial `name` had after `epoch` epochs, with these values."""

    name: str
    epoch: int
    assignment: dict[str, JsonValue]


@dataclass(frozen=True)
class TrialRecord:
    """What became of a trial, as its folder keeps it.

    `stopped` means early, by the scheduler or budget; `interrupted` is what `running` means once the process
    that ran the sweep is gone: no file says it.
    """

    name: str
    assignment: dict[str, JsonValue]
    mlflow_run_id: str
    status: Status = "running"
    epoch: int = 0
    num_epochs: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    startup_seconds: float = 0.0  # from the trial's turn to its first iteration, the last time that it began
    taken_over: tuple[TakeOver, ...] = ()
    failure: str = ""  # why its last attempt failed, in one sentence

    @classmethod
    def load(cls, folder: Path) -> TrialRecord | None:
        """The record in a trial's folder, if there is one."""
        file = folder / RECORD
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        taken_over = tuple(TakeOver(**item) for item in content.pop("taken_over", ()))
        return cls(**content, taken_over=taken_over)

    def save(self, folder: Path) -> None:
        write_whole(folder / RECORD, json.dumps(asdict(self), indent=2) + "\n")


def fetch_record(trial: Mirror) -> TrialRecord | None:
    """The newest record of a trial, if there is one."""
    trial.fetch(RECORD)
    return TrialRecord.load(trial.folder)


def put_record(record: TrialRecord, trial: Mirror) -> None:
    """Saves the record of a trial for all to see."""
    record.save(trial.folder)
    trial.put(RECORD)


def load_records(sweep: Mirror) -> list[TrialRecord]:
    """The records of a sweep's trials, in their order."""
    sweep.fetch(f"{TRIALS}/*/{RECORD}", recursive=True)
    folders = sorted(sweep.folder.glob(f"{TRIALS}/*"))
    return [record for record in map(TrialRecord.load, folders) if record]


def working_folder(remote: StorageFolder) -> Path:
    """Where this machine has its copy of what is in a storage."""
    place = hashlib.sha256(remote.address.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"dfvt-sweeps-{os.getuid()}" / place


def mirror_of(spec: SweepSpec, home: Path) -> Mirror:
    """Where a sweep is kept: in the home's folder, or in the spec's storage."""
    if spec.storage is None:
        return Mirror(home / SWEEPS / spec.name)
    remote = StorageFolder(spec.storage) / spec.name
    return Mirror(working_folder(remote), remote)


def text_of(spec: SweepSpec, defaults: Defaults | None = None) -> str:
    """Return what a sweep's folder keeps: the spec, and the values that the spec left to `params.yaml`."""
    content = {"num_trials": num_trials_of(spec), **spec.model_dump(mode="json")}
    if defaults is not None:
        content[DEFAULTS] = {name: values.model_dump(mode="json") for name, values in defaults.items()}
    return json.dumps(content, indent=2) + "\n"


def note_spec(spec: SweepSpec, sweep: Mirror, defaults: Defaults | None = None) -> None:
    """Note the spec of a sweep that begins: from now on it is the sweep of that name."""
    write_whole(sweep.folder / SPEC_FILE, text_of(spec, defaults))
    sweep.put(SPEC_FILE)


@dataclass(frozen=True)
class Begun:
    """What a sweep that was begun keeps to: its seed, and for each variant the values of `params.yaml`."""

    seed: int
    defaults: Defaults


def begun_with(sweep: Mirror) -> Begun | None:
    """Return what a sweep was begun with, None if none of that name was.

    Sweeps of versions that did not read `params.yaml` have no values of it, and go on without.

    Raises:
        ValueError: the storage does not answer.
    """
    sweep.fetch(SPEC_FILE)
    file = sweep.folder / SPEC_FILE
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    defaults = {
        name: TrialDefaults.model_validate(values) for name, values in content.get(DEFAULTS, {}).items()
    }
    return Begun(content.get("seed", 0), defaults)


def lock_of(folder: Path, seconds: float) -> FileLock:
    """The lock that the process holds which runs the sweep in `folder`; waits for it so many seconds."""
    return FileLock(folder.with_name(f".{folder.name}.lock"), timeout=seconds)


def is_running(sweep: Mirror) -> bool:
    """Whether a process runs a sweep."""
    if sweep.remote:
        return beats(sweep.remote)
    try:
        with lock_of(sweep.folder, 0.0):
            return False
    except Timeout:
        return True


@contextmanager
def one_at_a_time(sweep: Mirror) -> Iterator[None]:
    """Keeps a second process from running the same sweep; a process that dies keeps nobody.

    Raises:
        ValueError: one runs it.
    """
    folder = sweep.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_of(folder, LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"the sweep {folder.name} in {folder} is running already: see dfvt sweep status {folder.name}"
        ) from error
    try:
        with heartbeat(sweep.remote) if sweep.remote else nullcontext():
            yield
    finally:
        lock.release()


def was_interrupted(spec: SweepSpec, records: Sequence[TrialRecord]) -> bool:
    """Whether trials are left that nothing but an interruption explains."""
    if any(record.status == "running" for record in records):
        return True
    return len(records) < num_trials_of(spec) and not spec.budget_gpu_hours


def has_failed(record: TrialRecord, metric: str) -> bool:
    """Return whether a trial ended without the number that trials are compared by (COCO's −1 is none)."""
    return record.status == "failed" or (record.status == "finished" and record.metrics.get(metric, -1.0) < 0)


def all_failed(records: Sequence[TrialRecord], metric: str) -> bool:
    """Return whether trials were started and none of them has a result, or will have one."""
    return bool(records) and all(has_failed(record, metric) for record in records)


def require_same_spec(spec: SweepSpec, sweep: Mirror) -> None:
    """Compares a spec with that of a sweep which goes on.

    Raises:
        ValueError: they differ.
    """
    sweep.fetch(SPEC_FILE)
    file = sweep.folder / SPEC_FILE
    if not file.is_file():
        return
    begun, wanted = json.loads(file.read_text(encoding="utf-8")), json.loads(text_of(spec))
    defaults = json.loads(text_of(SweepSpec(name=spec.name)))  # what versions before did not know
    differing = [
        key
        for key, value in wanted.items()
        if key != "num_trials" and begun.get(key, defaults[key]) != value  # it follows from the others
    ]
    if differing:
        raise ValueError(
            f"the sweep {spec.name} in {sweep.remote or sweep.folder} was begun with another spec "
            f"({', '.join(differing)}): give this one another name, or remove that folder to begin anew"
        )


@dataclass(frozen=True)
class SweepState:
    """A sweep that was begun: how many trials it is to have, what they aim at, and those that started."""

    name: str
    num_trials: int
    metric: str
    mode: Literal["max", "min"]
    trials: list[TrialRecord]


def load_sweep(project: Path, name: str) -> SweepState:
    """The state of the sweep `name` of a project, or of that at the address `name`.

    Raises:
        FileNotFoundError: none of that name was begun.
        ValueError: the address is none, or its storage does not answer.
    """
    if is_address(name):
        remote = StorageFolder(name)
        sweep = Mirror(working_folder(remote), remote)
        sweep.fetch(SPEC_FILE)
        if not sweep.has(SPEC_FILE):
            raise FileNotFoundError(f"no sweep was begun at {remote}: an address ends with the sweep's name")
    else:
        sweep = Mirror(project / SWEEPS / name)
        if not sweep.has(SPEC_FILE):
            begun = sorted(file.parent.name for file in (project / SWEEPS).glob(f"*/{SPEC_FILE}"))
            raise FileNotFoundError(
                f"no sweep {name} was begun in {project / SWEEPS}: "
                + (f"there are {', '.join(begun)}" if begun else "there is none yet, see dfvt sweep SPEC")
            )
    content = json.loads((sweep.folder / SPEC_FILE).read_text(encoding="utf-8"))
    trials = load_records(sweep)
    if not is_running(sweep):
        trials = [replace(one, status="interrupted") if one.status == "running" else one for one in trials]
    return SweepState(content["name"], content["num_trials"], content["metric"], content["mode"], trials)
