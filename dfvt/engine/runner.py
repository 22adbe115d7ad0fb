"""The training loop: iterations and epochs. Everything else is a hook."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from mmcv.runner import BaseRunner
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dfvt.data.loading import EpochBatchSampler
from dfvt.data.samples import Batch
from dfvt.engine.average import WeightAverage
from dfvt.engine.compat import to_device
from dfvt.engine.failures import BufferCopies, NonfiniteLosses, explained_failures, explained_loading
from dfvt.engine.gradients import GradientPlaces
from dfvt.engine.precision import Precision


class DetectorRunner(BaseRunner):
    """mmcv's runner (hooks, learning-rate schedule, log buffer) with a loop that can start anywhere.

    An iteration takes one global batch, in `sampler.num_parts` parts; `num_accumulated` of them make one
    update of the optimiser.

    Attributes:
        prepare: what is done to the inputs of `train_step` on the device.
        gradient_places: where gradients lie that come all at once.
        num_gathered: iterations whose gradients wait for an update.
        metrics, best: numbers of the last validation, and the best one that checkpoints are chosen by.
    """

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
        num_accumulated: int = 1,
        average: WeightAverage | None = None,
        max_nonfinite: int | None = 10,
        warn: Callable[[str], None] = lambda _: None,
        prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda inputs: inputs,
        gradient_places: GradientPlaces | None = None,
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
        self.scaler = precision.build_scaler(device)
        self.num_accumulated = num_accumulated
        self.average = average
        self.warn = warn
        self.prepare = prepare
        self.gradient_places = gradient_places
        self.nonfinite = NonfiniteLosses(max_nonfinite, warn)
        self.buffer_copies = BufferCopies(model)
        self.num_gathered = 0
        self.metrics: dict[str, float] = {}
        self.best: float | None = None
        self._max_iters = max_epochs * sampler.num_batches

    def restore_position(self, step: int, epoch: int) -> None:
        """Continues after `step` finished iterations and `epoch` finished epochs, validations included."""
        self._iter, self._epoch = step, epoch
        self._inner_iter = step - epoch * self.sampler.num_batches

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
        # An exception that somebody keeps would else keep the loader's processes too.
        with contextlib.closing(self.batches(loader)) as batches:
            for inner_iter, parts in enumerate(batches, start):
                self._inner_iter = inner_iter
                self.call_hook("before_train_iter")
                self.outputs = self.gather_gradients(parts)
                self.call_hook("after_train_iter")
                self._iter += 1
        self.share_buffers()
        self.call_hook("after_train_epoch")
        self._epoch += 1

    def batches(self, loader: DataLoader) -> Generator[list[dict[str, Any]], None, None]:
        """The parts of each batch.

        Raises:
            ValueError: an image cannot be read.
            RuntimeError: a loader's process died.
        """
        if self.sampler.start == self.sampler.num_batches:
            return  # the epoch was interrupted before its validation
        loaded: Iterator[Batch] = iter(loader)
        while True:
            with explained_loading():
                parts = list(islice(loaded, self.sampler.num_parts))
            if not parts:
                return
            for batch in parts:
                for problem in batch.unreadable:
                    if batch.inputs is None:
                        raise ValueError(f"{problem}: mend it, or set failures.unreadable_images='skip'")
                    self.warn(f"{problem}; another one takes its place")
            yield [batch.inputs for batch in parts if batch.inputs is not None]

    def gather_gradients(self, parts: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Adds the gradients of a batch to those that wait for an update; returns what was logged of it.

        A batch whose loss is not finite has no gradients, takes those that waited with it, and is None.

        Raises:
            ValueError: that happened too often in a row.
            RuntimeError: the GPU's memory is exhausted.
        """
        weight = 1 / (len(parts) * self.num_to_gather())
        log_vars: dict[str, float] = {}
        self.buffer_copies.take()
        for index, part in enumerate(parts):
            last = index + 1 == len(parts)
            with self.gradient_sync(last=last), explained_failures(part.get("img")):
                inputs = self.prepare(to_device(part, self.device))
                with self.precision.autocast(self.device):
                    outputs = self.model.train_step(inputs, self.optimizer)
                self.scaler.scale(outputs["loss"] * weight).backward()
                if last and self.gradient_places and self.world_size > 1:
                    self.gradient_places.average()
                # after the backward pass is on its way: the device does not idle while its numbers are read
                for name, value in outputs["log_vars"].items():
                    log_vars[name] = log_vars.get(name, 0.0) + value / len(parts)
                if not math.isfinite(outputs["log_vars"]["loss"]):
                    self.optimizer.zero_grad(set_to_none=True)
                    self.num_gathered = 0
                    self.buffer_copies.restore()
                    images = [meta.get("ori_filename", "?") for meta in part["img_metas"]]
                    self.nonfinite.report(
                        self._iter + 1,
                        self.current_lr()[0],
                        outputs["log_vars"],
                        self.of_all_processes(images),
                    )
                    return None
        self.nonfinite.reset()
        self.num_gathered += 1
        num_samples = sum(len(part["img_metas"]) for part in parts)
        self.log_buffer.update(log_vars, num_samples)
        return {"loss": outputs["loss"].detach(), "log_vars": log_vars, "num_samples": num_samples}

    def num_to_gather(self) -> int:
        """Iterations of the present update: the last one of a training may have fewer."""
        first = self._iter - self._iter % self.num_accumulated
        return min(self.num_accumulated, self._max_iters - first)

    def update_is_due(self) -> bool:
        """Whether the present iteration ends an update."""
        return (self._iter + 1) % self.num_accumulated == 0 or self._iter + 1 == self._max_iters

    def gradient_sync(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """`DistributedDataParallel` averages the gradients with the last part of a batch, if it is to."""
        if isinstance(self.model, DistributedDataParallel) and (self.gradient_places or not last):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def of_all_processes(self, values: list[str]) -> list[str]:
        """The values of all processes, in the order of their ranks."""
        if self.world_size == 1:
            return values
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, values)
        return [value for share in gathered for value in share]

    def share_buffers(self) -> None:
        """Gives every process the first one's buffers (BatchNorm statistics): each has gathered its own."""
        if self.world_size > 1:
            averaged = self.average.module.buffers() if self.average else ()
            for buffer in (*self.model.buffers(), *averaged):
                dist.broadcast(buffer, 0)

    def val(self, loader: DataLoader) -> None:
        raise NotImplementedError(
            "validation is a hook: set `evaluation.interval`; workflow has train phases only"
        )

    def save_checkpoint(self, *_: object, **__: object) -> None:
        raise NotImplementedError("checkpoints are written by dfvt.engine.states")
