"""The fast heads do what mmdet's own do, for a whole batch at once: targets, losses, gradients, proposals."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv import Config, ConfigDict
from mmdet.core.bbox.assigners import MaxIoUAssigner
from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder
from mmdet.core.bbox.iou_calculators import bbox_overlaps
from mmdet.core.bbox.samplers import RandomSampler
from mmdet.core.mask import BitmapMasks
from mmdet.core.mask.mask_target import mask_target
from mmdet.models import build_head
from torch import Tensor

from dfvt.data.loading import EpochBatchSampler, build_train_loader
from dfvt.data.masks import PackedMasks
from dfvt.engine.assembly import seed_everything
from dfvt.engine.build import build_model
from dfvt.engine.compat import to_device
from dfvt.engine.config import load_config
from dfvt.engine.datasets import build_coco_dataset
from dfvt.models.boxes import decode, encode, overlaps_between
from dfvt.models.fast_roi import FastRoIHead, mask_targets
from dfvt.models.fast_rpn import FastRPNHead, ImageSizes
from dfvt.models.proposals import Proposals, keep_greedily
from dfvt.models.targets import assign, draw_samples, pad_objects

CONFIG = load_config(Path(__file__).parents[2] / "configs/DFvT/maskrcnn_DFvT_tiny_1x_coco.py")
COCO128 = Path(os.environ.get("DFVT_COCO128", Path(__file__).resolve().parents[3] / "shared" / "coco128"))
HEIGHT, WIDTH, CHANNELS = 96, 128, 8
STRIDES = (4, 8, 16, 32, 64)
EVERYTHING = 10**6  # samples: with them no chance is left


def random_bboxes(number: int, height: float, width: float, least: float = 4.0) -> Tensor:
    """Boxes (number, 4) inside an image."""
    sides = torch.tensor([width, height])
    size = least + torch.rand(number, 2) ** 2 * (sides - least)
    corner = torch.rand(number, 2) * (sides - size)
    return torch.cat([corner, corner + size], dim=1)


def metas_of(shapes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Of images that the pipeline padded to a multiple of 32 each, on one canvas."""
    return [{"img_shape": (h, w, 3), "pad_shape": (-(-h // 32) * 32, -(-w // 32) * 32, 3)} for h, w in shapes]


SHAPES = [(96, 128), (60, 90), (33, 128)]


def rpn_heads(num: int, border: int = -1) -> tuple[Any, FastRPNHead]:
    """mmdet's head and the fast one, with the same weights."""
    torch.manual_seed(0)
    cfg = copy.deepcopy(CONFIG.model)
    cfg.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
    cfg.train_cfg.rpn.sampler.num = num
    cfg.train_cfg.rpn.allowed_border = border
    options = {"train_cfg": cfg.train_cfg.rpn, "test_cfg": cfg.test_cfg.rpn}
    stock = build_head({**cfg.rpn_head, **options})
    fast = build_head({**cfg.rpn_head, **options, "type": "FastRPNHead"})
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    fast.load_state_dict(stock.state_dict())
    return stock, fast


def maps_of(num_images: int) -> list[Tensor]:
    return [torch.randn(num_images, CHANNELS, -(-HEIGHT // s), -(-WIDTH // s)) for s in STRIDES]


@pytest.mark.parametrize("border", [-1, 0])
@pytest.mark.parametrize("counts", [(3, 7, 1), (0, 9, 2), (0, 0, 0)])
def test_rpn_losses_and_gradients_are_those_of_mmdet(counts: tuple[int, ...], border: int) -> None:
    stock, fast = rpn_heads(EVERYTHING, border)
    maps, metas = maps_of(3), metas_of(SHAPES)
    gt_bboxes = [random_bboxes(n, h, w) for n, (h, w) in zip(counts, SHAPES, strict=True)]
    seen = []
    for head in (stock, fast):
        losses = head.loss(*head(maps), gt_bboxes, metas)
        total = {name: sum(value) if isinstance(value, list) else value for name, value in losses.items()}
        head.zero_grad()
        sum(total.values()).backward()
        seen.append((total, {name: p.grad for name, p in head.named_parameters()}))
    assert seen[0][0].keys() == seen[1][0].keys()
    for part in (0, 1):
        for name, value in seen[0][part].items():
            torch.testing.assert_close(seen[1][part][name], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("nms_pre", "max_per_img"), [(2000, 1000), (50, 20), (50, 1000)])
def test_proposals_are_those_of_mmdet(nms_pre: int, max_per_img: int) -> None:
    stock, fast = rpn_heads(256)
    maps, metas = maps_of(3), metas_of(SHAPES)
    cfg = copy.deepcopy(CONFIG.model.train_cfg.rpn_proposal)
    cfg.update(nms_pre=nms_pre, max_per_img=max_per_img)
    expected = stock.get_bboxes(*stock(maps), img_metas=metas, cfg=cfg)
    proposals = fast.get_bboxes(*fast(maps), img_metas=metas, cfg=cfg)
    assert isinstance(proposals, Proposals) and len(proposals) == 3
    for one, other in zip(proposals, expected, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(Proposals.pad(expected), expected, strict=True):
        assert torch.equal(one, other)


def test_other_kinds_of_suppression_are_mmdets_own() -> None:
    stock, fast = rpn_heads(256)
    maps, metas = maps_of(2), metas_of(SHAPES[:2])
    cfg = copy.deepcopy(CONFIG.model.test_cfg.rpn)
    cfg.nms = ConfigDict(type="soft_nms", iou_threshold=0.5)
    for one, other in zip(
        fast.get_bboxes(*fast(maps), img_metas=metas, cfg=cfg),
        stock.get_bboxes(*stock(maps), img_metas=metas, cfg=cfg),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_what_lies_in_the_padding_is_never_sampled() -> None:
    _, fast = rpn_heads(EVERYTHING)
    levels, corners = fast.anchors_of(maps_of(3))
    counted = fast.counted_anchors(
        torch.cat(levels), corners, ImageSizes.of(metas_of(SHAPES), torch.device("cpu"))
    )
    for inside, meta in zip(counted, metas_of(SHAPES), strict=True):
        height, width = meta["pad_shape"][:2]
        assert ((corners[inside] < torch.tensor([height, width])).all(1)).all()
        sizes = [(-(-HEIGHT // s), -(-WIDTH // s)) for s in STRIDES]
        expected = fast.prior_generator.valid_flags(sizes, meta["pad_shape"], "cpu")
        assert torch.equal(inside, torch.cat(expected))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), numbers=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_boxes_are_reckoned_with_as_in_mmdet(seed: int, numbers: tuple[int, int]) -> None:
    torch.manual_seed(seed)
    bboxes, others = (torch.stack([random_bboxes(n, 30, 40, 0.0) for _ in range(2)]) for n in numbers)
    others[0, 0] = 7.0  # without area
    bboxes[0, 0] = 7.0
    assert torch.equal(overlaps_between(bboxes, others), bbox_overlaps(bboxes, others))
    coder = DeltaXYWHBBoxCoder([0.0, 0.1, 0.0, -0.1], [0.1, 0.1, 0.2, 0.3])
    flat, targets, deltas = random_bboxes(20, 30, 40), random_bboxes(20, 30, 40), torch.randn(20, 4) * 9
    assert torch.equal(encode(coder, flat, targets), coder.encode(flat, targets))
    torch.testing.assert_close(decode(coder, flat, deltas), coder.decode(flat, deltas), rtol=1e-6, atol=1e-5)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    num_candidates=st.integers(1, 80),
    low_quality=st.booleans(),
    all_best=st.booleans(),
    thresholds=st.sampled_from([(0.7, 0.3, 0.3), (0.5, 0.5, 0.5), (0.6, 0.4, 0.0)]),
)
def test_assignments_are_those_of_mmdet(
    seed: int,
    counts: list[int],
    num_candidates: int,
    low_quality: bool,
    all_best: bool,
    thresholds: tuple[float, float, float],
) -> None:
    torch.manual_seed(seed)
    positive, negative, least = thresholds
    assigner = MaxIoUAssigner(positive, negative, least, all_best, match_low_quality=low_quality)
    # on a grid, so that several overlaps are equal
    candidates = [random_bboxes(num_candidates, 20, 20).round() for _ in counts]
    gt_bboxes = [random_bboxes(number, 20, 20).round() for number in counts]
    objects = pad_objects(gt_bboxes)
    valid = torch.rand(len(counts), num_candidates) < 0.8
    assigned = assign(bbox_overlaps(objects.bboxes, torch.stack(candidates)), objects, valid, assigner)
    for index in range(len(counts)):
        mask = valid[index]
        assert (assigned[index][~mask] == -1).all()
        if mask.any():
            expected = assigner.assign(candidates[index][mask], gt_bboxes[index]).gt_inds
            assert assigned[index][mask].tolist() == expected.tolist()


@settings(max_examples=60)
@given(
    assigned=st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    num=st.integers(1, 60),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_samples_have_the_numbers_of_mmdet(assigned: list[int], num: int, fraction: float) -> None:
    sampler = RandomSampler(num, fraction)
    samples = draw_samples(torch.tensor([assigned, [0] * len(assigned)]), sampler)
    for row, given_ in enumerate((assigned, [0] * len(assigned))):
        chosen = samples.index[row][samples.valid[row]].tolist()
        positives = samples.index[row][samples.positive[row]].tolist()
        assert len(set(chosen)) == len(chosen) <= num
        num_positives = min(sum(one > 0 for one in given_), int(num * fraction))
        num_negatives = min(sum(one == 0 for one in given_), num - num_positives)
        assert len(positives) == num_positives and len(chosen) == num_positives + num_negatives
        assert all(given_[index] > 0 for index in positives)
        assert all(given_[index] == 0 for index in chosen[num_positives:])
        assert chosen[:num_positives] == positives  # they come first
        assert not (samples.positive & ~samples.valid).any()


def test_every_candidate_is_sampled_equally_often() -> None:
    torch.manual_seed(0)
    assigned = torch.tensor([1] * 30 + [0] * 50 + [-1] * 20).repeat(4000, 1)
    samples = draw_samples(assigned, RandomSampler(40, 0.25))
    counts = torch.bincount(samples.index[samples.valid], minlength=100).double()
    for kind, expected in ((slice(30), 4000 * 10 / 30), (slice(30, 80), 4000 * 30 / 50)):
        share = expected / 4000
        chi_squared = ((counts[kind] - expected) ** 2 / (expected * (1 - share))).sum()
        number = len(counts[kind])
        assert abs(chi_squared - number) < 4 * (2 * number) ** 0.5  # four standard deviations
    assert counts[80:].sum() == 0


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 60), threshold=st.sampled_from([0.3, 0.5, 0.7]))
def test_greedy_suppression_keeps_what_no_better_box_covers(seed: int, number: int, threshold: float) -> None:
    torch.manual_seed(seed)
    bboxes = torch.stack([random_bboxes(number, 30, 30) for _ in range(2)])
    scores = torch.rand(2, number).sort(dim=1, descending=True).values
    valid = torch.rand(2, number) < 0.8
    keep = keep_greedily(bboxes, scores, valid, threshold)
    for problem in range(2):
        overlaps = bbox_overlaps(bboxes[problem], bboxes[problem])
        kept: list[int] = []
        for index in range(number):
            if valid[problem, index] and not any(overlaps[other, index] > threshold for other in kept):
                kept.append(index)
        assert keep[problem].nonzero().squeeze(1).tolist() == kept


def roi_heads(agnostic: bool = False, sampling_ratio: int = 0, **sampler: Any) -> tuple[Any, FastRoIHead]:
    """mmdet's head and the fast one, with the same weights."""
    torch.manual_seed(0)
    cfg = copy.deepcopy(CONFIG.model)
    head = cfg.roi_head
    for extractor in (head.bbox_roi_extractor, head.mask_roi_extractor):
        extractor.out_channels = CHANNELS
        extractor.roi_layer.sampling_ratio = sampling_ratio
    head.bbox_head.update(
        in_channels=CHANNELS, fc_out_channels=16, num_classes=5, reg_class_agnostic=agnostic
    )
    head.mask_head.update(
        in_channels=CHANNELS, conv_out_channels=CHANNELS, num_convs=1, num_classes=5, class_agnostic=agnostic
    )
    cfg.train_cfg.rcnn.sampler.update(sampler)
    options = {"train_cfg": cfg.train_cfg.rcnn, "test_cfg": cfg.test_cfg.rcnn}
    stock = build_head({**copy.deepcopy(head), **options})
    head.type = "FastRoIHead"
    head.bbox_roi_extractor.type = head.mask_roi_extractor.type = "FastRoIExtractor"
    fast = build_head({**head, **options})
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    fast.load_state_dict(stock.state_dict())
    return stock, fast


def objects_of(counts: Sequence[int]) -> tuple[list[Tensor], list[Tensor], list[BitmapMasks]]:
    """Boxes, labels and masks of objects: each fills a part of its box at random."""
    bboxes = [random_bboxes(n, h, w) for n, (h, w) in zip(counts, SHAPES, strict=True)]
    labels = [torch.randint(0, 5, (n,)) for n in counts]
    rng = np.random.default_rng(0)
    masks = [
        BitmapMasks((rng.random((n, *meta["pad_shape"][:2])) < 0.5).astype(np.uint8), *meta["pad_shape"][:2])
        for n, meta in zip(counts, metas_of(SHAPES), strict=True)
    ]
    return bboxes, labels, masks


def near_and_far(gt_bboxes: Tensor, height: int, width: int) -> Tensor:
    """Proposals (n, 5): some close to objects, others anywhere; scores fall."""
    moved = (gt_bboxes.repeat(3, 1) + torch.randn(3 * len(gt_bboxes), 4) * 2).clamp(min=0)
    moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)
    bboxes = torch.cat([moved, random_bboxes(15, height, width)])
    return torch.cat([bboxes, torch.rand(len(bboxes), 1).sort(0, descending=True).values], dim=1)


SUPPRESSION = """
import torch
from dfvt.models.proposals import keep_greedily
from dfvt.models.suppression import keep_greedily_on_gpu

torch.manual_seed(0)
for number in (0, 1, 63, 64, 65, 130):
    corners = torch.rand(3, number, 2) * 40
    bboxes = torch.cat([corners, corners + 2 + torch.rand(3, number, 2) * 20], dim=2)
    valid = torch.rand(3, number) < 0.8
    scores = torch.rand(3, number).sort(dim=1, descending=True).values
    for threshold in (0.3, 0.7):
        expected = keep_greedily(bboxes, scores, valid, threshold)
        assert torch.equal(keep_greedily_on_gpu(bboxes, valid, threshold), expected), (number, threshold)
        assert number < 60 or 3 < expected.sum() < valid.sum()
"""


ROI_FEATURES = """
import torch
from mmcv.ops import roi_align
from dfvt.models.roi_features import pyramid_roi_align

torch.manual_seed(0)
strides = (4, 8, 16, 32)
maps = [torch.randn(2, 4, 64 // s, 96 // s, requires_grad=True) for s in strides]
corners = torch.rand(12, 2) * 90 - 10
rois = torch.cat([torch.randint(0, 2, (12, 1)), corners, corners + torch.rand(12, 2) * 70], dim=1)
rois[-1, 1:] = 0  # an empty one
levels = torch.randint(0, 4, (12,))
sizes = torch.tensor([[64 // s, 96 // s, 1 / s] for s in strides])
for num_bins in (2, 7):
    found = pyramid_roi_align(maps, rois, levels, sizes, num_bins)
    layers = [roi_align(one, rois, num_bins, 1 / s, 0, "avg", True) for one, s in zip(maps, strides)]
    expected = torch.stack(layers)[levels, torch.arange(12)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((one * weights).sum(), maps) for one in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert expected[:-1].abs().sum() > 1
"""


ASSIGNMENT = """
import torch
from mmdet.core.bbox.assigners import MaxIoUAssigner
from dfvt.models.assignment import assign_on_gpu
from dfvt.models.boxes import overlaps_between

torch.manual_seed(0)
for low_quality in (True, False):
    for num_objects, num_candidates in ((8, 300), (1, 1), (3, 257), (2, 0)):
        corners = torch.randint(0, 30, (3, num_objects + num_candidates, 2)).float()  # ties, too
        both = torch.cat([corners, corners + torch.randint(1, 20, corners.shape)], dim=2)
        bboxes, candidates = both[:, :num_objects], both[:, num_objects:]
        present, counted = (torch.rand(one.shape[:2]) < 0.7 for one in (bboxes, candidates))
        assigner = MaxIoUAssigner(0.7, 0.3, min_pos_iou=0.3, match_low_quality=low_quality)
        for given in (candidates, candidates[:1].expand(3, -1, -1)):
            best, nearest, claimed = assign_on_gpu(bboxes, present, given, counted, assigner)
            overlaps = overlaps_between(bboxes, given)
            overlaps = overlaps.masked_fill(~(present[:, :, None] & counted[:, None]), -1.0)
            if not num_candidates:
                continue
            expected, index = overlaps.max(dim=1)
            assert torch.equal(best, expected) and torch.equal(nearest.long()[best >= 0], index[best >= 0])
            most = overlaps.amax(dim=2, keepdim=True)
            claims = (overlaps == most) & (most >= 0.3) & present[:, :, None] & low_quality
            numbers = torch.arange(1, num_objects + 1)[:, None]
            assert torch.equal(claimed.long(), torch.where(claims, numbers, 0).amax(dim=1))
"""


@pytest.mark.parametrize(
    "program", [SUPPRESSION, ROI_FEATURES, ASSIGNMENT], ids=["suppression", "RoI features", "assignment"]
)
def test_what_is_written_for_a_gpu_does_the_same(program: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, env=environment)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("counts", [(3, 7, 1), (0, 9, 2), (0, 0, 0)])
def test_roi_losses_and_gradients_are_those_of_mmdet(counts: tuple[int, ...], agnostic: bool) -> None:
    stock, fast = roi_heads(agnostic, num=EVERYTHING)
    gt_bboxes, gt_labels, gt_masks = objects_of(counts)
    proposals = [near_and_far(one, *shape) for one, shape in zip(gt_bboxes, SHAPES, strict=True)]
    seen = []
    packed = [PackedMasks.pack(masks) for masks in gt_masks]
    for head, given_, masks in (
        (stock, proposals, gt_masks),
        (fast, proposals, gt_masks),
        (fast, Proposals.pad(proposals), packed),
    ):
        torch.manual_seed(1)
        maps = [level.requires_grad_() for level in maps_of(3)]
        losses = head.forward_train(maps, metas_of(SHAPES), given_, gt_bboxes, gt_labels, gt_masks=masks)
        head.zero_grad()
        sum(value.sum() for name, value in losses.items() if "loss" in name).backward()
        numbers = {name: value.detach().reshape(()) for name, value in losses.items()}
        gradients = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
        gradients |= {f"map {level}": one.grad for level, one in enumerate(maps[:4])}
        seen.append(numbers | gradients)
    for other in seen[1:]:
        for name, value in seen[0].items():
            expected = torch.zeros_like(other[name]) if value is None else value
            torch.testing.assert_close(
                other[name], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m
            )


@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_a_fast_config_has_the_published_detector(variant: str) -> None:
    folder = Path(__file__).parents[2] / "configs"
    name = f"maskrcnn_DFvT_{variant}_1x_coco.py"
    published, fast = (load_config(folder / kind / name) for kind in ("DFvT", "fast"))
    assert fast.model == published.model
    assert fast.data == published.data
    assert fast.optimizer == published.optimizer
    changed = {key for key in fast if fast[key] != published.get(key)}
    assert changed == {
        *("fast_heads", "normalize_on_device", "channels_last", "canvases", "group_by_canvas", "cuda_graphs")
    }


def test_a_batch_without_proposals_learns_from_its_objects() -> None:
    _, fast = roi_heads()
    gt_bboxes, gt_labels, gt_masks = objects_of((3, 0, 1))
    none = [torch.zeros(0, 5)] * 3
    losses = fast.forward_train(maps_of(3), metas_of(SHAPES), none, gt_bboxes, gt_labels, gt_masks=gt_masks)
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert losses["loss_bbox"] > 0 and losses["loss_mask"] > 0


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31), counts=st.tuples(*[st.integers(0, 9)] * 3), num=st.sampled_from([4, 16, 64])
)
def test_sampled_regions_keep_their_object_and_class(seed: int, counts: tuple[int, ...], num: int) -> None:
    torch.manual_seed(seed)
    _, fast = roi_heads(num=num)
    gt_bboxes, gt_labels, _ = objects_of(counts)
    proposals = [near_and_far(one, *shape) for one, shape in zip(gt_bboxes, SHAPES, strict=True)]
    regions = fast.sample(Proposals.pad(proposals), pad_objects(gt_bboxes, gt_labels))
    for image in range(3):
        candidates = torch.cat([gt_bboxes[image], proposals[image][:, :4]])
        for slot in regions.samples.valid[image].nonzero().squeeze(1).tolist():
            bbox = regions.bboxes[image, slot]
            assert (candidates == bbox).all(dim=1).any()
            if not regions.samples.positive[image, slot]:
                assert regions.labels[image, slot] == 5
                continue
            index = regions.gt_index[image, slot]
            assert torch.equal(regions.gt_bboxes[image, slot], gt_bboxes[image][index])
            assert regions.labels[image, slot] == gt_labels[image][index]
            assert bbox_overlaps(bbox[None], gt_bboxes[image][index][None]).item() >= 0.5


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("scale", [None, 1.3])
def test_roi_features_are_those_of_mmdet(sampling_ratio: int, scale: float | None) -> None:
    stock, fast = roi_heads(sampling_ratio=sampling_ratio)
    rois = torch.cat([torch.arange(60)[:, None] % 3, random_bboxes(60, 400, 600)], dim=1)
    extractor = stock.bbox_roi_extractor
    assert len(extractor.map_roi_levels(rois, 4).unique()) > 2
    for number in (4, 1):
        maps = maps_of(3)[:number]
        features = fast.bbox_roi_extractor(maps, rois, roi_scale_factor=scale)
        torch.testing.assert_close(features, extractor(maps, rois, roi_scale_factor=scale))


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("rpn_head", {"train_cfg.rpn.assigner.ignore_iof_thr": 0.5}, "FastRPNHead takes no ignore_iof_thr"),
        ("rpn_head", {"train_cfg.rpn.assigner.neg_iou_thr": (0.1, 0.3)}, "one number as neg_iou_thr"),
        ("rpn_head", {"train_cfg.rpn.sampler.neg_pos_ub": 3}, "FastRPNHead takes no neg_pos_ub"),
        (
            "rpn_head",
            {"train_cfg.rpn.sampler.type": "InstanceBalancedPosSampler"},
            "not InstanceBalancedPosSampler",
        ),
        ("rpn_head", {"rpn_head.reg_decoded_bbox": True}, "no decoded boxes"),
        ("rpn_head", {"rpn_head.bbox_coder.add_ctr_clamp": True}, "without add_ctr_clamp"),
        ("roi_head", {"train_cfg.rcnn.sampler.neg_pos_ub": 3}, "FastRoIHead takes no neg_pos_ub"),
        ("roi_head", {"roi_head.bbox_head.reg_decoded_bbox": True}, "takes no decoded boxes"),
        ("roi_head", {"roi_head.mask_roi_extractor": None}, "takes no mask head without an extractor"),
        (
            "roi_head",
            {"roi_head.mask_head.loss_mask": {"_delete_": True, "type": "DiceLoss"}},
            "other than cross entropy",
        ),
    ],
)
def test_what_the_fast_heads_do_not_do_is_refused(part: str, options: dict[str, Any], message: str) -> None:
    cfg = copy.deepcopy(CONFIG)
    cfg.merge_from_dict({f"model.{key}": value for key, value in options.items()})
    model, name = cfg.model, {"rpn_head": "rpn", "roi_head": "rcnn"}[part]
    model[part].type = {"rpn_head": "FastRPNHead", "roi_head": "FastRoIHead"}[part]
    with pytest.raises(ValueError, match=message):
        build_head({**model[part], "train_cfg": model.train_cfg[name], "test_cfg": model.test_cfg[name]})


@pytest.mark.parametrize("published", [True, False])
def test_a_detector_with_fast_heads_has_the_losses_of_one_without(config: Config, published: bool) -> None:
    config.model.train_cfg.rpn.sampler.num = config.model.train_cfg.rcnn.sampler.num = EVERYTHING
    if published:  # mmcv's RoIAlign, a box for each class
        config.model.roi_head.bbox_head.reg_class_agnostic = False
        for name in ("bbox_roi_extractor", "mask_roi_extractor"):
            config.model.roi_head[name].roi_layer.update(use_torchvision=False, sampling_ratio=0)
    dataset = build_coco_dataset(config.data.train, test_mode=False)
    (batch, *_) = build_train_loader(dataset, EpochBatchSampler(dataset.flag, 2, seed=0), 0)
    seen = []
    for fast in (False, True):
        seed_everything(0)
        config.fast_heads = fast
        model = build_model(config, dataset.CLASSES, torch.device("cpu")).train()
        assert isinstance(model.rpn_head, FastRPNHead) is isinstance(model.roi_head, FastRoIHead) is fast
        results = model.train_step(to_device(batch.inputs, torch.device("cpu")), None)
        results["loss"].backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        seen.append((results["log_vars"], gradients))
    assert seen[1][0] == pytest.approx(seen[0][0], rel=1e-4)
    largest = max(gradient.norm() for gradient in seen[0][1].values())
    for name, gradient in seen[0][1].items():
        # a bias before BatchNorm has no gradient but rounding
        assert (seen[1][1][name] - gradient).norm() < 1e-3 * gradient.norm() + 1e-6 * largest, name


def test_heads_of_another_kind_are_not_made_fast(config: Config) -> None:
    config.fast_heads = True
    config.model.roi_head.type = "DoubleHeadRoIHead"
    with pytest.raises(ValueError, match="fast_heads knows no DoubleHeadRoIHead"):
        build_model(config, ("thing",), torch.device("cpu"))


def test_the_kernels_compile_for_a_hopper_gpu() -> None:
    """On a machine without one: Triton's interpreter takes what its compiler refuses."""
    pytest.importorskip("triton", reason="Triton comes with torch for Linux alone")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from dfvt.models import assignment, roi_features, suppression

    covered = {"bboxes": "*fp32", "words": "*i64", "num_bboxes": "i32", "num_words": "i32"}
    order = {"words": "*i64", "valid": "*i8", "keep": "*i8", "num_bboxes": "i32", "num_words": "i32"}
    rois = {"rois": "*fp32", "levels": "*i32", "sizes": "*fp32"}
    maps_of_half, maps_of_float = ({f"map_{i}": kind for i in range(4)} for kind in ("*fp16", "*fp32"))
    channels = {"num_channels": 256, "num_bins": 7}
    pairs = {"candidates": "*fp32", "counted": "*i8", "objects": "*fp32", "present": "*i8"}
    pairs |= {"best_of_object": "*i32"}
    numbers = {"num_candidates": "i32", "candidates_stride": "i32", "num_objects": "i32", "epsilon": "fp32"}
    for kernel, signature, constants in (
        (suppression.note_covered, {**covered, "iou_threshold": "fp32"}, {"num_bits": 64}),
        (suppression.choose_in_order, order, {"num_bits": 64, "width": 16}),
        (assignment.find_best, {**pairs, "best": "*fp32", "nearest": "*i32", **numbers}, {"block": 256}),
        (
            assignment.find_claims,
            {**pairs, "claimed": "*i32", **numbers, "min_overlap": "fp32"},
            {"block": 256},
        ),
        (roi_features.pool, {**rois, **maps_of_half, "out": "*fp16"}, channels),
        (roi_features.spread, {**rois, **maps_of_float, "given": "*fp16"}, channels),
    ):
        signature = {**signature, **dict.fromkeys(constants, "constexpr")}
        compiled = compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"]


@pytest.mark.skipif(not COCO128.is_dir(), reason=f"{COCO128} is absent (DFVT_COCO128 names another place)")
def test_mask_targets_of_real_objects_are_those_of_mmdet() -> None:
    cfg = copy.deepcopy(CONFIG.data.train)
    cfg.ann_file = str(COCO128 / "annotations/instances_train2017.json")
    cfg.img_prefix = str(COCO128 / "train2017")
    dataset = build_coco_dataset(cfg, test_mode=False)
    torch.manual_seed(0)
    different = total = 0
    for index in range(0, len(dataset), 8):
        sample = dataset[index]
        gt_bboxes, masks = sample["gt_bboxes"].data, sample["gt_masks"].data
        gt_index = torch.arange(len(gt_bboxes)).repeat(4)
        bboxes = gt_bboxes[gt_index] + torch.randn(len(gt_index), 4) * 4
        bboxes[:, 2:] = torch.maximum(bboxes[:, 2:], bboxes[:, :2] + 1)
        expected = mask_target([bboxes], [gt_index], [masks], ConfigDict(mask_size=28))
        found = mask_targets(bboxes[None], gt_index[None], [PackedMasks.pack(masks)], 28) >= 0.5
        different += int((found != expected.bool()).sum())
        total += found.numel()
    assert total > 28 * 28 * 100
    assert different <= 0.005 * total
