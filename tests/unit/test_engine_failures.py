"""What goes wrong in a training is said in one sentence, and left out if that was asked for."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv import Config, ConfigDict
from PIL import Image
from torch import Tensor

from dfvt.data.loading import EpochBatchSampler, build_train_loader
from dfvt.data.samples import SampleKey, SeededDataset
from dfvt.engine.callbacks import Callback, StepRecord
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.failures import FailurePolicy, explained_failures, explained_loading, failure_policy_of
from dfvt.engine.runner import DetectorRunner
from dfvt.engine.train import train


class Warnings(Callback):
    """Keeps warnings, and the iterations that were recorded."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[int] = []

    def on_warning(self, message: str) -> None:
        self.messages.append(message)

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record.step)


def break_losses(monkeypatch: pytest.MonkeyPatch, iterations: set[int]) -> None:
    """Makes the loss of these iterations, counted from 1, NaN."""
    gather = DetectorRunner.gather_gradients

    def gather_broken(runner: DetectorRunner, parts: list[dict[str, Any]]) -> Any:
        if runner.iter + 1 in iterations:
            for part in parts:
                part["img"] = torch.full_like(part["img"], float("nan"))
        return gather(runner, parts)

    monkeypatch.setattr(DetectorRunner, "gather_gradients", gather_broken)


def spoiled(image: Path, content: bytes) -> Path:
    """The image's file with other content."""
    image.write_bytes(content)
    return image


def copied_images(config: Config, folder: Path) -> list[Path]:
    """Makes the config train on copies of its images, which are returned."""
    folder.mkdir()
    for path in sorted(Path(config.data.train.img_prefix).iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    config.data.train.img_prefix = str(folder)
    return sorted(folder.iterdir())


def test_a_training_that_diverges_stops_with_one_sentence(config: Config, tmp_path: Path) -> None:
    config.optimizer.lr = 1e30
    config.lr_config.warmup = None
    config.failures = {"nonfinite_losses": 2}
    with pytest.raises(
        RuntimeError, match=r"diverged.*2 times in a row in iteration [34] at .*lower"
    ) as error:
        train(config, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_is_left_out_and_told_with_its_images(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, {3, 6})
    config.failures = {"nonfinite_losses": 2}
    config.log_config.interval = 1
    listener = Warnings()
    train(config, tmp_path, callbacks=[listener])
    assert listener.steps == [1, 2, 4, 5, 7, 8]
    first, second, last = listener.messages
    assert last == "2 iterations were left out, as their losses are not finite"
    assert "iteration 3 at learning rate 0.000" in first
    assert "loss nan" in first
    assert first.count(".jpg") == 2
    assert "iteration 6" in second


def test_a_training_whose_last_losses_are_not_finite_has_failed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, {6, 7, 8})
    for _ in range(2):  # started again, it has nothing left to do, and has failed all the same
        with pytest.raises(RuntimeError, match="diverged, its last 3 losses are not finite: lower"):
            train(config, tmp_path)
    assert not (tmp_path / "checkpoint.pth").exists()


def test_a_row_of_them_as_long_as_allowed_ends_the_training(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, {2, 4, 5, 6})
    config.failures = {"nonfinite_losses": 3}
    with pytest.raises(RuntimeError, match="3 times in a row in iteration 6"):
        train(config, tmp_path)


def test_the_policy_is_checked() -> None:
    assert failure_policy_of(Config({})) == FailurePolicy(10, "stop")
    assert failure_policy_of(Config({"failures": {"nonfinite_losses": None}})).nonfinite_losses is None
    for section, message in (
        ({"nonfinite_losses": 0}, "from 1"),
        ({"unreadable_images": "ignore"}, "'stop' or 'skip'"),
        ({"typo": 1}, "alone"),
    ):
        with pytest.raises(ValueError, match=message):
            failure_policy_of(Config({"failures": section}))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut"])
def test_an_unreadable_image_is_named(
    config: Config, tmp_path: Path, content: bytes, num_workers: int
) -> None:
    image = spoiled(copied_images(config, tmp_path / "images")[2], content)
    config.data.workers_per_gpu = num_workers
    with pytest.raises(ValueError, match=rf"^image .*{image.name} cannot be .*unreadable_images='skip'$"):
        train(config, tmp_path / "work")


def test_an_unreadable_image_is_replaced_and_told_if_that_is_asked_for(
    config: Config, tmp_path: Path
) -> None:
    image = spoiled(copied_images(config, tmp_path / "images")[2], b"no image")
    config.failures = {"unreadable_images": "skip"}
    listener = Warnings()
    train(config, tmp_path / "work", callbacks=[listener])
    assert len(listener.messages) == config.runner.max_epochs
    assert all(image.name in message for message in listener.messages)


def test_the_replacement_has_the_same_orientation(config: Config, tmp_path: Path) -> None:
    image = spoiled(copied_images(config, tmp_path / "images")[0], b"")
    dataset = build_coco_dataset(config.data.train, test_mode=False)
    index = [info["filename"] for info in dataset.data_infos].index(image.name)
    dataset.flag = np.array([i % 2 for i in range(len(dataset))])
    sample = SeededDataset(dataset, skip_unreadable=True)[SampleKey(index, 1)]
    (problem,) = sample.unreadable
    assert image.name in problem
    name = sample.data["img_metas"].data["ori_filename"]
    replacement = [info["filename"] for info in dataset.data_infos].index(name)
    assert dataset.flag[replacement] == dataset.flag[index]


def test_a_mistake_of_the_pipeline_is_not_blamed_on_the_image(config: Config) -> None:
    config.data.train.pipeline[-1]["keys"] = ["no_such_key"]
    dataset = build_coco_dataset(config.data.train, test_mode=False)
    with pytest.raises(KeyError, match="no_such_key"):
        SeededDataset(dataset, skip_unreadable=True)[SampleKey(0, 1)]


class Killer(torch.utils.data.Dataset):
    """Kills the process that asks it."""

    flag = np.zeros(4, int)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, _: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_that_dies_is_one_sentence() -> None:
    loader = build_train_loader(Killer(), EpochBatchSampler(Killer.flag, 2, seed=0), 1)
    with (
        pytest.raises(RuntimeError, match=r"a loader process died .*lower data.workers_per_gpu$"),
        explained_loading(),
    ):
        next(iter(loader))


def test_an_exhausted_gpu_is_one_sentence_with_the_shape() -> None:
    def exhaust() -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    images = torch.empty(4, 3, 800, 1344, device="meta")
    sentence = r"images of 4×3×800×1344: lower data.samples_per_gpu"
    with pytest.raises(RuntimeError, match=sentence), explained_failures(images):
        exhaust()


WRAPPERS: dict[str, Any] = {
    "repeated": lambda data: {"type": "RepeatDataset", "times": 2, "dataset": data},
    "balanced": lambda data: {"type": "ClassBalancedDataset", "oversample_thr": 0.9, "dataset": data},
    "joined": lambda data: {"type": "ConcatDataset", "datasets": [data, data]},
    "mixed": lambda data: {"type": "MultiImageMixDataset", "dataset": data, "pipeline": []},
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_an_unreadable_image_in_a_wrapper_is_named(config: Config, tmp_path: Path, wrap: Any) -> None:
    image = spoiled(copied_images(config, tmp_path / "images")[2], b"no image")
    dataset = build_coco_dataset(ConfigDict(wrap(config.data.train)), test_mode=False)
    samples = [SeededDataset(dataset)[SampleKey(index, 1)] for index in range(len(dataset))]
    problems = [problem for sample in samples for problem in sample.unreadable]
    assert problems and all(image.name in problem and "no image" in problem for problem in problems)
    assert all(bool(sample.unreadable) == (sample.data is None) for sample in samples)


def test_an_image_with_another_number_of_channels_is_named(config: Config, tmp_path: Path) -> None:
    image = copied_images(config, tmp_path / "images")[2]
    Image.open(image).convert("RGBA").save(image, format="png")
    config.data.train.pipeline[0].color_type = "unchanged"
    dataset = build_coco_dataset(config.data.train, test_mode=False)
    problems = [
        problem
        for index in range(len(dataset))
        for problem in SeededDataset(dataset)[SampleKey(index, 1)].unreadable
    ]
    (problem,) = problems
    assert (
        image.name in problem and "has 4 channels with color_type='unchanged', not the 3 of mean" in problem
    )


@pytest.mark.parametrize(("width", "height"), [(31, 64), (80, 31)])
def test_images_that_are_all_too_small_are_told(
    config: Config, tmp_path: Path, width: int, height: int
) -> None:
    content = json.loads(Path(config.data.train.ann_file).read_text())
    for image in content["images"]:
        image.update(width=width, height=height)
    (tmp_path / "small.json").write_text(json.dumps(content))
    config.data.train.ann_file = str(tmp_path / "small.json")
    with pytest.raises(
        ValueError, match=r"small\.json can be trained on: .* and 32 pixels in width and height"
    ):
        train(config, tmp_path / "work")


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_an_image_that_vanishes_at_the_size_of_the_test_images_is_told_before_the_training(
    config: Config, tmp_path: Path, size: tuple[int, int]
) -> None:
    content = json.loads(Path(config.data.val.ann_file).read_text())
    content["images"][2].update(width=size[0], height=size[1])
    (tmp_path / "narrow.json").write_text(json.dumps(content))
    config.data.val.ann_file = str(tmp_path / "narrow.json")
    name = content["images"][2]["file_name"]
    with pytest.raises(
        ValueError, match=rf"narrow\.json: the image {name} has {size[0]}×{size[1]} pixels; scaled"
    ):
        train(config, tmp_path / "work")
    assert not (tmp_path / "work" / "latest.pth").exists()
    build_coco_dataset(config.data.val, test_mode=False)  # such an image may be there for training


def test_a_wrapper_around_what_is_validated_is_told_before_the_training(
    config: Config, tmp_path: Path
) -> None:
    config.data.val = ConfigDict(type="RepeatDataset", times=2, dataset=config.data.val)
    with pytest.raises(
        ValueError, match=r"data\.val is a RepeatDataset: COCO's evaluation needs one data set"
    ):
        train(config, tmp_path)
    assert not (tmp_path / "latest.pth").exists()
