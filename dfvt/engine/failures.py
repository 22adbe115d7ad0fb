"""What a training does when something goes wrong, and the sentences that it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mmcv import Config

FEW = 3  # losses that are not finite, by chance and at the end
REMEDY = "lower optimizer.lr, lengthen the warm-up, or set optimizer_config.grad_clip"


@dataclass(frozen=True)
class FailurePolicy:
    """The section `failures` of a config.

    Attributes:
        nonfinite_losses: iterations in a row whose loss is not finite that are left out before the training
            stops; None leaves out any number, 1 stops at the first.
        unreadable_images: `stop`, or `skip`: the next image of the same orientation takes their place.
    """

    nonfinite_losses: int | None = 10
    unreadable_images: Literal["stop", "skip"] = "stop"

    @property
    def skip_unreadable(self) -> bool:
        """Whether a training goes on without images that cannot be read."""
        return self.unreadable_images == "skip"


def failure_policy_of(cfg: Config) -> FailurePolicy:
    """Reads `failures` of a config.

    Raises:
        ValueError: a key or value that it does not have.
    """
    section = dict(cfg.get("failures") or {})
    try:
        policy = FailurePolicy(**section)
    except TypeError as error:
        raise ValueError(f"failures {section} has nonfinite_losses and unreadable_images alone") from error
    if policy.unreadable_images not in ("stop", "skip"):
        raise ValueError(f"failures.unreadable_images {policy.unreadable_images!r} must be 'stop' or 'skip'")
    limit = policy.nonfinite_losses
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"failures.nonfinite_losses {limit!r} must be None or a number from 1")
    return policy


class BufferCopies:
    """Copies of a model's buffers: a forward pass with NaN spoils BatchNorm's statistics too."""

    def __init__(self, model: torch.nn.Module) -> None:
        buffers = [buffer for buffer in model.buffers() if buffer.numel()]
        self.groups = [
            [buffer for buffer in buffers if buffer.is_floating_point() is floating]
            for floating in (True, False)
        ]
        self.copies = [[buffer.clone() for buffer in group] for group in self.groups]

    def take(self) -> None:
        """Copies the buffers as they are."""
        for copies, group in zip(self.copies, self.groups, strict=True):
            torch._foreach_copy_(copies, group)

    def restore(self) -> None:
        """Gives the buffers the values that were taken."""
        for copies, group in zip(self.copies, self.groups, strict=True):
            torch._foreach_copy_(group, copies)


class NonfiniteLosses:
    """Counts iterations in a row whose loss is not finite; all processes see the same losses, their means."""

    def __init__(self, limit: int | None, warn: Callable[[str], None]) -> None:
        self.limit = limit
        self.warn = warn
        self.in_a_row = 0
        self.num_left_out = 0

    def conclude(self) -> None:
        """Says at the end of a training how many iterations were left out.

        Raises:
            RuntimeError: the last ones were, so that what is left is worth nothing.
        """
        if self.limit is not None and self.in_a_row >= min(self.limit, FEW):
            raise RuntimeError(
                f"the training diverged, its last {self.in_a_row} losses are not finite: {REMEDY}"
            )
        if self.num_left_out:
            self.warn(f"{self.num_left_out} iterations were left out, as their losses are not finite")

    def reset(self) -> None:
        """A finite one ends the row."""
        self.in_a_row = 0

    def report(self, step: int, lr: float, losses: Mapping[str, float], images: list[str]) -> None:
        """Says what is known, and goes on.

        Raises:
            RuntimeError: it is the last one that is allowed.
        """
        self.in_a_row += 1
        self.num_left_out += 1
        terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        known = f"iteration {step} at learning rate {lr:.3g} ({terms}; images {', '.join(images)})"
        if self.limit is not None and self.in_a_row >= self.limit:
            row = f", {self.in_a_row} times in a row" if self.in_a_row > 1 else ""
            raise RuntimeError(
                f"the training diverged, its loss is {losses['loss']}{row} in {known}: {REMEDY}"
            )
        self.warn(f"left out, as its loss is {losses['loss']}: {known}")


@contextmanager
def explained_failures(images: Any) -> Iterator[None]:
    """Turns an exhausted GPU memory in the body into a sentence; `images` is the batch's tensor or None.

    Raises:
        RuntimeError: it is exhausted.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        shape = "×".join(map(str, images.shape)) if isinstance(images, torch.Tensor) else "a batch"
        raise RuntimeError(
            f"out of GPU memory on images of {shape}: lower data.samples_per_gpu or the pipeline's "
            "img_scale, or set model.backbone.use_checkpoint=True"
        ) from error


@contextmanager
def explained_loading() -> Iterator[None]:
    """Turns the death of a loader's process in the body into a sentence.

    Raises:
        RuntimeError: it died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"a loader process died ({str(error).splitlines()[0]}): when memory or /dev/shm is full, lower "
            "data.workers_per_gpu"
        ) from error
