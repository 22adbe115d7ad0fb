"""Which processes a training takes: its own, Ray's, and one worker; and at which priority it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Project

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]

# The stage, and at its first step the Ray processes below it and what of libraries it has imported.
STAGE = """
import json, sys
from pathlib import Path

import psutil

from dfvt.engine.progress import Progress
from dfvt.settings import load_settings
from pipelines import train

tell = Progress.on_step

def on_step(progress, record):
    if not Path("seen.json").exists():
        stage = psutil.Process()
        below = {process: process.cmdline()[0] for process in stage.children(recursive=True)}
        titles = below.values()
        Path("seen.json").write_text(json.dumps({
            "actors": sorted(title.split(".")[0] for title in titles if title.startswith("ray::")),
            "niceness": [process.nice() - stage.nice() for process in below if "TrainingW" in below[process]],
            "imported": sorted({"mmdet", "ray.train", "ray.tune"} & set(sys.modules)),
        }))
    tell(progress, record)

Progress.on_step = on_step
train.main(load_settings(), "tiny")
"""
RAYS_OWN = {"ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE"}


def test_a_training_in_one_worker_is_one_actor_beside_rays_own_processes(prepared: Project) -> None:
    prepared.set_params(train__cfg_options={})  # to check options takes mmdet's registries
    result = prepared.run("python", "-c", STAGE)
    assert result.returncode == 0, result.stderr
    seen = json.loads(Path(prepared.path, "seen.json").read_text())
    assert [title.strip() for title in seen["actors"] if title.strip() not in RAYS_OWN] == [
        "ray::TrainingWorker"
    ]
    assert seen["imported"] == []
    assert seen["niceness"] == [0], "beside a busy program the training would get next to nothing"
    assert (prepared.path / "runs/tiny/curve.csv").read_text().splitlines()[-1].startswith("12,")
