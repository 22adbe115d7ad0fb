"""The one training function: `dvc repro`, a sweep's trial, `dfvt train` and the tests all call it."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import torch
import torch.distributed as dist
from mmcv import Config, ConfigDict
from mmcv.runner import build_optimizer, get_dist_info
from mmdet.models import build_detector

import dfvt.models
from dfvt.data.loading import EpochBatchSampler, build_train_loader
from dfvt.engine.callbacks import Callback, TrainingStart
from dfvt.engine.compat import DistributedDetector
from dfvt.engine.config import arguments_of
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.hooks import Checkpoints, Evaluation, OptimizerStep, StepRecords
from dfvt.engine.precision import keep_interfaces_in_float32, precision_of
from dfvt.engine.resume import (
    model_content,
    require_finite,
    restore_state,
    training_identity,
    write_atomically,
)
from dfvt.engine.runner import DetectorRunner

EPOCH_RUNNERS = ("EpochBasedRunner", "EpochBasedRunnerAmp")
STATE_FILE = "latest.pth"
FINAL_FILE = "checkpoint.pth"


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a training: final checkpoint, number of iterations, last validation numbers.

    The numbers are those of the first process; the others have none.
    """

    checkpoint: Path
    step: int
    metrics: dict[str, float]


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def train(
    cfg: Config,
    work_dir: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    callbacks: Sequence[Callback] = (),
    meta: dict[str, Any] | None = None,
    resume_from: Path | None = None,
) -> TrainResult:
    """Trains the detector of an mmdet config; resumes when `work_dir` holds the state of the same training.

    A training that was finished is not run again. In a job of several processes (an initialised
    `torch.distributed` group) every process calls it; the batch of `data.samples_per_gpu` images is each
    process's. Callbacks are called in the first process.

    Args:
        cfg: the whole mmdet config.
        work_dir: where the resumable state (`latest.pth`) and the final checkpoint (`checkpoint.pth`) go.
        seed: of the weights, the order of the images, their augmentation and the samplers of the heads.
        device: where this process computes.
        meta: what the checkpoint's meta data hold beside config, classes and versions (lineage).
        resume_from: a state of the same training elsewhere to continue from, instead of that in `work_dir`.

    Raises:
        ValueError: the config asks for what is not supported, the data set has no images with objects, the
            state in `work_dir` is damaged or another training's, or the training diverges.
    """
    device = torch.device(device)
    rank, world_size = get_dist_info()
    callbacks = callbacks if rank == 0 else ()
    check_supported(cfg)
    cfg = copy.deepcopy(cfg)  # mmcv and mmdet move entries of configs about
    text = cfg.pretty_text

    seed_everything(seed)
    with arguments_of("data.train"):
        dataset = build_coco_dataset(cfg.data.train, test_mode=False)
    if not len(dataset):
        raise ValueError(f"no image of {cfg.data.train.get('ann_file')} has an object to train on")
    sampler = EpochBatchSampler(
        dataset.flag, cfg.data.samples_per_gpu, seed=seed, rank=rank, world_size=world_size
    )
    identity = training_identity(cfg, seed=seed, num_processes=world_size, num_images=len(dataset))
    precision = precision_of(cfg, device)
    model = build_model(cfg, dataset.CLASSES, device)
    seed_everything(seed + rank)  # from here on processes draw their own samples

    work_dir.mkdir(parents=True, exist_ok=True)
    runner = DetectorRunner(
        model,
        build_merged_optimizer(model, cfg.optimizer),
        sampler=sampler,
        device=device,
        precision=precision,
        max_epochs=cfg.runner.max_epochs,
        meta={**checkpoint_meta(text, dataset.CLASSES, seed), **(meta or {})},
    )
    scaler = precision.build_scaler(device)
    state = work_dir / STATE_FILE
    evaluation = register_hooks(runner, cfg, state, callbacks, scaler, identity)
    resumed_from = resume_from or (state if state.is_file() else None)
    if resumed_from:
        evaluation.metrics = restore_state(runner, resumed_from, scaler, identity)
    start = TrainingStart(runner.iter, runner.max_iters, runner.epoch, runner.max_epochs, resumed_from)
    for callback in callbacks:
        callback.on_start(start)
    runner.run(
        build_train_loader(dataset, sampler, cfg.data.workers_per_gpu, pin_memory=device.type == "cuda")
    )

    final = work_dir / FINAL_FILE
    require_finite(model)
    if rank == 0:
        write_atomically(model_content(runner), final)
    if world_size > 1:
        dist.barrier()  # the file is there when any process returns
    for callback in callbacks:
        callback.on_end(final)
    return TrainResult(final, runner.iter, evaluation.metrics)


def check_supported(cfg: Config) -> None:
    """Refuses what the loop does not do, before anything is built.

    Raises:
        ValueError: a section is missing, or asks for what is not supported.
    """
    for name in ("model", "data", "optimizer", "runner", "lr_config"):
        if name not in cfg:
            raise ValueError(f"config section {name!r} is missing")
    if cfg.runner.get("type") not in EPOCH_RUNNERS:
        raise ValueError(
            f"runner.type {cfg.runner.get('type')!r} is not supported: use one of {', '.join(EPOCH_RUNNERS)}"
        )
    if [phase for phase, _ in cfg.get("workflow", [("train", 1)])] != ["train"]:
        raise ValueError(
            "workflow may hold one 'train' phase only: validation is set by `evaluation.interval`"
        )
    for name in ("update_interval", "cumulative_iters"):
        if (cfg.get("optimizer_config") or {}).get(name, 1) != 1:
            raise ValueError(f"optimizer_config.{name} must be 1: gradient accumulation is not supported yet")
    for name in ("load_from", "resume_from"):
        if cfg.get(name):
            raise ValueError(
                f"{name} is not supported: a work_dir is resumed by itself, and model.pretrained names the "
                "weights that a training starts from"
            )


def build_model(cfg: Config, classes: Sequence[str], device: torch.device) -> torch.nn.Module:
    """The config's detector with initial weights on `device`, wrapped when there are several processes."""
    with arguments_of("model"):
        model = build_detector(cfg.model)
    model.init_weights()
    model.CLASSES = classes
    keep_interfaces_in_float32(model)
    model.to(device)
    if get_dist_info()[1] == 1:
        return model
    return DistributedDetector(
        model,
        device_ids=[device.index or 0] if device.type == "cuda" else None,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )


def build_merged_optimizer(model: torch.nn.Module, cfg: ConfigDict) -> torch.optim.Optimizer:
    """mmcv's optimiser of a config, with one parameter group for all parameters that share their settings.

    mmcv makes a group of every parameter, which takes as many passes as there are parameters to update them.
    """
    with arguments_of("optimizer"):
        optimizer = build_optimizer(model, cfg)
    merged: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        settings = {name: group[name] for name in sorted(group) if name != "params"}
        merged.setdefault(repr(settings), {**settings, "params": []})["params"] += group["params"]
    optimizer.param_groups[:] = merged.values()
    return optimizer


def checkpoint_meta(config: str, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """Meta data as mmdet writes them, so that stock mmdet can use the checkpoint."""
    return {
        "config": config,
        "CLASSES": tuple(classes),
        "mmdet_version": mmdet.__version__,
        "dfvt_version": dfvt.__version__,
        "seed": seed,
    }


def register_hooks(
    runner: DetectorRunner,
    cfg: Config,
    state: Path,
    callbacks: Sequence[Callback],
    scaler: torch.amp.GradScaler,
    identity: dict[str, str],
) -> Evaluation:
    """Registers schedules, optimiser, evaluation, checkpoints, records and the config's own hooks."""
    runner.register_lr_hook(cfg.lr_config)
    runner.register_momentum_hook(cfg.get("momentum_config"))
    grad_clip = (cfg.get("optimizer_config") or {}).get("grad_clip")
    runner.register_hook(
        OptimizerStep(grad_clip, scaler, runner.precision.fixed_loss_scale), priority="ABOVE_NORMAL"
    )
    with arguments_of("data.val"):
        val = build_coco_dataset(cfg.data.val, test_mode=True)
    evaluation = Evaluation(
        val,
        callbacks,
        (cfg.get("evaluation") or {}).get("interval", 1),
        num_workers=cfg.data.workers_per_gpu,
    )
    runner.register_hook(evaluation, priority="LOW")
    checkpoints = Checkpoints(
        state,
        callbacks,
        (cfg.get("checkpoint_config") or {}).get("interval", 1),
        scaler=scaler,
        evaluation=evaluation,
        identity=identity,
    )
    runner.register_hook(checkpoints, priority="LOW")  # after the evaluation, whose numbers it keeps
    for hook in cfg.get("custom_hooks") or []:
        runner.register_hook_from_cfg(hook)
    images_per_step = runner.sampler.batch_size * runner.sampler.world_size
    log_interval = (cfg.get("log_config") or {}).get("interval", 50)
    runner.register_hook(StepRecords(callbacks, log_interval, images_per_step), priority="VERY_LOW")
    return evaluation
