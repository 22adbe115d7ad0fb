"""DFvT-T with stock heads learns 64 real images by heart: losses, targets, precision and evaluation agree.

`coco` holds `annotations/instances_train2017.json` and `train2017/`; a GPU is used when there is one.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from mmcv import Config

from dfvt.engine.callbacks import Callback, EvaluationRecord, TrainingStart
from dfvt.engine.config import load_config
from dfvt.engine.console import quiet_libraries
from dfvt.engine.curves import CurveFiles
from dfvt.engine.evaluate import evaluate_model
from dfvt.engine.hooks import TrainingStopped
from dfvt.engine.infer import choose_device, load_detector
from dfvt.engine.progress import Progress
from dfvt.engine.train import train

CONFIGS = Path(__file__).parents[1] / "configs"
REPEATS = 20


class Table(Callback):
    """Prints the validations as rows."""

    def on_start(self, start: TrainingStart) -> None:
        self.started = time.perf_counter()
        print("| iterations | seconds | bbox_mAP | segm_mAP |\n| ---: | ---: | ---: | ---: |")

    def on_evaluation(self, record: EvaluationRecord) -> None:
        numbers = [f"{record.metrics[name]:.3f}" for name in ("bbox_mAP", "segm_mAP")]
        seconds = time.perf_counter() - self.started
        print(f"| {record.step} | {seconds:.0f} | {' | '.join(numbers)} |", flush=True)


def first_images(annotations: Path, num_images: int, out: Path) -> Path:
    """The annotations of the first images that have objects."""
    content = json.loads(annotations.read_text(encoding="utf-8"))
    with_objects = {item["image_id"] for item in content["annotations"] if not item["iscrowd"]}
    content["images"] = [image for image in content["images"] if image["id"] in with_objects][:num_images]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in kept]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content), encoding="utf-8")
    return out


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("coco", type=Path)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--variant", default="tiny", choices=("tiny", "small", "base"))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=8, help=f"of {REPEATS} passes each")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--scale", type=int, nargs=2, default=(832, 640), metavar=("LONG", "SHORT"))
    parser.add_argument(
        "--seconds",
        type=float,
        default=440.0,
        help="of training and its validations: it is to take less than eight minutes in all",
    )
    parser.add_argument("--fast", action="store_true", help="with all of configs/_base_/fast.py")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON", help="of the config")
    return parser.parse_args()


def pipelines(img_scale: tuple[int, int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """For training and testing, without augmentation."""
    norm = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}
    load, resize = {"type": "LoadImageFromFile"}, {"type": "Resize", "keep_ratio": True}
    # one shape for landscapes and portraits: each new one costs cuDNN seconds
    side = max(img_scale)
    flip, pad = {"type": "RandomFlip", "flip_ratio": 0.0}, {"type": "Pad", "size": (side, side)}
    normalize = {"type": "Normalize", **norm}
    train = [
        load,
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
        {**resize, "img_scale": img_scale},
        *(flip, normalize, pad, {"type": "DefaultFormatBundle"}),
        {"type": "Collect", "keys": ["img", "gt_bboxes", "gt_labels", "gt_masks"]},
    ]
    tail = [{"type": "ImageToTensor", "keys": ["img"]}, {"type": "Collect", "keys": ["img"]}]
    transforms = [resize, flip, normalize, pad, *tail]
    test = [
        load,
        {"type": "MultiScaleFlipAug", "img_scale": img_scale, "flip": False, "transforms": transforms},
    ]
    return train, test


def config_of(arguments: Namespace, work_dir: Path) -> Config:
    """A DFvT that learns the first images of a data set by heart."""
    coco = arguments.coco
    train_pipeline, test_pipeline = pipelines(tuple(arguments.scale))
    ann_file = first_images(
        coco / "annotations/instances_train2017.json", arguments.images, work_dir / "annotations.json"
    )
    cfg = load_config(CONFIGS / f"DFvT/maskrcnn_DFvT_{arguments.variant}_1x_coco.py")
    for split, pipeline in (("train", train_pipeline), ("val", test_pipeline), ("test", test_pipeline)):
        cfg.data[split].update(ann_file=str(ann_file), img_prefix=str(coco / "train2017"), pipeline=pipeline)
    # an epoch of eight iterations would spend its time at the boundaries
    cfg.data.train = {"type": "RepeatDataset", "times": REPEATS, "dataset": cfg.data.train}
    if arguments.fast:
        side = -(-max(arguments.scale) // 32) * 32
        cfg.merge_from_dict({**Config.fromfile(str(CONFIGS / "_base_/fast.py")), "canvases": [(side, side)]})
    cfg.merge_from_dict(
        {
            "data.samples_per_gpu": arguments.batch,
            "data.workers_per_gpu": 8,
            "model.backbone.drop_path_rate": 0.0,
            "optimizer.lr": 4e-4,
            "optimizer.paramwise_cfg": {"_delete_": True},
            "optimizer_config.grad_clip": {"_delete_": True, "max_norm": 10.0},
            "lr_config": {
                "_delete_": True,
                "policy": "FlatCosineAnnealing",
                "start_percent": 0.6,
                "min_lr": 0.0,
                "by_epoch": False,
                "warmup": "linear",
                "warmup_iters": 100,
                "warmup_ratio": 0.001,
            },
            "runner.max_epochs": arguments.epochs,
            "evaluation.interval": 4,
            "checkpoint_config.interval": 4,
            "log_config.interval": 8,
            **arguments.options,
        }
    )
    return cfg


def main() -> None:
    quiet_libraries()
    arguments = parse()
    work_dir = arguments.work_dir
    device = choose_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}: DFvT {arguments.variant}, {arguments.images} images, "
        f"batch {arguments.batch}, {arguments.epochs} epochs\n"
    )
    cfg = config_of(arguments, work_dir)
    started = time.perf_counter()
    listeners = [CurveFiles(work_dir), Progress("overfit"), Table()]
    checkpoint = work_dir / "latest.pth"
    try:
        checkpoint = train(
            cfg,
            work_dir,
            device=device,
            callbacks=listeners,
            stop_asked=lambda: time.perf_counter() - started > arguments.seconds,
        ).checkpoint
    except TrainingStopped as stopped:
        print(f"\nstopped after {stopped.step} iterations: its time was over")
    print(f"\ntraining and all validations: {time.perf_counter() - started:.0f} s")
    model, dataset = load_detector(cfg, checkpoint, device)
    evaluation = evaluate_model(model, dataset, device, num_workers=8)
    assert evaluation is not None
    print("the checkpoint, evaluated again:", {k: evaluation.metrics[k] for k in ("bbox_mAP", "segm_mAP")})


if __name__ == "__main__":
    main()
