"""Checkpoints that are never half, and trainings that go on from them exactly."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmcv import Config
from mmcv.parallel import is_module_wrapper
from mmcv.runner import get_dist_info, weights_to_cpu

from dfvt.engine.failures import REMEDY
from dfvt.engine.precision import DEFAULT_TF32, tf32_of
from dfvt.engine.runner import DetectorRunner

# What decides the weights that a training ends with. Paths are left out: a data set may have moved.
IDENTITY_KEYS = (
    "model",
    "optimizer",
    "optimizer_config",
    "lr_config",
    "momentum_config",
    "fp16",
    "runner",
    "ema",
    "sync_batchnorm",
)
# Switches that decide it too, where they are on.
SWITCHES = ("fast_heads", "canvases", "group_by_canvas")
# What a learning rate that depends on the past alone has done does not change with the number of epochs.
LENGTHENED_POLICIES = ("fixed", "step", "exp", "inv")
# Of differences between two trainings that are told.
MOST_NAMED, MOST_SHOWN = 3, 60
PATH_KEYS = ("ann_file", "img_prefix", "data_root", "seg_prefix", "proposal_file")


def training_identity(cfg: Config, *, seed: int, num_images: int) -> dict[str, str]:
    """What an interrupted training must share with the one that goes on from its state, by name."""
    model = {key: value for key, value in cfg.model.items() if key != "pretrained"}
    runner = dict(cfg.runner)
    if cfg.lr_config.get("policy") in LENGTHENED_POLICIES:
        runner.pop("max_epochs")
    parts: dict[str, Any] = {key: cfg[key] for key in SWITCHES if cfg.get(key)}
    if tf32_of(cfg) != DEFAULT_TF32:
        parts["tf32"] = tf32_of(cfg)
    parts |= {key: cfg.get(key) for key in IDENTITY_KEYS} | {
        "model": model,
        "runner": runner,
        "data.train": without_paths(cfg.data.train),
        "data.samples_per_gpu": cfg.data.samples_per_gpu,
        "custom_hooks": cfg.get("custom_hooks") or [],
        "seed": seed,
        "number of training images": num_images,
    }
    return {name: repr(value) for name, value in parts.items()}


def without_paths(value: Any) -> Any:
    """A data set's config, or that of a wrapper of some, without where its files are."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items() if key not in PATH_KEYS}
    return [without_paths(item) for item in value] if isinstance(value, list) else value


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


def bare_model(runner: DetectorRunner) -> torch.nn.Module:
    """The detector without its distributed wrapper."""
    return runner.model.module if is_module_wrapper(runner.model) else runner.model


def require_finite(model: torch.nn.Module) -> None:
    """Refuses weights that no training can go on from.

    Raises:
        RuntimeError: an entry of the state dict is not finite.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise RuntimeError(f"the training diverged, {name} is not finite: {REMEDY}")


def model_content(runner: DetectorRunner, step: int) -> dict[str, Any]:
    """What stock mmdet reads from a checkpoint: meta data (config, classes, position) and weights.

    The weights are the averaged ones when there is an average.
    """
    meta = {**(runner.meta or {}), "epoch": step // runner.sampler.num_batches, "iter": step}
    model = runner.average.module if runner.average else bare_model(runner)
    return {"meta": meta, "state_dict": weights_to_cpu(model.state_dict())}


def state_content(runner: DetectorRunner, identity: dict[str, str], step: int) -> dict[str, Any] | None:
    """Everything that a resumed training needs after `step` iterations; None in all processes but the first.

    All processes call it, and tell their generators.

    Raises:
        ValueError: the weights are not finite.
    """
    require_finite(bare_model(runner))  # in every process, none may wait for one that stopped
    rank, world_size = get_dist_info()
    states: list[Any] = [random_state(runner.device)]
    if world_size > 1:
        states = [None] * world_size
        dist.all_gather_object(states, random_state(runner.device))
    if rank:
        return None
    parameters = runner.model.parameters()
    return {
        **model_content(runner, step),
        "model": bare_model(runner).state_dict() if runner.average else None,
        "average": runner.average.state_dict() if runner.average else None,
        "optimizer": runner.optimizer.state_dict(),
        "gradients": [p.grad for p in parameters] if runner.num_gathered else [],
        "num_gathered": runner.num_gathered,
        "nonfinite_in_a_row": runner.nonfinite.in_a_row,
        "scaler": runner.scaler.state_dict(),
        "random": states,
        "epoch": runner.epoch,
        "log": [dict(runner.log_buffer.val_history), dict(runner.log_buffer.n_history)],
        "identity": identity,
        "metrics": dict(runner.metrics),
        "best": runner.best,
        "num_processes": world_size,
        "global_batch": runner.sampler.batch_size * world_size,
        "num_batches": runner.sampler.num_batches,
    }


def require_state(content: dict[str, Any], path: Path) -> None:
    """Refuses a file that is no state.

    Raises:
        ValueError: it is the checkpoint of a training, or any other.
    """
    if "identity" not in content:
        raise ValueError(
            f"checkpoint {path} is not the state of a training: name a latest.pth, or another work_dir"
        )


def require_same_training(content: dict[str, Any], identity: dict[str, str], path: Path) -> None:
    """Refuses a file that is no state of this training.

    Raises:
        ValueError: it belongs to another training, or is the checkpoint of one.
    """
    require_state(content, path)
    other = differences(content["identity"], identity)
    if other:
        more = f" and {len(other) - MOST_NAMED} more" if len(other) > MOST_NAMED else ""
        raise ValueError(
            f"checkpoint {path} belongs to a training with another {', '.join(other[:MOST_NAMED])}{more}: "
            f"remove {path.parent}/latest*.pth to start anew, or choose another work_dir"
        )


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The keys in which the identities of two trainings differ, with both values where they are short."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            both = [dict(_leaves(name, _value(one.get(name, "None")))) for one in (before, now)]
            for key in dict.fromkeys([*both[0], *both[1]]):
                if both[0].get(key) != both[1].get(key):
                    old, new = (f"{one.get(key)}" for one in both)
                    short = len(old) + len(new) < MOST_SHOWN
                    found.append(f"{key} ({old}, now {new})" if short else key)
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # of something that is no plain value
        return text


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _leaves(f"{key}.{name}", item)
    else:
        yield key, value


def require_fitting_state(runner: DetectorRunner, content: dict[str, Any], path: Path) -> None:
    """Refuses the state of another training that a runner could not go on from, whatever their settings.

    Raises:
        ValueError: it is of another model or kind of optimiser.
    """
    own, other = bare_model(runner).state_dict(), content["model"] or content["state_dict"]
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in other.items()}:
        raise ValueError(f"checkpoint {path} is the state of another model")
    groups = [
        (len(group["params"]), set(group) - {"initial_lr"})
        for optimizer in (runner.optimizer.state_dict(), content["optimizer"])
        for group in optimizer["param_groups"]
    ]
    half = len(runner.optimizer.param_groups)
    if groups[:half] != groups[half:] or (runner.average is None) != (content["average"] is None):
        raise ValueError(f"checkpoint {path} is the state of another optimiser, or of other groups in it")


def restore_state(
    runner: DetectorRunner, content: dict[str, Any], lr_scale: float = 1.0, *, keep_settings: bool = False
) -> None:
    """Continues from the content of `state_content`; learning rates become `lr_scale` times as high.

    With `keep_settings` the runner's optimiser keeps its own settings beside the other's moments.
    """
    rank, world_size = get_dist_info()
    bare_model(runner).load_state_dict(content["model"] or content["state_dict"])
    if runner.average:
        runner.average.load_state_dict(content["average"])
    optimizer = content["optimizer"]
    if keep_settings:
        built = runner.optimizer.state_dict()["param_groups"]
        groups = zip(built, optimizer["param_groups"], strict=True)
        optimizer = {
            **optimizer,
            "param_groups": [{**own, "params": other["params"]} for own, other in groups],
        }
    runner.optimizer.load_state_dict(optimizer)
    for group in runner.optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["initial_lr"] *= lr_scale
    for parameter, gradient in zip(runner.model.parameters(), content["gradients"], strict=False):
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    runner.num_gathered = content["num_gathered"]
    runner.nonfinite.in_a_row = content.get("nonfinite_in_a_row", 0)  # older states have none
    if content["scaler"]:  # empty without mixed precision
        runner.scaler.load_state_dict(content["scaler"])
    if rank < content["num_processes"]:  # one that was not there keeps its seed
        restore_random_state(content["random"][rank], runner.device)
    runner.log_buffer.val_history.update(content["log"][0])
    runner.log_buffer.n_history.update(content["log"][1])
    runner.metrics, runner.best = dict(content["metrics"]), content["best"]
    images_before, images_now = content["global_batch"], runner.sampler.batch_size * world_size
    step = int(content["meta"]["iter"])
    if images_before != images_now:  # the same share of the epoch
        in_epoch = (step - content["epoch"] * content["num_batches"]) / content["num_batches"]
        step = round((content["epoch"] + in_epoch) * runner.sampler.num_batches)
    runner.restore_position(step, content["epoch"])
