"""What CUDA graphs are refused for, and how they are fed; tests/gpu has the graphs themselves."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmcv import Config
from test_fast_heads import CONFIG, SHAPES, metas_of, objects_of
from torch import Tensor

from dfvt.data.loading import EpochBatchSampler
from dfvt.engine import assembly
from dfvt.engine.batches import plan_batches
from dfvt.engine.build import build_model
from dfvt.engine.graphs import (
    CAPACITIES,
    NUM_MISSES,
    FixedPart,
    GraphedTraining,
    GraphPair,
    Places,
    graph_training,
    worth_a_graph,
)
from dfvt.engine.images import canvases_of
from dfvt.engine.precision import Precision
from dfvt.engine.support import SWITCHES, check_supported

CPU = torch.device("cpu")
BATCH = (3, 3, 96, 128)


class Eager(GraphPair):
    """Does at a replay what a graph would do, with the places that a graph has."""

    def __init__(self, part: FixedPart, places: Places, capacity: int) -> None:
        self.images, self.objects = places.images(BATCH, torch.contiguous_format), places.objects_of(capacity)
        self.places, self.num_replays = places, 0
        self.found = part(self.images, self.objects, places.sizes)
        self.differentiable = [one.requires_grad for one in self.found]
        self.outputs = [one.detach().clone() for one in self.found]
        self.output_gradients = [torch.ones_like(one) for one in self.found if one.requires_grad]

        def forward() -> None:
            self.num_replays += 1
            with torch.enable_grad():
                self.found = part(self.images, self.objects, places.sizes)
            for place, one in zip(self.outputs, self.found, strict=True):
                place.copy_(one.detach())

        def backward() -> None:
            with torch.enable_grad():
                self.places.differentiate(self.found, self.output_gradients)

        self.forward, self.backward = SimpleNamespace(replay=forward), SimpleNamespace(replay=backward)


def small_config() -> Config:
    """The published one with few channels behind the backbone."""
    cfg = copy.deepcopy(CONFIG)
    roi_head = cfg.model.roi_head
    cfg.model.neck.out_channels = 16
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):
        roi_head[name].out_channels = 16
    roi_head.bbox_head.update(in_channels=16, fc_out_channels=32)
    roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1)
    return cfg


def detector() -> Any:
    torch.manual_seed(0)
    cfg = small_config()
    cfg.fast_heads = True
    cfg.model.backbone.drop_path_rate = 0.0
    cfg.model.train_cfg.rpn.sampler.num = cfg.model.train_cfg.rcnn.sampler.num = 10**6  # no chance is left
    cfg.model.train_cfg.rpn_proposal.update(nms_pre=40, max_per_img=20)
    return build_model(cfg, ["thing"] * 80, CPU).train()


def batch_of(counts: tuple[int, ...], seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    gt_bboxes, gt_labels, gt_masks = objects_of(counts)
    images = {"img": torch.randn(BATCH), "img_metas": metas_of(SHAPES)}
    return {**images, "gt_bboxes": gt_bboxes, "gt_labels": gt_labels, "gt_masks": gt_masks}


def test_replays_have_the_losses_and_the_gathered_gradients_of_the_detector() -> None:
    plain, fed = detector(), detector()
    graphed = GraphedTraining(fed, 3, torch.contiguous_format)
    places = Places.make(part := FixedPart(fed), 3, 96 * 128, CPU)
    pairs = {capacity: Eager(part, places, capacity) for capacity in CAPACITIES}
    graphed.pairs = {(BATCH, capacity): pair for capacity, pair in pairs.items()}
    fed.load_state_dict(plain.state_dict())
    fed.forward_train = graphed
    for seed, counts in enumerate([(3, 7, 1), (0, 33, 2), (0, 0, 0), (5, 97, 5)]):
        steps = [model.train_step(batch_of(counts, seed), None) for model in (plain, fed)]
        for step in steps:
            step["loss"].backward()
        assert dict(steps[1]["log_vars"]) == pytest.approx(dict(steps[0]["log_vars"]), rel=1e-4, abs=1e-6)
    assert [pair.num_replays for pair in pairs.values()] == [2, 1]  # and one without a graph
    found: dict[str, Tensor] = dict(fed.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_training_whose_batches_never_have_a_graph_says_so_once() -> None:
    warnings: list[str] = []
    model = SimpleNamespace(forward_train=lambda *_, **__: {})
    graphed = GraphedTraining(model, 4, torch.contiguous_format, warnings.append)
    graphed.pairs = {((4, *BATCH[1:]), capacity): SimpleNamespace() for capacity in CAPACITIES}
    for _ in range(2 * NUM_MISSES):
        graphed(**batch_of((3, 7, 1), 0))
    (sentence,) = warnings
    assert "shape (3, 3, 96, 128) and up to 7 objects" in sentence
    assert "shapes (4, 3, 96, 128)" in sentence


def test_a_training_that_had_a_graph_once_is_not_warned() -> None:
    warnings: list[str] = []
    graphed = GraphedTraining(
        SimpleNamespace(forward_train=None), 3, torch.contiguous_format, warnings.append
    )
    graphed.count(torch.zeros(BATCH), 1, hit=True)
    for _ in range(2 * NUM_MISSES):
        graphed.count(torch.zeros(BATCH), 1, hit=False)
    assert warnings == []


@pytest.mark.parametrize(
    ("world_size", "num_processes", "captured"), [(1, None, 4), (2, 1, 2), (1, 2, 4), (4, 2, 2)]
)
def test_graphs_are_for_the_images_that_a_process_passes_at_once(
    world_size: int, num_processes: int | None, captured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More processes share the global batch, fewer take it in parts; four images a process were planned."""
    cfg = small_config()
    cfg.data.samples_per_gpu = 4
    plan = plan_batches(cfg, world_size, None, num_processes)
    sampler = EpochBatchSampler(
        np.zeros(16, dtype=int), plan.batch_size, seed=0, world_size=world_size, num_parts=plan.num_parts
    )
    asked: list[int] = []
    monkeypatch.setattr(assembly, "graph_training", lambda *_, batch_size, **__: asked.append(batch_size))
    assembly.build_runner(cfg, sampler, ["thing"] * 80, CPU, {}, lambda _: None, lambda x: x, is_new=True)
    assert asked == [captured]
    assert all(len(part) == captured for part in sampler)


@pytest.mark.parametrize(
    ("options", "device", "message"),
    [
        ({"canvases": [(64, 64)]}, "cpu", "needs a GPU"),
        ({}, "cuda", "needs canvases"),
        ({"canvases": [(64, 64)], "fast_heads": False}, "cuda", "set fast_heads=True"),
        ({"canvases": [(64, 64)], "sync_batchnorm": True}, "cuda", "takes no sync_batchnorm"),
        ({"canvases": [(64, 64)], "model.backbone.use_checkpoint": True}, "cuda", "use_checkpoint=False"),
        (
            {"canvases": [(64, 64)], "model.train_cfg.rpn_proposal.nms.type": "soft_nms"},
            "cuda",
            "plain nms alone",
        ),
    ],
)
def test_what_graphs_cannot_do_is_refused(options: dict[str, Any], device: str, message: str) -> None:
    cfg = small_config()
    cfg.merge_from_dict({"cuda_graphs": True, "fast_heads": True, **options})
    model = build_model(cfg, ["thing"] * 80, CPU)
    with pytest.raises(ValueError, match=message):
        graph_training(model, cfg, canvases_of(cfg), Precision(), torch.device(device), batch_size=2)


def test_a_canvas_for_mixed_batches_alone_has_no_graph() -> None:
    assert worth_a_graph([(64, 96), (96, 64), (96, 96)]) == [(64, 96), (96, 64)]
    assert worth_a_graph([(64, 96), (96, 96)]) == [(64, 96), (96, 96)]
    assert worth_a_graph([(96, 96)]) == [(96, 96)]


@pytest.mark.parametrize("canvas", [(64,), (64, 0), (64, 64.5), (64, "64"), 64])
def test_a_canvas_is_a_height_and_a_width(canvas: Any) -> None:
    with pytest.raises(ValueError, match="each is a height and a width"):
        canvases_of(Config({"canvases": [canvas]}))


def test_canvases_are_a_list() -> None:
    with pytest.raises(ValueError, match="canvases 128 must be a list"):
        canvases_of(Config({"canvases": 128}))


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_true_or_false(name: str) -> None:
    cfg = copy.deepcopy(CONFIG)
    cfg[name] = "yes"
    with pytest.raises(ValueError, match=f"{name} 'yes' must be True or False"):
        check_supported(cfg)
