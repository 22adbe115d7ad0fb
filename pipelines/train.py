"""Stage train@VARIANT: one training under Ray, one MLflow run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from dfvt.cluster.session import ray_session
from dfvt.data.manifest import DatasetManifest
from dfvt.settings import Settings, VariantTrainSettings
from dfvt.tracking.lineage import collect_lineage, config_hash
from pipelines.stage import CONFIGS, DATASET_MANIFEST, replace_folder, run_variant_stage

if TYPE_CHECKING:
    from dfvt.tracking.mlflow import RunRecorder

RUNS = Path("runs")
STATES = Path(".dfvt/train")  # not an output of the stage: DVC removes those before it runs a stage
REMOVED = ".removed-"  # how the name of a state begins whose files are being removed
OUTPUTS = ("config.py", "run.json", "curve.csv", "val.csv", "checkpoint.pth")


def main(settings: Settings, variant: str) -> None:
    with ray_session() as connected:
        state = train_variant(settings, variant, connected)
    keep_outputs(state, RUNS / variant)


def train_variant(settings: Settings, variant: str, connected: Callable[[], str]) -> Path:
    """Train once Ray is `connected`; returns the folder of the training's state and results."""
    from dfvt.engine.console import quiet_libraries

    quiet_libraries()
    # Importing these takes as long as Ray takes to start.
    from dfvt.cluster.train import run_training, start_workers
    from dfvt.cluster.training_job import TrainingJob
    from dfvt.engine.config import load_config, override_config, with_absolute_paths, write_config
    from dfvt.engine.config_text import config_text
    from dfvt.engine.image_size import image_size_of
    from dfvt.engine.plain import config_json, load_plain_config
    from dfvt.engine.progress import Progress

    project = Path.cwd()
    values = settings.train.for_variant(variant)
    manifest = DatasetManifest.load(DATASET_MANIFEST)
    pretrained = Path("weights", variant, "backbone.pth")
    cfg = load_config(CONFIGS / f"{variant}.py", values.cfg_options)
    override_config(
        cfg,
        lr=values.lr,
        num_epochs=values.num_epochs,
        batch_size=values.batch_size,
        pretrained=str(pretrained) if pretrained.is_file() else None,
    )
    state = project / STATES / f"{variant}-{state_key(config_text(cfg), manifest, values, pretrained)}"
    write_config(cfg, state / "config.py")
    data = config_json(load_plain_config(state / "config.py"))  # as the evaluation will read it
    lineage = collect_lineage(
        project,
        variant=variant,
        profile=settings.profile,
        data_hash=manifest.data_hash,
        config_hash=config_hash(config_text(cfg)),
        ray_job_id=connected(),
    )
    trained_with = values.model_copy(
        update={
            "lr": cfg.optimizer.lr,
            "num_epochs": cfg.runner.max_epochs,
            "batch_size": cfg.data.samples_per_gpu,
            "image_size": image_size_of(cfg),
        }
    )
    job = TrainingJob(
        config=config_text(with_absolute_paths(cfg, project)),
        work_dir=state,
        seed=values.seed,
        num_workers=values.num_workers,
        use_gpu=values.use_gpu,
        lineage=lineage,
    )
    # The workers import what they need while this process imports MLflow and opens the run.
    workers = start_workers(job)
    from dfvt.cluster.mlflow_curves import MlflowCurves

    with one_training(state):
        recorder = open_run(settings, trained_with, state / "run.json", lineage, manifest)
        with ended_on_error(recorder):
            run_training(
                job, [MlflowCurves(recorder, folder=state), Progress(f"train@{variant}")], workers=workers
            )
            file_results(recorder, state, data)
    return state


@contextmanager
def one_training(state: Path) -> Iterator[None]:
    """Keep others from the state of a training while it runs; `dfvt runs sync` sees that it runs.

    Raises:
        ValueError: another process trains with this state.
    """
    from filelock import Timeout

    from dfvt.cluster.records import LOCK_SECONDS, lock_of

    lock = lock_of(state, LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process trains with the state in {state}: wait for its end") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def ended_on_error(recorder: RunRecorder) -> Iterator[None]:
    """End a run if the body raises; whatever MLflow does then, the body's error is the one that is raised."""
    try:
        yield
    except BaseException as error:
        recorder.abandon("FAILED" if isinstance(error, Exception) else "KILLED")
        raise


def file_results(recorder: RunRecorder, state: Path, config: str) -> None:
    """Keep the config, also as JSON, and the checkpoint of a finished training with its run, and end the run.

    Raises:
        RuntimeError: MLflow does not take them.
    """
    try:
        recorder.log_artifact(state / "config.py")
        recorder.log_text(config, "config.json")
        recorder.log_artifact(state / "checkpoint.pth")
        recorder.finish()
    except (ConnectionError, ValueError) as error:
        raise RuntimeError(
            f"{str(error).rstrip('.')}; the training has ended: the same command files its results"
        ) from error


def state_key(config: str, manifest: DatasetManifest, values: VariantTrainSettings, pretrained: Path) -> str:
    """Name of the resumable state: what the training that goes on from it must have in common."""
    weights = sha256(pretrained.read_bytes()).hexdigest() if pretrained.is_file() else ""
    return config_hash(f"{config}{manifest.data_hash}{weights}{values.seed} {values.num_workers}")[:16]


def open_run(
    settings: Settings,
    values: VariantTrainSettings,
    file: Path,
    lineage: dict[str, str],
    manifest: DatasetManifest,
) -> RunRecorder:
    """Continue the MLflow run of an interrupted training that is noted in `file`, or start and note one."""
    from dfvt.cluster.notes import continue_noted_run, note_run, read_note
    from dfvt.cluster.origins import keep_origin
    from dfvt.tracking.addresses import artifact_root
    from dfvt.tracking.deferred import choose_store
    from dfvt.tracking.mlflow import RunRecorder
    from dfvt.tracking.origin import KEPT, collect_origin, keeps_changes

    def warn(message: str) -> None:
        print(f"train@{values.variant}: {message}", file=sys.stderr)

    project = Path.cwd()
    store = choose_store(project, required=settings.tracking.required, noted=read_note(file), warn=warn)
    origin = collect_origin(
        project, with_diff=keeps_changes(settings.tracking.upload_changes, store, project)
    )
    if noted := continue_noted_run(file, store.uri, project, warn):
        with ended_on_error(noted):
            if noted.tag(KEPT) is None:
                keep_origin(noted, origin, manifest)
        return noted
    params = values.model_dump(mode="json")
    recorder = RunRecorder.open(
        store.uri,
        settings.tracking.experiment,
        artifact_root=artifact_root(project),
        run_name=f"{values.variant} {settings.profile}",
        tags=lineage | store.tags,
        params=params,
    )
    with ended_on_error(recorder):
        note_run(file, recorder, store, project, tags=lineage, params=params)
        keep_origin(recorder, origin, manifest)
    return recorder


def keep_outputs(state: Path, final: Path) -> None:
    """Put what a finished training leaves in its place, and remove the variant's resumable states.

    The state stays whole until the results are in their place, so that the next start of the stage goes on
    from it whenever this one is killed. A state loses its name before its files are removed: a part of a
    state is never mistaken for one.

    Args:
        state: the folder of the training's state and results.
        final: the folder that the results get, in place of an earlier one.
    """
    finished = state / "finished"
    with suppress(FileNotFoundError):
        shutil.rmtree(finished)  # of a start that was killed
    finished.mkdir()
    for name in OUTPUTS:
        link_or_copy(state / name, finished / name)
    replace_folder(finished, final)
    for left in state.parent.glob(f"{REMOVED}{final.name}-*"):  # by a start that was killed
        shutil.rmtree(left)
    for old in state.parent.glob(f"{final.name}-*"):
        shutil.rmtree(old.rename(old.with_name(f"{REMOVED}{old.name}")))


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


if __name__ == "__main__":
    run_variant_stage("train", main)
