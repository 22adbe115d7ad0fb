"""How much of a cluster's time a sweep leaves unused: stand-in trials of a known length on made-up nodes.

Usage: python benchmarks/sweep_overhead.py [NUM_TRIALS SECONDS NUM_NODES GPUS_PER_NODE].
The trials take no CPU and no torch; everything else (spec, Ray Tune, trials' processes, records on disk) is
that of a sweep. Efficiency is the ideal time, all trials one after the other on each GPU, over the real one.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from dfvt.cluster.records import TrialRecord, load_records
from dfvt.cluster.spaces import EPOCH
from dfvt.cluster.spec import Assignment, SweepSpec
from dfvt.cluster.sweep import run_trials
from dfvt.cluster.trainable import Hand, Result, Sweep
from dfvt.data.manifest import DatasetManifest
from dfvt.tracking.store import Store

OBJECT_STORE_BYTES = 80 * 2**20
DATASET = DatasetManifest.model_validate(
    {
        "name": "mini", "generated": True, "root": ".", "classes": ("thing",), "data_hash": "",
        "num_train_images": 1, "num_val_images": 1,
        **dict.fromkeys(("train_annotations", "train_images", "val_annotations", "val_images"), "."),
    }
)  # fmt: skip


def stand_in(sweep: Sweep, trial_id: str, drawn: Assignment, hand_on: Hand, stop: threading.Event) -> Result:
    """A trial that holds a GPU as long as the assignment says, in the way of a trial's workers.

    It starts no process on it: dozens at once would keep the few cores of the machine that simulates busy.
    """
    folder = sweep.trial(trial_id, drawn).folder
    asked = time.time()
    place = placement_group([{"GPU": 1}])
    assert place.wait(600)
    started = time.time()
    time.sleep(float(str(drawn["seconds"])))
    remove_placement_group(place)
    record = TrialRecord(
        folder.name, dict(drawn), "", "finished", 1, 1, time.time() - asked, {"bbox_mAP": 0.5}
    )
    record.save(folder)
    (folder / "waited.txt").write_text(str(started - asked), encoding="utf-8")
    return {"bbox_mAP": 0.5, EPOCH: 1}


class MemoryOfDriver(threading.Thread):
    """Notes this process's memory, in MiB, every second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.noted: list[float] = []

    def run(self) -> None:
        while True:
            self.noted.append(psutil.Process().memory_info().rss / 2**20)
            time.sleep(1)


def main() -> None:
    arguments = [int(argument) for argument in sys.argv[1:]] or [200, 30, 8, 2]
    num_trials, seconds, num_nodes, gpus_per_node = arguments
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    spec = SweepSpec.model_validate(
        {
            "name": "overhead",
            "algorithm": "grid",
            "use_gpu": True,
            "space": {"number": {"grid": list(range(num_trials))}, "seconds": {"grid": [seconds]}},
        }
    )
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES},
    )
    for _ in range(num_nodes):
        cluster.add_node(num_cpus=8, num_gpus=gpus_per_node, object_store_memory=OBJECT_STORE_BYTES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ray.init(cluster.address, log_to_driver=False)
        sweep = Sweep(
            spec, folder, {"tiny": "runner = dict(max_epochs=1)"}, {}, Store(""), "", folder, DATASET
        )
        memory = MemoryOfDriver()
        memory.start()
        started = time.perf_counter()
        run_trials(sweep, stand_in)
        elapsed = time.perf_counter() - started
        records = load_records(sweep.mirror)
        waited = sorted(
            float(file.read_text(encoding="utf-8"))
            for file in sweep.mirror.folder.glob("trials/*/waited.txt")
        )
        ray.shutdown()
    cluster.shutdown()
    assert [record.status for record in records] == ["finished"] * num_trials
    num_gpus = num_nodes * gpus_per_node
    ideal = -(-num_trials // num_gpus) * seconds
    early, late = (sum(part) / len(part) for part in (memory.noted[30:60], memory.noted[-30:]))
    overhead = (elapsed - ideal) * num_gpus / num_trials
    where = f"{num_nodes} nodes x {gpus_per_node} GPUs, {os.cpu_count()} cores"
    print(f"{num_trials} trials of {seconds} s on {where}\n")
    print("| ideal s | real s | efficiency | overhead a trial, s | wait for a GPU, median s | driver MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| {ideal} | {elapsed:.0f} | {ideal / elapsed:.3f} | {overhead:.2f} | "
        f"{waited[len(waited) // 2]:.2f} | {early:.0f} to {late:.0f} |"
    )


if __name__ == "__main__":
    main()
