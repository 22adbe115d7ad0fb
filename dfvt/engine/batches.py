"""A process's share of a global batch, also when a training goes on with another number of processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmcv import Config

RESIZE_MODES = ("keep_batch", "scale_lr")


@dataclass(frozen=True)
class BatchPlan:
    """Attributes:
    batch_size: images of each process in an iteration.
    num_parts: equal parts in which they pass through the model, their gradients gathered.
    lr_scale: factor of the learning rate.
    note: what changed, for the user; None when nothing did.
    """

    batch_size: int
    num_parts: int = 1
    lr_scale: float = 1.0
    note: str | None = None


def plan_batches(
    cfg: Config, world_size: int, state: dict[str, Any] | None, num_processes: int | None = None
) -> BatchPlan:
    """What `data.samples_per_gpu` images a process come to.

    A training that was planned for `num_processes` and starts with others is treated as if it had begun with
    them. With the state of a training that had another number, `resized_batch` of the config decides:
    `keep_batch` (unless said) keeps the global batch, and with it all that the training learns from, in parts
    of at most `samples_per_gpu` images; `scale_lr` keeps the images of a process, and scales the learning
    rate with the global batch.

    Raises:
        ValueError: the processes cannot share the global batch evenly, or `resized_batch` is neither.
    """
    samples = cfg.data.samples_per_gpu
    mode = cfg.get("resized_batch", RESIZE_MODES[0])
    if mode not in RESIZE_MODES:
        raise ValueError(f"resized_batch {mode!r} must be one of {', '.join(RESIZE_MODES)}")
    if state is None and num_processes not in (None, world_size):
        state = {"num_processes": num_processes, "global_batch": num_processes * samples}
    if state is None or state["num_processes"] == world_size:
        return (
            BatchPlan(samples) if state is None else _kept(state["global_batch"], samples, world_size, None)
        )
    before, global_batch = state["num_processes"], state["global_batch"]
    change = f"{world_size} process{'es' * (world_size > 1)} instead of {before}"
    if mode == "scale_lr":
        scale = samples * world_size / global_batch
        note = f"{change}: the global batch is {samples * world_size} instead of {global_batch}"
        return BatchPlan(samples, lr_scale=scale, note=f"{note}, the learning rate {scale:g} times as high")
    if global_batch % world_size:
        raise ValueError(
            f"{world_size} processes cannot share the global batch of {global_batch} images that the "
            f"training began with: choose a number that divides {global_batch}, or resized_batch='scale_lr'"
        )
    return _kept(global_batch, samples, world_size, f"{change}: the global batch stays {global_batch}")


def _kept(global_batch: int, samples: int, world_size: int, note: str | None) -> BatchPlan:
    batch_size = global_batch // world_size
    num_parts = next(
        n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n <= samples
    )
    if note:
        parts = f" in {num_parts} parts" if num_parts > 1 else ""
        note += f", {batch_size} images a process{parts}; the learning rate stays"
    return BatchPlan(batch_size, num_parts, note=note)
