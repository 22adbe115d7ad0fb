"""Proposals of a whole batch, and the greedy suppression that chooses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from mmcv import ConfigDict
from mmcv.ops import nms
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Proposals(Sequence[Tensor]):
    """Proposals of B images, padded to the same number N; as a sequence it has those of each image, as mmdet.

    Attributes:
        bboxes: (B, N, 4).
        scores: (B, N), in falling order.
        valid: (B, N), whether there is a proposal.
    """

    bboxes: Tensor
    scores: Tensor
    valid: Tensor

    @classmethod
    def pad(cls, proposals: Sequence[Tensor]) -> Proposals:
        """Of (num_proposals, 5) tensors, boxes and scores, one an image."""
        padded = pad_sequence([*proposals, proposals[0].new_zeros(1, 5)], batch_first=True)[:-1]
        counts = torch.tensor([len(one) for one in proposals]).to(padded.device, non_blocking=True)
        valid = torch.arange(padded.shape[1], device=padded.device) < counts[:, None]
        return cls(padded[..., :4], padded[..., 4], valid)

    def __len__(self) -> int:
        return len(self.bboxes)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[one] for one in range(len(self))[index]]
        together = torch.cat([self.bboxes[index], self.scores[index, :, None]], dim=1)
        return together[self.valid[index]]


def is_plain_nms(options: ConfigDict | None) -> bool:
    """Whether a config asks for the suppression that is done for a whole batch; mmcv's default type is it."""
    named = {"type": "nms", **(options or {})}
    return named["type"] == "nms" and set(named) == {"type", "iou_threshold"}


def keep_greedily(bboxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes greedy non-maximum suppression keeps, in P problems that know nothing of each other.

    `bboxes` is (P, K, 4), `scores` (P, K) in falling order and `valid` (P, K), the boxes that take part;
    returns (P, K).
    """
    if bboxes.is_cuda:
        from dfvt.models.suppression import keep_greedily_on_gpu  # needs Triton

        return keep_greedily_on_gpu(bboxes, valid, iou_threshold)
    keep = torch.zeros_like(valid)
    for problem in range(len(bboxes)):
        candidates = valid[problem].nonzero().squeeze(1)
        if len(candidates):
            _, kept = nms(bboxes[problem, candidates], scores[problem, candidates], iou_threshold)
            keep[problem, candidates[kept]] = True
    return keep
