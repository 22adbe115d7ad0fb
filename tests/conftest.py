"""Who runs which tests, and a copy of the project with an experiment that takes seconds, not minutes.

The copy lies at a path with spaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
WHOLE_MACHINE = ("tests/cluster/", "tests/e2e/", "tests/gpu/")  # Ray, a whole experiment, a GPU
LIGHT = ("tests/e2e/test_coco2017.py", "tests/e2e/test_mistakes.py")  # stages that start no Ray
PATIENCE = 600  # seconds for what takes a few: other programs may have the processors meanwhile
THREADS = "OMP_NUM_THREADS"
FREE = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "DVC_NO_ANALYTICS", THREADS)  # no stage in a test has them

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")


def pytest_configure(config: pytest.Config) -> None:
    """Let each of several test processes compute with one thread: together they use all processors."""
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        os.environ.setdefault(THREADS, "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    """Give a worker whole modules, and one worker all tests that need the whole machine.

    Two clusters or experiments at once would need twice the memory, and each would take twice as long. Those
    tests come first, so that the other workers have the unit tests meanwhile.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneClusterAtATime(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(WHOLE_MACHINE) and not nodeid.startswith(LIGHT):
                return "whole machine"
            return super()._split_scope(nodeid)

    return OneClusterAtATime(config, log) if config.option.dist == "loadscope" else None


@dataclass(frozen=True)
class Project:
    """A working copy of its own, in a git repository of its own."""

    path: Path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment's Python or of git in the project."""
        return subprocess.run(
            command,
            cwd=self.path,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def environment(self, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in FREE}
        path = os.pathsep.join([str(self.path / ".venv/bin"), os.environ["PATH"]])
        # The copy's own code runs, not that of the checkout which is installed.
        imported = os.pathsep.join([str(self.path), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**kept, "PATH": path, "PYTHONPATH": imported, "CUDA_VISIBLE_DEVICES": "", **changes}

    def repro(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("python", "-m", "pipelines.repro", *arguments, **environment)

    def set_params(self, **changes: Any) -> None:
        """Change params.yaml; names are keys with __ for a dot."""
        yaml = YAML()
        params = yaml.load(self.path / "params.yaml")
        for name, value in changes.items():
            *sections, key = name.split("__")
            section = params
            for part in sections:
                section = section[part]
            section[key] = value
        yaml.dump(params, self.path / "params.yaml")

    def commit(self, message: str) -> None:
        for arguments in (["add", "-A"], ["commit", "-qm", message]):
            result = self.run("git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments)
            assert result.returncode == 0, result.stderr


def copy_project(folder: Path) -> Project:
    """Copy what git tracks or would track, and make a repository of it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    project = Project(folder)
    (folder / ".venv").symlink_to(Path(sys.prefix))  # Python's own path has spaces too
    assert project.run("git", "init", "-q").returncode == 0
    project.set_params(
        data__shapes={"seed": 0, "num_train": 24, "num_val": 8, "height": 64, "width": 96},
        train__num_epochs=2,
        train__batch_size=4,
        train__cfg_options={"log_config.interval": 1, "checkpoint_config.interval": 1},
    )
    project.commit("start")
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return copy_project(tmp_path / "a project, elsewhere")


@pytest.fixture(scope="session")
def prepared_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose stages before the trainings have run, for tests to copy."""
    project = copy_project(tmp_path_factory.mktemp("prepared") / "a project")
    result = project.repro("profile", "fetch_weights")
    assert result.returncode == 0, result.stdout + result.stderr
    return project


@pytest.fixture
def prepared(prepared_once: Project, tmp_path: Path) -> Project:
    """A project of its own in which a training can start at once."""
    folder = tmp_path / "a project, elsewhere"
    shutil.copytree(prepared_once.path, folder, symlinks=True)
    return Project(folder)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose experiment has run and is committed; tests of it leave it as they found it."""
    project = copy_project(tmp_path_factory.mktemp("reproduced") / "a project, elsewhere")
    result = project.repro()
    assert result.returncode == 0, result.stdout + result.stderr
    project.commit("results")
    return project
