"""Right gradients of BatchNorm and InstanceNorm on a CPU, in whatever layout the output's gradient lies.

A map is contiguous or channels-last. PyTorch's backward pass of BatchNorm on a CPU (2.11 and 2.13) reads the
layouts of the input and of the output's gradient off their strides. The stride of a dimension of size 1
means nothing: where the batch, the height or the width is one, a channels-last gradient can look contiguous.
PyTorch then reads its values in the wrong order, and returns a wrong gradient without an error. Tokens give
such gradients: that of `x.flatten(2).transpose(1, 2)` is channels-last, its stride of the batch is arbitrary.

GroupNorm, LayerNorm, convolutions (depthwise and transposed, too), pooling, interpolation and padding are
right for every order of strides.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of dimensions


def align_norm_gradients(model: nn.Module) -> None:
    """Gives each BatchNorm and InstanceNorm of a model a gradient that PyTorch reads in the right order.

    Only a gradient that PyTorch could misread is copied, so that all others stay equal bit for bit.
    """
    for module in model.modules():
        if isinstance(module, _NormBase) and _align_gradient not in module._forward_hooks.values():
            module.register_forward_hook(_align_gradient)


def _align_gradient(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Forward hook: lays out the output's gradient as the input lies."""
    if output.device.type != "cpu" or not output.requires_grad or torch.compiler.is_compiling():
        return  # compiled programs have a backward pass of their own
    layout = _layout_of(module, inputs[0])
    if layout is not None:
        output.register_hook(partial(_laid_out, layout=layout))


def _layout_of(module: nn.Module, x: Tensor) -> torch.memory_format | None:
    """The layout that the output's gradient must have, None where PyTorch reads any."""
    if isinstance(module, _InstanceNorm):
        return torch.contiguous_format  # it is a BatchNorm of one image with batch·channels channels
    if 1 not in x.shape:
        return None  # all strides count
    if x.is_contiguous():
        return torch.contiguous_format
    channels_last = CHANNELS_LAST.get(x.dim())
    if channels_last is not None and x.is_contiguous(memory_format=channels_last):
        return channels_last
    return None


def _laid_out(gradient: Tensor, layout: torch.memory_format) -> Tensor:
    return gradient.contiguous(memory_format=layout)
