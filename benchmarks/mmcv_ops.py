"""Compare the ops of two wheels of mmcv-full, op by op, to the bit.

``python -m benchmarks.mmcv_ops ONE.whl OTHER.whl`` runs each op of each wheel with the same random input, a
process for each wheel, and prints which results differ; exit code 1 if any does. ``--device cuda`` compares
the ops of a GPU, some of which add in another order each time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def with_gradients(op: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Return the result of an op, and the gradients of its inputs."""
    inputs = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    result = op(*inputs)
    (result * result.detach().cos()).sum().backward()
    return [result.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]


def results(device: str) -> dict[str, list[torch.Tensor]]:
    """Run the ops that the device has, those of detectors first."""
    import torch
    from mmcv import ops

    torch.manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(size, device=device)

    corners = uniform(400, 2) * 90
    boxes, scores = torch.cat([corners, corners + 1 + uniform(400, 2) * 30], 1), uniform(400)
    images = draw(2, 8, 24, 32)
    rois = torch.cat([(uniform(60, 1) * 2).floor(), boxes[:60]], 1)
    rotated = torch.cat([boxes[:, :2], 1 + uniform(400, 2) * 30, draw(400, 1)], 1)
    rotated_rois = torch.cat([rois[:, :1], rotated[:60]], 1)
    quadrangles = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]] + uniform(400, 8)
    weight, offset, mask = draw(6, 8, 3, 3), draw(2, 18, 24, 32), uniform(2, 9, 24, 32)
    measured: dict[str, list[torch.Tensor]] = {}
    for threshold in (0.3, 0.7):
        measured[f"nms {threshold}"] = list(ops.nms(boxes, scores, threshold))
    for method in ("naive", "linear", "gaussian"):
        measured[f"soft_nms {method}"] = list(ops.soft_nms(boxes, scores, 0.3, 0.5, 1e-3, method))
    for kind in ("avg", "max"):
        for samples in (0, 2):
            align = ops.RoIAlign(7, 0.25, samples, pool_mode=kind)
            measured[f"roi_align {kind} {samples}"] = with_gradients(lambda x: align(x, rois), images)  # noqa: B023
    measured["deform_conv2d"] = with_gradients(
        lambda x, o, w: ops.deform_conv2d(x, o, w, 1, 1), images, offset, weight
    )
    measured["modulated_deform_conv2d"] = with_gradients(
        lambda x, o, m, w: ops.modulated_deform_conv2d(x, o, m, w, None, 1, 1, 1, 1, 1),
        images,
        offset,
        mask,
        weight,
    )
    measured["bbox_overlaps"] = [ops.bbox_overlaps(boxes, boxes.flip(0), mode) for mode in ("iou", "iof")]
    measured["nms_rotated"] = list(ops.nms_rotated(rotated, scores, 0.3))
    measured["box_iou_rotated"] = [ops.box_iou_rotated(rotated, rotated.flip(0))]
    measured["box_iou_quadri"] = [ops.box_iou_quadri(quadrangles, quadrangles.flip(0))]
    rotated_align = ops.RoIAlignRotated(7, 0.25, 2)
    measured["roi_align_rotated"] = with_gradients(lambda x: rotated_align(x, rotated_rois), images)
    feature_boxes = torch.cat(
        [uniform(2, 24, 32, 2) * 90, 1 + uniform(2, 24, 32, 2) * 30, draw(2, 24, 32, 1)], -1
    )
    measured["rotated_feature_align"] = with_gradients(
        lambda x: ops.rotated_feature_align(x, feature_boxes, 0.25, 5), images
    )
    measured["psamask"] = with_gradients(ops.PSAMask("collect", (5, 5)), draw(2, 25, 8, 8))
    voxels = ops.Voxelization([0.5, 0.5, 0.5], [0, -4, -4, 8, 4, 4], 8, 200)
    measured["voxelization"] = list(voxels(uniform(500, 4) * 8 - 1))
    if device == "cuda":
        classes = torch.arange(400, device=device) % 9
        measured["sigmoid_focal_loss"] = with_gradients(
            lambda x: ops.sigmoid_focal_loss(x, classes, 2.0, 0.25, None, "none"), draw(400, 8)
        )
        measured["softmax_focal_loss"] = with_gradients(
            lambda x: ops.softmax_focal_loss(x, classes % 8, 2.0, 0.25, None, "mean"), draw(400, 8)
        )
    return measured


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return how far two tensors are apart: 0 where all of their bits are equal."""
    import torch

    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if one.numpy().tobytes() == other.numpy().tobytes():
        return 0.0
    return max(float((one.double() - other.double()).abs().max()), torch.finfo(torch.float64).tiny)


def results_of(wheel: Path, device: str, folder: Path) -> dict[str, list[torch.Tensor]]:
    """Run the ops of a wheel in a process of its own, in which its mmcv comes before the installed one."""
    import torch

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    command = [sys.executable, "-P", __file__, "--results", folder / "results.pt", "--device", device]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True)
    return torch.load(folder / "results.pt", weights_only=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", nargs="*", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    if arguments.results:
        import mmcv

        if arguments.results.parent not in Path(mmcv.__file__).parents:
            parser.error(f"{mmcv.__file__} is imported, which is not of the wheel")
        measured = results(arguments.device)
        torch.save({op: [x.cpu() for x in tensors] for op, tensors in measured.items()}, arguments.results)
        return 0
    if len(arguments.wheels) != 2:
        parser.error("name two wheels")
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        left, right = (
            results_of(wheel, arguments.device, Path(folder))
            for wheel, folder in zip(arguments.wheels, (one, other), strict=True)
        )
    differing = 0
    for op, tensors in left.items():
        apart = [difference(*pair) for pair in zip(tensors, right[op], strict=True)]
        differing += any(apart)
        values = sum(tensor.numel() for tensor in tensors)
        print(f"{op:26} {values:8} values  {f'differ by {max(apart):.1e}' if any(apart) else 'equal'}")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
