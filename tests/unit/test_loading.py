"""The order and the augmentation of the training images depend on the seed, not on who loads them."""

from __future__ import annotations

import gc
import os
import random
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv import Config

from dfvt.data.loading import (
    EpochBatchSampler,
    ForkingLoader,
    build_test_loader,
    build_train_loader,
)
from dfvt.data.samples import SampleKey, SeededDataset, seeded_augmentation
from dfvt.engine.datasets import build_coco_dataset

GROUPS = st.lists(st.integers(0, 1), min_size=1, max_size=40).map(np.array)
SEEDS = st.integers(0, 2**32)


def epoch_of(sampler: EpochBatchSampler, epoch: int = 0, start: int = 0) -> list[list[SampleKey]]:
    sampler.set_position(epoch, start)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@given(GROUPS, SEEDS, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
@settings(max_examples=60)
def test_processes_share_the_batches_that_one_process_would_have(
    groups: np.ndarray, seed: int, batch_size: int, world_size: int, epoch: int
) -> None:
    whole = epoch_of(EpochBatchSampler(groups, batch_size * world_size, seed=seed), epoch)
    shares = [
        epoch_of(EpochBatchSampler(groups, batch_size, seed=seed, rank=rank, world_size=world_size), epoch)
        for rank in range(world_size)
    ]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


@given(GROUPS, SEEDS, st.integers(1, 4), st.data())
@settings(max_examples=60)
def test_starting_inside_an_epoch_drops_the_batches_before(
    groups: np.ndarray, seed: int, batch_size: int, data: st.DataObject
) -> None:
    sampler = EpochBatchSampler(groups, batch_size, seed=seed)
    start = data.draw(st.integers(0, sampler.num_batches))
    assert epoch_of(sampler, 1, start) == epoch_of(sampler, 1)[start:]
    assert sampler.num_batches == len(epoch_of(sampler, 1))


@given(GROUPS, SEEDS, st.integers(1, 4))
@settings(max_examples=60)
def test_every_image_occurs_and_every_batch_has_one_orientation(
    groups: np.ndarray, seed: int, batch_size: int
) -> None:
    batches = epoch_of(EpochBatchSampler(groups, batch_size, seed=seed))
    assert {key.image for batch in batches for key in batch} == set(range(len(groups)))
    assert all(len(batch) == batch_size for batch in batches)
    assert all(len({int(groups[key.image]) for key in batch}) == 1 for batch in batches)


@given(GROUPS, SEEDS, st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=60)
def test_the_augmentation_of_an_image_does_not_depend_on_the_batch_size(
    groups: np.ndarray, seed: int, one: int, other: int
) -> None:
    first_seeds = []
    for batch_size in (one, other):
        seeds: dict[int, set[int]] = {}
        for batch in epoch_of(EpochBatchSampler(groups, batch_size, seed=seed)):
            for key in batch:
                seeds.setdefault(key.image, set()).add(key.seed)
        first_seeds.append(seeds)
    assert all(first_seeds[0][index] & first_seeds[1][index] for index in range(len(groups)))


def test_epochs_and_seeds_have_orders_and_augmentations_of_their_own() -> None:
    groups = np.zeros(32, dtype=int)
    epochs = [epoch_of(EpochBatchSampler(groups, 4, seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    orders = {tuple(key.image for batch in batches for key in batch) for batches in epochs}
    seeds = [key.seed for batches in epochs for batch in batches for key in batch]
    assert len(orders) == 4
    assert len(set(seeds)) == len(seeds)


def test_a_repeated_image_is_augmented_anew() -> None:
    (batch,) = epoch_of(EpochBatchSampler(np.zeros(1, dtype=int), 4, seed=0))
    assert [key.image for key in batch] == [0] * 4
    assert len({key.seed for key in batch}) == 4


def test_augmentation_leaves_the_global_generators_as_they_were() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    with seeded_augmentation(7):
        inside = random.random(), np.random.random()
    assert (random.random(), np.random.random()) == expected
    with seeded_augmentation(7):
        assert (random.random(), np.random.random()) == inside


class RandomPixels:
    """Stands for an mmdet data set whose augmentation draws from the global generators."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "drawn": np.random.random() + random.random()}


def test_a_sample_depends_on_its_key_only() -> None:
    dataset = SeededDataset(RandomPixels())
    first = dataset[SampleKey(2, 5)]
    np.random.random(3)
    assert dataset[SampleKey(2, 5)] == first
    assert dataset[SampleKey(2, 6)].data["drawn"] != first.data["drawn"]


def test_workers_do_not_change_the_batches(config: Config) -> None:
    dataset = build_coco_dataset(config.data.train, test_mode=False)
    epochs = []
    for num_workers in (0, 2):
        sampler = EpochBatchSampler(dataset.flag, 2, seed=5)
        sampler.set_position(1)
        epochs.append(list(build_train_loader(dataset, sampler, num_workers)))
    flips = set()
    for alone, helped in zip(*epochs, strict=True):
        assert torch.equal(alone.inputs["img"], helped.inputs["img"])
        for meta, other in zip(alone.inputs["img_metas"], helped.inputs["img_metas"], strict=True):
            assert (meta["filename"], meta["flip"]) == (other["filename"], other["flip"])
            flips.add(meta["flip"])
    assert flips == {True, False}, "the augmentation is at work"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generator(config: Config, num_workers: int) -> None:
    dataset = build_coco_dataset(config.data.val, test_mode=True)
    before = torch.get_rng_state()
    names = [
        batch.inputs["img_metas"][0][0]["ori_filename"]
        for batch in build_test_loader(dataset, [3, 1], num_workers)
    ]
    assert names == [dataset.data_infos[index]["filename"] for index in (3, 1)]
    assert torch.equal(torch.get_rng_state(), before)


class Garbage:
    """Refers to itself, and notes which process frees it."""

    def __init__(self, note: Path) -> None:
        self.note, self.itself = note, self

    def __del__(self) -> None:
        self.note.write_text(str(os.getpid()))


class CollectsGarbage:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> bool:
        gc.collect()
        return gc.isenabled()


def test_a_worker_does_not_free_the_garbage_of_its_parent(tmp_path: Path) -> None:
    note = tmp_path / "freed by"
    gc.collect()
    Garbage(note)
    assert all(ForkingLoader(CollectsGarbage(), 2, collate_fn=all))
    assert not note.exists()
    gc.collect()
    assert note.read_text() == str(os.getpid())


def num_images_through_a_worker(config: Config) -> int:
    dataset = build_coco_dataset(config.data.train, test_mode=False)
    dataset.unpicklable = lambda: None  # what is handed to a spawned process has to be pickled
    loader = build_train_loader(dataset, EpochBatchSampler(dataset.flag, 2, seed=0), num_workers=1)
    return len(next(iter(loader)).inputs["img_metas"])


def test_workers_share_the_data_set_of_a_process_that_was_spawned_itself(config: Config) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        assert executor.submit(num_images_through_a_worker, config).result() == 2
