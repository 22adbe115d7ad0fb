"""How many trials a cluster can hold."""

from __future__ import annotations

import ray

from dfvt.cluster.spec import SweepSpec


def max_concurrent_trials(spec: SweepSpec) -> int:
    """How many trials fit the connected cluster at once, at most as many as the spec allows.

    Raises:
        ValueError: not even one does.
    """
    resources = ray.cluster_resources()
    use_gpu = resources.get("GPU", 0) >= spec.num_workers if spec.use_gpu == "auto" else spec.use_gpu
    wanted = {"CPU": spec.cpus_per_worker, "GPU": 1 if use_gpu else 0, **spec.resources_per_worker}
    for name, number in wanted.items():
        if number * spec.num_workers > resources.get(name, 0):
            raise ValueError(
                f"a trial needs {number * spec.num_workers:g} {name}s (num_workers {spec.num_workers}), but "
                f"the cluster has {resources.get(name, 0):g}: lower num_workers, cpus_per_worker, or set "
                "use_gpu to false"
            )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_workers = sum(
        min(int(node.get(name, 0) // number) for name, number in wanted.items() if number) for node in nodes
    )
    fitting = num_workers // spec.num_workers
    if not fitting:
        raise ValueError(
            f"the cluster's nodes hold {num_workers} workers of "
            + ", ".join(f"{number:g} {name}s" for name, number in wanted.items() if number)
            + f" each, a trial has {spec.num_workers}: lower num_workers or what a worker needs"
        )
    return min(fitting, spec.max_concurrent_trials or fitting)
