"""What the engine costs: its loop beside a bare one, a checkpoint's stall, the memory of loader processes.

Usage: python benchmarks/engine.py [overhead] [stall] [loader]; all three unless named. Both sides of each
comparison are measured in one run.
"""

from __future__ import annotations

import copy
import gc
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from mmcv import Config, ConfigDict
from mmdet.datasets import build_dataset

from dfvt.data.loading import EpochBatchSampler, build_train_loader
from dfvt.data.shapes import SHAPE_CLASSES, generate_shapes
from dfvt.engine.build import build_merged_optimizer, build_model
from dfvt.engine.callbacks import Callback
from dfvt.engine.config import load_config
from dfvt.engine.console import quiet_libraries, without_chatter
from dfvt.engine.curves import CurveFiles
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.runner import DetectorRunner
from dfvt.engine.states import StateFiles, write_atomically
from dfvt.engine.train import train

CONFIGS = Path(__file__).parents[1] / "configs"
CPU = torch.device("cpu")
NUM_BLOCKS, BLOCK, WARM = 5, 24, 4
NUM_IMAGES, ANNOTATIONS_PER_IMAGE = 118_287, 7  # COCO train2017 has 860,001 annotations
NUM_BATCHES = 400


def mini_config(folder: Path) -> Config:
    """The mini detector on generated images, with nothing but iterations to do."""
    generate_shapes(folder / "shapes", num_train=BLOCK * 4, num_val=2)
    cfg = load_config(CONFIGS / "mini/maskrcnn_DFvT_tiny_mini.py")
    for split, images in (("train", "train2017"), ("val", "val2017")):
        ann_file = str(folder / f"shapes/annotations/instances_{images}.json")
        classes = tuple(shape.name for shape in SHAPE_CLASSES)
        cfg.data[split].update(ann_file=ann_file, img_prefix=str(folder / "shapes" / images), classes=classes)
    cfg.merge_from_dict(
        {
            "data.samples_per_gpu": 4,
            "data.workers_per_gpu": 0,
            "runner.max_epochs": 1,
            "evaluation.interval": 0,
            "checkpoint_config.interval": 0,
            "log_config.interval": 10,
        }
    )
    return cfg


def bare_loop(cfg: Config) -> list[float]:
    """Seconds of each iteration of the least that trains."""
    cfg = copy.deepcopy(cfg)
    torch.manual_seed(0)
    dataset = build_coco_dataset(cfg.data.train, test_mode=False)
    model = build_model(cfg, dataset.CLASSES, CPU).train()
    optimizer = build_merged_optimizer(model, cfg.optimizer)
    loader = build_train_loader(
        dataset, EpochBatchSampler(dataset.flag, cfg.data.samples_per_gpu, seed=0), cfg.data.workers_per_gpu
    )
    seconds, started = [], time.perf_counter()
    for batch in loader:
        outputs = model.train_step(batch.inputs, optimizer)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        ended = time.perf_counter()
        seconds.append(ended - started)
        started = ended
    return seconds


def engine_loop(cfg: Config, folder: Path) -> list[float]:
    """Seconds of each iteration of the engine, from one call of the loop's body to the next."""
    moments: list[float] = []
    gather = DetectorRunner.gather_gradients

    def timed(runner: DetectorRunner, parts: list[dict[str, Any]]) -> Any:
        moments.append(time.perf_counter())
        return gather(runner, parts)

    DetectorRunner.gather_gradients = timed  # type: ignore[method-assign]
    try:
        train(cfg, folder, callbacks=[CurveFiles(folder), Callback()])
    finally:
        DetectorRunner.gather_gradients = gather  # type: ignore[method-assign]
    return list(np.diff(moments))


def measure_overhead(folder: Path) -> None:
    """Alternates the two loops on the same images with the same weights."""
    cfg = mini_config(folder)
    bare: list[float] = []
    engine: list[float] = []
    for block in range(NUM_BLOCKS):
        bare += bare_loop(cfg)[WARM:]
        engine += engine_loop(cfg, folder / f"work{block}")[WARM:]
    ours, theirs = statistics.median(engine), statistics.median(bare)
    print("| loop | iterations | median ms an iteration |\n| --- | ---: | ---: |")
    print(f"| bare: load, train_step, backward, step | {len(bare)} | {theirs * 1000:.1f} |")
    print(f"| the engine, with curves written | {len(engine)} | {ours * 1000:.1f} |")
    print(f"\nThe engine takes {(ours / theirs - 1) * 100:+.1f} %.")


def measure_stall(folder: Path) -> None:
    """The training's wait for a state that is written beside it, and for one that is written at once."""
    print("| detector | MiB | the loop waits, ms | written at once, ms |\n| --- | ---: | ---: | ---: |")
    for variant in ("tiny", "base"):
        cfg = load_config(CONFIGS / f"DFvT/maskrcnn_DFvT_{variant}_1x_coco.py")
        model = build_model(cfg, ("a",), CPU)
        optimizer = build_merged_optimizer(model, cfg.optimizer)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        content = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
        files = StateFiles(folder / variant, 2, lambda *_: None)
        waits, at_once = [], []
        for step in range(5):
            started = time.perf_counter()
            files.write(content, step)
            waits.append(time.perf_counter() - started)
            files.finish()
            started = time.perf_counter()
            write_atomically(content, folder / variant / "at_once.pth")
            at_once.append(time.perf_counter() - started)
        files.close()
        size = (folder / variant / "latest.pth").stat().st_size / 2**20
        wait, whole = (statistics.median(values) * 1000 for values in (waits, at_once))
        print(f"| DFvT-{variant[0].upper()} | {size:.0f} | {wait:.0f} | {whole:.0f} |", flush=True)


def coco_sized_annotations(folder: Path) -> Path:
    """As many images and annotations as COCO's, all of one small image."""
    generate_shapes(folder / "one", num_train=1, num_val=1)
    (image_path,) = (folder / "one/train2017").iterdir()
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": image_path.name, "height": 128, "width": 160} for i in range(NUM_IMAGES)]
    annotations = []
    for i in range(NUM_IMAGES * ANNOTATIONS_PER_IMAGE):
        x, y = map(float, rng.uniform(0, 60, 2).round(2))
        outline = rng.uniform((x, y), (x + 60, y + 60), (24, 2)).round(2).ravel().tolist()
        annotations.append(
            {
                "id": i,
                "image_id": i // ANNOTATIONS_PER_IMAGE,
                "category_id": 1,
                "bbox": [x, y, 60.0, 60.0],
                "area": 3600.0,
                "iscrowd": 0,
                "segmentation": [outline],
            }
        )
    path = folder / "coco_sized.json"
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def memory_of_processes() -> float:
    """GiB of this process and its children, pages that they share counted once (PSS)."""
    own = psutil.Process()
    return sum(p.memory_full_info().pss for p in (own, *own.children(recursive=True))) / 2**30


def loader_memory(index: str, num_workers: int, ann_file: Path) -> float:
    """GiB of a process and its loader processes after many batches."""
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
        {"type": "DefaultFormatBundle"},
        {
            "type": "Collect",
            "keys": ["img", "gt_bboxes", "gt_labels", "gt_masks"],
            "meta_keys": ("filename",),
        },
    ]
    images = str(ann_file.parent / "one/train2017")
    cfg = ConfigDict(
        type="CocoDataset", ann_file=str(ann_file), img_prefix=images, classes=("a",), pipeline=pipeline
    )
    with without_chatter():
        dataset = build_coco_dataset(cfg, test_mode=False) if index == "packed" else build_dataset(cfg)
    gc.collect()
    sampler = EpochBatchSampler(dataset.flag, 16, seed=0)
    batches = iter(build_train_loader(dataset, sampler, num_workers))
    for _ in range(NUM_BATCHES * num_workers):
        next(batches)
    return memory_of_processes()


def measure_loader(folder: Path) -> None:
    """Memory of a loader after many batches, with mmdet's index and with the packed one."""

    def in_new_process(function: Any, *arguments: Any) -> Any:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            return executor.submit(function, *arguments).result()

    ann_file = in_new_process(coco_sized_annotations, folder)
    print("| index | loader processes | GiB | times that of one |\n| --- | ---: | ---: | ---: |")
    for index in ("packed", "mmdet's"):
        one = 0.0
        for num_workers in (1, 8):
            memory = in_new_process(loader_memory, index, num_workers, ann_file)
            one = one or memory
            print(f"| {index} | {num_workers} | {memory:.2f} | {memory / one:.2f} |", flush=True)


def main() -> None:
    quiet_libraries()
    chosen = sys.argv[1:] or ["overhead", "stall", "loader"]
    measures = {"overhead": measure_overhead, "stall": measure_stall, "loader": measure_loader}
    for name in chosen:
        print(f"\n{name}\n", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            measures[name](Path(folder))


if __name__ == "__main__":
    main()
