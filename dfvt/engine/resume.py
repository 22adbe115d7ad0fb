"""Checkpoints that are never half, and trainings that go on from them exactly."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmcv import Config
from mmcv.parallel import is_module_wrapper
from mmcv.runner import get_dist_info, weights_to_cpu

from dfvt.engine.runner import REMEDY, DetectorRunner
from dfvt.models.checkpoints import read_checkpoint

# What decides the weights that a training ends with. Paths are left out: a data set may have moved.
IDENTITY_KEYS = ("model", "optimizer", "optimizer_config", "lr_config", "momentum_config", "fp16", "runner")
PATH_KEYS = ("ann_file", "img_prefix", "data_root", "seg_prefix", "proposal_file")


def training_identity(cfg: Config, *, seed: int, num_processes: int, num_images: int) -> dict[str, str]:
    """What an interrupted training must share with the one that goes on from its state, by name."""
    model = {key: value for key, value in cfg.model.items() if key != "pretrained"}
    dataset = {key: value for key, value in cfg.data.train.items() if key not in PATH_KEYS}
    parts: dict[str, Any] = {key: cfg.get(key) for key in IDENTITY_KEYS} | {
        "model": model,
        "data.train": dataset,
        "data.samples_per_gpu": cfg.data.samples_per_gpu,
        "custom_hooks": cfg.get("custom_hooks") or [],
        "seed": seed,
        "number of processes": num_processes,
        "number of training images": num_images,
    }
    return {name: repr(value) for name, value in parts.items()}


def random_state(device: torch.device) -> dict[str, Any]:
    """State of every global generator that this process uses, as plain values and tensors."""
    version, python_state, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    keys = numpy_state["state"]["key"].tolist()
    return {
        "python": (version, python_state, gauss),
        "numpy": (keys, numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Inverse of `random_state`."""
    version, python_state, gauss = state["python"]
    random.setstate((version, tuple(python_state), gauss))
    keys, *numpy_rest = state["numpy"]
    np.random.set_state(("MT19937", np.asarray(keys, dtype=np.uint32), *numpy_rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def write_atomically(content: dict[str, Any], path: Path) -> None:
    """Saves a checkpoint aside and renames it once on disk: `path` is the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def bare_model(runner: DetectorRunner) -> torch.nn.Module:
    """The detector without its distributed wrapper."""
    return runner.model.module if is_module_wrapper(runner.model) else runner.model


def require_finite(model: torch.nn.Module) -> None:
    """Refuses weights that no training can go on from.

    Raises:
        ValueError: an entry of the state dict is not finite.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"the training diverged, {name} is not finite: {REMEDY}")


def model_content(runner: DetectorRunner) -> dict[str, Any]:
    """What stock mmdet reads from a checkpoint: meta data (config, classes, position) and weights."""
    epoch = runner.iter // runner.sampler.num_batches
    meta = {**(runner.meta or {}), "epoch": epoch, "iter": runner.iter}
    return {"meta": meta, "state_dict": weights_to_cpu(bare_model(runner).state_dict())}


def save_state(
    runner: DetectorRunner,
    path: Path,
    scaler: torch.amp.GradScaler,
    identity: dict[str, str],
    metrics: dict[str, float],
) -> None:
    """Writes everything that a resumed training needs; all processes call it, the first one writes.

    Raises:
        ValueError: the weights are not finite.
    """
    require_finite(bare_model(runner))  # in every process, none may wait for one that stopped
    rank, world_size = get_dist_info()
    states: list[Any] = [random_state(runner.device)]
    if world_size > 1:
        states = [None] * world_size
        dist.all_gather_object(states, random_state(runner.device))
    if rank == 0:
        content = model_content(runner)
        content["optimizer"] = runner.optimizer.state_dict()
        content["scaler"] = scaler.state_dict()
        content["random"] = states
        content["identity"] = identity
        content["metrics"] = copy.copy(metrics)
        write_atomically(content, path)
    if world_size > 1:
        dist.barrier()


def restore_state(
    runner: DetectorRunner, path: Path, scaler: torch.amp.GradScaler, identity: dict[str, str]
) -> dict[str, float]:
    """Continues from a file of `save_state`; returns the last validation numbers before it.

    Raises:
        ValueError: it belongs to another training, or is damaged.
    """
    content = read_checkpoint(path)
    if "identity" not in content:
        raise ValueError(
            f"checkpoint {path} is not the state of a training: remove it or choose another work_dir"
        )
    other = [
        name
        for name in {**content["identity"], **identity}
        if content["identity"].get(name) != identity.get(name)
    ]
    if other:
        raise ValueError(
            f"checkpoint {path} belongs to a training with another {', '.join(other)}: "
            "remove it to start anew, or choose another work_dir"
        )
    bare_model(runner).load_state_dict(content["state_dict"])
    runner.optimizer.load_state_dict(content["optimizer"])
    if content["scaler"]:  # empty without mixed precision
        scaler.load_state_dict(content["scaler"])
    restore_random_state(content["random"][get_dist_info()[0]], runner.device)
    runner.restore_position(int(content["meta"]["iter"]))
    return dict(content["metrics"])
