"""Detectors from configs and checkpoints, for evaluation and inference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from mmcv import Config
from mmdet.models import build_detector

import dfvt.models  # noqa: F401
from dfvt.engine.config import arguments_of
from dfvt.engine.datasets import build_evaluated_dataset, require_num_classes
from dfvt.engine.loaders import require_readable
from dfvt.engine.precision import guard_interfaces, tf32_of
from dfvt.models.checkpoints import load_weights


def choose_device(use_gpu: bool | Literal["auto"]) -> torch.device:
    """The first GPU or the CPU; `auto` takes the GPU that is there.

    Raises:
        ValueError: a GPU is asked for and none is visible.
    """
    available = torch.cuda.is_available()
    if use_gpu is True and not available:
        raise ValueError(
            "a GPU is asked for, but torch sees none: use the CPU, or look at what nvidia-smi prints"
        )
    return torch.device("cuda", 0) if available and use_gpu else torch.device("cpu")


def choose_devices(num_gpus: int | None) -> list[torch.device]:
    """A device for each process: `num_gpus` GPUs, the CPU for 0, one GPU or the CPU for None.

    Raises:
        ValueError: there are fewer GPUs.
    """
    if num_gpus is None:
        return [choose_device("auto")]
    available = torch.cuda.device_count()
    if not 0 <= num_gpus <= available:
        raise ValueError(
            f"--gpus {num_gpus} cannot be: torch sees {available} GPU(s) on this machine; 0 is the CPU"
        )
    return [torch.device("cuda", index) for index in range(num_gpus)] or [torch.device("cpu")]


def build_bare_detector(cfg: Config) -> torch.nn.Module:
    """The config's detector with random weights, on the CPU, in evaluation mode."""
    model = copy.deepcopy(cfg.model)
    model.pretrained = None  # weights come from the checkpoint, or do not matter
    with arguments_of("model"):
        detector = build_detector(model).eval()
    guard_interfaces(detector)
    detector.tf32 = tf32_of(cfg)
    return detector


def load_detector(cfg: Config, checkpoint: Path, device: torch.device) -> tuple[torch.nn.Module, Any]:
    """The config's detector with a checkpoint's weights, and the config's test data set.

    Raises:
        FileNotFoundError: the checkpoint is missing.
        ValueError: it is damaged or of another detector, or the annotations lack a class of the config.
    """
    require_readable(cfg)
    model = build_bare_detector(cfg)
    load_weights(model, checkpoint)
    with arguments_of("data.test"):
        dataset = build_evaluated_dataset(cfg.data.test, "data.test")
    require_num_classes(cfg.model, dataset.CLASSES, "data.test")
    model.CLASSES = dataset.CLASSES
    return model.to(device), dataset
