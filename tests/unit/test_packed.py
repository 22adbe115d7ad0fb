"""A packed list is the list it was made of, and processes that read it share its memory."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmcv import Config

from dfvt.data.packed import PackedList
from dfvt.engine.datasets import build_coco_dataset

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=8))
def test_it_holds_what_it_was_given(items: list[Any]) -> None:
    packed = PackedList(items)
    assert len(packed) == len(items)
    assert list(packed) == items
    assert list(pickle.loads(pickle.dumps(packed))) == items


@given(st.lists(st.integers(), min_size=1, max_size=8), st.integers(-12, 12), st.integers(-12, 12))
def test_it_is_indexed_as_a_list(items: list[int], first: int, last: int) -> None:
    packed = PackedList(items)
    assert packed[first:last] == items[first:last]
    if -len(items) <= first < len(items):
        assert packed[first] == items[first]
    else:
        with pytest.raises(IndexError):
            packed[first]


def test_a_training_reads_from_it_what_mmdet_reads_from_coco(config: Config) -> None:
    packed = build_coco_dataset(config.data.train, test_mode=False)
    cfg = config.data.train
    cfg.test_mode = True  # which keeps mmdet's own index
    plain = build_coco_dataset(cfg, test_mode=True)
    by_name = {info["filename"]: index for index, info in enumerate(plain.data_infos)}
    assert packed.coco is None
    for index, info in enumerate(packed.data_infos):
        ours, theirs = packed.get_ann_info(index), plain.get_ann_info(by_name[info["filename"]])
        assert ours["bboxes"].tolist() == theirs["bboxes"].tolist()
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        assert ours["masks"] == theirs["masks"]
