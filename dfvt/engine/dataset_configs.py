"""The data sets that a config's `data.train`, `data.val` and `data.test` hold, whatever wraps them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmcv import Config, ConfigDict

INNER = ("dataset", "datasets")  # of mmdet's wrappers: RepeatDataset, ClassBalancedDataset, ConcatDataset, …


def dataset_configs(data: Any) -> Iterator[ConfigDict]:
    """The configs of the data sets that read files: `data` itself, or those in its wrappers and lists."""
    if isinstance(data, list | tuple):
        for part in data:
            yield from dataset_configs(part)
    elif isinstance(data, dict):
        inner = [data[name] for name in INNER if name in data]
        if inner:
            yield from dataset_configs(inner)
        else:
            yield data


def pipelines_of(data: Any) -> Iterator[list[Any]]:
    """The pipelines of a data set's config, and of those that it wraps."""
    if isinstance(data, list | tuple):
        for part in data:
            yield from pipelines_of(part)
    elif isinstance(data, dict):
        if isinstance(data.get("pipeline"), list):
            yield data["pipeline"]
        for name in INNER:
            yield from pipelines_of(data.get(name))


def sources_of(data: Any) -> list[str]:
    """The annotation files of a data set's config, each once: what to name in a message."""
    files: dict[str, None] = {}
    for part in dataset_configs(data):
        named = part.get("ann_file")
        files |= dict.fromkeys(map(str, named if isinstance(named, list | tuple) else [named]))
    return list(files)


def tested_data(cfg: Config) -> ConfigDict:
    """The config of the data set of `data.test`, the first one where it wraps several.

    Raises:
        ValueError: there is none.
    """
    found = next(dataset_configs(cfg.get("data", {}).get("test")), None)
    if found is None:
        raise ValueError("the config has no data.test, whose pipeline says what is done to images")
    return found
