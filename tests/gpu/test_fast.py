"""On a GPU: the fast heads are mmdet's, do not wait for the device, and train with every switch on."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.ops import nms
from torch import Tensor

from dfvt.data.loading import EpochBatchSampler, build_train_loader
from dfvt.engine.assembly import seed_everything
from dfvt.engine.build import build_model
from dfvt.engine.compat import to_device
from dfvt.engine.config import load_config
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.graphs import GraphedTraining, graph_training
from dfvt.engine.images import canvases_of
from dfvt.engine.launch import launch
from dfvt.engine.precision import Precision
from dfvt.engine.train import train
from tests.gpu.conftest import Recorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda", 0)
PUBLISHED = {"use_torchvision": False, "sampling_ratio": 0}


def random_bboxes(*shape: int) -> Tensor:
    corners = torch.rand(*shape, 2) * 700
    return torch.cat([corners, corners + 8 + torch.rand(*shape, 2) * 200], dim=-1)


def test_suppression_of_many_problems_keeps_what_one_after_the_other_keeps() -> None:
    from dfvt.models.suppression import keep_greedily_on_gpu

    torch.manual_seed(0)
    bboxes = random_bboxes(20, 2000).to(GPU)
    scores = torch.rand(20, 2000, device=GPU).sort(dim=1, descending=True).values
    valid = torch.rand(20, 2000, device=GPU) < 0.9
    keep = keep_greedily_on_gpu(bboxes, valid, 0.7)
    for problem in range(20):
        candidates = valid[problem].nonzero().squeeze(1)
        _, kept = nms(bboxes[problem, candidates], scores[problem, candidates], 0.7)
        expected = torch.zeros(2000, dtype=torch.bool, device=GPU)
        expected[candidates[kept]] = True
        assert torch.equal(keep[problem], expected)
    assert 2000 < keep.sum() < valid.sum() - 2000


def batch_of(cfg: Any) -> tuple[Any, dict[str, Any]]:
    """The classes and the first batch of a config's training data, on the GPU."""
    dataset = build_coco_dataset(copy.deepcopy(cfg.data.train), test_mode=False)
    (batch, *_) = build_train_loader(dataset, EpochBatchSampler(dataset.flag, 4, seed=0), 0, pack_masks=True)
    packed = batch.inputs
    (batch, *_) = build_train_loader(dataset, EpochBatchSampler(dataset.flag, 4, seed=0), 0)
    return dataset.CLASSES, {
        "stock": to_device(batch.inputs, GPU),
        "fast": to_device(packed, GPU),
    }


def config_of(config_file: Path, **options: Any) -> Any:
    cfg = load_config(config_file, options)
    cfg.model.train_cfg.rpn.sampler.num = cfg.model.train_cfg.rcnn.sampler.num = 10**6  # no chance is left
    cfg.model.roi_head.bbox_head.reg_class_agnostic = False
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):
        cfg.model.roi_head[name].roi_layer.update(PUBLISHED)
    return cfg


def test_losses_and_gradients_are_those_of_mmdet(config_file: Path) -> None:
    cfg = config_of(config_file)
    classes, inputs = batch_of(cfg)
    seen = []
    for side in ("stock", "fast"):
        seed_everything(0)
        cfg.fast_heads = side == "fast"
        model = build_model(cfg, classes, GPU).train()
        results = model.train_step(inputs[side], None)
        results["loss"].backward()
        seen.append(
            (results["log_vars"], {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        )
    assert seen[1][0] == pytest.approx(seen[0][0], rel=1e-4)
    largest = max(gradient.norm() for gradient in seen[0][1].values())
    for name, gradient in seen[0][1].items():
        assert (seen[1][1][name] - gradient).norm() < 1e-3 * gradient.norm() + 1e-6 * largest, name


def test_the_losses_are_made_without_waiting_for_the_device(config_file: Path) -> None:
    cfg = load_config(config_file, {"fast_heads": True})
    classes, inputs = batch_of(cfg)
    model = build_model(cfg, classes, GPU).train()
    for _ in range(2):  # anchors are made, kernels compiled
        model(**inputs["fast"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = model(**inputs["fast"])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(value).all() for value in losses.values())


@pytest.mark.parametrize("use_fp16", [True, False])
def test_a_training_with_every_switch_on_learns_like_one_without(
    config_file: Path, tmp_path: Path, use_fp16: bool
) -> None:
    curves = []
    for name, switches in (
        ("stock", {}),
        (
            "fast",
            {
                "fast_heads": True,
                "normalize_on_device": True,
                "channels_last": True,
                "cuda_graphs": True,
                "group_by_canvas": True,
                "canvases": [(128, 160), (160, 160)],
                "data.workers_per_gpu": 2,
            },
        ),
    ):
        options = {"log_config.interval": 1, "runner.max_epochs": 6, "evaluation.interval": 0}
        options |= {"optimizer_config.use_fp16": use_fp16, "tf32": "none"}
        cfg = load_config(config_file, options | switches)
        recorder = Recorder()
        train(cfg, tmp_path / name, device=GPU, callbacks=[recorder])
        curves.append(recorder.losses)
    stock, fast = curves
    assert len(stock) == len(fast)
    assert fast[0] == pytest.approx(stock[0], rel=0.1)
    assert np.mean(fast[-8:]) == pytest.approx(np.mean(stock[-8:]), rel=0.15)


def test_graphs_have_the_losses_gradients_and_statistics_of_the_detector(config_file: Path) -> None:
    cfg = config_of(config_file, fast_heads=True)
    cfg.model.backbone.drop_path_rate = 0.0
    classes, inputs = batch_of(cfg)
    first = inputs["fast"]
    height, width = first["img"].shape[-2:]
    cfg.merge_from_dict(
        {
            "cuda_graphs": True,
            "canvases": [(height, width), (height + 32, width)],
        }
    )
    batches = [first, {**first, "img": -first["img"]}]
    batches += [
        {**first, "img": torch.nn.functional.pad(first["img"], (0, 0, 0, bottom))} for bottom in (32, 64)
    ]
    results = []
    for graphed in (False, True):
        seed_everything(0)
        model = build_model(cfg, classes, GPU).train()
        if graphed:
            graph_training(model, cfg, canvases_of(cfg), Precision(), GPU, batch_size=len(first["img"]))
            assert len(model.forward_train.pairs) == 4
        numbers: dict[str, Any] = {}
        for index, batch in enumerate(batches):  # gradients gather; the last one has no graph
            step = model.train_step(batch, None)
            step["loss"].backward()
            numbers |= {f"{index} {name}": torch.tensor(value) for name, value in step["log_vars"].items()}
        numbers |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append(numbers | dict(model.named_buffers()))
    stock, fast = results
    assert stock.keys() == fast.keys()
    largest = max(value.double().norm() for name, value in stock.items() if name[0].isalpha())
    for name, value in stock.items():
        difference = (fast[name].double() - value.double()).norm()
        assert difference <= 2e-3 * value.double().norm() + 1e-6 * largest, (name, difference, value)


def train_resized(device: torch.device, config_file: Path, folder: Path) -> None:
    """A training that was planned for one process; notes whether each batch had a graph."""
    hits: list[bool] = []
    count = GraphedTraining.count

    def noting(graphed: GraphedTraining, images: Tensor, num_objects: int, *, hit: bool) -> None:
        hits.append(hit)
        count(graphed, images, num_objects, hit=hit)

    GraphedTraining.count = noting  # type: ignore[method-assign]  # of this process alone
    options = {"fast_heads": True, "cuda_graphs": True, "canvases": [(128, 160)], "data.samples_per_gpu": 4}
    options |= {"runner.max_epochs": 1, "evaluation.interval": 0}
    train(load_config(config_file, options), folder / "work", device=device, num_processes=1)
    (folder / f"hits{device.index}.json").write_text(json.dumps(hits))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_processes_that_share_the_batch_of_one_have_graphs(config_file: Path, tmp_path: Path) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    launch(train_resized, [torch.device("cuda", index) for index in range(2)], config_file, tmp_path)
    for index in range(2):
        hits = json.loads((tmp_path / f"hits{index}.json").read_text())
        assert hits
        assert all(hits)
