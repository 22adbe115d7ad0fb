"""mmcv-full's wheel: which one is tried first, what happens to one that does not work, and what is compiled.

Python, pip and uv of the environment are a script here. A wheel is a text: the torch it is for, and its ops.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import mmcv_wheel
from mmcv_wheel import Environment
from steps import SetupError

ROOT = Path(mmcv_wheel.__file__).parent.parent
PIN = "mmcv-full==1.7.2"
WHEEL = "mmcv_full-1.7.2-cp311-cp311-linux_x86_64.whl"
PROGRAM = """#!{python}
import pathlib, shutil, sys
machine, arguments = pathlib.Path({machine!r}), sys.argv[1:]
target = pathlib.Path(arguments[-1])

def give(text, place):
    place.mkdir(exist_ok=True)
    (place / {wheel!r}).write_text(text)

def call(name):
    with (machine / "calls").open("a") as file:
        file.write(name + " ")

torch = (machine / "torch").read_text()
if arguments[0] == "install":
    if target.read_text() == "half a wheel":
        sys.exit("error: Failed to read\\n  cause: invalid Zip file structure")
    shutil.copy(target, machine / "installed")
elif "mmcv._ext" in arguments[-2] or "mmcv._ext" in arguments[-3]:
    version, ops = (machine / "installed").read_text().split()
    if version != torch:
        sys.exit("Traceback\\nImportError: undefined symbol: _ZN3c10")
    if "cuda" in arguments and ops != "cuda":
        sys.exit("RuntimeError: nms_impl: implementation for device cuda:0 not found.")
elif target.name == "import torch":
    if torch == "none":
        sys.exit("OSError: libc.so.7 is missing")
elif "--only-binary" in arguments:
    call("index")
    for wheel in (machine / "index").glob("*.whl"):
        shutil.copytree(machine / "index", arguments[arguments.index("--dest") + 1])
elif "--no-binary" in arguments:
    call("source")
    pathlib.Path(arguments[arguments.index("--dest") + 1], "mmcv-full-1.7.2.tar.gz").touch()
elif "wheel" in arguments:
    call("files")
    give((machine / "by file").read_text(), pathlib.Path(arguments[-2]))
else:
    call("units")
    compiled = (machine / "in units").read_text()
    if compiled == "error":
        sys.exit("pybind.cpp:1: error: redefinition")
    give(compiled, target)
"""


@dataclass(frozen=True)
class Machine:
    """A machine whose torch is 2.13, and what lies on it."""

    folder: Path
    environment: Environment

    def set_up(self) -> None:
        mmcv_wheel.install_mmcv(PIN, self.environment)

    @property
    def installed(self) -> str:
        return (self.folder / "installed").read_text()

    @property
    def calls(self) -> list[str]:
        calls = self.folder / "calls"
        return calls.read_text().split() if calls.exists() else []

    def put(self, text: str, place: str) -> Path:
        wheel = self.folder / place / WHEEL
        wheel.parent.mkdir(parents=True, exist_ok=True)
        wheel.write_text(text)
        return wheel


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PROGRAM.format(python=sys.executable, machine=str(tmp_path), wheel=WHEEL))
    python.chmod(0o755)
    for name, text in {"torch": "2.13", "in units": "2.13 cpu", "by file": "2.13 cpu"}.items():
        (tmp_path / name).write_text(text)
    environment = Environment(python, [python, "install"], {})
    (environment.packages / "torch").mkdir(parents=True)
    (environment.packages / "torch/version.py").write_text("__version__ = '2.13'\ncuda = '13.0'\n")
    monkeypatch.setattr(mmcv_wheel, "visible_archs", lambda environ: [])
    monkeypatch.setattr(mmcv_wheel, "missing_to_compile", lambda environ: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (mmcv_wheel.VARIABLE, "UV_FIND_LINKS", *mmcv_wheel.PLACES):
        monkeypatch.delenv(name, raising=False)
    return Machine(tmp_path, environment)


def test_it_is_compiled_once_and_kept(machine: Machine) -> None:
    machine.set_up()
    assert machine.calls == ["index", "source", "units"]
    assert machine.installed == "2.13 cpu"
    (machine.folder / "installed").unlink()
    machine.set_up()
    assert machine.calls == ["index", "source", "units"]
    assert machine.installed == "2.13 cpu"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DFVT_MMCV_WHEEL", "{lab}/wheels/2.13/" + WHEEL),
        ("DFVT_MMCV_WHEEL", "{lab}"),
        ("PIP_FIND_LINKS", "/nowhere {lab}/wheels/2.13"),
        ("UV_FIND_LINKS", "file://{lab}/wheels/2.13"),
    ],
)
def test_a_given_wheel_that_works_is_taken_and_nothing_is_compiled(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    machine.put("2.13 of-the-lab", "lab/wheels/2.13")
    monkeypatch.setenv(variable, value.format(lab=machine.folder / "lab"))
    machine.set_up()
    assert machine.installed == "2.13 of-the-lab"
    assert machine.calls == []


def test_a_wheel_of_an_index_is_taken_and_kept(machine: Machine) -> None:
    machine.put("2.13 of-the-index", "index")
    machine.set_up()
    machine.set_up()
    assert machine.calls == ["index"]
    assert machine.installed == "2.13 of-the-index"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2.11 cpu", "it does not work with torch 2.13 (ImportError: undefined symbol: _ZN3c10)"),
        ("half a wheel", "it cannot be installed (invalid Zip file structure)"),
    ],
)
def test_a_wheel_that_does_not_work_is_one_sentence_and_the_next_is_tried(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    text: str,
    reason: str,
) -> None:
    wheel = machine.put(text, "lab")
    machine.put(text, "index")  # pip finds the same wheel once more: it is not tried again
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    machine.set_up()
    assert machine.calls == ["index", "source", "units"]
    assert machine.installed == "2.13 cpu"
    said = [line for line in capfd.readouterr().err.splitlines() if "not used" in line]
    assert said == [f"set-up: {wheel} is not used: {reason}"]


def test_a_kept_wheel_that_got_broken_is_replaced(machine: Machine) -> None:
    machine.set_up()
    (kept,) = machine.folder.glob("cache/dfvt/wheels/**/*.whl")
    kept.write_text("half a wheel")
    machine.set_up()
    assert machine.calls[3:] == ["index", "source", "units"]
    assert kept.read_text() == "2.13 cpu"


def test_a_wheel_without_the_ops_of_the_gpu_is_not_enough(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mmcv_wheel, "visible_archs", lambda environ: ["9.0"])
    monkeypatch.setattr(mmcv_wheel, "toolkit_version", lambda environ: "13.0")
    monkeypatch.setenv(mmcv_wheel.VARIABLE, str(machine.put("2.13 cpu", "lab")))
    (machine.folder / "in units").write_text("2.13 cuda")
    machine.set_up()
    assert machine.installed == "2.13 cuda"
    assert "implementation for device cuda:0 not found" in capfd.readouterr().err


@pytest.mark.parametrize("in_units", ["error", "2.11 cpu"])
def test_where_units_do_not_work_it_is_said_and_files_are_compiled(
    machine: Machine, capfd: pytest.CaptureFixture[str], in_units: str
) -> None:
    (machine.folder / "in units").write_text(in_units)
    machine.set_up()
    assert machine.calls == ["index", "source", "units", "files"]
    assert machine.installed == "2.13 cpu"
    assert (
        "file by file instead of in a few units: that takes more than ten minutes" in capfd.readouterr().err
    )
    if in_units == "error":
        (log,) = machine.folder.glob("cache/dfvt/wheels/**/compile.log")
        assert "redefinition" in log.read_text()


def test_ops_that_do_not_work_however_they_are_compiled_are_an_error(machine: Machine) -> None:
    for name in ("in units", "by file"):
        (machine.folder / name).write_text("2.11 cpu")
    with pytest.raises(
        SetupError, match=r"but it does not work with torch 2.13 \(ImportError.*in CXX, or a wheel"
    ):
        machine.set_up()
    assert not list(machine.folder.glob("cache/dfvt/wheels/**/*.whl"))


def test_no_wheel_is_blamed_where_torch_cannot_be_imported(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(mmcv_wheel.VARIABLE, str(machine.put("2.13 cpu", "lab")))
    (machine.folder / "torch").write_text("none")
    with pytest.raises(SetupError, match=r"^torch cannot be imported \(OSError: libc.so.7 is missing\)"):
        machine.set_up()
    assert "not used" not in capfd.readouterr().err


def test_a_machine_without_a_compiler_needs_a_wheel_that_works(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmcv_wheel, "missing_to_compile", lambda environ: "No compiler is on PATH.")
    with pytest.raises(SetupError, match=r"^No compiler is on PATH"):
        mmcv_wheel.check_machine(PIN, {})
    wheel = machine.put("2.11 cpu", "lab")
    monkeypatch.setenv(mmcv_wheel.VARIABLE, str(wheel))
    mmcv_wheel.check_machine(PIN, {mmcv_wheel.VARIABLE: str(wheel)})
    mmcv_wheel.check_machine(PIN, {"PIP_FIND_LINKS": "https://lab.example/wheels"})
    with pytest.raises(SetupError, match=r"^No compiler is on PATH"):
        machine.set_up()
    wheel.write_text("2.13 cpu")
    machine.set_up()
    assert machine.installed == "2.13 cpu"


def test_what_is_named_and_is_no_wheel_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    for path, sentence in (
        ("/nowhere", "/nowhere does not exist: name a wheel"),
        (str(tmp_path / "README.md"), f"{tmp_path}/README.md is no wheel of mmcv-full"),
        (str(tmp_path), f"{tmp_path} has no wheel of mmcv-full"),
    ):
        with pytest.raises(SetupError, match=f"^DFVT_MMCV_WHEEL: {sentence}"):
            mmcv_wheel.given_wheels({mmcv_wheel.VARIABLE: path})


def test_a_cache_that_cannot_be_written_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    with pytest.raises(
        SetupError, match=r"^/dev/null/cache/dfvt/wheels cannot be written .*: set XDG_CACHE_HOME"
    ):
        mmcv_wheel.wheel_cache(PIN)


def test_a_slow_machine_has_minutes_to_import_torch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        if timeout < seconds:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    seconds = 300
    mmcv_wheel.check_torch(machine.environment)
    seconds = 10**6
    with pytest.raises(SetupError, match=r"^import torch took longer than 15 minutes: run the same command"):
        mmcv_wheel.check_torch(machine.environment)


@pytest.mark.parametrize("compiler", [None, "no-such-compiler -O2"])
def test_a_missing_compiler_is_one_sentence_and_exit_code_2(tmp_path: Path, compiler: str | None) -> None:
    for name in (
        "requirements.txt",
        "pyproject.toml",
        *(f"tools/{path.name}" for path in ROOT.glob("tools/*.py")),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "empty").mkdir()
    env = {"PATH": str(tmp_path / "empty"), "HOME": str(tmp_path)} | ({"CXX": compiler} if compiler else {})
    # -S: without installed packages, which are not there yet when the set-up runs.
    command = [sys.executable, "-E", "-s", "-S", tmp_path / "tools/make_environment.py"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No C++ compiler" in done.stderr and "DFVT_MMCV_WHEEL" in done.stderr
    assert (compiler or "g++").split()[0] in done.stderr
    assert not (tmp_path / ".venv").exists()
