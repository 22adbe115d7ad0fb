"""What is printed and written depends neither on the terminal nor on the language of the system."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest

from dfvt.cli import main
from pipelines import repro
from pipelines.stage import run_stage
from tests.unit.test_coco import pristine, root

__all__ = ["pristine", "root"]  # fixtures

ROOT = Path(__file__).parents[2]
TEXT_MODES = {"r", "w", "a", "x", "r+", "w+"}


class Ascii(io.TextIOWrapper):
    """A terminal that knows ASCII alone, as with `PYTHONIOENCODING=ascii`."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)

    @property
    def text(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode("ascii")


def plug_in(monkeypatch: pytest.MonkeyPatch, name: str) -> Ascii:
    stream = Ascii()
    monkeypatch.setattr(f"sys.{name}", stream)
    return stream


def test_a_command_prints_what_its_terminal_cannot_encode(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = plug_in(monkeypatch, "stdout"), plug_in(monkeypatch, "stderr")
    assert main(["data", "check", str(root)]) == 0
    assert "32\\xb2" in out.text and f"{root}: sound" in out.text
    assert main(["data", "check", str(root / "caf\udce9\u2013")]) == 2
    assert "caf\\udce9\\u2013 is not a directory" in err.text


def test_help_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    out = plug_in(monkeypatch, "stdout")
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--help"])
    assert ended.value.code == 0 and "IMAGE\\u2026" in out.text


def test_stages_and_repro_print_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    err = plug_in(monkeypatch, "stderr")

    def fail(*_: object) -> None:
        raise ValueError("4×4")

    monkeypatch.setattr("sys.argv", ["fetch_data"])
    with pytest.raises(SystemExit) as ended:
        run_stage("fetch_data", fail)
    assert ended.value.code == 2
    monkeypatch.setattr(repro, "check_inputs", fail)
    monkeypatch.setattr("sys.argv", ["repro"])
    assert repro.main() == 2
    assert err.text == "fetch_data: 4\\xd74\nrepro: 4\\xd74\n"


def calls_without_encoding(path: Path) -> list[str]:
    """Where a source file reads or writes text in the encoding of the system's language."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        keywords = {keyword.arg for keyword in node.keywords}
        mode = next((given.value for given in node.args if isinstance(given, ast.Constant)), None)
        opens = node.func.attr == "open" and (
            mode in TEXT_MODES or (not node.args and keywords <= {"newline"})
        )
        if (opens or node.func.attr in ("read_text", "write_text")) and "encoding" not in keywords:
            lines.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return lines


def test_files_are_utf_8_whatever_the_language_of_the_system() -> None:
    sources = [
        path
        for folder in ("dfvt", "pipelines", "docs", "benchmarks")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    assert len(sources) > 100
    assert [place for path in sources for place in calls_without_encoding(path)] == []
