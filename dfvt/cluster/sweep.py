"""A sweep: trials under Ray Tune, each a training under Ray Train, that go on where they were."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from mmcv import Config
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.result import DONE

from dfvt.cluster.capacity import max_concurrent_trials
from dfvt.cluster.interruption import start_trials_at_work, stopping_gently
from dfvt.cluster.nodes import require_reached, require_shared
from dfvt.cluster.notes import read_note
from dfvt.cluster.parents import NOTE, parent_run
from dfvt.cluster.records import (
    DATASET_MANIFEST,
    LINEAGE,
    Status,
    TrialRecord,
    fetch_record,
    load_records,
    note_spec,
    one_at_a_time,
    put_record,
    require_same_spec,
    was_interrupted,
)
from dfvt.cluster.session import ray_session
from dfvt.cluster.spaces import EPOCH, TRIAL, param_space_of, scheduler_of, searcher_of, segment_of
from dfvt.cluster.spec import (
    DRAWN,
    TRAIN_KEYS,
    Assignment,
    SweepSpec,
    active_part,
    draw_trials,
    examples,
    examples_of_models,
    load_spec,
    num_draws,
    num_trials_of,
)
from dfvt.cluster.trainable import WEIGHTS, RunTrial, Sweep, TrialTraining
from dfvt.cluster.worker_folder import put_weights
from dfvt.data.manifest import DatasetManifest
from dfvt.data.storage import Mirror
from dfvt.settings import load_settings
from dfvt.tracking.deferred import choose_store
from dfvt.tracking.lineage import collect_lineage
from dfvt.tracking.mlflow import RunRecorder, database_of, tracking_uri
from dfvt.tracking.origin import collect_origin
from dfvt.tracking.store import Store

TUNE_FOLDER = "tune"
NUM_TAKEN_OVER = 3
# A trial's own process waits for its workers: it takes memory, and no CPU from them.
TRIAL_PROCESS_BYTES = 600 * 2**20


class Budget(tune.Stopper):
    """Stops all trials once they have used a number of hours of GPUs (of workers, where there are none)."""

    def __init__(self, hours: float, num_workers: int) -> None:
        self.hours, self.num_workers = hours, num_workers
        self.seconds: dict[str, float] = {}

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        self.seconds[trial_id] = result["time_total_s"]
        return self.stop_all()

    def stop_all(self) -> bool:
        return sum(self.seconds.values()) * self.num_workers > self.hours * 3600


class Conclusions(tune.Callback):
    """Says how trials go, and gives those that do not end by themselves their end, on disk and in MLflow."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.num_trials = num_trials_of(sweep.spec)

    def say(self, trial: Trial, what: str) -> None:
        name = self.sweep.trial(trial.trial_id, trial.config[TRIAL]).folder.name
        print(
            f"sweep {self.sweep.spec.name}: trial {name} of {self.num_trials} {what}",
            file=sys.stderr,
            flush=True,
        )

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        assignment = active_part(self.sweep.spec.space, trial.config[TRIAL])
        values = ", ".join(
            f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in assignment.items()
        )
        record = fetch_record(self.sweep.trial(trial.trial_id, trial.config[TRIAL]))
        if record is None:
            self.say(trial, f"starts: {values}")
        elif self.sweep.segment and record.assignment != assignment:
            self.say(trial, f"takes over the state of a better one, with {values}")
        else:
            self.say(trial, f"goes on: {values}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        metric = self.sweep.spec.metric
        if metric in result and not result[DONE]:  # its end repeats the last validation
            self.say(trial, f"epoch {result[EPOCH]}: {metric} {result[metric]:.4f}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.conclude(trial, "stopped")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        reason = str(info.get("error") or (trial.error_file and Path(trial.error_file).read_text().strip()))
        self.say(trial, f"failed: {reason.splitlines()[-1]}")
        self.conclude(trial, "failed")

    def conclude(self, trial: Trial, status: Status) -> None:
        conclude(self.sweep, self.sweep.trial(trial.trial_id, trial.config[TRIAL]), status)


def conclude(sweep: Sweep, trial: Mirror, status: Status) -> None:
    """Ends the record and run of a trial that was ended before it could."""
    record = fetch_record(trial)
    if record is None or record.status != "running":
        return
    put_record(replace(record, status=status), trial)
    recorder = RunRecorder.attach(sweep.tracking_uri, record.mlflow_run_id)
    recorder.set_tags({"dfvt.stopped_after_epoch": str(record.epoch)})
    recorder.finish("FINISHED" if status == "stopped" else "FAILED")


def prepare_sweep(path: Path, project: Path, home: Path | None = None) -> Sweep:
    """Reads a spec, and checks it against the configs of the project in `project` and its data set.

    Data set, weights, sweeps and `mlflow.db` lie in `home`: in the project, unless a cluster's nodes have
    its code alone.

    Raises:
        FileNotFoundError: the spec, a config or the data set is missing.
        ValueError: the spec is wrong, names a key that no config has, or a value that makes no detector.
    """
    from dfvt.engine.config import load_config, use_dataset, with_absolute_paths
    from dfvt.engine.evaluate import METRIC_NAMES
    from dfvt.engine.infer import build_bare_detector
    from dfvt.engine.options import merge_options

    spec, settings = load_spec(path), load_settings(project / "params.yaml")
    if spec.metric not in METRIC_NAMES:
        raise ValueError(f"{path}: metric {spec.metric} is none of {', '.join(METRIC_NAMES)}")
    settings = settings.model_copy(
        update={"profile": spec.profile or settings.profile, "configs": spec.configs or settings.configs}
    )
    home = home or project
    manifest = DatasetManifest.load(home / DATASET_MANIFEST)
    root = (spec.data_root and project / spec.data_root) or home / manifest.root
    manifest = manifest.model_copy(update={"root": root.absolute()})
    if manifest.name != settings.profile:
        raise ValueError(
            f"{path}: profile is {settings.profile}, but the data set in {DATASET_MANIFEST.parent} is of "
            f"{manifest.name}: set profile in params.yaml and run `dvc repro fetch_data`"
        )
    configs: dict[str, str] = {}
    for variant in spec.variants:
        cfg = load_config(project / settings.config_path(variant))
        use_dataset(cfg, manifest)
        weights = home / "weights" / variant / "backbone.pth"
        if settings.use_pretrained and weights.is_file():
            cfg.model.pretrained = str(weights)
        configs[variant] = with_absolute_paths(cfg, project).pretty_text

    def config_with(assignment: Assignment) -> Config:
        searched = {key: value for key, value in assignment.items() if key not in (*TRAIN_KEYS, "variant")}
        cfg = Config.fromstring(configs[str(assignment["variant"])], ".py")
        try:
            merge_options(cfg, {**spec.cfg_options, **searched})
        except ValueError as error:
            # of one of the two mappings that were merged, and it names the key
            raise ValueError(f"{path}: {str(error).removeprefix('cfg_options: ')}") from error
        return cfg

    for named, assignment in examples_of_models(spec):
        cfg = config_with(assignment)
        try:
            build_bare_detector(cfg)
        except ValueError as error:
            raise ValueError(f"{path}: with {named} {error}") from error
    for assignment in examples(spec):
        cfg = config_with(assignment)
        try:
            require_search(spec, cfg, max_epochs(spec, configs))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    lineage = collect_lineage(
        project, variant="", profile=settings.profile, data_hash=manifest.data_hash, config_hash=""
    ) | json.loads(os.environ.get(LINEAGE, "{}"))
    return Sweep(
        spec=spec,
        home=home,
        configs=configs,
        lineage=lineage,
        store=Store(tracking_uri(home)),
        tracking_required=settings.tracking.required,
        artifact_root=home / "mlartifacts",
        experiment=settings.tracking.experiment,
        dataset=manifest,
        origin=collect_origin(project),
    )


def require_search(spec: SweepSpec, cfg: Config, num_epochs: int) -> None:
    """Refuses a search that could not begin, or would compare nothing.

    Raises:
        ValueError: options that no scheduler takes, a library that is missing, validations that come too
            seldom for a scheduler that compares the trials in the middle.
    """
    searcher_of(spec)
    scheduler_of(spec, num_epochs)
    segment, interval = segment_of(spec, num_epochs), cfg.evaluation.get("interval", 1)
    if segment and segment >= num_epochs:
        raise ValueError(
            f"scheduler {spec.scheduler} compares trials every {segment} epochs, of which a trial has "
            f"{num_epochs}, so that none takes anything over: raise num_epochs, or lower "
            "scheduler_options.perturbation_interval"
        )
    if segment and not 0 < interval <= segment:
        validated = f"every {interval}" if interval else "at their end alone"
        raise ValueError(
            f"scheduler {spec.scheduler} compares trials every {segment} epochs, but they are validated "
            f"{validated}: set cfg_options.evaluation.interval to {segment} or less, or "
            "scheduler_options.perturbation_interval to more"
        )


def plan_lines(sweep: Sweep) -> list[str]:
    """The trials that a sweep would run, and the hours that they would take, as lines of text.

    Raises:
        ValueError: another one of that name was begun.
    """
    spec = sweep.spec
    require_same_spec(spec, sweep.mirror)
    if spec.algorithm in DRAWN:
        trials = draw_trials(spec)
        lines = [
            f"{number:4}  " + "  ".join(f"{key}={value}" for key, value in trial.items())
            for number, trial in enumerate(trials, 1)
        ]
    else:
        trials = [{"variant": spec.variants[0]}] * spec.num_samples
        lines = [f"{spec.num_samples} trials that {spec.algorithm} will choose"]
    num_alike = num_draws(spec) - len(trials)
    if num_alike > 0:
        lines.append(f"{num_alike} of {num_draws(spec)} draws are like another one, and not repeated")
    if spec.images_per_second is None:
        return [*lines, "images_per_second of one worker in the spec would tell how long they take"]
    longest = max_epochs(spec, sweep.configs)
    images = sum(int(str(trial.get("num_epochs") or longest)) for trial in trials)
    hours = images * sweep.dataset.num_train_images / spec.images_per_second / 3600
    return [
        *lines,
        f"{len(trials)} trials, at most {hours:.1f} GPU-hours at {spec.images_per_second:g} images/s",
    ]


def run_sweep(sweep: Sweep) -> list[TrialRecord]:
    """Runs the trials that have not ended yet, at `RAY_ADDRESS` or on a Ray of its own; returns all of them.

    Raises:
        ValueError: nobody answers at `RAY_ADDRESS`, the sweep is running already, the folder holds one of
            another spec, or no node can ever hold a worker.
        KeyboardInterrupt: it was interrupted; started again, it goes on.
    """
    with one_at_a_time(sweep.mirror), sigterm_as_ctrl_c():
        require_same_spec(sweep.spec, sweep.mirror)
        sweep = with_usable_store(sweep)
        with ray_session() as connected:
            sweep = replace(sweep, lineage={**sweep.lineage, "ray.job_id": connected()})
            max_concurrent = require_capacity(sweep)
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


def with_usable_store(sweep: Sweep) -> Sweep:
    """The sweep with the store that its runs go into.

    Raises:
        ValueError: it cannot be used.
    """

    def warn(message: str) -> None:
        print(f"sweep {sweep.spec.name}: {message}", file=sys.stderr, flush=True)

    sweep.mirror.fetch(NOTE)
    store = choose_store(
        sweep.home,
        required=sweep.tracking_required,
        noted=read_note(sweep.mirror.folder / NOTE),
        warn=warn,
    )
    return replace(sweep, store=store, lineage={**sweep.lineage, **store.tags})


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM, with which jobs are stopped, end a sweep as Ctrl-C does: with the trials' states."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
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
    # which at the end would miss them, in a line for every trial
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    num_epochs = max_epochs(spec, sweep.configs)
    sweep = replace(sweep, segment=segment_of(spec, num_epochs))
    random.seed(spec.seed)  # what schedulers change, they draw from the global generator
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # see `stopping_gently`
    trials_at_work = start_trials_at_work()
    trainable = tune.with_resources(
        tune.with_parameters(TrialTraining, sweep=sweep, trials_at_work=trials_at_work, run=run),
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
    note_spec(spec, mirror)
    with stopping_gently(trials_at_work):
        tuner.fit()


def max_epochs(spec: SweepSpec, configs: Mapping[str, str]) -> int:
    """The most epochs that a trial can have; `configs` are those of the variants, as text."""
    searched = spec.space.get("num_epochs")
    if searched:
        return max(int(value) for value in searched.values)  # type: ignore[arg-type]  # checked with the keys
    parsed = (Config.fromstring(text, ".py") for text in configs.values())
    return max(spec.num_epochs or cfg.runner.max_epochs for cfg in parsed)
