"""Models and optimisers of a config, as a training has them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from mmcv import Config, ConfigDict
from mmcv.runner import build_optimizer, get_dist_info
from mmcv.runner.optimizer.builder import OPTIMIZERS
from mmdet.models import build_detector
from torch import nn

from dfvt.engine.compat import FORWARD_SYNC, DistributedDetector, parse_losses
from dfvt.engine.config import arguments_of
from dfvt.engine.precision import guard_interfaces, tf32_of
from dfvt.models.dfvt import DFvT
from dfvt.models.norms import align_norm_gradients

FAST = {
    "RPNHead": "FastRPNHead",
    "StandardRoIHead": "FastRoIHead",
    "SingleRoIExtractor": "FastRoIExtractor",
}


def build_model(cfg: Config, classes: Sequence[str], device: torch.device) -> nn.Module:
    """The config's detector with initial weights on `device`.

    `fast_heads = True` of a config takes the heads of `dfvt.models` that do mmdet's work for a whole batch at
    once, `sync_batchnorm = True` lets the processes share BatchNorm's statistics, and
    `compile_backbone = True` (or arguments of `torch.compile`) compiles the backbone.

    Raises:
        ValueError: BatchNorm is to be shared on the CPU, where torch cannot, or neck and backbone do not fit.
    """
    with arguments_of("model"):
        model = build_detector(with_fast_heads(cfg.model) if cfg.get("fast_heads") else cfg.model)
        require_fitting_neck(model)
        model.init_weights()
    model.CLASSES = classes
    model.tf32 = tf32_of(cfg)
    model._parse_losses = parse_losses
    guard_interfaces(model)
    align_norm_gradients(model)
    if cfg.get("sync_batchnorm") and get_dist_info()[1] > 1:
        if device.type == "cpu":
            raise ValueError("sync_batchnorm needs GPUs: torch shares BatchNorm's statistics on them alone")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    compiled = cfg.get("compile_backbone")
    if compiled:
        model.backbone.compile(**(compiled if isinstance(compiled, dict) else {}))
    return model.to(device, memory_format=torch.channels_last if cfg.get("channels_last") else None)


def with_fast_heads(model: ConfigDict) -> ConfigDict:
    """A detector's config with the fast counterparts of mmdet's heads.

    Raises:
        ValueError: one of its heads has none.
    """
    model = copy.deepcopy(model)
    heads = [model.rpn_head, model.roi_head]
    extractors = [model.roi_head.get(f"{kind}_roi_extractor") for kind in ("bbox", "mask")]
    for part in filter(None, [*heads, *extractors]):
        if part.type not in FAST.values():
            if part.type not in FAST:
                raise ValueError(f"fast_heads knows no {part.type}: remove fast_heads from the config")
            part.type = FAST[part.type]
    return model


def require_fitting_neck(model: nn.Module) -> None:
    """Compares the channels that a neck takes with those of DFvT's maps.

    Raises:
        ValueError: they differ.
    """
    backbone, taken = (
        getattr(model, "backbone", None),
        getattr(getattr(model, "neck", None), "in_channels", None),
    )
    if isinstance(backbone, DFvT) and isinstance(taken, Sequence):
        given = [backbone.num_features[index] for index in backbone.out_indices]
        if list(taken) != given:
            raise ValueError(f"model.neck.in_channels is {list(taken)}, but the backbone's maps have {given}")


def distributed(model: nn.Module, cfg: Config, device: torch.device) -> nn.Module:
    """The detector wrapped for gradients that processes average, if there are several.

    Each gathers BatchNorm statistics of its own, as in mmdet, until the end of an epoch: training does not
    look at them.
    """
    if get_dist_info()[1] == 1:
        return model
    forward_sync: dict[str, Any] = {FORWARD_SYNC: False}
    return DistributedDetector(
        model,
        device_ids=[device.index or 0] if device.type == "cuda" else None,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
        **forward_sync,
    )


def build_merged_optimizer(model: nn.Module, cfg: ConfigDict) -> torch.optim.Optimizer:
    """mmcv's optimiser of a config, with one parameter group for all parameters that share their settings.

    mmcv makes a group of every parameter, which takes as many passes as there are parameters to update them.
    On a GPU an optimiser that has a fused form takes it, unless the config says `fused` or `foreach`.
    """
    cls = OPTIMIZERS.get(cfg.get("type"))
    if next(model.parameters()).is_cuda and cls and "fused" in inspect.signature(cls).parameters:
        cfg = ConfigDict(cfg) if {"fused", "foreach"} & set(cfg) else ConfigDict(cfg, fused=True)
    with arguments_of("optimizer"):
        optimizer = build_optimizer(model, cfg)
    merged: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        settings = {name: group[name] for name in sorted(group) if name != "params"}
        merged.setdefault(repr(settings), {**settings, "params": []})["params"] += group["params"]
    optimizer.param_groups[:] = merged.values()
    return optimizer
