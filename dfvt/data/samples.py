"""Training samples: the augmentation seeded by image, and images that cannot be read found out by name."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmcv.parallel import DataContainer, collate
from torch.utils.data import Dataset

from dfvt.data.canvases import Canvas, pad_to_canvas
from dfvt.data.decoding import decode
from dfvt.data.masks import PackedMasks


class SampleKey(NamedTuple):
    """What a training sample is made from: the image's index, and the seed of its augmentation."""

    image: int
    seed: int


class Sample(NamedTuple):
    """What the pipeline made, None if it could not; `unreadable` says for each image that failed why."""

    data: Any
    unreadable: list[str]


class Batch(NamedTuple):
    """Collated inputs of `train_step`; None if an image could not be read. `unreadable` as in `Sample`."""

    inputs: dict[str, Any] | None
    unreadable: list[str]


def seed_augmentation(seed: int) -> None:
    """Seeds what the steps of a pipeline draw from: Python's and NumPy's global generators."""
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Runs the body, and restores the states of Python's and NumPy's global generators afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def seeded_augmentation(seed: int) -> Iterator[None]:
    """Runs the body with the generators of `seed_augmentation` seeded; restores their states afterwards."""
    with kept_generators():
        seed_augmentation(seed)
        yield


class SeededDataset(Dataset):
    """An mmdet training data set that is asked for `SampleKey`s.

    Args:
        dataset: mmdet's.
        skip_unreadable: whether the next image of the same orientation takes the place of one that cannot be
            read; without it the sample has no data.
    """

    def __init__(self, dataset: Any, *, skip_unreadable: bool = False) -> None:
        self.dataset = dataset
        self.CLASSES = getattr(dataset, "CLASSES", None)  # mmdet's NumClassCheckHook looks here
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Sample:
        unreadable: list[str] = []
        for index in self.candidates(key.image):
            with seeded_augmentation(key.seed):
                try:
                    return Sample(self.dataset[index], unreadable)
                except Exception:
                    problem = reading_problem(self.dataset, index)
                    if problem is None:  # not the image's fault
                        raise
                    unreadable.append(problem)
        return Sample(None, unreadable)

    def candidates(self, index: int) -> Iterator[int]:
        """The image itself and, if others may take its place, those of its orientation that follow."""
        yield index
        if self.skip_unreadable:
            flags = self.dataset.flag
            others = np.roll(np.arange(len(flags)), -index)[1:]
            yield from map(int, others[flags[others] == flags[index]])


class TestImages(Dataset):
    """The images of `indices` of an mmdet test data set, in their order, as `Sample`s."""

    __test__ = False  # pytest takes it for a test

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Sample:
        index = self.indices[place]
        try:
            return Sample(self.dataset[index], [])
        except Exception:
            problem = reading_problem(self.dataset, index)
            if problem is None:
                raise
            return Sample(None, [problem])


def reading_problem(dataset: Any, index: int) -> str | None:
    """Say why an mmdet data set's image cannot be read, None if it can (or is none of a file).

    An image whose number of colours is not that which the pipeline normalises is a problem, too: with
    `color_type="unchanged"` the file decides how many there are.
    """
    dataset, index = image_of(dataset, index)
    infos = getattr(dataset, "data_infos", None)
    if infos is None:
        return None
    path = Path(dataset.img_prefix or "", infos[index]["filename"])
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", ())
    color_type = next((step.color_type for step in steps if hasattr(step, "color_type")), "color")
    try:
        image = decode(path.read_bytes(), color_type)
    except OSError as error:
        return f"image {path} cannot be read: {error.strerror or type(error).__name__}"
    except ValueError as error:
        return f"image {path} cannot be read: {error}"
    wanted = next((np.size(step.mean) for step in steps if hasattr(step, "mean")), None)
    colours = 1 if image.ndim == 2 else image.shape[2]
    if wanted and wanted != colours:
        return f"image {path} has {colours} channels with color_type={color_type!r}, not the {wanted} of mean"
    return None


def image_of(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set inside of mmdet's wrappers that a sample comes from, and the image's place there."""
    while True:
        if hasattr(dataset, "repeat_indices"):  # ClassBalancedDataset
            dataset, index = dataset.dataset, dataset.repeat_indices[index]
        elif hasattr(dataset, "times"):  # RepeatDataset
            dataset, index = dataset.dataset, index % len(dataset.dataset)
        elif hasattr(dataset, "cumulative_sizes"):  # ConcatDataset
            part = bisect_right(dataset.cumulative_sizes, index)
            index -= dataset.cumulative_sizes[part - 1] if part else 0
            dataset = dataset.datasets[part]
        elif hasattr(dataset, "dataset"):  # MultiImageMixDataset, whose first image it is
            dataset = dataset.dataset
        else:
            return dataset, index


def collate_samples(
    samples: list[Sample], canvases: Sequence[Canvas] = (), *, pack_masks: bool = False
) -> Batch:
    """mmcv's batch without its containers, so that tensors can be pinned.

    It is padded to the smallest of `canvases` that holds it, if there are any, and bitmaps of objects are
    packed if they are to be.

    Raises:
        ValueError: no canvas holds the batch.
    """
    unreadable = [problem for sample in samples for problem in sample.unreadable]
    if any(sample.data is None for sample in samples):
        return Batch(None, unreadable)
    inputs = unpack(collate([sample.data for sample in samples], samples_per_gpu=len(samples)))
    if canvases:
        inputs["img"] = pad_to_canvas(inputs["img"], canvases)
    if pack_masks and "gt_masks" in inputs:
        inputs["gt_masks"] = [PackedMasks.pack(masks) for masks in inputs["gt_masks"]]
    return Batch(inputs, unreadable)


def unpack(batch: Any) -> Any:
    """A batch collated for one device without its `DataContainer`s."""
    if isinstance(batch, DataContainer):
        assert len(batch.data) == 1, "batches are collated for one device"
        return batch.data[0] if batch.cpu_only else unpack(batch.data[0])
    if isinstance(batch, dict):
        return {key: unpack(value) for key, value in batch.items()}
    if isinstance(batch, list):
        return [unpack(value) for value in batch]
    return batch
