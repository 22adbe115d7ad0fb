"""What CUDA graphs are refused for, and what a replay leaves alone; tests/gpu has the graphs themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmcv import Config
from torch import Tensor, nn

from dfvt.engine.graphs import DensePart, GraphedFeatures, graph_features
from dfvt.engine.images import canvases_of
from dfvt.engine.precision import Precision

CUDA = torch.device("cuda", 0)


class Detector(nn.Module):
    with_neck = True

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 2, 1)
        self.neck = nn.Conv2d(2, 2, 1)

    def extract_feat(self, images: Tensor) -> tuple[Tensor, ...]:
        return DensePart(self)(images)


class Replay:
    """As a graph does, it writes the gradients of every batch to the same memory."""

    def __init__(self, detector: Detector) -> None:
        part = DensePart(detector)
        parameters = tuple(part.parameters())
        places = [torch.zeros_like(parameter) for parameter in parameters]

        class Graphed(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, images: Tensor, *_: Tensor) -> Tensor:
                ctx.images = images
                return part(images)[0].detach()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
                with torch.enable_grad():
                    found = torch.autograd.grad(part(ctx.images)[0], parameters, gradient)
                for place, value in zip(places, found, strict=True):
                    place.copy_(value)
                return (None, *(place.detach() for place in places))

        self.run = lambda images: (Graphed.apply(images, *parameters),)
        self.num_runs = 0

    def __call__(self, images: Tensor) -> tuple[Tensor]:
        self.num_runs += 1
        return self.run(images)


def test_gradients_gather_over_several_replays() -> None:
    torch.manual_seed(0)
    detector = Detector()
    features, batches = GraphedFeatures(detector), torch.randn(3, 2, 3, 4, 4)
    replay = features.graphs[(2, 3, 4, 4)] = Replay(detector)
    for batch in batches:
        features(batch)[0].square().sum().backward()
    gathered = [parameter.grad for parameter in detector.parameters()]
    detector.zero_grad()
    for batch in batches:
        detector.extract_feat(batch)[0].square().sum().backward()
    torch.testing.assert_close(gathered, [parameter.grad for parameter in detector.parameters()])
    assert replay.num_runs == 3


def test_only_training_batches_of_a_known_shape_are_replayed() -> None:
    detector = Detector()
    features = GraphedFeatures(detector)
    replay = features.graphs[(2, 3, 4, 4)] = Replay(detector)
    features(torch.randn(1, 3, 4, 4))
    with torch.no_grad():
        features(torch.randn(2, 3, 4, 4))
    detector.eval()
    features(torch.randn(2, 3, 4, 4))
    assert replay.num_runs == 0


@pytest.mark.parametrize(
    ("options", "device", "message"),
    [
        ({"canvases": [(64, 64)]}, "cpu", "needs a GPU"),
        ({}, "cuda", "needs canvases"),
        ({"canvases": [(64, 64)], "sync_batchnorm": True}, "cuda", "takes no sync_batchnorm"),
        ({"canvases": [(64, 64)], "checkpoint": True}, "cuda", "use_checkpoint=False"),
    ],
)
def test_what_graphs_cannot_do_is_refused(options: dict[str, Any], device: str, message: str) -> None:
    model = SimpleNamespace(backbone=SimpleNamespace(use_checkpoint=options.pop("checkpoint", False)))
    cfg = Config({"cuda_graphs": True, "model": {"backbone": {}}, **options})
    with pytest.raises(ValueError, match=message):
        graph_features(model, cfg, canvases_of(cfg), Precision(), torch.device(device))


@pytest.mark.parametrize("canvas", [(64,), (64, 0), (64, 64.5), (64, "64")])
def test_a_canvas_is_a_height_and_a_width(canvas: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="each is a height and a width"):
        canvases_of(Config({"canvases": [canvas]}))
