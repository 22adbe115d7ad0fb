"""Loading of training batches in an order that depends on nothing but the seed.

The augmentation of an image is a function of (seed, epoch, image), and the order of the images one of the
seed, the epoch and the global batch: loader workers change neither, nor does dividing the same global batch
between processes. Any iteration can be started at without reading what is before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmcv.parallel import collate
from torch.utils.data import DataLoader, Dataset, Sampler


class SampleKey(NamedTuple):
    """What a training sample is made from: the image's index, and the seed of its augmentation."""

    image: int
    seed: int


@contextmanager
def seeded_augmentation(seed: int) -> Iterator[None]:
    """Runs the body with Python's and NumPy's global generators seeded; restores their states afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class SeededDataset(Dataset):
    """An mmdet training data set that is asked for `SampleKey`s."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        with seeded_augmentation(key.seed):
            return self.dataset[key.image]


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """This process's share of each global batch of an epoch.

    As in mmdet, a batch holds images of one orientation only, and each orientation is filled up to whole
    batches by repeating images of it.

    Args:
        groups: orientation of each image (mmdet's `dataset.flag`), integers of shape (num_images,).
        batch_size: images of a batch in each process.
        seed: of the order and of the augmentation.
        rank, world_size: this process among how many.
    """

    def __init__(
        self, groups: np.ndarray, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.groups = np.asarray(groups)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Chooses the epoch, and the iteration inside it that the next pass begins with."""
        self.epoch, self.start = epoch, start

    @property
    def num_batches(self) -> int:
        """Iterations of a whole epoch."""
        global_batch = self.batch_size * self.world_size
        return int(sum(-(-count // global_batch) for count in np.bincount(self.groups)))

    def __len__(self) -> int:
        return self.num_batches - self.start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        global_batch = self.batch_size * self.world_size
        batches: list[
            np.ndarray
        ] = []  # each (global_batch, 2): image, and how often it came before in the epoch
        for group in np.unique(self.groups):
            indices = rng.permutation(np.flatnonzero(self.groups == group))
            places = np.arange(-(-len(indices) // global_batch) * global_batch)
            samples = np.stack([indices[places % len(indices)], places // len(indices)], axis=1)
            batches.extend(samples.reshape(-1, global_batch, 2))
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for position in rng.permutation(len(batches))[self.start :]:
            yield [self.sample_key(int(index), int(repeat)) for index, repeat in batches[position][own]]

    def sample_key(self, index: int, repeat: int) -> SampleKey:
        """Image `index`, which came `repeat` times before in this epoch, with a seed (32 bits) of its own."""
        sequence = np.random.SeedSequence((self.seed, self.epoch, index, repeat))
        return SampleKey(index, int(sequence.generate_state(1)[0]))


def limit_threads(_: int) -> None:
    """Keeps a loader worker to one thread; OpenCV's and OpenMP's pools would trample each other."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def own_generator() -> torch.Generator:
    """A generator for a loader, which would otherwise draw a number from the global one at each pass.

    With it, how often the validation images are evaluated does not change the training.
    """
    return torch.Generator().manual_seed(0)


def build_train_loader(
    dataset: Any, sampler: EpochBatchSampler, num_workers: int, pin_memory: bool
) -> DataLoader:
    """Loader of mmcv-collated batches of an mmdet training data set; 0 workers load in this process."""
    return DataLoader(
        SeededDataset(dataset),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=partial(collate, samples_per_gpu=sampler.batch_size),
        pin_memory=pin_memory,
        worker_init_fn=limit_threads,
        generator=own_generator(),
    )


def build_test_loader(dataset: Any, indices: Sequence[int], num_workers: int) -> DataLoader:
    """Loader of single test images of an mmdet data set, those of `indices` in their order."""
    return DataLoader(
        torch.utils.data.Subset(dataset, indices),
        batch_size=1,
        num_workers=num_workers,
        collate_fn=partial(collate, samples_per_gpu=1),
        worker_init_fn=limit_threads,
        generator=own_generator(),
    )
