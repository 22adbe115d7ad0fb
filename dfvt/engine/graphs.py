"""Backbone and neck of a training replayed as CUDA graphs: one launch in place of some thousands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmcv import Config
from torch import Tensor, nn

from dfvt.data.canvases import Canvas
from dfvt.engine.failures import BufferCopies
from dfvt.engine.precision import Precision


class DensePart(nn.Module):
    """What a detector computes of images alone, with parameters that are the detector's own."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.neck = detector.neck if detector.with_neck else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of images (B, 3, H, W)."""
        return tuple(self.neck(self.backbone(images)))


class GraphedFeatures:
    """A detector's `extract_feat` that replays a graph for training batches of known shapes.

    All graphs use the same memory: the maps of a batch are gone with the next one.
    """

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.extract_feat = detector.extract_feat
        self.parameters = list(DensePart(detector).parameters())
        self.graphs: dict[tuple[int, ...], Callable[..., Any]] = {}

    def __call__(self, images: Tensor) -> Any:
        graph = self.graphs.get(tuple(images.shape))
        if graph is None or not (self.detector.training and torch.is_grad_enabled()):
            return self.extract_feat(images)
        # gradients that wait for more lie where the graph is about to write new ones
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        return graph(images)

    def capture(
        self,
        shapes: Sequence[tuple[int, ...]],
        precision: Precision,
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> None:
        """Captures a graph for each shape (B, 3, H, W); weights, buffers and generators stay as they are."""
        pool = torch.cuda.graph_pool_handle()
        buffers, random_state = BufferCopies(self.detector), torch.cuda.get_rng_state(device)
        # casts that autocast keeps would be kept for a replay that has other weights
        with torch.autocast(device.type, precision.dtype, enabled=precision.mixed, cache_enabled=False):
            for shape in shapes:
                images = torch.randn(shape, device=device).contiguous(memory_format=memory_format)
                self.graphs[shape] = torch.cuda.make_graphed_callables(
                    DensePart(self.detector), (images,), allow_unused_input=True, pool=pool
                )
        buffers.restore()
        torch.cuda.set_rng_state(random_state, device)


def graph_features(
    model: Any, cfg: Config, canvases: Sequence[Canvas], precision: Precision, device: torch.device
) -> None:
    """Lets a detector in training replay graphs if `cuda_graphs = True` of its config says so.

    They are captured here, in seconds each, before other threads ask the device for anything.

    Raises:
        ValueError: the config has no canvases, or something that graphs do not take.
    """
    if not cfg.get("cuda_graphs"):
        return
    if device.type != "cuda":
        raise ValueError("cuda_graphs needs a GPU: remove it from the config")
    if not canvases:
        raise ValueError("cuda_graphs needs canvases, shapes that come again: set them in the config")
    if cfg.get("sync_batchnorm"):
        raise ValueError("cuda_graphs takes no sync_batchnorm: set one of them to False")
    if getattr(model.backbone, "use_checkpoint", False) or cfg.model.backbone.get("with_cp"):
        raise ValueError("cuda_graphs recomputes nothing: set model.backbone.use_checkpoint=False")
    layout = torch.channels_last if cfg.get("channels_last") else torch.contiguous_format
    features = GraphedFeatures(model)
    model.train()
    largest_first = sorted(canvases, key=lambda canvas: -canvas[0] * canvas[1])
    batch_size = cfg.data.samples_per_gpu
    features.capture([(batch_size, 3, *canvas) for canvas in largest_first], precision, device, layout)
    model.extract_feat = features
