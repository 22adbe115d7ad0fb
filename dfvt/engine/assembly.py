"""What a training is made of: the detector, its optimiser and loop, and the hooks of a config."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import mmdet
import numpy as np
import torch
from mmcv import Config
from mmcv.runner import get_dist_info

import dfvt.models
from dfvt.data.loading import EpochBatchSampler
from dfvt.engine.average import build_average
from dfvt.engine.build import build_merged_optimizer, build_model, distributed
from dfvt.engine.callbacks import Callback
from dfvt.engine.config import arguments_of
from dfvt.engine.dataset_configs import sources_of
from dfvt.engine.datasets import build_coco_dataset, build_evaluated_dataset, require_num_classes
from dfvt.engine.failures import failure_policy_of
from dfvt.engine.gradients import GradientPlaces
from dfvt.engine.graphs import graph_training
from dfvt.engine.hooks import BestCheckpoint, Checkpoints, Evaluation, OptimizerStep, StepRecords
from dfvt.engine.images import ImagePreparation, canvases_of, images_of
from dfvt.engine.precision import precision_of
from dfvt.engine.runner import DetectorRunner
from dfvt.engine.sharing import build_once_a_node
from dfvt.engine.states import StateFiles
from dfvt.engine.support import num_accumulated_of
from dfvt.models.checkpoints import load_fitting_weights

BEST_FILE = "best.pth"


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_train_dataset(cfg: Config) -> tuple[Any, ImagePreparation]:
    """The config's images to train on, and what is left to do with them on the device.

    Raises:
        ValueError: none has an object, or the model has another number of classes.
    """
    data, prepare = images_of(cfg)
    with arguments_of("data.train"):
        dataset = build_once_a_node(lambda: build_coco_dataset(data, test_mode=False), key=repr(data))
    require_num_classes(cfg.model, dataset.CLASSES, "data.train")
    if not len(dataset):
        raise ValueError(
            f"no image of {', '.join(sources_of(cfg.data.train))} can be trained on: an image needs an "
            "object of a class of the config, and 32 pixels in width and height"
        )
    return dataset, prepare


def build_runner(
    cfg: Config,
    sampler: EpochBatchSampler,
    classes: Sequence[str],
    device: torch.device,
    meta: dict[str, Any],
    warn: Callable[[str], None],
    prepare: ImagePreparation,
    *,
    is_new: bool,
) -> DetectorRunner:
    """Model, optimiser and loop of a config; a new training starts from `load_from` if that is given."""
    model = build_model(cfg, classes, device)
    if is_new and cfg.get("load_from"):
        left_out = load_fitting_weights(model, cfg.load_from)
        if left_out:
            warn(left_out)
    average = build_average(cfg, model)
    precision = precision_of(cfg, device)
    gradient_places = graph_training(
        model,
        cfg,
        canvases_of(cfg),
        precision,
        device,
        batch_size=sampler.batch_size // sampler.num_parts,
        warn=warn,
    )
    # with find_unused_parameters the buckets stay as they are, and tell who has no gradient
    if device.type == "cpu" and get_dist_info()[1] > 1 and not cfg.get("find_unused_parameters"):
        gradient_places = GradientPlaces.make(one for one in model.parameters() if one.requires_grad)
    model = distributed(model, cfg, device)
    seed_everything(sampler.seed + sampler.rank)  # from here on processes draw their own samples
    return DetectorRunner(
        model,
        build_merged_optimizer(model, cfg.optimizer),
        sampler=sampler,
        device=device,
        precision=precision,
        max_epochs=cfg.runner.max_epochs,
        meta=meta,
        num_accumulated=num_accumulated_of(cfg),
        average=average,
        max_nonfinite=failure_policy_of(cfg).nonfinite_losses,
        warn=warn,
        prepare=prepare,
        gradient_places=gradient_places,
    )


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
    callbacks: Sequence[Callback],
    files: StateFiles,
    identity: dict[str, str],
    stop_asked: Callable[[], bool],
) -> None:
    """Registers schedules, optimiser, evaluation, checkpoints, records and the config's own hooks."""
    with arguments_of("lr_config"):
        runner.register_lr_hook(cfg.lr_config)
    runner.register_momentum_hook(cfg.get("momentum_config"))
    optimizer_config, evaluation = cfg.get("optimizer_config") or {}, cfg.get("evaluation") or {}
    checkpoint_config = cfg.get("checkpoint_config") or {}
    runner.register_hook(OptimizerStep(optimizer_config.get("grad_clip")), priority="ABOVE_NORMAL")
    with arguments_of("data.val"):
        val = build_evaluated_dataset(cfg.data.val, "data.val")
    runner.register_hook(
        Evaluation(
            val,
            callbacks,
            evaluation.get("interval", 1),
            num_workers=cfg.data.workers_per_gpu,
        ),
        priority="LOW",
    )
    best = evaluation.get("save_best", "auto")
    if best:
        metric = "bbox_mAP" if best == "auto" else best
        runner.register_hook(BestCheckpoint(files.folder / BEST_FILE, metric), priority="LOW")
    for hook in cfg.get("custom_hooks") or []:
        runner.register_hook_from_cfg(hook)
    images_per_step = runner.sampler.batch_size * runner.sampler.world_size
    log_interval = (cfg.get("log_config") or {}).get("interval", 50)
    runner.register_hook(StepRecords(callbacks, log_interval, images_per_step), priority="VERY_LOW")
    checkpoints = Checkpoints(
        files,
        checkpoint_config.get("interval", 1),
        by_epoch=checkpoint_config.get("by_epoch", True),
        identity=identity,
        stop_asked=stop_asked,
    )
    runner.register_hook(checkpoints, priority="LOWEST")  # after all whose numbers it keeps
