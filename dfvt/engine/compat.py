"""What of mmcv 1.7 and mmdet 2.28 is replaced on today's torch, and why. The rest of them is used as it is.

- `MMDataParallel` and `MMDistributedDataParallel`, by `to_device` and `DistributedDetector`: scattering to
  a GPU calls `_get_stream(int)`, which torch ≥ 2.1 refuses, and `_run_ddp_forward` needs an attribute that
  torch dropped.
- `EpochBasedRunner` and the published `EpochBasedRunnerAmp`, by `dfvt.engine.runner.DetectorRunner`: it
  sleeps two seconds an epoch and cannot start inside one.
- `OptimizerHook`, `Fp16OptimizerHook` and the published `DistOptimizerHook`, by
  `dfvt.engine.hooks.OptimizerStep`: apex and old names of the scaler; one hook reads the arguments of all
  three.
- `wrap_fp16_model` and the decorators that it switches on, by `dfvt.engine.precision`: they enter autocast
  under its old name many times an iteration, and know float16 alone.
- What RoIAlign is given, by `dfvt.engine.precision.guard_interfaces`: it takes every map for contiguous,
  and today's convolutions return channels-last ones.
- `CheckpointHook` and `load_checkpoint`, by `dfvt.engine.resume` and `dfvt.models.checkpoints`: half-written
  files, and loading without `weights_only`.
- `BaseDetector._parse_losses`, by `parse_losses`: it asks the device for every number one by one, and the
  other processes for each mean.
- `TextLoggerHook`, by callbacks: the engine does not decide who listens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dfvt.data.masks import PackedMasks


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors, in dictionaries and lists too, on `device`; everything else as it is."""
    if isinstance(batch, torch.Tensor | PackedMasks):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    return batch


class ArrivingNumbers(Mapping[str, float]):
    """Numbers on their way from the device: the first look at one waits for them, and for nothing after them.

    `values` (num_names) are on the device.
    """

    def __init__(self, names: Sequence[str], values: Tensor) -> None:
        self.names = names
        self.values_on_host = values.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if values.is_cuda else None
        if self.arrived:
            self.arrived.record()

    @cached_property
    def numbers(self) -> dict[str, float]:
        if self.arrived:
            self.arrived.synchronize()
        return dict(zip(self.names, self.values_on_host.tolist(), strict=True))

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def parse_losses(losses: Mapping[str, Tensor | Sequence[Tensor]]) -> tuple[Tensor, ArrivingNumbers]:
    """The loss to be minimised, and the numbers to be logged, means over the processes.

    Every process must have losses of the same names. As `BaseDetector._parse_losses`, with one message to the
    other processes, and one from the device, for which nobody waits who does not look at a number.
    """
    means = {
        name: value.mean() if isinstance(value, Tensor) else reduce(torch.add, (one.mean() for one in value))
        for name, value in losses.items()
    }
    loss = reduce(torch.add, (value for name, value in means.items() if "loss" in name))
    numbers = torch.stack([value.detach().float() for value in (*means.values(), loss)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(numbers.div_(dist.get_world_size()))
    return loss, ArrivingNumbers((*means, "loss"), numbers)


# Whether each forward pass shares BatchNorm's statistics: PyTorch 2.13 renamed it.
FORWARD_SYNC = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)


class DistributedDetector(DistributedDataParallel):
    """`DistributedDataParallel` with the `train_step` that mmcv's runners call."""

    def train_step(
        self, data: dict[str, Any], optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, Any]:
        """Losses of a batch; see `mmdet.models.BaseDetector.train_step`."""
        loss, log_vars = self.module._parse_losses(self(**data))
        return {"loss": loss, "log_vars": log_vars, "num_samples": len(data["img_metas"])}
