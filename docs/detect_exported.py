"""The objects on an image, from what `dfvt export` wrote, with torch and torchvision alone.

Usage: python docs/detect_exported.py EXPORTED IMAGE

A place to begin from: what lies between the programs is here in a hundred lines, to be written in another
language or for another runtime.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align


def prepare(image: Tensor, settings: dict[str, Any], shape: list[int]) -> tuple[Tensor, float]:
    """The program's input of an image (3, H, W) of 0…255, RGB; and by what the image was scaled.

    An image that is larger than the program's input once it is scaled, as a portrait photo for a program for
    landscape ones, is scaled down further, and small objects on it may be missed.
    """
    height, width = image.shape[1:]
    short, long = settings["scaled_to"]
    factor = min(short / min(height, width), long / max(height, width))
    sides = scaled_size(image, factor)
    if sides[0] > shape[2] or sides[1] > shape[3]:
        print(
            f"the image needs {sides[0]} x {sides[1]} pixels, the program has {shape[2]} x {shape[3]}: it is "
            "scaled down further; dfvt export --shape H W writes programs for other sizes",
            file=sys.stderr,
        )
        factor = min(shape[2] / height, shape[3] / width)
        sides = scaled_size(image, factor)
    scaled = F.interpolate(image[None], sides, mode="bilinear").round()[0]
    if settings["channels"] == "BGR":
        scaled = scaled.flip(0)
    mean, std = (torch.tensor(settings[name])[:, None, None] for name in ("mean", "std"))
    padded = torch.zeros(shape)
    padded[0, :, : sides[0], : sides[1]] = (scaled - mean) / std
    return padded, factor


def scaled_size(image: Tensor, factor: float) -> tuple[int, int]:
    """Height and width of an image (3, H, W) that is scaled."""
    height, width = image.shape[1:]
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def decode(boxes: Tensor, deltas: Tensor, coder: dict[str, Any]) -> Tensor:
    """Boxes (N, 4), moved and resized by their deltas."""
    dx, dy, dw, dh = (deltas * torch.tensor(coder["stds"]) + torch.tensor(coder["means"])).unbind(1)
    sides = boxes[:, 2:] - boxes[:, :2]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 + torch.stack([dx, dy], 1) * sides
    most = coder["largest_log"]
    sides = sides * torch.stack([dw, dh], 1).clamp(-most, most).exp()
    return torch.cat([centers - sides / 2, centers + sides / 2], 1)


def propose(scores: list[Tensor], deltas: list[Tensor], size: tuple[int, int], rpn: dict[str, Any]) -> Tensor:
    """The RPN's best boxes on an image of that height and width."""
    kept_boxes, kept_scores, levels = [], [], []
    for level, (score, delta) in enumerate(zip(scores, deltas, strict=True)):
        _, number, height, width = score.shape
        flat = score[0].permute(1, 2, 0).reshape(-1).sigmoid()
        moves = delta[0].reshape(number, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
        step_x, step_y = rpn["strides"][level]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        shifts = torch.stack([columns * step_x, rows * step_y] * 2, -1).reshape(-1, 1, 4)
        anchors = (shifts + torch.tensor(rpn["anchors"][level])).reshape(-1, 4)
        best = flat.argsort(descending=True)[: rpn["nms_pre"]]
        kept_boxes.append(decode(anchors[best], moves[best], rpn["deltas"]))
        kept_scores.append(flat[best])
        levels.append(torch.full((len(best),), level))
    boxes = clip_boxes_to_image(torch.cat(kept_boxes), size)
    sides = boxes[:, 2:] - boxes[:, :2]
    large = (sides > rpn["min_bbox_size"]).all(1)
    boxes, flat, level = boxes[large], torch.cat(kept_scores)[large], torch.cat(levels)[large]
    return boxes[batched_nms(boxes, flat, level, rpn["nms_iou"])[: rpn["max_per_img"]]]


def cut_out(maps: list[Tensor], boxes: Tensor, settings: dict[str, Any]) -> Tensor:
    """The features of regions, each from the map of its size; at least two, as the heads want them."""
    strides = settings["strides"]
    size = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    level = torch.floor(torch.log2(size / settings["finest_scale"] + 1e-6)).clamp(0, len(strides) - 1)
    features = torch.zeros(max(len(boxes), 2), maps[0].shape[1], *settings["output_size"])
    for number, stride in enumerate(strides):
        chosen = (level == number).nonzero()[:, 0]
        features[chosen] = roi_align(
            maps[number],
            [boxes[chosen]],
            settings["output_size"],
            1 / stride,
            settings["sampling_ratio"],
            settings["aligned"],
        )
    return features


def paste(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """Probabilities (H, W) of a mask (28, 28) in its box."""
    x1, y1, x2, y2 = box.tolist()
    columns = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    rows = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


@torch.no_grad()
def detect(folder: Path, image: Tensor) -> dict[str, Tensor]:
    """`boxes` (N, 4), `labels`, `scores` and, where there are, `masks` (N, H, W) of an image (3, H, W)."""
    settings = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    programs = {name: torch.export.load(folder / f"{name}.pt2").module() for name in settings["programs"]}
    height, width = image.shape[1:]
    shape = settings["programs"]["dense"]["input"]
    prepared, factor = prepare(image, settings["images"], shape)
    scaled = scaled_size(image, factor)
    maps, scores, deltas = programs["dense"](prepared)

    proposals = propose(scores, deltas, scaled, settings["rpn"])
    bbox = settings["bbox"]
    logits, moves = programs["bbox_head"](cut_out(maps, proposals, bbox["regions"]))
    probabilities = logits[: len(proposals)].softmax(1)[:, :-1]
    number = probabilities.shape[1]
    moves = moves[: len(proposals)].reshape(len(proposals), -1, 4).expand(-1, number, 4)
    boxes = decode(proposals.repeat_interleave(number, 0), moves.reshape(-1, 4), bbox["deltas"])
    scale = torch.tensor([scaled[1] / width, scaled[0] / height] * 2)
    boxes = clip_boxes_to_image(boxes, scaled) / scale
    labels = torch.arange(number).repeat(len(proposals))
    sure = probabilities.reshape(-1) > bbox["score_thr"]
    boxes, labels, flat = boxes[sure], labels[sure], probabilities.reshape(-1)[sure]
    kept = batched_nms(boxes, flat, labels, bbox["nms_iou"])[: bbox["max_per_img"]]
    found = {"boxes": boxes[kept], "labels": labels[kept], "scores": flat[kept]}
    if "mask" in settings:
        mask = settings["mask"]
        of_class = torch.zeros_like(labels[kept]) if mask["class_agnostic"] else labels[kept]
        small = programs["mask_head"](cut_out(maps, boxes[kept] * scale, mask["regions"])).sigmoid()
        pasted = [
            paste(small[index, label], boxes[kept][index], height, width) >= mask["mask_thr_binary"]
            for index, label in enumerate(of_class)
        ]
        found["masks"] = torch.stack(pasted) if pasted else torch.zeros(0, height, width, dtype=torch.bool)
    return found


def main() -> None:
    parser = ArgumentParser(description="Find objects on an image with exported programs.")
    parser.add_argument("exported", type=Path, help="the folder that `dfvt export` wrote")
    parser.add_argument("image", type=Path, help="any image that Pillow reads")
    options = parser.parse_args()
    folder, image = options.exported, options.image
    pixels = np.array(ImageOps.exif_transpose(Image.open(image)).convert("RGB"), np.float32)
    sys.stdout.reconfigure(errors="backslashreplace")  # class names are in any language
    found = detect(folder, torch.from_numpy(pixels).permute(2, 0, 1))
    classes = json.loads((folder / "export.json").read_text(encoding="utf-8"))["classes"]
    for box, label, score in zip(
        *(found[name].tolist() for name in ("boxes", "labels", "scores")), strict=True
    ):
        print(f"{classes[label]:15} {score:.3f}  {' '.join(f'{side:.1f}' for side in box)}")


if __name__ == "__main__":
    main()
