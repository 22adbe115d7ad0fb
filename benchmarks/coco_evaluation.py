"""Time and memory of evaluating 5,000 images × 100 detections: pycocotools and faster-coco-eval in one run.

Usage: .venv/bin/python benchmarks/coco_evaluation.py [NUM_IMAGES]. Generated boxes and polygons of 80
classes; the twelve numbers of both must be equal to the last digit.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import resource
import sys
import time
from typing import Any

import numpy as np
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

EVALUATORS = {"pycocotools": COCOeval, "faster-coco-eval": COCOeval_faster}
HEIGHT, WIDTH, NUM_CLASSES, NUM_OBJECTS, NUM_DETECTIONS = 480, 640, 80, 7, 100


def polygon(rng: np.random.Generator, box: np.ndarray) -> list[float]:
    """An octagon in a box (x, y, width, height), its corners moved inwards at random."""
    angles = np.arange(8) * np.pi / 4
    radius = 0.5 * rng.uniform(0.7, 1.0, 8)
    corners = np.stack([0.5 + radius * np.cos(angles), 0.5 + radius * np.sin(angles)], 1)
    return (box[:2] + corners * box[2:]).round(2).ravel().tolist()


def generate(num_images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth, and detections of which a third lie on objects."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        size = np.exp(rng.uniform(np.log(12), np.log(300), (NUM_OBJECTS, 2)))
        boxes = np.concatenate([rng.uniform(0, 1, (NUM_OBJECTS, 2)) * ((WIDTH, HEIGHT) - size), size], 1)
        classes = rng.integers(1, NUM_CLASSES + 1, NUM_OBJECTS)
        for box, category in zip(boxes, classes, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(category),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * 0.7),
                    "segmentation": [polygon(rng, box)],
                    "iscrowd": int(rng.random() < 0.01),
                }
            )
        for index in range(NUM_DETECTIONS):
            target = index % NUM_OBJECTS
            hit = rng.random() < 1 / 3
            size = boxes[target, 2:] * np.exp(rng.normal(0, 0.1 if hit else 0.7, 2))
            size = np.minimum(size, (WIDTH, HEIGHT))
            offset = rng.normal(0, 0.05 if hit else 1.0, 2) * size
            corner = np.clip(boxes[target, :2] + offset, 0, (WIDTH, HEIGHT) - size)
            box = np.concatenate([corner, size])
            category = classes[target] if hit else rng.integers(1, NUM_CLASSES + 1)
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": int(category),
                    "bbox": box.tolist(),
                    "segmentation": [polygon(rng, box)],
                    "score": float(rng.random()),
                }
            )
    images = [{"id": index, "height": HEIGHT, "width": WIDTH} for index in range(1, num_images + 1)]
    categories = [{"id": index, "name": str(index)} for index in range(1, NUM_CLASSES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def evaluate(name: str, iou_type: str, num_images: int, out: Any) -> None:
    """Sends seconds, the growth of the peak memory in GiB and the twelve numbers."""
    truth, detections = generate(num_images)
    if iou_type == "segm":
        detections = [{k: v for k, v in record.items() if k != "bbox"} for record in detections]
    else:
        detections = [{k: v for k, v in record.items() if k != "segmentation"} for record in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        results = with_masks(coco, detections) if iou_type == "segm" else coco.loadRes(detections)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        evaluation = EVALUATORS[name](coco, results, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    out.send((seconds, grown, [float(value) for value in evaluation.stats[:12]]))


def with_masks(coco: COCO, detections: list[dict[str, Any]]) -> COCO:
    """Result records with run-length masks, as detectors give them."""
    for record in detections:
        record["segmentation"] = coco.annToRLE(record)
        record["segmentation"]["counts"] = record["segmentation"]["counts"].decode()
    return coco.loadRes(detections)


def main() -> None:
    num_images = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    print(f"{num_images} images, {NUM_DETECTIONS} detections each\n")
    print("| evaluator | IoU | seconds | memory, GiB | AP |\n| --- | --- | ---: | ---: | ---: |")
    context = multiprocessing.get_context("spawn")
    for iou_type in ("bbox", "segm"):
        numbers = {}
        for name in EVALUATORS:
            inbox, outbox = context.Pipe(duplex=False)
            process = context.Process(target=evaluate, args=(name, iou_type, num_images, outbox))
            process.start()
            seconds, grown, numbers[name] = inbox.recv()
            process.join()
            print(
                f"| {name} | {iou_type} | {seconds:.1f} | {grown:.2f} | {numbers[name][0]:.6f} |", flush=True
            )
        if numbers["pycocotools"] != numbers["faster-coco-eval"]:
            sys.exit(f"{iou_type}: the twelve numbers are not equal: {numbers}")
        print(f"\n{iou_type}: the twelve numbers are equal\n")


if __name__ == "__main__":
    main()
