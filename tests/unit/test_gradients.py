"""Processes average the gradients that lie in one piece of memory, and those that do not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from dfvt.engine.gradients import GradientPlaces

WORLD_SIZE = 2
CASES = ("in place", "elsewhere", "in place here, elsewhere there", "missing here")


def model_of_layouts() -> nn.Module:
    """Parameters of sizes and layouts that do not follow each other without gaps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(45, 7))
    return model.to(memory_format=torch.channels_last)


def gradients_of(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(one.shape, generator=generator) for one in model_of_layouts().parameters()]


def average_all(rank: int, folder: Path) -> None:
    """The averages of each case, with the places reused as a training reuses them."""
    dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", rank=rank, world_size=WORLD_SIZE)
    model = model_of_layouts()
    places = GradientPlaces.make(model.parameters())
    averages: dict[str, list[Tensor]] = {}
    for case in CASES:
        in_place = case == "in place" or (case.startswith("in place here") and rank == 0)
        for parameter, place, value in zip(places.parameters, places.places, gradients_of(rank), strict=True):
            place.copy_(value)
            parameter.grad = place.detach() if in_place else value
        if case == "missing here" and rank == 0:
            model[3].bias.grad = None
        places.average()
        for parameter in places.parameters:
            assert parameter.grad is not None
            assert parameter.grad.stride() == parameter.stride()
        averages[case] = [copy.deepcopy(parameter.grad) for parameter in places.parameters]
    torch.save(averages, folder / f"averages{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def averages(
    forked_processes: None, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, list[Tensor]]]:
    folder = tmp_path_factory.mktemp("gradients")
    mp.spawn(average_all, (folder,), nprocs=WORLD_SIZE)  # type: ignore[attr-defined]
    return [torch.load(folder / f"averages{rank}.pth") for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("case", CASES)
def test_each_process_has_the_mean(averages: list[dict[str, list[Tensor]]], case: str) -> None:
    first, second = gradients_of(0), gradients_of(1)
    if case == "missing here":
        first[-1] = torch.zeros_like(first[-1])
    expected = [one / 2 + other / 2 for one, other in zip(first, second, strict=True)]
    for own in averages:
        for value, mean in zip(own[case], expected, strict=True):
            torch.testing.assert_close(value, mean)


def test_places_keep_apart_and_are_aligned() -> None:
    places = GradientPlaces.make(model_of_layouts().parameters())
    for number, place in enumerate(places.places):
        place.fill_(number + 1)
        assert (place.data_ptr() - places.memory.data_ptr()) % 128 == 0
    for number, (place, parameter) in enumerate(zip(places.places, places.parameters, strict=True)):
        assert (place == number + 1).all()
        assert place.stride() == parameter.stride()
