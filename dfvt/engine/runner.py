"""The training loop: iterations and epochs. Everything else is a hook."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.distributed as dist
from mmcv.runner import BaseRunner
from torch.utils.data import DataLoader

from dfvt.data.loading import EpochBatchSampler
from dfvt.engine.compat import unpack_batch
from dfvt.engine.precision import Precision

REMEDY = "lower optimizer.lr, lengthen the warm-up, or set optimizer_config.grad_clip"


class DetectorRunner(BaseRunner):
    """mmcv's runner (hooks, learning-rate schedule, log buffer) with a loop that can start anywhere."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        sampler: EpochBatchSampler,
        device: torch.device,
        precision: Precision,
        max_epochs: int,
        meta: dict[str, Any],
    ) -> None:
        super().__init__(
            model,
            optimizer=optimizer,
            logger=logging.getLogger("dfvt.engine"),
            meta=meta,
            max_epochs=max_epochs,
        )
        self.sampler = sampler
        self.device = device
        self.precision = precision
        self._max_iters = max_epochs * sampler.num_batches

    def restore_position(self, step: int) -> None:
        """Continues after `step` finished iterations."""
        self._iter = step
        self._epoch, self._inner_iter = divmod(step, self.sampler.num_batches)

    def run(self, loader: DataLoader) -> None:
        """Trains from the present position to the last epoch."""
        self.call_hook("before_run")
        while self._epoch < self._max_epochs:
            self.train(loader)
        self.call_hook("after_run")

    def train(self, loader: DataLoader) -> None:
        """Trains to the end of the present epoch."""
        self.model.train()
        self.mode = "train"
        self.data_loader = loader
        start = self._iter - self._epoch * self.sampler.num_batches
        self.sampler.set_position(self._epoch, start)
        self.call_hook("before_train_epoch")
        for inner_iter, batch in enumerate(loader, start):
            self._inner_iter = inner_iter
            self.call_hook("before_train_iter")
            with self.precision.autocast(self.device):
                self.outputs = self.model.train_step(unpack_batch(batch, self.device), self.optimizer)
            self.require_finite_loss()
            self.log_buffer.update(self.outputs["log_vars"], self.outputs["num_samples"])
            self.call_hook("after_train_iter")
            self._iter += 1
        self.share_buffers()
        self.call_hook("after_train_epoch")
        self._epoch += 1

    def require_finite_loss(self) -> None:
        """Stops in every process (the logged loss is their mean) before a broken loss spoils the weights.

        Raises:
            ValueError: the loss is NaN or infinite.
        """
        loss = self.outputs["log_vars"]["loss"]
        if not math.isfinite(loss):
            raise ValueError(
                f"the training diverged, its loss is {loss} in iteration {self._iter + 1} "
                f"at learning rate {self.current_lr()[0]:.3g}: {REMEDY}"
            )

    def share_buffers(self) -> None:
        """Gives every process the first one's buffers (BatchNorm statistics), as each has gathered its own.

        `DistributedDataParallel` does so before each forward pass, but not after the last one.
        """
        if self.world_size > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)

    def val(self, loader: DataLoader) -> None:
        raise NotImplementedError(
            "validation is a hook: set `evaluation.interval`; workflow has train phases only"
        )

    def save_checkpoint(self, *_: object, **__: object) -> None:
        raise NotImplementedError("checkpoints are written by dfvt.engine.resume")
