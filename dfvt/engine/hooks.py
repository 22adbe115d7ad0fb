"""mmcv hooks of a training: the optimiser's step, records for the callbacks, evaluation and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import Hook
from torch.nn.utils import clip_grad_norm_

from dfvt.engine.callbacks import Callback, EvaluationRecord, StepRecord
from dfvt.engine.evaluate import evaluate_model
from dfvt.engine.resume import save_state
from dfvt.engine.runner import DetectorRunner


class OptimizerStep(Hook):
    """Backward pass, gradient clipping (`grad_clip` of `optimizer_config`) and the optimiser's step."""

    def __init__(
        self,
        grad_clip: dict[str, Any] | None,
        scaler: torch.amp.GradScaler,
        fixed_loss_scale: float | None = None,
    ) -> None:
        self.grad_clip = grad_clip
        self.scaler = scaler
        self.fixed_loss_scale = fixed_loss_scale

    def after_train_iter(self, runner: DetectorRunner) -> None:
        runner.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(runner.outputs["loss"]).backward()
        if self.grad_clip:
            self.scaler.unscale_(runner.optimizer)
            clip_grad_norm_(runner.model.parameters(), **self.grad_clip)
        self.scaler.step(runner.optimizer)
        self.scaler.update(self.fixed_loss_scale)


class StepRecords(Hook):
    """Averages over `interval` iterations for the callbacks; the last one of an epoch ends an interval."""

    def __init__(self, callbacks: Sequence[Callback], interval: int, images_per_step: int) -> None:
        self.callbacks = callbacks
        self.interval = interval
        self.images_per_step = images_per_step

    def before_train_epoch(self, runner: DetectorRunner) -> None:
        self.loaded_since = self.interval_since = time.perf_counter()
        self.data_seconds, self.num_steps = 0.0, 0

    def before_train_iter(self, runner: DetectorRunner) -> None:
        self.data_seconds += time.perf_counter() - self.loaded_since

    def after_train_iter(self, runner: DetectorRunner) -> None:
        self.num_steps += 1
        if self.every_n_inner_iters(runner, self.interval) or self.end_of_epoch(runner):
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
            )
            for callback in self.callbacks:
                callback.on_step(record)
            runner.log_buffer.clear()
            self.before_train_epoch(runner)
        self.loaded_since = time.perf_counter()

    def end_of_epoch(self, runner: DetectorRunner) -> bool:
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
        self.metrics: dict[str, float] = {}

    def after_train_epoch(self, runner: DetectorRunner) -> None:
        last = runner.epoch + 1 == runner.max_epochs
        if not self.interval or not (last or self.every_n_epochs(runner, self.interval)):
            return
        evaluation = evaluate_model(runner.model, self.dataset, runner.device, num_workers=self.num_workers)
        if evaluation is None:
            return
        self.metrics = evaluation.metrics
        for callback in self.callbacks:
            callback.on_evaluation(EvaluationRecord(runner.iter, runner.epoch + 1, evaluation.metrics))


class Checkpoints(Hook):
    """Writes the resumable state every `interval` epochs (0: never) and after the last one.

    That of the last one lets a training that is started again find that nothing is left to do.
    """

    def __init__(
        self,
        path: Path,
        callbacks: Sequence[Callback],
        interval: int,
        *,
        scaler: torch.amp.GradScaler,
        evaluation: Evaluation,
        identity: dict[str, str],
    ) -> None:
        self.path = path
        self.callbacks = callbacks
        self.interval = interval
        self.scaler = scaler
        self.evaluation = evaluation
        self.identity = identity

    def after_train_epoch(self, runner: DetectorRunner) -> None:
        last = runner.epoch + 1 == runner.max_epochs
        if not self.interval or not (last or self.every_n_epochs(runner, self.interval)):
            return
        save_state(runner, self.path, self.scaler, self.identity, self.evaluation.metrics)
        for callback in self.callbacks:
            callback.on_checkpoint(self.path, runner.iter)
