"""Bitmaps of objects on their way to the device, eight pixels a byte."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from mmdet.core.mask import BitmapMasks
from torch import Tensor


@dataclass(frozen=True)
class PackedMasks:
    """The masks of an image's objects.

    Attributes:
        bits: (num_objects, height, ⌈width / 8⌉) bytes, the first pixel in the highest bit.
        width: in pixels.
    """

    bits: Tensor
    width: int

    @classmethod
    def pack(cls, masks: BitmapMasks) -> PackedMasks:
        return cls(torch.from_numpy(np.packbits(masks.masks, axis=2)), masks.width)

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bits.shape[1]

    def __len__(self) -> int:
        return len(self.bits)

    def unpack(self) -> Tensor:
        """Bytes of 0 and 1, (num_objects, height, width), on the device of the bits."""
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=self.bits.device)
        return ((self.bits[..., None] >> shifts) & 1).flatten(2)[..., : self.width]

    def pin_memory(self) -> PackedMasks:
        """A copy that a device can read while the process goes on; torch's loader calls it."""
        return replace(self, bits=self.bits.pin_memory())

    def to(self, device: torch.device, *, non_blocking: bool = False) -> PackedMasks:
        return replace(self, bits=self.bits.to(device, non_blocking=non_blocking))
