"""How many trials a cluster can hold."""

from __future__ import annotations

import os

import ray

from dfvt.cluster.session import num_workers_that_fit
from dfvt.cluster.spec import SweepSpec


def max_concurrent_trials(spec: SweepSpec) -> int:
    """How many trials fit the connected cluster at once, at most as many as the spec allows.

    Where the cluster makes nodes for what waits, it is as many as the spec says.

    Raises:
        ValueError: not even one does.
    """
    if spec.autoscaling:
        assert spec.max_concurrent_trials
        return spec.max_concurrent_trials
    resources = ray.cluster_resources()
    least = spec.min_workers or spec.num_workers
    use_gpu = resources.get("GPU", 0) >= least if spec.use_gpu == "auto" else spec.use_gpu
    wanted = {"CPU": spec.cpus_per_worker, "GPU": 1 if use_gpu else 0, **spec.resources_per_worker}
    for name, number in wanted.items():
        if number * least > resources.get(name, 0):
            raise ValueError(
                f"a trial needs {number * least:g} {name}s (num_workers {least}), but "
                f"{'the cluster' if os.environ.get('RAY_ADDRESS') else 'this machine'} has "
                f"{resources.get(name, 0):g}: lower num_workers"
                + {"CPU": " or cpus_per_worker", "GPU": ", or set use_gpu to false"}.get(name, "")
            )
    num_workers = num_workers_that_fit(wanted)
    if num_workers < least:
        raise ValueError(
            f"the cluster's nodes hold {num_workers} workers of "
            + ", ".join(f"{number:g} {name}s" for name, number in wanted.items() if number)
            + f" each, a trial has {least}: lower num_workers or what a worker needs"
        )
    fitting = max(num_workers // spec.num_workers, 1)
    return min(fitting, spec.max_concurrent_trials or fitting)
