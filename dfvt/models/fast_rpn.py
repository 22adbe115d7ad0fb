"""mmdet's RPN head with the targets, losses and proposals of a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmcv import ConfigDict
from mmdet.core.anchor import AnchorGenerator
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import RPNHead
from torch import Tensor
from torch.nn import functional as F

from dfvt.models.boxes import decode, require_plain_coder
from dfvt.models.proposals import Proposals, is_plain_nms, keep_greedily
from dfvt.models.targets import (
    Objects,
    assign_all,
    draw_samples,
    encode_positives,
    pad_objects,
    require_supported,
    take,
)


@dataclass(frozen=True)
class ImageSizes:
    """Heights and widths (B, 2) of images on the device: their `own`, and those they are `padded` to."""

    own: Tensor
    padded: Tensor

    @classmethod
    def of(cls, img_metas: Sequence[dict[str, Any]], device: torch.device) -> ImageSizes:
        """As the pipeline has noted them."""
        noted = torch.tensor([[meta["img_shape"][:2], meta["pad_shape"][:2]] for meta in img_metas])
        own, padded = noted.to(device, torch.float32, non_blocking=True).unbind(1)
        return cls(own, padded)


class Anchors:
    """The anchors of maps, made once for each of their sizes."""

    def __init__(self, generator: AnchorGenerator) -> None:
        self.generator = generator
        self.of_sizes: dict[tuple[Any, ...], tuple[list[Tensor], Tensor]] = {}

    def __call__(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The anchors (N, 4) of each level, and for all of them (N, 2) the pixel where their cell begins."""
        sizes, device = [tuple(one.shape[-2:]) for one in maps], maps[0].device
        key = (*sizes, device)
        if key not in self.of_sizes:
            generator = self.generator
            levels = generator.grid_priors(sizes, device=device)
            corners = []
            for (height, width), stride, number in zip(
                sizes, generator.strides, generator.num_base_priors, strict=True
            ):
                rows, columns = torch.meshgrid(
                    torch.arange(height, device=device) * stride[1],
                    torch.arange(width, device=device) * stride[0],
                    indexing="ij",
                )
                corners.append(torch.stack([rows, columns], dim=-1).view(-1, 2).repeat_interleave(number, 0))
            self.of_sizes[key] = levels, torch.cat(corners)
        return self.of_sizes[key]


@HEADS.register_module()
class FastRPNHead(RPNHead):
    """`RPNHead` that does not wait for the device: the same parameters, losses and proposals.

    Raises:
        ValueError: the config asks for what it does not do, see `require_supported`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.use_sigmoid_cls or self.reg_decoded_bbox:
            raise ValueError("FastRPNHead takes a sigmoid loss and no decoded boxes: set fast_heads=False")
        require_plain_coder("FastRPNHead", self.bbox_coder)
        if self.train_cfg:
            require_supported("FastRPNHead", self.assigner, self.sampler)
        self.anchors_of = Anchors(self.prior_generator)

    def counted_anchors(self, anchors: Tensor, corners: Tensor, sizes: ImageSizes) -> Tensor:
        """Which anchors (B, N) may be assigned: those of cells inside the image's own padded shape."""
        counted = (corners < sizes.padded[:, None]).all(dim=-1)
        border = self.train_cfg.allowed_border
        if border >= 0:
            height, width = sizes.own[:, :, None].unbind(1)
            left, top, right, bottom = anchors.unbind(1)
            counted &= (left >= -border) & (top >= -border)
            counted &= (right < width + border) & (bottom < height + border)
        return counted

    def loss(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        gt_bboxes: Sequence[Tensor],
        img_metas: Sequence[dict[str, Any]],
        gt_bboxes_ignore: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The losses of `RPNHead.loss`, each as one number."""
        sizes = ImageSizes.of(img_metas, cls_scores[0].device)
        return self.losses_of(cls_scores, bbox_preds, pad_objects(gt_bboxes), sizes)

    def losses_of(
        self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor], objects: Objects, sizes: ImageSizes
    ) -> dict[str, Tensor]:
        """As `loss`, of what is on the device already."""
        levels, corners = self.anchors_of(cls_scores)
        anchors = torch.cat(levels)
        with torch.no_grad():
            counted = self.counted_anchors(anchors, corners, sizes)
            assigned = assign_all(objects, anchors.expand(len(sizes.own), -1, -1), counted, self.assigner)
            samples = draw_samples(assigned, self.sampler)
            sampled = anchors[samples.index]
            nearest = take(objects.bboxes, (take(assigned, samples.index) - 1).clamp(min=0))
            targets = encode_positives(self.bbox_coder, sampled, nearest, samples.positive)
            positive, valid = samples.positive.flatten(), samples.valid.flatten()
            pos_weight = self.train_cfg.pos_weight if self.train_cfg.pos_weight > 0 else 1.0
            weights = torch.where(positive, pos_weight, 1.0) * valid
            num_samples = sum(
                kind.sum(dim=1).clamp(min=1).sum()
                for kind in (samples.positive, samples.valid & ~samples.positive)
            )
        logits = torch.cat([flat_scores(level) for level in cls_scores], dim=1)
        deltas = torch.cat([flat_deltas(level) for level in bbox_preds], dim=1)
        loss_cls = self.loss_cls(
            take(logits, samples.index).flatten(), positive.long(), weights, avg_factor=num_samples
        )
        loss_bbox = self.loss_bbox(
            take(deltas, samples.index).flatten(0, 1),
            targets,
            positive[:, None].expand(-1, 4).float(),
            avg_factor=num_samples,
        )
        return {"loss_rpn_cls": loss_cls, "loss_rpn_bbox": loss_bbox}

    def get_bboxes(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        score_factors: None = None,
        img_metas: Sequence[dict[str, Any]] | None = None,
        cfg: ConfigDict | None = None,
        rescale: bool = False,
        with_nms: bool = True,
        **options: Any,
    ) -> Sequence[Tensor]:
        """The proposals of `RPNHead.get_bboxes`, as `Proposals`.

        Suppression of another kind than `nms` is mmdet's own, image by image.
        """
        cfg = cfg or self.test_cfg
        assert img_metas is not None
        if not is_plain_nms(cfg.nms):
            return super().get_bboxes(
                cls_scores, bbox_preds, score_factors, img_metas, cfg, rescale, with_nms, **options
            )
        return self.proposals_of(
            cls_scores, bbox_preds, ImageSizes.of(img_metas, cls_scores[0].device).own, cfg
        )

    def proposals_of(
        self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor], shapes: Tensor, cfg: ConfigDict
    ) -> Proposals:
        """As `get_bboxes`, of images whose `shapes` (B, 2) are on the device already."""
        return proposals_of_maps(self.anchors_of, self.bbox_coder, cls_scores, bbox_preds, shapes, cfg)


@torch.no_grad()
def proposals_of_maps(
    anchors_of: Anchors,
    bbox_coder: Any,
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    shapes: Tensor,
    cfg: ConfigDict,
) -> Proposals:
    """The proposals of `RPNHead.get_bboxes` for images whose `shapes` (B, 2) are on the device."""
    levels, _ = anchors_of(cls_scores)
    chosen = []
    for scores, deltas, anchors in zip(cls_scores, bbox_preds, levels, strict=True):
        best, index = flat_scores(scores).sigmoid().sort(dim=1, descending=True)
        if cfg.get("nms_pre", -1) > 0:
            best, index = best[:, : cfg.nms_pre], index[:, : cfg.nms_pre]
        chosen.append((best, decode(bbox_coder, anchors[index], take(flat_deltas(deltas), index))))
    return choose_proposals(chosen, shapes, cfg)


def choose_proposals(levels: Sequence[tuple[Tensor, Tensor]], shapes: Tensor, cfg: ConfigDict) -> Proposals:
    """Proposals of the scores (B, K) and boxes (B, K, 4) of each level; `shapes` (B, 2) are the images'."""
    longest = max(scores.shape[1] for scores, _ in levels)
    missing = [longest - scores.shape[1] for scores, _ in levels]
    scores = torch.stack(
        [F.pad(one, (0, pad), value=-1.0) for (one, _), pad in zip(levels, missing, strict=True)], 1
    )
    bboxes = torch.stack(
        [F.pad(one, (0, 0, 0, pad)) for (_, one), pad in zip(levels, missing, strict=True)], 1
    )
    limits = shapes.flip(1).repeat(1, 2)[:, None, None]
    bboxes = torch.minimum(bboxes.clamp(min=0), limits)
    sizes = bboxes[..., 2:] - bboxes[..., :2]
    present = scores >= 0  # what is missing has −1
    valid = present & (sizes > cfg.min_bbox_size).all(dim=-1) if cfg.min_bbox_size >= 0 else present
    keep = keep_greedily(
        apart(bboxes, valid).flatten(0, 1), scores.flatten(0, 1), valid.flatten(0, 1), cfg.nms.iou_threshold
    ).view(valid.shape)
    best, index = scores.masked_fill(~keep, -1.0).flatten(1).sort(dim=1, descending=True)
    best, index = best[:, : cfg.max_per_img], index[:, : cfg.max_per_img]
    return Proposals(take(bboxes.flatten(1, 2), index), best.clamp(min=0), best >= 0)


def apart(bboxes: Tensor, valid: Tensor) -> Tensor:
    """The boxes (B, L, K, 4) of each level moved where mmcv's `batched_nms` moves them.

    No level needs it here; the rounding of their coordinates is then the same, and so is every decision.
    """
    largest = bboxes.masked_fill(~valid[..., None], 0.0).amax(dim=(1, 2, 3))
    levels = torch.arange(bboxes.shape[1], device=bboxes.device)
    return bboxes + (levels[None] * (largest[:, None] + 1))[:, :, None, None]


def flat_scores(level: Tensor) -> Tensor:
    """Predictions (B, A, H, W) as (B, H·W·A), in the anchors' order."""
    return level.permute(0, 2, 3, 1).flatten(1)


def flat_deltas(level: Tensor) -> Tensor:
    """Predictions (B, 4·A, H, W) as (B, H·W·A, 4), in the anchors' order."""
    return level.permute(0, 2, 3, 1).reshape(len(level), -1, 4)
