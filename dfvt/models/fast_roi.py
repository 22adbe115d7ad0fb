"""mmdet's RoI head and RoI extractor with a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from mmcv.ops import RoIAlign, roi_align
from mmdet.core.mask import BitmapMasks
from mmdet.models.builder import HEADS, ROI_EXTRACTORS
from mmdet.models.losses import CrossEntropyLoss
from mmdet.models.roi_heads import SingleRoIExtractor, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import Tensor
from torch.nn import functional as F

from dfvt.models.boxes import require_plain_coder
from dfvt.models.proposals import Proposals
from dfvt.models.targets import (
    NOT_COUNTED,
    Objects,
    Samples,
    assign_all,
    draw_samples,
    encode_positives,
    pad_objects,
    require_supported,
    take,
)


class Bitmaps(Protocol):
    """Masks of an image's objects that are on the device."""

    height: int
    width: int

    def __len__(self) -> int: ...

    def unpack(self) -> Tensor:
        """Zeros and ones (num_objects, height, width)."""


Masks: TypeAlias = BitmapMasks | Bitmaps


@ROI_EXTRACTORS.register_module()
class FastRoIExtractor(SingleRoIExtractor):
    """`SingleRoIExtractor` that does not wait for the device to say which RoIs are on which level."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sizes_of_maps: dict[tuple[Any, ...], Tensor] = {}

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """RoI features (num_rois, C, h, w) of maps (B, C, H, W); `rois` is (num_rois, 5).

        The maps may lie in memory and be as precise as they like; half-precise ones have such features.
        """
        if len(feats) > 1:
            levels = self.map_roi_levels(rois, len(feats))
            if roi_scale_factor is not None:
                rois = self.roi_rescale(rois, roi_scale_factor)
            if self.at_once(feats):
                from dfvt.models.roi_features import pyramid_roi_align  # needs Triton

                size = self.roi_layers[0].output_size[0]
                return pyramid_roi_align(feats, rois, levels, self.sizes_of(feats), size)
        feats = [level.float().contiguous() for level in feats]
        if len(feats) == 1:
            return super().forward(feats, rois, roi_scale_factor)
        nowhere = F.pad(rois[:, :1], (0, 4))  # an empty region has no samples, and costs RoIAlign nothing
        features = None
        for level, (values, layer) in enumerate(zip(feats, self.roi_layers, strict=False)):
            here = (levels == level)[:, None]
            of_level = layer(values, torch.where(here, rois, nowhere))
            features = (
                of_level if features is None else torch.where(here[..., None, None], of_level, features)
            )
        assert features is not None
        return features

    def at_once(self, feats: Sequence[Tensor]) -> bool:
        """Whether all levels can be done by the one kernel there is for GPUs."""
        num_channels = feats[0].shape[1]
        return (
            feats[0].is_cuda
            and len(feats) == len(self.roi_layers) == 4
            and num_channels & (num_channels - 1) == 0
            and all(
                isinstance(layer, RoIAlign)
                and layer.output_size[0] == layer.output_size[1]
                and (layer.sampling_ratio, layer.pool_mode, layer.aligned) == (0, "avg", True)
                for layer in self.roi_layers
            )
        )

    def sizes_of(self, feats: Sequence[Tensor]) -> Tensor:
        """Height, width and scale (num_levels, 3) of the maps, on their device."""
        key = (*(one.shape[-2:] for one in feats), feats[0].device)
        if key not in self.sizes_of_maps:
            rows = [
                [*one.shape[-2:], layer.spatial_scale]
                for one, layer in zip(feats, self.roi_layers, strict=True)
            ]
            self.sizes_of_maps[key] = torch.tensor(rows).to(feats[0].device, non_blocking=True)
        return self.sizes_of_maps[key]


@dataclass(frozen=True)
class SampledRegions:
    """The regions (B, S) that box and mask head learn from.

    Attributes:
        samples: which of them count, and which have an object.
        bboxes, gt_bboxes: (B, S, 4), the regions and their objects.
        gt_index: (B, S) of the object among its image's.
        labels: (B, S) of classes, the number of classes for background.
    """

    samples: Samples
    bboxes: Tensor
    gt_bboxes: Tensor
    gt_index: Tensor
    labels: Tensor


class PredictedMasks(NamedTuple):
    """Masks (B·P, h, w) of regions (B, P, 4), each for its own class.

    `gt_index` is (B, P), of the region's object among its image's; `positive` (B·P,), whether it has one.
    """

    logits: Tensor
    bboxes: Tensor
    gt_index: Tensor
    positive: Tensor


@HEADS.register_module()
class FastRoIHead(StandardRoIHead):
    """`StandardRoIHead` whose training does not wait for the device: the same parameters and losses.

    Raises:
        ValueError: the config asks for what it does not do.
    """

    bbox_head: BBoxHead
    mask_head: FCNMaskHead

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        require_plain_coder("FastRoIHead", self.bbox_head.bbox_coder)
        if self.train_cfg:
            require_supported("FastRoIHead", self.bbox_assigner, self.bbox_sampler)
        refused = {
            "a shared head": self.with_shared_head,
            "a missing box head": not self.with_bbox,
            "decoded boxes": self.bbox_head.reg_decoded_bbox,
            "losses of classes with a sigmoid or an activation of their own": (
                self.bbox_head.custom_activation or self.bbox_head.loss_cls.use_sigmoid
            ),
            "a mask head without an extractor of its own": self.with_mask and self.share_roi_extractor,
            "losses of masks other than cross entropy": self.with_mask
            and type(self.mask_head.loss_mask) is not CrossEntropyLoss,
        }
        for what, given in refused.items():
            if given:
                raise ValueError(f"FastRoIHead takes no {what.removeprefix('a ')}: set fast_heads=False")

    def forward_train(
        self,
        x: Sequence[Tensor],
        img_metas: Sequence[dict[str, Any]],
        proposal_list: Sequence[Tensor],
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        gt_bboxes_ignore: Sequence[Tensor] | None = None,
        gt_masks: Sequence[Masks] | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """The losses of `StandardRoIHead.forward_train`; `proposal_list` may be `Proposals`."""
        proposals = proposal_list if isinstance(proposal_list, Proposals) else Proposals.pad(proposal_list)
        regions = self.sample(proposals, pad_objects(gt_bboxes, gt_labels))
        losses = self.bbox_losses(x, regions)
        if self.with_mask:
            assert gt_masks is not None
            losses["loss_mask"] = self.mask_loss(self.predict_masks(x, regions), gt_masks)
        return losses

    @torch.no_grad()
    def sample(self, proposals: Proposals, objects: Objects) -> SampledRegions:
        """Draws regions among the proposals, and the objects themselves if the sampler adds them."""
        assigned = assign_all(objects, proposals.bboxes, proposals.valid, self.bbox_assigner)
        candidates = proposals.bboxes
        if self.bbox_sampler.add_gt_as_proposals:
            numbers = torch.arange(1, objects.valid.shape[1] + 1, device=assigned.device)
            assigned = torch.cat([torch.where(objects.valid, numbers, NOT_COUNTED), assigned], dim=1)
            candidates = torch.cat([objects.bboxes, candidates], dim=1)
        samples = draw_samples(assigned, self.bbox_sampler)
        bboxes = take(candidates, samples.index)
        gt_index = (take(assigned, samples.index) - 1).clamp(min=0)
        return SampledRegions(
            samples,
            bboxes,
            take(objects.bboxes, gt_index),
            gt_index,
            torch.where(samples.positive, take(objects.labels, gt_index), self.bbox_head.num_classes),
        )

    def bbox_losses(self, x: Sequence[Tensor], regions: SampledRegions) -> dict[str, Tensor]:
        """Losses of classes and boxes, and the accuracy of the classes in percent."""
        head, samples = self.bbox_head, regions.samples
        results = self._bbox_forward(x, rois_of(regions.bboxes))
        scores, deltas = results["cls_score"], results["bbox_pred"]
        labels, valid = regions.labels.flatten(), samples.valid.flatten()
        num_samples = valid.sum().clamp(min=1)
        pos_weight = self.train_cfg.pos_weight if self.train_cfg.pos_weight > 0 else 1.0
        weights = torch.where(samples.positive.flatten(), pos_weight, 1.0) * valid
        right = (scores.argmax(dim=1) == labels) & valid
        # positives come first: the others have no box to learn
        positive, chosen, gt_bboxes = (
            one[:, : samples.max_positives] for one in (samples.positive, regions.bboxes, regions.gt_bboxes)
        )
        deltas = deltas.view(*samples.valid.shape, -1, 4)[:, : samples.max_positives].flatten(0, 1)
        classes = (
            torch.zeros_like(labels) if head.reg_class_agnostic else labels.clamp(max=head.num_classes - 1)
        )
        classes = classes.view(samples.valid.shape)[:, : samples.max_positives].flatten()
        targets = encode_positives(head.bbox_coder, chosen, gt_bboxes, positive)
        return {
            "loss_cls": head.loss_cls(scores, labels, weights, avg_factor=num_samples),
            "acc": 100.0 * right.sum() / num_samples,
            "loss_bbox": head.loss_bbox(
                deltas[torch.arange(len(classes), device=classes.device), classes],
                targets,
                positive.flatten()[:, None].expand(-1, 4).float(),
                avg_factor=num_samples,
            ),
        }

    def predict_masks(self, x: Sequence[Tensor], regions: SampledRegions) -> PredictedMasks:
        """Masks of the regions that may have an object."""
        head, most = self.mask_head, regions.samples.max_positives
        bboxes = regions.bboxes[:, :most]
        logits = self._mask_forward(x, rois_of(bboxes))["mask_pred"]
        classes = regions.labels[:, :most].flatten().clamp(max=head.num_classes - 1)
        if head.class_agnostic:
            classes = torch.zeros_like(classes)
        logits = logits[torch.arange(len(classes), device=classes.device), classes]
        return PredictedMasks(
            logits, bboxes, regions.gt_index[:, :most], regions.samples.positive[:, :most].flatten()
        )

    def mask_loss(self, masks: PredictedMasks, gt_masks: Sequence[Masks]) -> Tensor:
        """The loss of the masks of regions with an object."""
        positive = masks.positive
        with torch.no_grad():
            soft = self.train_cfg.get("soft_mask_target", False)
            targets = mask_targets(masks.bboxes, masks.gt_index, gt_masks, self.train_cfg.mask_size)
            targets = targets if soft else (targets >= 0.5).float()
        losses = F.binary_cross_entropy_with_logits(masks.logits, targets, reduction="none").mean(dim=(1, 2))
        weight = self.mask_head.loss_mask.loss_weight
        return weight * (losses * positive).sum() / positive.sum().clamp(min=1)


def rois_of(bboxes: Tensor) -> Tensor:
    """Regions (B, S, 4) as RoIs (B·S, 5) with their image's index."""
    images = torch.arange(len(bboxes), device=bboxes.device, dtype=bboxes.dtype)
    return torch.cat([images[:, None, None].expand(-1, bboxes.shape[1], 1), bboxes], dim=2).flatten(0, 1)


def mask_targets(
    bboxes: Tensor, gt_index: Tensor, gt_masks: Sequence[Masks], size: int | tuple[int, int]
) -> Tensor:
    """The shares (B·P, h, w) that objects have of the bins of regions, as `BitmapMasks.crop_and_resize`.

    `bboxes` is (B, P, 4) and `gt_index` (B, P), of the region's object among its image's.
    """
    size = size if isinstance(size, tuple) else (size, size)
    targets = []
    for regions, index, masks in zip(bboxes, gt_index, gt_masks, strict=True):
        inside = regions.view(-1, 2, 2)
        inside = torch.stack(
            [inside[..., 0].clamp(0, masks.width), inside[..., 1].clamp(0, masks.height)], dim=-1
        )
        rois = torch.cat([index[:, None].to(regions), inside.flatten(1)], dim=1)
        # without an object nothing counts, but something must be there to be sampled
        if not len(masks):
            bitmaps = regions.new_zeros(1, 1, 1)
        elif isinstance(masks, BitmapMasks):
            bitmaps = torch.from_numpy(masks.masks).to(regions.device, non_blocking=True)
        else:
            bitmaps = masks.unpack()
        bitmaps = bitmaps.to(regions.dtype)[:, None]
        targets.append(roi_align(bitmaps, rois, size, 1.0, 0, "avg", True).squeeze(1))
    return torch.cat(targets)
