"""The one training function: `dvc repro`, a sweep's trial, `dfvt train` and the tests all call it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmcv import Config
from mmcv.runner import get_dist_info

from dfvt.data.forecast import canvas_forecast
from dfvt.data.loading import EpochBatchSampler, build_train_loader, forecast_in_processes
from dfvt.engine.assembly import (
    build_runner,
    build_train_dataset,
    checkpoint_meta,
    register_hooks,
    seed_everything,
)
from dfvt.engine.batches import plan_batches
from dfvt.engine.callbacks import Callback, TrainingStart
from dfvt.engine.config_text import config_text
from dfvt.engine.failures import failure_policy_of
from dfvt.engine.images import canvases_of
from dfvt.engine.options import misspelt_names
from dfvt.engine.precision import precision_of, with_device_settings
from dfvt.engine.readback import require_settings
from dfvt.engine.resume import (
    model_content,
    require_finite,
    require_fitting_state,
    require_same_training,
    require_state,
    restore_state,
    training_identity,
)
from dfvt.engine.runner import DetectorRunner
from dfvt.engine.states import StateFiles, read_newest, write_atomically
from dfvt.engine.support import check_supported, unfinished_warmup
from dfvt.engine.versions import VERSIONS, continued_versions, present_versions
from dfvt.models.checkpoints import read_checkpoint

FINAL_FILE = "checkpoint.pth"
BEST_FILE = "best.pth"


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a training: final checkpoint, number of iterations, last validation numbers.

    The numbers are those of the first process; the others have none.
    """

    checkpoint: Path
    step: int
    metrics: dict[str, float]


@with_device_settings
def train(
    cfg: Config,
    work_dir: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    callbacks: Sequence[Callback] = (),
    meta: dict[str, Any] | None = None,
    resume_from: Path | None = None,
    take_over: Path | None = None,
    stop_asked: Callable[[], bool] = lambda: False,
    expected: Mapping[str, Any] | None = None,
    num_processes: int | None = None,
) -> TrainResult:
    """Trains the detector of an mmdet config; resumes when `work_dir` holds the state of the same training.

    A training that was finished is not run again. In a job of several processes (an initialised
    `torch.distributed` group) every process calls it; the batch of `data.samples_per_gpu` images is each
    process's. Callbacks are called in the first process.

    Args:
        cfg: the whole mmdet config.
        work_dir: where the resumable states (`latest.pth` and older ones), the best (`best.pth`) and the
            final checkpoint (`checkpoint.pth`) go.
        seed: of the weights, the order of the images, their augmentation and the samplers of the heads.
        device: where this process computes.
        meta: what the checkpoint's meta data hold beside config, classes and versions (lineage).
        resume_from: a state of the same training elsewhere to continue from, instead of that in `work_dir`.
        take_over: a state of a training of the same model with other settings to begin from, where `work_dir`
            has none: its weights, moments and position are taken, rates and schedules are this config's.
        stop_asked: called after each iteration; when it is true in any process, all leave with the state on
            disk, where there are several one iteration later.
        expected: config keys whose values are read back from what was built, before the first iteration of
            a training that does not resume its own state.
        num_processes: for which `data.samples_per_gpu` was chosen, if not for those that there are;
            `resized_batch` of the config says what becomes of the global batch.

    Raises:
        ValueError: the config asks for what is not supported, the data set has no images with objects, the
            states in `work_dir` are damaged or another training's.
        RuntimeError: the training diverges, memory or disk are full, or a loader process died.
        TrainingStopped: it was asked to stop.
    """
    device = torch.device(device)
    rank, world_size = get_dist_info()
    callbacks = callbacks if rank == 0 else ()

    def warn(message: str) -> None:
        for callback in callbacks:
            callback.on_warning(message)

    check_supported(cfg)
    for sentence in misspelt_names(cfg):
        warn(sentence)
    failure_policy_of(cfg), precision_of(cfg, device)  # their mistakes, before the data set is read
    cfg = copy.deepcopy(cfg)  # mmcv and mmdet move entries of configs about
    text = config_text(cfg)

    seed_everything(seed)
    dataset, prepare = build_train_dataset(cfg)
    identity = training_identity(cfg, seed=seed, num_images=len(dataset))
    found, resumes = find_state(work_dir, identity, warn, resume_from=resume_from, take_over=take_over)
    plan = plan_batches(cfg, world_size, found[1] if found else None, num_processes)
    canvases, num_workers = canvases_of(cfg), cfg.data.workers_per_gpu
    forecast = canvas_forecast(dataset, canvases) if cfg.get("group_by_canvas") else None
    sampler = EpochBatchSampler(
        dataset.flag,
        plan.batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        num_parts=plan.num_parts,
        canvases_of=forecast_in_processes(forecast, num_workers) if forecast else None,
    )
    versions, changes = continued_versions(found[1]["meta"]) if found else ([present_versions()], [])
    if found and changes:
        warn(
            f"{found[0]} was written by other code or libraries ({'; '.join(changes)}): the training goes on "
            f"from it, and its checkpoints name all of them in their meta data"
        )
    meta = {**checkpoint_meta(text, dataset.CLASSES, seed), VERSIONS: versions, **(meta or {})}
    runner = build_runner(cfg, sampler, dataset.CLASSES, device, meta, warn, prepare, is_new=not found)
    if found:
        if not resumes:
            require_fitting_state(runner, found[1], found[0])
        restore_state(runner, found[1], plan.lr_scale, keep_settings=not resumes)
    work_dir.mkdir(parents=True, exist_ok=True)

    def written(path: Path, step: int) -> None:
        for callback in callbacks:
            callback.on_checkpoint(path, step)

    num_kept = (cfg.get("checkpoint_config") or {}).get("max_keep_ckpts", 2)
    with closing(StateFiles(work_dir, num_kept, written)) as files:
        register_hooks(runner, cfg, callbacks, files, identity, stop_asked)
        if too_long := unfinished_warmup(cfg, runner.max_iters, runner.max_epochs):
            warn(too_long)  # after the hooks, so that a config that cannot be built is the only sentence
        is_new = not resumes and plan.note is None  # else learning rate and batch may rightly be others
        start = TrainingStart(
            runner.iter,
            runner.max_iters,
            runner.epoch,
            runner.max_epochs,
            resumed_from=found[0] if found else None,
            note=plan.note,
            changed_versions=tuple(changes),
            not_read_back=require_settings(runner, expected or {}) if is_new else (),
        )
        del found  # it is as large as the model and its optimiser
        for callback in callbacks:
            callback.on_start(start)
        loader = build_train_loader(
            dataset,
            sampler,
            num_workers,
            pin_memory=device.type == "cuda",
            skip_unreadable=failure_policy_of(cfg).skip_unreadable,
            pack_masks=bool(cfg.get("fast_heads")),
            canvases=canvases,
        )
        with closing(loader):
            runner.run(loader)
    final = work_dir / FINAL_FILE
    write_final(runner, final)
    for callback in callbacks:
        callback.on_end(final)
    return TrainResult(final, runner.iter, runner.metrics)


def find_state(
    work_dir: Path,
    identity: dict[str, str],
    warn: Callable[[str], None],
    *,
    resume_from: Path | None,
    take_over: Path | None,
) -> tuple[tuple[Path, dict[str, Any]] | None, bool]:
    """The state to begin with, its file and content, if there is one; and whether it is this training's own.

    Raises:
        ValueError: it is another training's, or no state.
    """
    found = (resume_from, read_checkpoint(resume_from)) if resume_from else read_newest(work_dir, warn)
    if found:
        require_same_training(found[1], identity, found[0])
        return found, True
    if take_over:
        found = take_over, read_checkpoint(take_over)
        require_state(found[1], take_over)
    return found, False


def write_final(runner: DetectorRunner, final: Path) -> None:
    """The first process writes the weights; the file is there when any process returns.

    Raises:
        RuntimeError: the training diverged.
    """
    runner.nonfinite.conclude()
    require_finite(runner.model)
    if runner.rank == 0:
        write_atomically(model_content(runner, runner.iter), final)
    if runner.world_size > 1:
        dist.barrier()
