"""What of mmdet's configs the engine does, and what it refuses."""

from __future__ import annotations

from mmcv import Config

from dfvt.engine.evaluate import METRIC_NAMES
from dfvt.engine.loaders import require_readable
from dfvt.engine.precision import tf32_of

SWITCHES = (
    *("fast_heads", "group_by_canvas", "normalize_on_device", "channels_last", "cuda_graphs"),
    *("sync_batchnorm", "cudnn_benchmark"),
)
EPOCH_RUNNERS = ("EpochBasedRunner", "EpochBasedRunnerAmp")


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
    for name, value, least in (
        ("runner.max_epochs", cfg.runner.get("max_epochs"), 1),
        ("data.samples_per_gpu", cfg.data.get("samples_per_gpu"), 1),
        ("data.workers_per_gpu", cfg.data.get("workers_per_gpu"), 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} {value!r} must be a whole number from {least}")
    for name in SWITCHES:
        if not isinstance(cfg.get(name, False), bool):
            raise ValueError(f"{name} {cfg[name]!r} must be True or False")
    tf32_of(cfg)
    compiled = cfg.get("compile_backbone", False)
    if not isinstance(compiled, bool | dict):
        raise ValueError(
            f"compile_backbone {compiled!r} must be True, False or a dictionary of torch.compile's arguments"
        )
    evaluation = cfg.get("evaluation") or {}
    interval, best = evaluation.get("interval", 1), evaluation.get("save_best", "auto")
    if not isinstance(interval, int) or interval < 0:
        raise ValueError(f"evaluation.interval {interval!r} must be a whole number from 0 (never)")
    if best and best not in ("auto", *METRIC_NAMES):
        raise ValueError(f"evaluation.save_best {best!r} must be auto or one of {', '.join(METRIC_NAMES)}")
    require_readable(cfg)
    lr = cfg.optimizer.get("lr", 1.0)
    if not isinstance(lr, int | float):
        raise ValueError(f"optimizer.lr {lr!r} must be a number")
    if num_accumulated_of(cfg) < 1:
        raise ValueError("optimizer_config.cumulative_iters and update_interval must be 1 or more")
    if cfg.get("resume_from"):
        raise ValueError(
            "resume_from is not supported: a work_dir is resumed by itself, --resume PATH resumes another's "
            "state, and load_from names a detector to start from"
        )


def num_accumulated_of(cfg: Config) -> int:
    """Iterations that make one update: mmcv's `cumulative_iters`, or the published `update_interval`."""
    section = cfg.get("optimizer_config") or {}
    return int(section.get("cumulative_iters", section.get("update_interval", 1)))


def unfinished_warmup(cfg: Config, num_iterations: int, num_epochs: int) -> str | None:
    """Say that a training ends before the warm-up of its learning rate does, None if it does not.

    The warm-up of a published config takes hundreds of iterations. A small data set has fewer in all, and its
    detector would learn next to nothing without an error.
    """
    schedule = cfg.lr_config
    if not schedule.get("warmup"):
        return None
    by_epoch = schedule.get("warmup_by_epoch", False)
    length, total, unit = schedule.get("warmup_iters", 0), num_iterations, "iterations"
    if by_epoch:
        total, unit = num_epochs, "epochs"
    if length < total:
        return None
    return (
        f"the warm-up of the learning rate takes {length} {unit}, and the whole training has {total}: the "
        "learning rate never reaches its value; set lr_config.warmup_iters lower (cfg_options), or train for "
        "more epochs"
    )
