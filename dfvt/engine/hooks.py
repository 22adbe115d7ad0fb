"""mmcv hooks of a training: the optimiser's step, records for the callbacks, evaluation and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmcv.runner import Hook
from torch.nn.utils import clip_grad_norm_

from dfvt.engine.callbacks import Callback, EvaluationRecord, StepRecord
from dfvt.engine.compat import ArrivingNumbers
from dfvt.engine.evaluate import evaluate_model
from dfvt.engine.resume import bare_model, model_content, state_content
from dfvt.engine.runner import DetectorRunner
from dfvt.engine.states import StateFiles, write_atomically
from dfvt.engine.system import SystemMetrics


class TrainingStopped(Exception):  # noqa: N818, nothing is wrong
    """A training was asked to stop: its state after `step` iterations is on disk."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after {step} iterations")
        self.step = step


class OptimizerStep(Hook):
    """Gradient clipping (`optimizer_config.grad_clip`) and the optimiser's step when an update is due."""

    def __init__(self, grad_clip: dict[str, Any] | None) -> None:
        self.grad_clip = grad_clip

    def after_train_iter(self, runner: DetectorRunner) -> None:
        if not runner.num_gathered or not runner.update_is_due():
            return
        scaler = runner.scaler
        if self.grad_clip:
            scaler.unscale_(runner.optimizer)
            clip_grad_norm_(runner.model.parameters(), **self.grad_clip)
        # asked for the average alone: the answer makes the processor wait for the GPU
        scale = scaler.get_scale() if runner.average else 0.0
        scaler.step(runner.optimizer)
        scaler.update()
        skipped = runner.average is not None and scaler.get_scale() < scale  # it lowers its scale then
        if runner.precision.fixed_loss_scale is not None:
            scaler.update(runner.precision.fixed_loss_scale)
        runner.optimizer.zero_grad(set_to_none=True)
        runner.num_gathered = 0
        if runner.average and not skipped:
            runner.average.update(bare_model(runner))


class StepRecords(Hook):
    """Averages over `interval` iterations for the callbacks; the last one of an epoch ends an interval."""

    def __init__(self, callbacks: Sequence[Callback], interval: int, images_per_step: int) -> None:
        self.callbacks = callbacks
        self.interval = interval
        self.images_per_step = images_per_step
        self.system: SystemMetrics | None = None

    def before_run(self, runner: DetectorRunner) -> None:
        if self.callbacks:  # of the first process
            self.system = SystemMetrics(runner.device)

    def before_train_epoch(self, runner: DetectorRunner) -> None:
        self.loaded_since = self.interval_since = time.perf_counter()
        self.data_seconds, self.num_steps = 0.0, 0

    def before_train_iter(self, runner: DetectorRunner) -> None:
        self.data_seconds += time.perf_counter() - self.loaded_since

    def after_train_iter(self, runner: DetectorRunner) -> None:
        self.num_steps += 1
        ended = self.every_n_inner_iters(runner, self.interval) or self.end_of_epoch(runner)
        if ended and runner.log_buffer.val_history:  # empty when every loss of the interval was not finite
            runner.log_buffer.average()
            seconds = time.perf_counter() - self.interval_since
            record = StepRecord(
                step=runner.iter + 1,
                max_steps=runner.max_iters,
                epoch=runner.epoch + 1,
                lr=runner.current_lr()[0],
                losses={name: float(value) for name, value in runner.log_buffer.output.items()},
                images_per_second=self.num_steps * self.images_per_step / seconds,
                data_seconds=self.data_seconds / self.num_steps,
                system=self.system.sample() if self.system else {},
            )
            for callback in self.callbacks:
                callback.on_step(record)
            runner.log_buffer.clear()
        if ended:
            self.before_train_epoch(runner)
        self.loaded_since = time.perf_counter()

    def end_of_epoch(self, runner: DetectorRunner) -> bool:
        """Whether the present iteration is the last one of its epoch."""
        return runner.inner_iter + 1 == runner.sampler.num_batches


class Evaluation(Hook):
    """Evaluates the validation images every `interval` epochs (0: never) and after the last one."""

    def __init__(
        self, dataset: Any, callbacks: Sequence[Callback], interval: int, *, num_workers: int
    ) -> None:
        self.dataset = dataset
        self.callbacks = callbacks
        self.interval = interval
        self.num_workers = num_workers

    def after_train_epoch(self, runner: DetectorRunner) -> None:
        last = runner.epoch + 1 == runner.max_epochs
        if not self.interval or not (last or self.every_n_epochs(runner, self.interval)):
            return
        model = runner.average.module if runner.average else runner.model
        evaluation = evaluate_model(model, self.dataset, runner.device, num_workers=self.num_workers)
        if evaluation is None:
            return
        runner.metrics = evaluation.metrics
        for callback in self.callbacks:
            callback.on_evaluation(EvaluationRecord(runner.iter, runner.epoch + 1, evaluation.metrics))


class BestCheckpoint(Hook):
    """Writes the weights with the highest `metric` of all validations to `path`."""

    def __init__(self, path: Path, metric: str) -> None:
        self.path = path
        self.metric = metric

    def after_train_epoch(self, runner: DetectorRunner) -> None:
        value = runner.metrics.get(self.metric)
        if value is None or (runner.best is not None and value <= runner.best):
            return
        runner.best = value
        write_atomically(model_content(runner, runner.iter), self.path)


class Checkpoints(Hook):
    """Writes the resumable state every `interval` epochs or iterations (0: never), and after the last one.

    With iterations it is written after each epoch too: its validation need not be repeated.
    That of the last one lets a training that is started again find that nothing is left to do. When a stop is
    asked for in any process, the iteration is finished, the state written and the training left.
    """

    def __init__(
        self,
        files: StateFiles,
        interval: int,
        *,
        by_epoch: bool,
        identity: dict[str, str],
        stop_asked: Callable[[], bool],
    ) -> None:
        self.files = files
        self.interval = interval
        self.by_epoch = by_epoch
        self.identity = identity
        self.stop_asked = stop_asked
        self.asked_before: ArrivingNumbers | None = None

    def after_train_iter(self, runner: DetectorRunner) -> None:
        self.files.poll()
        stop = self.stop_agreed(runner)
        due = not self.by_epoch and self.interval and self.every_n_iters(runner, self.interval)
        if stop or due:
            self.save(runner, runner.iter + 1)
        if stop:
            self.files.finish()
            raise TrainingStopped(runner.iter + 1)

    def after_train_epoch(self, runner: DetectorRunner) -> None:
        last = runner.epoch + 1 == runner.max_epochs
        due = self.interval and (not self.by_epoch or self.every_n_epochs(runner, self.interval))
        stop = self.stop_agreed(runner, wait=True)
        if (last and self.interval) or due or stop:
            self.save(runner, runner.iter, num_epochs=runner.epoch + 1)
        if stop and not last:
            self.files.finish()
            raise TrainingStopped(runner.iter)

    def after_run(self, runner: DetectorRunner) -> None:
        self.files.finish()

    def save(self, runner: DetectorRunner, step: int, num_epochs: int | None = None) -> None:
        """Hands the state over to the writer; `num_epochs` are whole ones with their validation."""
        content = state_content(runner, self.identity, step)
        if content is not None:
            self.files.write({**content, "epoch": runner.epoch if num_epochs is None else num_epochs}, step)

    def stop_agreed(self, runner: DetectorRunner, *, wait: bool = False) -> bool:
        """Whether any process was asked to stop: all of them leave after the same iteration.

        It is the one after that unless they `wait` for each other: the device would idle meanwhile.
        """
        asked = self.stop_asked()
        if runner.world_size == 1:
            return asked
        flag = torch.full((1,), float(asked), device=runner.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        before, self.asked_before = self.asked_before, ArrivingNumbers(("stop",), flag)
        known = [before, self.asked_before if wait else None]
        return any(numbers["stop"] for numbers in known if numbers)
