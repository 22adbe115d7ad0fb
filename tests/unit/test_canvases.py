"""Batches of few shapes, and images that are normalised on the device: the same trainings, other traffic."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmcv import Config, ConfigDict
from mmdet.core.mask import BitmapMasks
from mmdet.datasets import ConcatDataset, RepeatDataset

from dfvt.data.canvases import canvas_for, pad_to_canvas
from dfvt.data.forecast import forecast_shapes
from dfvt.data.loading import EpochBatchSampler, build_train_loader, forecast_in_processes
from dfvt.data.masks import PackedMasks
from dfvt.data.samples import SampleKey, SeededDataset
from dfvt.engine.callbacks import Callback, StepRecord
from dfvt.engine.config import load_config
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.images import images_of
from dfvt.engine.train import train

PROJECT = Path(__file__).parents[2]
sides = st.integers(1, 40)
canvas_lists = st.lists(st.tuples(sides, sides), min_size=1, max_size=5)


@given(height=sides, width=sides, canvases=canvas_lists)
def test_a_batch_gets_the_smallest_canvas_that_holds_it(
    height: int, width: int, canvases: list[tuple[int, int]]
) -> None:
    areas = [h * w for h, w in canvases if h >= height and w >= width]
    if not areas:
        with pytest.raises(ValueError, match=f"holds a batch of {height}x{width} pixels"):
            canvas_for(height, width, canvases)
        return
    images = torch.rand(2, 3, height, width) + 1
    padded = pad_to_canvas(images, canvases)
    assert padded.shape[2] * padded.shape[3] == min(areas)
    assert torch.equal(padded[..., :height, :width], images)
    assert padded.count_nonzero() == images.numel()


def batches_of(config: Config, data: ConfigDict, **options: Any) -> list[Any]:
    dataset = build_coco_dataset(copy.deepcopy(data), test_mode=False)
    loader = build_train_loader(dataset, EpochBatchSampler(dataset.flag, 2, seed=3), 0, **options)
    return [batch.inputs for batch in loader]


@pytest.mark.parametrize("to_rgb", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_images_normalised_on_the_device_are_those_of_the_pipeline(
    config: Config, to_rgb: bool, wrapped: bool
) -> None:
    config.data.train.pipeline[4].update(mean=[100.0, 110.5, 120.25], std=[50.0, 60.5, 70.25], to_rgb=to_rgb)
    if wrapped:
        config.data.train = ConfigDict(type="RepeatDataset", times=1, dataset=config.data.train)
    config.normalize_on_device = True
    data, prepare = images_of(config)
    expected, bytes_ = batches_of(config, config.data.train), batches_of(config, data)
    assert len(expected) > 1
    for one, other in zip(expected, bytes_, strict=True):
        assert other["img"].dtype == torch.uint8
        torch.testing.assert_close(prepare(other)["img"], one["img"], rtol=1e-6, atol=1e-6)


def test_padding_of_normalised_images_is_zero(config: Config) -> None:
    config.normalize_on_device = True
    data, prepare = images_of(config)
    for inputs in batches_of(config, data, canvases=[(256, 288)]):
        images = prepare(inputs)["img"]
        assert images.shape[-2:] == (256, 288)
        for image, meta in zip(images, inputs["img_metas"], strict=True):
            height, width, _ = meta["img_shape"]
            assert image[:, height:].count_nonzero() == image[:, :, width:].count_nonzero() == 0
            assert image[:, :height, :width].count_nonzero() > 0


class Losses(Callback):
    def __init__(self) -> None:
        self.noted: list[float] = []

    def on_step(self, record: StepRecord) -> None:
        self.noted.append(record.losses["loss"])


def losses_of(config: Config, folder: Path, **options: Any) -> list[float]:
    config, losses = copy.deepcopy(config), Losses()
    config.merge_from_dict(
        {
            "log_config.interval": 1,
            "runner.max_epochs": 1,
            "evaluation.interval": 0,
            "checkpoint_config.interval": 0,
            **options,
        }
    )
    train(config, folder, callbacks=[losses])
    return losses.noted


def test_a_training_learns_the_same_from_images_that_travel_as_bytes(config: Config, tmp_path: Path) -> None:
    expected = losses_of(config, tmp_path / "plain")
    options = {"normalize_on_device": True, "channels_last": True}
    assert len(expected) > 1
    assert losses_of(config, tmp_path / "bytes", **options) == pytest.approx(expected, rel=0.02)


def test_a_batch_that_no_canvas_holds_ends_the_training_in_a_sentence(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no canvas of 32x32 holds a batch of"):
        losses_of(config, tmp_path, canvases=[(32, 32)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: steps.pop(4), "data.train has none"),
        (
            lambda steps: steps.insert(5, {"type": "PhotoMetricDistortion"}),
            "what PhotoMetricDistortion comes",
        ),
    ],
)
def test_a_normalize_that_cannot_be_moved_is_refused(config: Config, change: Any, message: str) -> None:
    config.normalize_on_device = True
    change(config.data.train.pipeline)
    with pytest.raises(ValueError, match=message):
        images_of(config)


@given(num=st.integers(0, 4), height=sides, width=sides, seed=st.integers(0, 99))
def test_packed_masks_are_the_masks(num: int, height: int, width: int, seed: int) -> None:
    bitmaps = np.random.default_rng(seed).integers(0, 2, (num, height, width), dtype=np.uint8)
    packed = PackedMasks.pack(BitmapMasks(bitmaps, height, width))
    assert (len(packed), packed.height, packed.width) == (num, height, width)
    assert packed.bits.numel() == num * height * -(-width // 8)
    assert torch.equal(packed.to(torch.device("cpu")).unpack(), torch.from_numpy(bitmaps))


def test_a_training_with_fast_heads_learns_as_well(config: Config, tmp_path: Path) -> None:
    options: dict[str, Any] = {"canvases": [(160, 160)], "runner.max_epochs": 6}
    stock = losses_of(config, tmp_path / "stock", **options)
    fast = losses_of(config, tmp_path / "fast", fast_heads=True, normalize_on_device=True, **options)
    assert fast[0] == pytest.approx(stock[0], rel=0.05)  # but for the samples that the heads draw
    assert np.mean(fast[-4:]) == pytest.approx(np.mean(stock[-4:]), rel=0.1)
    assert np.mean(fast[-4:]) < 0.9 * fast[0]


def test_cudnn_may_look_for_the_fastest_algorithms(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    during: list[bool] = []
    monkeypatch.setattr(Losses, "on_start", lambda self, start: during.append(torch.backends.cudnn.benchmark))
    losses_of(config, tmp_path / "silent")
    losses_of(config, tmp_path / "asked", cudnn_benchmark=True)
    assert during == [False, True]
    assert not torch.backends.cudnn.benchmark, "the process is left as it was"


def wrap(dataset: Any, how: str) -> Any:
    if how == "repeated":
        return RepeatDataset(dataset, 3)
    return ConcatDataset([dataset, dataset]) if how == "joined" else dataset


@pytest.mark.parametrize("how", ["plain", "repeated", "joined"])
def test_shapes_are_forecast_without_a_pixel(config: Config, how: str) -> None:
    published = load_config(PROJECT / "configs/DFvT/maskrcnn_DFvT_tiny_1x_coco.py")
    for divisor, pipeline in ((4, published.data.train.pipeline), (1, config.data.train.pipeline)):
        config.data.train.pipeline = smaller(pipeline, divisor)
        dataset = wrap(build_coco_dataset(copy.deepcopy(config.data.train), test_mode=False), how)
        forecast, seen = forecast_shapes(dataset), set()
        samples = SeededDataset(dataset)
        for seed in range(40):
            key = SampleKey((seed * 7) % len(dataset), seed)
            (shape,) = forecast([key])
            seen.add(shape)
            assert samples[key].data["img"].data.shape[1:] == shape
        assert len(seen) > 5 or divisor == 1


@pytest.mark.parametrize(
    "pad",
    [{"size": (200, 240)}, {"size_divisor": 32}, {"pad_to_square": True}],
    ids=lambda pad: next(iter(pad)),
)
def test_padding_of_every_kind_is_forecast(config: Config, pad: dict[str, Any]) -> None:
    steps = config.data.train.pipeline
    place = next(index for index, step in enumerate(steps) if step.type == "Pad")
    steps[place] = {"type": "Pad", **pad}
    dataset = build_coco_dataset(copy.deepcopy(config.data.train), test_mode=False)
    samples, keys = SeededDataset(dataset), [SampleKey(image, 7 * image) for image in range(6)]
    shapes = [samples[key].data["img"].data.shape[1:] for key in keys]
    assert forecast_shapes(dataset)(keys) == shapes


def smaller(steps: Any, divisor: int) -> Any:
    """A pipeline's steps for small images."""
    if isinstance(steps, dict):
        return type(steps)(
            {
                key: shrunk(value, divisor) if key in ("img_scale", "crop_size") else smaller(value, divisor)
                for key, value in steps.items()
            }
        )
    return [smaller(one, divisor) for one in steps] if isinstance(steps, list) else steps


def shrunk(value: Any, divisor: int) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(shrunk(one, divisor) for one in value)
    return value // divisor


@given(
    canvases=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 3),
)
def test_a_batch_holds_samples_of_canvases_that_follow_each_other(
    canvases: list[int], batch_size: int, world_size: int
) -> None:
    def sampler(rank: int) -> EpochBatchSampler:
        one = EpochBatchSampler(
            np.zeros(len(canvases), dtype=int),
            batch_size,
            seed=1,
            rank=rank,
            world_size=world_size,
            canvases_of=lambda keys: [canvases[key.image] for key in keys],
        )
        one.set_position(2)
        return one

    parts = [list(sampler(rank)) for rank in range(world_size)]
    assert {len(part) for part in parts} == {-(-len(canvases) // (batch_size * world_size))}
    assert sampler(0).num_batches == len(parts[0])
    batches = [[key for share in shares for key in share] for shares in zip(*parts, strict=True)]
    images = [key.image for batch in batches for key in batch]
    counts = np.bincount(images, minlength=len(canvases))
    assert counts.min() >= 1 and counts.max() - counts.min() <= 1
    spans = sorted((min(c), max(c)) for c in ([canvases[key.image] for key in batch] for batch in batches))
    for (_, last), (first, _) in pairwise(spans):
        assert first >= last  # sorted by canvas, they do not overlap
    whole = list(sampler(0))
    later = sampler(0)
    later.set_position(2, len(whole) // 2)
    assert list(later) == whole[len(whole) // 2 :]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("number", [0, 1, 7, 8, 29])
def test_processes_forecast_what_one_would(num_workers: int, number: int) -> None:
    keys = [SampleKey(index, 7 * index) for index in range(number)]

    def forecast(some: Sequence[SampleKey]) -> list[int]:
        return [key.image + key.seed for key in some]

    assert forecast_in_processes(forecast, num_workers, part_size=4)(keys) == forecast(keys)


def test_a_training_goes_by_canvases(config: Config, tmp_path: Path) -> None:
    options = {"group_by_canvas": True, "canvases": [(96, 160), (128, 160), (160, 160)]}
    assert np.isfinite(losses_of(config, tmp_path, **options)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs canvases to group by"),
        ({"canvases": [(160, 160)], "data.train.pipeline.2.type": "Expand"}, "what Expand does"),
        ({"canvases": [(32, 32)]}, "no canvas of 32x32 holds"),
    ],
)
def test_what_cannot_be_forecast_is_refused(
    config: Config, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    if "data.train.pipeline.2.type" in options:
        options = {key: value for key, value in options.items() if key == "canvases"}
        config.data.train.pipeline.insert(2, {"type": "Expand"})
    with pytest.raises(ValueError, match=message):
        losses_of(config, tmp_path, group_by_canvas=True, **options)
