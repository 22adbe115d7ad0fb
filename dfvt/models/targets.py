"""Objects, assignments and samples of a whole batch as tensors of a fixed size.

What mmdet does for one image after the other, with results whose size only the device knows, is done here
for all of them at once: nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet.core.bbox.assigners import MaxIoUAssigner
from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder
from mmdet.core.bbox.samplers import RandomSampler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dfvt.models.boxes import encode, overlaps_between

NUM_STEP = 8  # the padded number of objects is a multiple of it: fewer shapes to compile for
NOT_COUNTED, NEGATIVE = -1, 0


@dataclass(frozen=True)
class Objects:
    """The true objects of B images, padded to the same number G.

    Attributes:
        bboxes: (B, G, 4), zeros where there is no object.
        labels: (B, G) indices of classes.
        valid: (B, G), whether there is an object.
    """

    bboxes: Tensor
    labels: Tensor
    valid: Tensor

    def split(self, num_images: int) -> list[Objects]:
        """Those of so many images each."""
        parts = (one.split(num_images) for one in (self.bboxes, self.labels, self.valid))
        return [Objects(*part) for part in zip(*parts, strict=True)]


def pad_objects(
    bboxes: Sequence[Tensor], labels: Sequence[Tensor] | None = None, num_objects: int | None = None
) -> Objects:
    """The objects of a batch; `bboxes` has (num_objects, 4) and `labels` (num_objects,) for each image."""
    counts = [len(one) for one in bboxes]
    num_objects = num_objects or -(-max(*counts, 1) // NUM_STEP) * NUM_STEP
    device = bboxes[0].device
    filler = bboxes[0].new_zeros(num_objects, 4)
    padded = pad_sequence([*bboxes, filler], batch_first=True)[:-1]
    if labels is None:
        padded_labels = torch.zeros(padded.shape[:2], dtype=torch.long, device=device)
    else:
        padded_labels = pad_sequence([*labels, filler[:, 0].long()], batch_first=True)[:-1]
    numbers = torch.tensor(counts).to(device, non_blocking=True)
    return Objects(padded, padded_labels, torch.arange(num_objects, device=device) < numbers[:, None])


def assign(overlaps: Tensor, objects: Objects, valid: Tensor, assigner: MaxIoUAssigner) -> Tensor:
    """What `MaxIoUAssigner` assigns to each of N candidates: 0 for nothing, 1 + the index of an object, −1.

    `overlaps` is (B, G, N), the intersections over unions with the objects, and `valid` (B, N), the
    candidates that count; returns (B, N). Source: Faster R-CNN, NeurIPS 2015, section 3.1.2.
    """
    overlaps = overlaps.masked_fill(~(objects.valid[:, :, None] & valid[:, None]), -1.0)
    best, nearest = overlaps.max(dim=1)
    assigned = torch.where(best < assigner.neg_iou_thr, NEGATIVE, NOT_COUNTED)
    assigned = torch.where(best >= assigner.pos_iou_thr, nearest + 1, assigned)
    if assigner.match_low_quality:
        # of objects that claim the same candidate the last one has it
        best_of_object, nearest_of_object = overlaps.max(dim=2, keepdim=True)
        if assigner.gt_max_assign_all:
            claims = overlaps == best_of_object
        else:
            claims = torch.zeros_like(overlaps, dtype=torch.bool).scatter_(2, nearest_of_object, True)
        claims &= (best_of_object >= assigner.min_pos_iou) & objects.valid[:, :, None]
        numbers = torch.arange(1, overlaps.shape[1] + 1, dtype=torch.int32, device=overlaps.device)
        claimed = torch.where(claims, numbers[:, None], 0).amax(dim=1)
        assigned = torch.where(claimed > 0, claimed.long(), assigned)
    return torch.where(valid, assigned, NOT_COUNTED)


def assign_all(
    objects: Objects, candidates: Tensor, valid: Tensor, assigner: MaxIoUAssigner, most_overlaps: int = 2**24
) -> Tensor:
    """As `assign`, of candidates (B, N, 4), for as many images at once as have `most_overlaps` in all.

    On a GPU no overlap needs a place in memory.
    """
    if candidates.is_cuda and assigner.gt_max_assign_all:
        from dfvt.models.assignment import assign_on_gpu  # needs Triton

        best, nearest, claimed = assign_on_gpu(objects.bboxes, objects.valid, candidates, valid, assigner)
        assigned = torch.where(best < assigner.neg_iou_thr, NEGATIVE, NOT_COUNTED)
        assigned = torch.where(best >= assigner.pos_iou_thr, nearest + 1, assigned)
        assigned = torch.where(claimed > 0, claimed, assigned)
        return torch.where(valid, assigned, NOT_COUNTED).long()
    num_at_once = max(most_overlaps // max(objects.valid.shape[1] * candidates.shape[1], 1), 1)
    in_parts = [
        assign(overlaps_between(part.bboxes, others), part, counted, assigner)
        for part, others, counted in zip(
            objects.split(num_at_once), candidates.split(num_at_once), valid.split(num_at_once), strict=True
        )
    ]
    return torch.cat(in_parts)


@dataclass(frozen=True)
class Samples:
    """S samples of the candidates of each of B images, positives first.

    Attributes:
        index: (B, S) of the candidate.
        positive: (B, S), whether an object is assigned to it.
        valid: (B, S); where there were not enough candidates, the last ones are none.
        max_positives: how many may be positive at most.
    """

    index: Tensor
    positive: Tensor
    valid: Tensor
    max_positives: int


def draw_samples(assigned: Tensor, sampler: RandomSampler) -> Samples:
    """Samples as `RandomSampler` draws them: positives up to its share, then negatives up to its number.

    `assigned` is (B, N) as from `assign`. Every subset of a size is as likely as another.
    """
    num_candidates = assigned.shape[1]
    keys = torch.rand(assigned.shape, device=assigned.device)
    max_positives = min(int(sampler.num * sampler.pos_fraction), num_candidates)
    positive_keys, positives = keys.masked_fill(assigned <= NEGATIVE, -1.0).topk(max_positives)
    negative_keys, negatives = keys.masked_fill(assigned != NEGATIVE, -1.0).topk(
        min(sampler.num, num_candidates)
    )
    positive = positive_keys >= 0
    rank = torch.arange(negatives.shape[1], device=assigned.device)
    negative = (negative_keys >= 0) & (rank < sampler.num - positive.sum(dim=1, keepdim=True))
    index = torch.cat([positives, negatives], dim=1)
    is_positive = torch.cat([positive, torch.zeros_like(negative)], dim=1)
    valid = torch.cat([positive, negative], dim=1)
    order = torch.sort(valid.byte(), dim=1, descending=True, stable=True).indices[:, : sampler.num]
    return Samples(
        index.gather(1, order), is_positive.gather(1, order), valid.gather(1, order), max_positives
    )


def encode_positives(
    coder: DeltaXYWHBBoxCoder, bboxes: Tensor, gt_bboxes: Tensor, positive: Tensor
) -> Tensor:
    """What is to be predicted for boxes with an object, (B·S, 4), and something finite for the others.

    `bboxes` and `gt_bboxes` are (B, S, 4), `positive` (B, S).
    """
    unit = torch.arange(4, device=bboxes.device).div(2, rounding_mode="floor").to(bboxes)  # 0, 0, 1, 1
    bboxes, gt_bboxes = (torch.where(positive[..., None], one, unit) for one in (bboxes, gt_bboxes))
    return encode(coder, bboxes, gt_bboxes).flatten(0, 1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of `values` (B, N, 4) or (B, N) at `index` (B, S)."""
    if values.dim() == 2:
        return values.gather(1, index)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def require_supported(head: str, assigner: object, sampler: object) -> None:
    """Compares the assigner and sampler of a config with those that are done for a whole batch.

    Raises:
        ValueError: they are others, or have options that are not.
    """
    for given, supported in ((assigner, MaxIoUAssigner), (sampler, RandomSampler)):
        if type(given) is not supported:
            raise ValueError(
                f"{head} takes {supported.__name__} alone, not {type(given).__name__}: set fast_heads=False"
            )
    assert isinstance(assigner, MaxIoUAssigner) and isinstance(sampler, RandomSampler)
    if assigner.ignore_iof_thr > 0:
        raise ValueError(f"{head} takes no ignore_iof_thr above 0: set fast_heads=False")
    if not isinstance(assigner.neg_iou_thr, float):
        raise ValueError(f"{head} takes one number as neg_iou_thr: set fast_heads=False")
    if sampler.neg_pos_ub >= 0:
        raise ValueError(f"{head} takes no neg_pos_ub: set fast_heads=False")
