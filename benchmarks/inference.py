"""Images a second of `dfvt test` with everything that belongs to it, beside mmdet's own way.

Usage: python -m benchmarks.inference COCO [--variants tiny small base] [--checkpoint PTH]

`COCO` holds `annotations/instances_train2017.json` and `train2017/`, whose images are repeated: a data set of
thousands has many of each shape. The detectors have random weights and keep a hundred objects an image of all
that they could, unless there is a checkpoint of the one variant that is asked for, such as
`benchmarks.overfit` leaves. Both sides load with the same processes, see the published test pipeline
(1333×800 unless said), and end with masks as run lengths; each has seen all images before it is measured.
What they find is compared on the images without their repetitions.
"""

from __future__ import annotations

import copy
import json
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmdet.core import encode_mask_results

from benchmarks.arguments import VARIANTS, coco_folder, workers
from dfvt.data.loading import build_test_loader
from dfvt.engine.compat import to_device
from dfvt.engine.config import load_config
from dfvt.engine.console import quiet_libraries
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.evaluate import evaluate_results, predict
from dfvt.engine.infer import build_bare_detector, choose_device
from dfvt.models.checkpoints import load_weights

CONFIGS = Path(__file__).parents[1] / "configs"


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("coco", type=coco_folder)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--workers", type=workers, default=14)
    parser.add_argument("--repeat", type=int, default=4, help="how often each image comes")
    parser.add_argument("--scale", type=int, nargs=2, metavar=("LONG", "SHORT"))
    parser.add_argument("--images", type=int, help="of all, for a try")
    return parser.parse_args()


def of_images(dataset: Any, num_images: int | None, times: int) -> Any:
    """The data set with the first of its images, each so many times."""
    part = copy.copy(dataset)
    part.data_infos = dataset.data_infos[:num_images] * times
    part.img_ids = dataset.img_ids[:num_images] * times
    return part


@torch.no_grad()
def predict_as_mmdet(model: Any, dataset: Any, device: torch.device, num_workers: int) -> list[Any]:
    """One image after the other, one bitmap after the other."""
    results = []
    for batch in build_test_loader(dataset, range(len(dataset)), num_workers):
        (result,) = model(return_loss=False, rescale=True, **to_device(batch.inputs, device))
        boxes, masks = result
        results.append((boxes, encode_mask_results(masks)))
    return results


def main() -> None:
    arguments = parse()
    quiet_libraries()
    device = choose_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {arguments.workers} loader processes\n")
    print("| variant | mmdet's, img/s | here, img/s | times | objects | bbox_mAP | here | segm_mAP | here |")
    print("|" + " --- |" * 9, flush=True)
    rows = []
    for variant in arguments.variants:
        cfg = load_config(CONFIGS / f"DFvT/maskrcnn_DFvT_{variant}_1x_coco.py")
        cfg.data.test.update(
            ann_file=str(arguments.coco / "annotations/instances_train2017.json"),
            img_prefix=str(arguments.coco / "train2017"),
        )
        if arguments.scale:
            cfg.data.test.pipeline[1].img_scale = tuple(arguments.scale)
        dataset = build_coco_dataset(cfg.data.test, test_mode=True)
        once, repeated = (of_images(dataset, arguments.images, times) for times in (1, arguments.repeat))
        torch.manual_seed(0)
        model: Any = build_bare_detector(cfg)
        if arguments.checkpoint:
            load_weights(model, arguments.checkpoint)
        else:
            model.init_weights()
            model.roi_head.test_cfg.score_thr = 0.0
        model.CLASSES = dataset.CLASSES
        model.to(device)
        sides: dict[str, Callable[..., Any]] = {"stock": predict_as_mmdet, "fast": predict}
        row: dict[str, Any] = {"variant": variant, "device": name}
        for side, run in sides.items():
            evaluation = evaluate_results(once, run(model, once, device, num_workers=arguments.workers))
            run(model, repeated, device, num_workers=arguments.workers)
            started = time.perf_counter()
            run(model, repeated, device, num_workers=arguments.workers)
            row[f"{side}_images_per_second"] = len(repeated) / (time.perf_counter() - started)
            row[f"{side}_num_objects"] = len(evaluation.predictions["bbox"])
            row |= {f"{side}_{kind}_mAP": evaluation.metrics[f"{kind}_mAP"] for kind in ("bbox", "segm")}
        rows.append(row)
        speeds = row["stock_images_per_second"], row["fast_images_per_second"]
        maps = [f"{row[f'{side}_{kind}_mAP']:.4f}" for kind in ("bbox", "segm") for side in sides]
        cells = [variant, *(f"{speed:.1f}" for speed in speeds), f"{speeds[1] / speeds[0]:.1f}"]
        print(f"| {' | '.join([*cells, str(row['fast_num_objects']), *maps])} |", flush=True)
    Path(os.environ.get("OUT", "."), "inference.json").write_text(
        json.dumps(rows, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
