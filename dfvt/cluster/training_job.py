"""What one training under Ray is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dfvt.data.manifest import DatasetManifest
from dfvt.data.storage import StorageFolder


@dataclass(frozen=True)
class TrainingJob:
    """What one training under Ray needs.

    Attributes:
        config: the whole mmdet config as text.
        work_dir: folder of the resumable state and the results, on a file system that every worker sees
            unless there is `remote`.
        remote: where they are kept then; each node works on a copy of its own.
        weights: where a node finds the backbone's weights if it lacks them.
        seed: see `dfvt.engine.train.train`.
        num_workers: processes; GPU workers have one GPU each, CPU workers an equal share of the cores.
        min_workers: with how many it starts where no more fit; the global batch stays.
        use_gpu: `auto` uses GPUs when the cluster has enough.
        lineage: goes into the checkpoint's meta data.
        cpus_per_worker: CPUs of a worker instead of its share of the cluster's.
        autoscaling: whether nodes come for workers that do not fit those that are there.
        resources_per_worker: resources that nodes declare themselves, beside CPUs and GPUs.
        dataset, data_source: each node makes sure to have it, see `dfvt.data.provision.provide_dataset`.
        expected: see `dfvt.engine.train.train`.
        max_seconds: after which the training counts as failed.
        until_epoch: the first validation after so many epochs ends it for now, its state is kept.
        take_over: see `dfvt.engine.train.train`.
    """

    config: str
    work_dir: Path
    seed: int
    num_workers: int
    use_gpu: bool | Literal["auto"]
    lineage: dict[str, str]
    min_workers: int | None = None
    cpus_per_worker: int | None = None
    autoscaling: bool = False
    resources_per_worker: Mapping[str, float] = field(default_factory=dict)
    dataset: DatasetManifest | None = None
    data_source: str | None = None
    expected: Mapping[str, Any] = field(default_factory=dict)
    max_seconds: float | None = None
    until_epoch: int | None = None
    take_over: Path | None = None
    remote: StorageFolder | None = None
    weights: StorageFolder | None = None
