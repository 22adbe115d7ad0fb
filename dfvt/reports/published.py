"""The published results that ours are shown beside.

Source: Gao, Nie, Li, Ren, "Doubly-Fused ViT", ECCV 2022: COCO val2017, Mask R-CNN, 1x schedule. The published
code counts to a little less than the sizes that the paper prints, so both are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Gao, Nie, Li, Ren, ECCV 2022"
COUNTED_INPUT_SHAPE = (800, 1280)
"""Height and width in pixels of the input that the counted multiply-adds belong to."""


@dataclass(frozen=True)
class PublishedDetector:
    """One row of the published table.

    mAP is at IoU 0.50:0.95, a fraction of 0 to 1 as all mAPs of this project are. FLOPs are multiply-adds of
    one forward with 1000 proposals in the box head and 100 in the mask head. `printed` is what the paper
    says, `counted` what the published code counts to: the way mmdet 2.x counts, and with the products inside
    attention.
    """

    name: str
    bbox_map: float
    segm_map: float
    params_printed: str
    flops_printed: str
    params_counted: int
    backbone_params_counted: int
    flops_counted: float
    flops_counted_with_attention: float


PUBLISHED: dict[str, PublishedDetector] = {
    "tiny": PublishedDetector(
        name="DFvT-T",
        bbox_map=0.348,
        segm_map=0.326,
        params_printed="25M",
        flops_printed="178G",
        params_counted=23_769_651,
        backbone_params_counted=3_680_067,
        flops_counted=176.90e9,
        flops_counted_with_attention=176.85e9,
    ),
    "small": PublishedDetector(
        name="DFvT-S",
        bbox_map=0.392,
        segm_map=0.363,
        params_printed="32M",
        flops_printed="198G",
        params_counted=31_118_805,
        backbone_params_counted=10_844_901,
        flops_counted=194.47e9,
        flops_counted_with_attention=194.52e9,
    ),
    "base": PublishedDetector(
        name="DFvT-B",
        bbox_map=0.434,
        segm_map=0.390,
        params_printed="58M",
        flops_printed="242G",
        params_counted=57_392_840,
        backbone_params_counted=36_996_056,
        flops_counted=235.94e9,
        flops_counted_with_attention=236.70e9,
    ),
}


def published_counterpart(backbone_params: int) -> PublishedDetector | None:
    """The published detector whose backbone has this many parameters, which no two share."""
    found = (
        detector for detector in PUBLISHED.values() if detector.backbone_params_counted == backbone_params
    )
    return next(found, None)


def number_of(printed: str) -> float:
    """What the paper prints as `25M` or `178G`."""
    return float(printed[:-1]) * {"M": 1e6, "G": 1e9}[printed[-1]]
