"""Peak memory and time of a training step on a GPU: each variant, precision, and with recomputed blocks.

Usage: python benchmarks/memory.py [HEIGHT WIDTH BATCH]. Random images with ten objects each; the whole step
(forward, backward, AdamW), without loading.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.core import BitmapMasks

from dfvt.engine.assembly import seed_everything
from dfvt.engine.build import build_merged_optimizer, build_model
from dfvt.engine.config import load_config
from dfvt.engine.console import quiet_libraries
from dfvt.engine.hooks import OptimizerStep
from dfvt.engine.precision import Precision, precision_of

CONFIGS = Path(__file__).parents[1] / "configs/DFvT"
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"optimizer_config.use_fp16": False},
    "float16": {},
    "bfloat16": {"optimizer_config.dtype": "bfloat16"},
}
NUM_WARM, NUM_TIMED, NUM_OBJECTS = 3, 8, 10


def make_batch(height: int, width: int, size: int, device: torch.device) -> dict[str, Any]:
    """A batch as the train pipeline gives it."""
    rng = np.random.default_rng(0)
    boxes, masks, labels = [], [], []
    for _ in range(size):
        corner = rng.uniform(0, 0.6, (NUM_OBJECTS, 2)) * (width, height)
        box = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, (NUM_OBJECTS, 2)) * (width, height)], 1)
        mask = np.zeros((NUM_OBJECTS, height, width), np.uint8)
        for index, (left, top, right, bottom) in enumerate(box.astype(int)):
            mask[index, top:bottom, left:right] = 1
        boxes.append(torch.tensor(box, dtype=torch.float32, device=device))
        labels.append(torch.tensor(rng.integers(0, 80, NUM_OBJECTS), device=device))
        masks.append(BitmapMasks(mask, height, width))
    shape = (height, width, 3)
    meta = {"img_shape": shape, "pad_shape": shape, "ori_shape": shape, "scale_factor": 1.0, "flip": False}
    images = torch.rand(size, 3, height, width, device=device)
    return {
        "img": images,
        "img_metas": [meta] * size,
        "gt_bboxes": boxes,
        "gt_labels": labels,
        "gt_masks": masks,
    }


def measure_backbone(backbone: torch.nn.Module, images: torch.Tensor, precision: Precision) -> float:
    """GiB that a forward and backward pass of the backbone need beside weights and gradients."""
    for _ in range(2):  # the first pass makes the gradients and the masks of the windows
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with precision.autocast(images.device):
            outs = backbone(images)
        sum(out.float().mean() for out in outs).backward()
        del outs
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def measure(
    variant: str, options: dict[str, Any], batch: dict[str, Any], device: torch.device
) -> list[float]:
    """GiB of the backbone's activations, GiB at the peak of a step and milliseconds a step."""
    cfg = load_config(CONFIGS / f"maskrcnn_DFvT_{variant}_1x_coco.py", options)
    seed_everything(0)
    model = build_model(cfg, ("object",) * 80, device).train()
    precision = precision_of(cfg, device)
    activations = measure_backbone(model.backbone, batch["img"], precision)
    optimizer = build_merged_optimizer(model, cfg.optimizer)
    step = OptimizerStep(None, precision.build_scaler(device))
    runner = type("Runner", (), {"optimizer": optimizer, "model": model})()
    for index in range(NUM_WARM + NUM_TIMED):
        if index == NUM_WARM:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
        with precision.autocast(device):
            runner.outputs = model.train_step(batch, optimizer)
        step.after_train_iter(runner)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / NUM_TIMED
    return [activations, torch.cuda.max_memory_allocated() / 2**30, seconds * 1000]


def main() -> None:
    quiet_libraries()
    height, width, size = map(int, sys.argv[1:4] if len(sys.argv) > 1 else (800, 1344, 4))
    device = torch.device("cuda", 0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {size} images of {height}×{width}\n")
    print("| detector | precision | blocks recomputed | backbone alone, GiB | step, GiB | ms a step |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    batch = make_batch(height, width, size, device)
    for variant in ("tiny", "small", "base"):
        for name, options in PRECISIONS.items():
            for recomputed in (False, True):
                changes = {**options, "model.backbone.use_checkpoint": recomputed}
                activations, gib, milliseconds = measure(variant, changes, batch, device)
                cells = [variant, name, "yes" if recomputed else "no", f"{activations:.2f}"]
                print(f"| {' | '.join(cells)} | {gib:.1f} | {milliseconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
