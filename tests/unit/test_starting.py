"""A command imports what it needs: libraries that take seconds to import do not delay the others."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dfvt.cluster.records import SWEEPS, TrialRecord, note_spec
from dfvt.cluster.spec import SweepSpec
from dfvt.data.manifest import DatasetManifest
from dfvt.data.storage import Mirror
from dfvt.tracking.mlflow import RunRecorder

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/mini/maskrcnn_DFvT_tiny_mini.py")
# Each takes a quarter of a second or more to import, without what it imports of the others.
SLOW = ("torch", "torchvision", "mmcv", "mmdet", "mlflow", "ray", "pandas", "matplotlib", "sklearn", "optuna")
# The command's own answer may be on standard output, so the packages go to a file.
COMMAND = """
import sys
from pathlib import Path
try:
    from dfvt.cli import main
    code = main(sys.argv[2:])
finally:
    Path(sys.argv[1]).write_text("\\n".join({name.partition(".")[0] for name in sys.modules}))
sys.exit(code)
"""


def slow_imports(folder: Path, program: str, arguments: Sequence[str], code: int = 0) -> set[str]:
    """The packages of `SLOW` that a process imports which runs a program in `folder` and ends with `code`."""
    names = folder / ".imported"
    result = subprocess.run(
        [sys.executable, "-c", program, str(names), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code, result
    return set(SLOW).intersection(names.read_text().split())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["profile", "--help"], 0),
        (["train", "--help"], 0),
        (["sweep", "--help"], 0),
        (["data", "check", "--help"], 0),
        (["compare", "--help"], 0),
        (["nonsense"], 2),
        (["test", CONFIG], 2),
        (["profile", CONFIG, "--cfg-options", "optimizer.lr"], 2),
        (["profile", CONFIG, "--no-such", "--cfg-options", "optimizer.lr=0.1"], 2),
    ],
)
def test_help_and_wrong_usage_wait_for_no_library(tmp_path: Path, arguments: list[str], code: int) -> None:
    assert slow_imports(tmp_path, COMMAND, arguments, code) == set()


def test_help_takes_little_of_the_processor(tmp_path: Path) -> None:
    """It takes an eighth of a second. With torch it would take more than one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    slow_imports(tmp_path, COMMAND, ["--help"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a sweep, and a store with a run."""
    spec = SweepSpec.model_validate({"name": "search", "num_samples": 2})
    note_spec(spec, Mirror(tmp_path / SWEEPS / "search"))
    record = TrialRecord("0001", {"variant": "tiny"}, "run1", "finished", 2, 2, 10.0, {"bbox_mAP": 0.5})
    record.save(tmp_path / SWEEPS / "search/trials/0001")
    recorder = RunRecorder.open(
        f"sqlite:///{tmp_path}/mlflow.db",
        "dfvt",
        artifact_root=tmp_path / "mlartifacts",
        run_name="tiny mini",
        tags={"dfvt.variant": "tiny"},
        params={},
    )
    recorder.log_metrics({"bbox_mAP": 0.5})
    recorder.finish()
    return tmp_path


# mlflow itself imports pandas
@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["sweep", "status", "search"], set()),
        (["runs", "find"], {"mlflow", "pandas"}),
        (["compare"], {"mlflow", "pandas"}),
        (["compare", "tiny mini", "--out", "compared"], {"mlflow", "pandas", "matplotlib"}),
        (["doctor"], {"torch", "mmcv"}),
        (["profile", CONFIG], {"torch", "mmcv", "mmdet", "matplotlib"}),
    ],
)
def test_a_command_imports_what_it_needs(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], needed: set[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert slow_imports(project, COMMAND, arguments) == needed


def test_a_data_set_is_checked_without_what_draws(shapes: DatasetManifest, tmp_path: Path) -> None:
    assert slow_imports(tmp_path, COMMAND, ["data", "check", str(shapes.root)]) == set()
