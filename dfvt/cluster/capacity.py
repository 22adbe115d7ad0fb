"""How many trials a cluster can hold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import ray

from dfvt.cluster.session import num_workers_that_fit
from dfvt.cluster.spec import SweepSpec

Resources = Mapping[str, float]


def max_concurrent_trials(spec: SweepSpec) -> int:
    """How many trials fit the connected cluster at once, at most as many as the spec allows.

    Where the cluster makes nodes for what waits, it is as many as the spec says.

    Raises:
        ValueError: not even one does.
    """
    if spec.autoscaling:
        assert spec.max_concurrent_trials
        return spec.max_concurrent_trials
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    where = "the cluster" if os.environ.get("RAY_ADDRESS") else "this machine"
    return trials_at_once(spec, ray.cluster_resources(), nodes, where)


def workers_resources(spec: SweepSpec, resources: Resources) -> dict[str, float]:
    """Return what one worker of a trial takes where all nodes together have `resources`."""
    least = spec.min_workers or spec.num_workers
    use_gpu = resources.get("GPU", 0) >= least if spec.use_gpu == "auto" else spec.use_gpu
    return {"CPU": spec.cpus_per_worker, "GPU": 1 if use_gpu else 0, **spec.resources_per_worker}


def trials_at_once(spec: SweepSpec, resources: Resources, nodes: Sequence[Resources], where: str) -> int:
    """Return how many trials fit nodes at once, at most as many as the spec allows.

    Args:
        spec: says what a trial takes.
        resources: of all nodes together.
        nodes: the resources of each node: a worker needs all of its own on one of them.
        where: the nodes in words.

    Raises:
        ValueError: not even one does.
    """
    least = spec.min_workers or spec.num_workers
    wanted = workers_resources(spec, resources)
    for name, number in wanted.items():
        if number * least > resources.get(name, 0):
            raise ValueError(
                f"a trial needs {number * least:g} {name}s (num_workers {least}), but {where} has "
                f"{resources.get(name, 0):g}: lower num_workers"
                + {"CPU": " or cpus_per_worker", "GPU": ", or set use_gpu to false"}.get(name, "")
            )
    num_workers = num_workers_that_fit(wanted, nodes)
    if num_workers < least:
        raise ValueError(
            f"the cluster's nodes hold {num_workers} workers of "
            + ", ".join(f"{number:g} {name}s" for name, number in wanted.items() if number)
            + f" each, a trial has {least}: lower num_workers or what a worker needs"
        )
    fitting = max(num_workers // spec.num_workers, 1)
    return min(fitting, spec.max_concurrent_trials or fitting)


def resources_of_this_machine() -> dict[str, float]:
    """Return the CPUs and GPUs that a Ray of this machine's own would have."""
    import torch
    from ray._private.utils import get_num_cpus  # what a container may use: Ray has no public name for it

    return {"CPU": float(get_num_cpus()), "GPU": float(torch.cuda.device_count())}
