"""Gradients in one piece of memory, which processes average with one message."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

ALIGNMENT = 32  # numbers: kernels that read 16 bytes at once want addresses that fit


@dataclass(frozen=True)
class GradientPlaces:
    """Where the gradients of a detector lie that are averaged all at once.

    `DistributedDataParallel` would copy each of some hundreds into a bucket and back, to begin with the first
    ones before the last ones are there. After a CUDA graph they are all there at once. On a CPU the order of
    additions is to be that of every other iteration, which three and more processes can tell: those buckets
    are others in the first iteration after a start.

    Attributes:
        parameters: those that are trained.
        memory: (n), all of the gradients.
        places: of each parameter in it, laid out as the parameter is.
    """

    parameters: list[nn.Parameter]
    memory: Tensor
    places: list[Tensor]

    @classmethod
    def make(cls, parameters: Iterable[nn.Parameter]) -> GradientPlaces:
        """Places for the gradients of parameters of one type on one device."""
        parameters = list(parameters)
        first = parameters[0]
        assert all((one.dtype, one.device) == (first.dtype, first.device) for one in parameters)
        starts = [0]
        for parameter in parameters:
            starts.append(starts[-1] + -(-parameter.numel() // ALIGNMENT) * ALIGNMENT)
        memory = torch.zeros(starts[-1], dtype=first.dtype, device=first.device)
        places = [
            memory.as_strided(parameter.size(), parameter.stride(), start)
            for parameter, start in zip(parameters, starts, strict=False)
        ]
        return cls(parameters, memory, places)

    def average(self) -> None:
        """Gives the parameters the means of their gradients over the processes, a missing one is zero.

        Gradients that lie elsewhere, as those of a batch that had no graph, are brought here.
        """
        elsewhere = [
            (parameter, place)
            for parameter, place in zip(self.parameters, self.places, strict=True)
            if parameter.grad is None or parameter.grad.data_ptr() != place.data_ptr()
        ]
        for parameter, place in elsewhere:
            if parameter.grad is None:
                place.zero_()
            else:
                place.copy_(parameter.grad)
            parameter.grad = place.detach()
        dist.all_reduce(self.memory.div_(dist.get_world_size()))
