"""Mixed precision through `torch.amp`: which dtype and loss scale, what stays in float32, and what that is.

GPUs since Ampere can compute products of float32 numbers in TF32, with 10 bits of the mantissa instead of 23.
PyTorch lets them do so in convolutions unless somebody says otherwise, and not in matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from mmcv import Config
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from torch import Tensor, nn

from dfvt.models.fast_roi import FastRoIExtractor

P = ParamSpec("P")
R = TypeVar("R")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# What computes in TF32 where float32 is asked for: convolutions, matrix products.
TF32 = {"none": (False, False), "convolutions": (True, False), "all": (True, True)}
DEFAULT_TF32 = "convolutions"  # as PyTorch does by itself


@dataclass(frozen=True)
class Precision:
    """How the layers of a training compute; weights, optimiser and losses are float32 in any case.

    Attributes:
        dtype: of matrix products and convolutions.
        scaler_options: arguments of `torch.amp.GradScaler`, which float16 alone needs.
        fixed_loss_scale: the scale that the loss keeps; None lets the scaler find one.
    """

    dtype: torch.dtype = torch.float32
    scaler_options: dict[str, Any] = field(default_factory=dict)
    fixed_loss_scale: float | None = None

    @property
    def mixed(self) -> bool:
        """Whether the layers compute in half precision."""
        return self.dtype is not torch.float32

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of a forward pass; gradients follow it by themselves."""
        return torch.autocast(device.type, self.dtype if self.mixed else None, enabled=self.mixed)

    def build_scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """A scaler of the loss, which does nothing unless `dtype` is float16."""
        enabled = self.dtype is torch.float16
        return torch.amp.GradScaler(device.type, enabled=enabled, **self.scaler_options)


def precision_of(cfg: Config, device: torch.device) -> Precision:
    """What a config asks for on a GPU; float32 on the CPU.

    `optimizer_config.use_fp16`, as published, turns mixed precision on or off, and `optimizer_config.dtype`
    chooses `float16` (unless said) or `bfloat16`. mmdet's `fp16 = dict(loss_scale=…)` has mmdet's meaning:
    `"dynamic"`, a number, or arguments of the scaler.

    Raises:
        ValueError: a dtype or loss scale that is none.
    """
    options, fp16 = cfg.get("optimizer_config") or {}, cfg.get("fp16")
    name = options.get("dtype", "float16")
    if name not in DTYPES:
        raise ValueError(
            f"optimizer_config.dtype {name!r} must be float16 or bfloat16; use_fp16=False is float32"
        )
    loss_scale: Any = (fp16 or {}).get("loss_scale", 512.0 if fp16 is not None else "dynamic")
    fixed, scaler_options = None, {}
    if isinstance(loss_scale, dict):
        scaler_options = dict(loss_scale)
    elif isinstance(loss_scale, int | float) and loss_scale > 0:
        fixed, scaler_options = float(loss_scale), {"init_scale": float(loss_scale)}
    elif loss_scale != "dynamic":
        raise ValueError(f"fp16.loss_scale {loss_scale!r} is none: use 'dynamic', a number or a dict")
    if device.type != "cuda" or not (options.get("use_fp16") or fp16 is not None):
        return Precision()
    return Precision(DTYPES[name], scaler_options, fixed)


def tf32_of(cfg: Config) -> str:
    """Which float32 products a config lets a GPU compute in TF32: a key of `TF32`.

    Raises:
        ValueError: `tf32` of the config is another.
    """
    name = cfg.get("tf32", DEFAULT_TF32)
    if name not in TF32:
        raise ValueError(f"tf32 {name!r} must be one of {', '.join(TF32)}")
    return str(name)


@contextmanager
def float32_products(tf32: str | None) -> Iterator[None]:
    """Lets GPUs compute the body's float32 products as a key of `TF32` says, and no others.

    PyTorch keeps these settings for the whole process: they are restored after the body. None changes
    nothing, for detectors that were not built from a config here.
    """
    if tf32 is None:
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = TF32[tf32]
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def with_device_settings(
    function: Callable[Concatenate[Config, P], R],
) -> Callable[Concatenate[Config, P], R]:
    """Lets a function of a config run with its `tf32` and `cudnn_benchmark`; the process keeps its own."""

    @wraps(function)
    def run(cfg: Config, *arguments: P.args, **options: P.kwargs) -> R:
        benchmark = torch.backends.cudnn.benchmark
        with float32_products(tf32_of(cfg)):
            torch.backends.cudnn.benchmark = bool(cfg.get("cudnn_benchmark", benchmark))
            try:
                return function(cfg, *arguments, **options)
            finally:
                torch.backends.cudnn.benchmark = benchmark

    return run


def guard_interfaces(model: nn.Module) -> None:
    """Gives mmcv's kernels contiguous maps, RoIAlign float32 ones, and decoding, losses and NMS float32.

    Scores and boxes in half precision would tie and shift; mmdet says the same by decorators, which know
    float16 alone. mmcv's kernels (RoIAlign, deformable convolutions) read a map's memory as if it were
    contiguous: of a channels-last one, as convolutions like to return, they would make other features without
    an error.
    """
    for module in model.modules():
        if any(kind.__module__.startswith("mmcv.ops.") for kind in type(module).__mro__):
            module.register_forward_pre_hook(_contiguous_inputs)
            for layer in module.children():  # that makes offsets and weights of samples
                layer.register_forward_hook(_contiguous_output)
        if isinstance(module, FastRoIExtractor):
            continue  # it takes maps as they are
        if isinstance(module, BaseRoIExtractor):
            module.register_forward_pre_hook(_maps_for_roi_align)
        elif isinstance(module, BaseDenseHead | BBoxHead | FCNMaskHead):
            module.register_forward_hook(_outputs_to_float32)


def _contiguous_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.contiguous() if isinstance(one, Tensor) else one for one in inputs)


def _contiguous_output(_: nn.Module, __: Any, output: Any) -> Any:
    return output.contiguous() if isinstance(output, Tensor) else output


def _maps_for_roi_align(_: nn.Module, inputs: Any) -> Any:
    maps, *others = to_float32(inputs)
    return ([level.contiguous() for level in maps], *others)


def _outputs_to_float32(_: nn.Module, __: Any, outputs: Any) -> Any:
    return to_float32(outputs)


def to_float32(value: Any) -> Any:
    """Half-precision tensors, in tuples and lists too, as float32; everything else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in DTYPES.values() else value
    if isinstance(value, tuple | list):
        return type(value)(to_float32(item) for item in value)
    return value
