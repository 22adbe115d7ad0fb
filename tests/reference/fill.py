"""Deterministic weights and inputs, so that two implementations of DFvT can be compared without a checkpoint.

`fill(module)` overwrites every floating-point parameter and buffer of a torch module with values that
depend on nothing but the entry's name and shape (NumPy's legacy RandomState, which is stable across
versions), scaled so that activations neither vanish nor explode. `image(...)` makes the matching input.
"""

import zlib

import numpy as np
import torch


def values(name: str, shape: tuple, salt: str = "") -> np.ndarray:
    """float32 array of `shape` for the state-dict entry `name`."""
    rng = np.random.RandomState(zlib.crc32((salt + name).encode()) & 0x7FFFFFFF)
    noise = rng.standard_normal(size=shape).astype(np.float32)
    if name.endswith("running_var"):
        return 0.5 + np.abs(noise)
    if name.endswith("running_mean"):
        return 0.1 * noise
    if len(shape) <= 1:  # norm scales and every bias
        return (1.0 + 0.1 * noise) if name.endswith("weight") else 0.1 * noise
    if name.endswith("relative_position_bias_table"):
        return 0.2 * noise
    fan_in = int(np.prod(shape[1:]))
    return noise / np.float32(np.sqrt(fan_in))


@torch.no_grad()
def fill(module: torch.nn.Module, salt: str = "") -> torch.nn.Module:
    """Overwrite the floating-point state of `module` in place and return it."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(np.asarray(values(name, tuple(tensor.shape), salt))))
    return module


def image(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Normalised image batch, float32 (batch, 3, height, width)."""
    rng = np.random.RandomState(seed)
    return torch.from_numpy(rng.standard_normal(size=(batch, 3, height, width)).astype(np.float32))
