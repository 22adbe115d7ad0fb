"""A sweep: trials under Ray Tune, each a training under Ray Train, that go on where they were."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import FrameType

import ray
from ray import tune

from dfvt.cluster.abandoned import end_runs
from dfvt.cluster.capacity import max_concurrent_trials
from dfvt.cluster.conclusions import Budget, Conclusions
from dfvt.cluster.interruption import start_trials_at_work, stopping_gently
from dfvt.cluster.nodes import require_reached, require_shared
from dfvt.cluster.notes import read_note
from dfvt.cluster.parents import NOTE, parent_run
from dfvt.cluster.records import (
    TrialRecord,
    load_records,
    note_spec,
    one_at_a_time,
    require_same_spec,
    was_interrupted,
)
from dfvt.cluster.session import ray_session
from dfvt.cluster.spaces import param_space_of, scheduler_of, searcher_of, segment_of
from dfvt.cluster.spec import DRAWN, SweepSpec, num_trials_of
from dfvt.cluster.trainable import WEIGHTS, RunTrial, Sweep, TrialTraining
from dfvt.cluster.trial_config import max_epochs
from dfvt.cluster.worker_folder import put_weights
from dfvt.tracking.addresses import URI
from dfvt.tracking.deferred import choose_store
from dfvt.tracking.mlflow import RunRecorder, database_of

TUNE_FOLDER = "tune"
NUM_TAKEN_OVER = 3
# A trial's own process waits for its workers: it takes memory, and no CPU from them.
TRIAL_PROCESS_BYTES = 600 * 2**20


def run_sweep(sweep: Sweep) -> list[TrialRecord]:
    """Runs the trials that have not ended yet, at `RAY_ADDRESS` or on a Ray of its own; returns all of them.

    Raises:
        ValueError: nobody answers at `RAY_ADDRESS`, the sweep is running already, the folder holds one of
            another spec, or no node can ever hold a worker.
        KeyboardInterrupt: it was interrupted; started again, it goes on.
    """
    with one_at_a_time(sweep.mirror), sigterm_as_ctrl_c(lambda: end_runs(*runs_at_work(sweep))):
        require_same_spec(sweep.spec, sweep.mirror)
        sweep = with_usable_store(sweep)
        address = os.environ.get("RAY_ADDRESS")
        say(sweep, f"connects to the Ray cluster at {address}" if address else "starts Ray on this machine")
        with ray_session() as connected:
            sweep = replace(sweep, lineage={**sweep.lineage, "ray.job_id": connected()})
            max_concurrent = require_capacity(sweep)
            say(sweep, progress_line(sweep.spec, load_records(sweep.mirror), max_concurrent))
            say(sweep, "opens its run in MLflow")
            with parent_run(sweep) as parent_run_id:
                run_admitted(replace(sweep, parent_run_id=parent_run_id), max_concurrent)
        records = load_records(sweep.mirror)
    if was_interrupted(sweep.spec, records):  # which Tune takes for an end
        for record in records:
            if record.status == "running":
                with suppress(ConnectionError, ValueError):
                    RunRecorder.attach(sweep.tracking_uri, record.mlflow_run_id).finish("KILLED")
        raise KeyboardInterrupt(f"the states of {sweep.spec.name} are kept, the same command goes on")
    return records


def say(sweep: Sweep, line: str) -> None:
    """Print a line about a sweep where it does not mix with results."""
    print(f"sweep {sweep.spec.name}: {line}", file=sys.stderr, flush=True)


def progress_line(spec: SweepSpec, records: Sequence[TrialRecord], max_concurrent: int | None) -> str:
    """Return how many trials are to run, and how many at once."""
    num_trials = num_trials_of(spec)
    num_finished = sum(record.status == "finished" for record in records)
    done = f", {num_finished} of them finished already" if num_finished else ""
    return f"{num_trials} trials{done}, up to {min(max_concurrent or num_trials, num_trials)} at once"


def with_usable_store(sweep: Sweep) -> Sweep:
    """The sweep with the store that its runs go into.

    Raises:
        ValueError: it cannot be used.
    """

    sweep.mirror.fetch(NOTE)
    store = choose_store(
        sweep.home,
        required=sweep.tracking_required,
        noted=read_note(sweep.mirror.folder / NOTE),
        warn=partial(say, sweep),
    )
    return replace(sweep, store=store, lineage={**sweep.lineage, **store.tags})


def runs_at_work(sweep: Sweep) -> tuple[str, list[str]]:
    """The store of a sweep, and the runs there that have not ended: the sweep's own and those of trials."""
    note = read_note(sweep.mirror.folder / NOTE)
    trials = [record.mlflow_run_id for record in load_records(sweep.mirror) if record.status == "running"]
    return sweep.tracking_uri, [*([note["mlflow_run_id"]] if note else []), *trials]


@contextmanager
def sigterm_as_ctrl_c(first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Lets SIGTERM, with which jobs are stopped, end a sweep as Ctrl-C does: with the trials' states.

    `ray job stop` leaves it three seconds, which may be too few for that: `first` begins at once, beside it.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=first, daemon=True).start()
        if not callable(signal.getsignal(signal.SIGINT)):  # a shell's background jobs ignore Ctrl-C
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_trials(sweep: Sweep, run: RunTrial | None = None) -> None:
    """Runs the trials on the connected Ray that have not ended yet; `run` as in `TrialTraining`.

    Raises:
        ValueError: as `require_capacity`.
    """
    run_admitted(sweep, require_capacity(sweep), run)


def require_capacity(sweep: Sweep) -> int | None:
    """How many trials the connected Ray can run at once; None leaves it to Tune.

    Raises:
        ValueError: no node can ever hold a worker, or there are nodes that do not see the sweep's folder, or
            do not reach its storage.
    """
    max_concurrent = max_concurrent_trials(sweep.spec)
    mirror, several = sweep.mirror, len(ray.nodes()) > 1
    if mirror.remote:
        require_reached(mirror.remote)
        put_weights(sweep.configs.values(), mirror.remote / WEIGHTS)
        if several and (database := database_of(sweep.tracking_uri)):
            require_shared(
                database.parent,
                "the runs go into mlflow.db",
                "set MLFLOW_TRACKING_URI to a server of MLflow's",
            )
    elif several:
        require_shared(
            mirror.folder,
            "the sweep and its trials' states go",
            "put the project on a file system that all nodes mount, name such a folder with DFVT_HOME, or "
            "give the spec an address as storage",
        )
    return max_concurrent


def run_admitted(sweep: Sweep, max_concurrent: int | None, run: RunTrial | None = None) -> None:
    """Runs the trials that have not ended yet, so many at once."""
    spec, mirror = sweep.spec, sweep.mirror
    tune_storage = str(mirror.remote or mirror.folder)
    tune_folder = str((mirror.remote or mirror.folder) / TUNE_FOLDER)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # CSV, JSON, TensorBoard: MLflow has it
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # a traceback each: `Conclusions` says why
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # it prints its search algorithm whatever `verbose` is
    # which at the end would miss them, in a line for every trial
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    num_epochs = max_epochs(spec, sweep.configs)
    sweep = replace(sweep, segment=segment_of(spec, num_epochs))
    random.seed(spec.seed)  # what schedulers change, they draw from the global generator
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # see `stopping_gently`
    trials_at_work = start_trials_at_work()
    trainable = tune.with_resources(
        tune.with_parameters(
            TrialTraining,
            sweep=sweep,
            trials_at_work=trials_at_work,
            run=run,
            tracking_uri=os.environ.get(URI),
        ),
        {"memory": TRIAL_PROCESS_BYTES},
    )
    if tune.Tuner.can_restore(tune_folder):
        tuner = tune.Tuner.restore(tune_folder, trainable, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=param_space_of(spec),
            tune_config=tune.TuneConfig(
                metric=spec.metric,
                mode=spec.mode,
                search_alg=searcher_of(spec),
                scheduler=scheduler_of(spec, num_epochs),
                num_samples=1 if spec.algorithm in DRAWN else spec.num_samples,
                max_concurrent_trials=max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=TUNE_FOLDER,
                storage_path=tune_storage,
                failure_config=tune.FailureConfig(max_failures=spec.max_failures),
                stop=Budget(spec.budget_gpu_hours, spec.num_workers) if spec.budget_gpu_hours else None,
                # the engine has its own; of those that trials take over from each other the last few are kept
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_at_end=False, num_to_keep=NUM_TAKEN_OVER if sweep.segment else None
                ),
                callbacks=[Conclusions(sweep)],
                verbose=0,
            ),
        )
    note_spec(spec, mirror, sweep.defaults)
    say(sweep, "starts the processes of the trials")
    with stopping_gently(trials_at_work, spec.name):
        tuner.fit()
