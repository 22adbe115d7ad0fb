"""Loading of training batches in an order that depends on nothing but the seed.

The augmentation of an image is a function of (seed, epoch, image), and the order of the images one of the
seed, the epoch and the global batch: loader workers change neither, nor does dividing the same global batch
between processes. Any iteration can be started at without reading what is before it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dfvt.data.canvases import Canvas
from dfvt.data.samples import SampleKey, SeededDataset, TestImages, collate_samples

Forecast = Callable[[Sequence[SampleKey]], Sequence[int]]  # the number of the canvas that each will need


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """This process's share of each global batch of an epoch.

    As in mmdet, a batch holds images of one orientation only, and each orientation is filled up to whole
    batches by repeating images of it. With `canvases_of` a batch holds samples of one canvas instead, or of
    two that follow each other, and the last batch of all is filled up.

    Args:
        groups: orientation of each image (mmdet's `dataset.flag`), integers of shape (num_images,).
        batch_size: images of a batch in each process.
        num_parts: in how many equal parts each batch comes, for gradients that are gathered part by part.
        seed: of the order and of the augmentation.
        rank, world_size: this process among how many.
        canvases_of: the numbers of the canvases that samples will need.
    """

    def __init__(
        self,
        groups: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_parts: int = 1,
        canvases_of: Forecast | None = None,
    ) -> None:
        assert batch_size % num_parts == 0, (batch_size, num_parts)
        self.groups = np.asarray(groups)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_parts = num_parts
        self.canvases_of = canvases_of
        self.epoch = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Chooses the epoch, and the iteration inside it that the next pass begins with."""
        self.epoch, self.start = epoch, start

    @property
    def num_batches(self) -> int:
        """Iterations of a whole epoch."""
        global_batch = self.batch_size * self.world_size
        if self.canvases_of:
            return -(-len(self.groups) // global_batch)
        return int(sum(-(-count // global_batch) for count in np.bincount(self.groups)))

    def __len__(self) -> int:
        return (self.num_batches - self.start) * self.num_parts

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = self.batches_by_canvas(rng) if self.canvases_of else self.batches_by_orientation(rng)
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for position in rng.permutation(len(batches))[self.start :]:
            for part in np.split(batches[position][own], self.num_parts):
                yield [self.sample_key(int(index), int(repeat)) for index, repeat in part]

    def batches_by_orientation(self, rng: np.random.Generator) -> np.ndarray:
        """The epoch's batches, (num_batches, global_batch, 2): image, and how often it came before."""
        parts = [
            self.filled(rng.permutation(np.flatnonzero(self.groups == group)))
            for group in np.unique(self.groups)
        ]
        return np.concatenate(parts).reshape(-1, self.batch_size * self.world_size, 2)

    def batches_by_canvas(self, rng: np.random.Generator) -> np.ndarray:
        """As `batches_by_orientation`, in the order of the canvases that the samples need."""
        assert self.canvases_of
        samples = self.filled(rng.permutation(len(self.groups)))
        canvases = self.canvases_of([self.sample_key(int(index), int(repeat)) for index, repeat in samples])
        return samples[np.argsort(canvases, kind="stable")].reshape(-1, self.batch_size * self.world_size, 2)

    def filled(self, indices: np.ndarray) -> np.ndarray:
        """Samples (n, 2) of images up to whole batches: image, and how often it came before."""
        global_batch = self.batch_size * self.world_size
        places = np.arange(-(-len(indices) // global_batch) * global_batch)
        return np.stack([indices[places % len(indices)], places // len(indices)], axis=1)

    def sample_key(self, index: int, repeat: int) -> SampleKey:
        """Image `index`, which came `repeat` times before in this epoch, with a seed (32 bits) of its own."""
        sequence = np.random.SeedSequence((self.seed, self.epoch, index, repeat))
        return SampleKey(index, int(sequence.generate_state(1)[0]))


def start_worker(_: int) -> None:
    """Keeps a loader worker to one thread; OpenCV's and OpenMP's pools would trample each other.

    What the parent left for its garbage collector is not the worker's to free.
    """
    gc.freeze()
    gc.enable()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def own_generator() -> torch.Generator:
    """A generator for a loader, which would otherwise draw a number from the global one at each pass.

    With it, how often the validation images are evaluated does not change the training.
    """
    return torch.Generator().manual_seed(0)


class ForkingLoader(DataLoader):
    """A loader whose workers are forked, and share the annotations; 0 workers load in this process.

    Processes that were spawned themselves, as those of `--gpus N`, would spawn theirs, each with a copy and
    seconds of imports. A worker never collects its parent's garbage: memory that a GPU copied from or to,
    freed in a process that has no GPU, would abort it.
    """

    def __init__(self, dataset: Any, num_workers: int, **options: Any) -> None:
        super().__init__(
            dataset,
            num_workers=num_workers,
            worker_init_fn=start_worker,
            generator=own_generator(),
            multiprocessing_context="fork" if num_workers else None,
            **options,
        )

    def __iter__(self) -> Any:
        was_enabled = gc.isenabled()
        gc.disable()  # for the workers, until `start_worker`
        try:
            return super().__iter__()
        finally:
            if was_enabled:
                gc.enable()

    def close(self) -> None:
        """Ends workers that would persist, if nothing iterates any more.

        Left to the end of the process, pinned memory makes it wait five seconds for each (PyTorch 2.11).
        """
        self._iterator = None


class _Parts(Dataset):
    """A function's results for parts of its samples."""

    def __init__(self, forecast: Forecast, keys: Sequence[SampleKey], part_size: int) -> None:
        self.forecast = forecast
        self.parts = [keys[start : start + part_size] for start in range(0, len(keys), part_size)]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, place: int) -> np.ndarray:
        return np.asarray(self.forecast(self.parts[place]))


def forecast_in_processes(forecast: Forecast, num_workers: int, *, part_size: int = 1000) -> Forecast:
    """The same forecast, made by as many processes: at the beginning of an epoch all GPUs wait for it.

    A single part is forecast in this process, and so is everything if there are to be 0 workers.
    """

    def in_parts(keys: Sequence[SampleKey]) -> list[int]:
        parts = _Parts(forecast, keys, part_size)
        workers = min(num_workers, len(parts))
        loader = ForkingLoader(parts, workers if workers > 1 else 0, batch_size=None, collate_fn=np.asarray)
        return [int(canvas) for part in loader for canvas in part]

    return in_parts


def build_train_loader(
    dataset: Any,
    sampler: EpochBatchSampler,
    num_workers: int,
    *,
    pin_memory: bool = False,
    skip_unreadable: bool = False,
    canvases: Sequence[Canvas] = (),
    pack_masks: bool = False,
) -> ForkingLoader:
    """Loader of `Batch`es of an mmdet training data set; 0 workers load in this process.

    `canvases` and `pack_masks` as in `collate_samples`.
    """
    return ForkingLoader(
        SeededDataset(dataset, skip_unreadable=skip_unreadable),
        num_workers,
        batch_sampler=sampler,
        collate_fn=partial(collate_samples, canvases=canvases, pack_masks=pack_masks),
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )


def build_test_loader(
    dataset: Any, indices: Sequence[int], num_workers: int, *, pin_memory: bool = False
) -> DataLoader:
    """Loader of `Batch`es of one test image of an mmdet data set each, those of `indices` in their order."""
    return ForkingLoader(
        TestImages(dataset, indices),
        num_workers,
        batch_size=1,
        collate_fn=collate_samples,
        pin_memory=pin_memory,
    )
