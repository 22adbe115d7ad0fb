"""A command imports what it needs: libraries that take seconds to import do not delay the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

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
