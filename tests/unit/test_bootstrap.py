"""The set-up: what it refuses, what it hands to uv, and when it has nothing to do."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dfvt import bootstrap
from dfvt.bootstrap import SetupError, check_python, choose_ops, uv_environment

ROOT = Path(bootstrap.__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that make an environment, and an environment that is not stamped."""
    root = tmp_path / "a check out"
    monkeypatch.setattr(bootstrap, "ROOT", root)
    monkeypatch.setattr(bootstrap, "REQUIREMENTS", root / "requirements.txt")
    monkeypatch.setattr(bootstrap, "VENV", root / ".venv")
    monkeypatch.setattr(bootstrap, "PYTHON", root / ".venv" / "bin" / "python")
    monkeypatch.setattr(bootstrap, "STAMP", root / ".venv" / ".ready")
    monkeypatch.setattr(bootstrap, "OWN", root / ".venv" / bootstrap.OWN.name)
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").touch()
    (root / "requirements.txt").write_text("six==1.17.0\n")
    (root / "pyproject.toml").write_text("[project]\n")
    return root


@pytest.mark.parametrize("version", [(2, 7), (3, 10), (3, 13), (4, 0)])
def test_other_pythons_are_refused_in_one_sentence(version: tuple[int, int]) -> None:
    with pytest.raises(
        SetupError, match=rf"^Python {version[0]}\.{version[1]} is not supported: .*\.$"
    ) as error:
        check_python(version)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("version", [(3, 11), (3, 12)])
def test_supported_pythons_pass(version: tuple[int, int]) -> None:
    check_python(version)


@pytest.mark.parametrize("compiler", [None, "no-such-compiler -O2"])
def test_a_missing_compiler_is_one_sentence_and_exit_code_2(tmp_path: Path, compiler: str | None) -> None:
    script = tmp_path / "dfvt" / "bootstrap.py"
    script.parent.mkdir()
    script.write_bytes((ROOT / "dfvt" / "bootstrap.py").read_bytes())
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "empty").mkdir()
    env = {"PATH": str(tmp_path / "empty")} | ({"CXX": compiler} if compiler else {})
    done = subprocess.run([sys.executable, "-I", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No C++ compiler" in done.stderr
    assert (compiler or "g++").split()[0] in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_pip_variables_become_those_of_uv(tmp_path: Path) -> None:
    environ = {
        "PIP_INDEX_URL": "https://one.example/simple",
        "PIP_EXTRA_INDEX_URL": "https://two.example/simple  https://three.example/simple",
        "PIP_FIND_LINKS": f"{tmp_path} {tmp_path}/missing https://four.example/wheels",
        "PIP_TRUSTED_HOST": "one.example two.example",
        "PIP_CERT": "/etc/ca.pem",
        "PIP_PROXY": "http://proxy.example:3128",
        "PIP_DEFAULT_TIMEOUT": "179.6",
    }
    assert uv_environment(environ) == {
        "UV_DEFAULT_INDEX": "https://one.example/simple",
        "UV_INDEX": "https://two.example/simple https://three.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": f"{tmp_path},https://four.example/wheels",
        "UV_INSECURE_HOST": "one.example two.example",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "ALL_PROXY": "http://proxy.example:3128",
        "UV_HTTP_TIMEOUT": "180",
    }


def test_without_pip_variables_uv_is_told_nothing() -> None:
    assert uv_environment({"HOME": "/home/someone", "PIP_DEFAULT_TIMEOUT": "soon"}) == {}


@pytest.mark.parametrize(
    ("pip", "uv", "others"),
    [
        ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", set()),
        ("PIP_INDEX_URL", "UV_INDEX_URL", set()),
        ("PIP_EXTRA_INDEX_URL", "UV_INDEX", {"UV_INDEX_STRATEGY"}),
        ("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL", {"UV_INDEX_STRATEGY"}),
        ("PIP_CERT", "SSL_CERT_FILE", set()),
    ],
)
def test_a_variable_of_uv_wins(pip: str, uv: str, others: set[str]) -> None:
    assert uv_environment({pip: "https://pip.example", uv: "https://uv.example"}).keys() == others


@pytest.mark.parametrize(
    ("torch_cuda", "archs", "toolkit", "reason"),
    [
        ("13.0", [], "13.0", "no NVIDIA GPU"),
        (None, ["9.0"], "13.0", "CPU build"),
        ("13.0", ["9.0"], None, "no nvcc"),
        ("13.0", ["9.0"], "12.8", "nvcc is of CUDA 12.8, but torch of CUDA 13.0"),
    ],
)
def test_cpu_ops_are_chosen_with_a_reason(
    torch_cuda: str | None, archs: list[str], toolkit: str | None, reason: str
) -> None:
    ops = choose_ops(torch_cuda, archs, toolkit)
    assert ops.name == "cpu"
    assert reason in ops.reason
    assert ops.env == {"CUDA_VISIBLE_DEVICES": "", "FORCE_CUDA": "0"}


def test_cuda_ops_are_chosen_for_the_visible_gpus() -> None:
    ops = choose_ops("13.0", ["12.0", "9.0", "9.0"], "13.1")
    assert ops.name == "cu13.1-sm9.0-12.0"
    assert ops.env == {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0;12.0"}


def test_the_stamp_holds_until_something_changes(checkout: Path) -> None:
    assert not bootstrap.is_ready()
    bootstrap.STAMP.write_text(bootstrap.expected_stamp())
    assert bootstrap.is_ready()
    (checkout / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert not bootstrap.is_ready()


def test_a_moved_environment_is_not_ready(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bootstrap.STAMP.write_text(bootstrap.expected_stamp())
    monkeypatch.setattr(bootstrap, "VENV", checkout.parent / "elsewhere" / ".venv")
    assert not bootstrap.is_ready()


def test_an_environment_whose_python_is_gone_is_not_ready(checkout: Path) -> None:
    bootstrap.STAMP.write_text(bootstrap.expected_stamp())
    bootstrap.PYTHON.unlink()
    bootstrap.PYTHON.symlink_to(checkout / "gone")
    assert not bootstrap.is_ready()


@given(st.lists(st.binary(max_size=8), min_size=2, max_size=2, unique=True))
def test_no_two_sets_of_files_share_a_stamp(contents: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stamps = set()
        for pair in (contents, contents[::-1]):
            left = dict(zip(("requirements.txt", "pyproject.toml"), pair, strict=True))
            monkeypatch.setattr(Path, "read_bytes", lambda path, left=left: left.get(path.name, b""))
            stamps.add(bootstrap.expected_stamp())
        assert len(stamps) == 2


def test_a_failed_step_is_a_sentence_and_stopping_leaves_no_process(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SetupError, match=r"^counting failed, see above") as error:
        bootstrap.run("counting", [sys.executable, "-c", "raise SystemExit(3)"])
    assert error.value.exit_code == 1

    children: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    class Interrupted(popen):  # type: ignore[type-arg, misc, valid-type]
        def wait(self, timeout: float | None = None) -> int:
            if self not in children:
                children.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        bootstrap.run("sleeping", [sys.executable, "-c", "import time; time.sleep(600)"])
    assert children[0].returncode is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(children[0].pid, 0)


def made_with(checkout: Path, command: str, version: str = platform.python_version()) -> None:
    lines = [f"version = {version}", command]
    (checkout / ".venv" / "pyvenv.cfg").write_text("".join(f"{line}\n" for line in lines))
    (checkout / ".venv/lib/python3.11/site-packages/pip").mkdir(parents=True)


@pytest.fixture
def steps(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps of the set-up, which make the folder and do nothing else."""
    steps: list[str] = []

    def run(step: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        steps.append(step)
        bootstrap.VENV.mkdir()

    monkeypatch.setattr(bootstrap, "run", run)
    return steps


@pytest.mark.parametrize(
    ("line", "package", "made_by"),
    [
        ("uv = 0.9.1", "pip", "was made by uv"),
        ("virtualenv = 20.1", "numpy", "was made by virtualenv"),
        ("command = /usr/bin/python3 -m venv {venv}", "numpy", "was not made by this set-up"),
        ("home = /usr/bin", "numpy", "was not made by this set-up"),
    ],
)
def test_an_environment_of_another_tool_stays(
    checkout: Path, steps: list[str], line: str, package: str, made_by: str
) -> None:
    made_with(checkout, line.format(venv=bootstrap.VENV))
    own = checkout / f".venv/lib/python3.11/site-packages/{package}/own.py"
    own.parent.mkdir(exist_ok=True)
    own.touch()
    if package == "pip":
        (checkout / ".venv/share").mkdir()
    with pytest.raises(SetupError, match=rf"{made_by}, .*: move or remove it") as error:
        bootstrap.make_venv()
    assert error.value.exit_code == 2
    assert own.exists() and steps == []


def test_an_own_environment_is_kept_or_replaced_with_a_word(
    checkout: Path, steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"command = /usr/bin/python3 -m venv {bootstrap.VENV}"
    made_with(checkout, command)  # stopped before it was marked
    bootstrap.make_venv()
    assert steps == [] and bootstrap.OWN.exists()
    (checkout / ".venv/lib/python3.11/site-packages/torch").mkdir()
    bootstrap.make_venv()
    assert steps == [] and capsys.readouterr().err == ""
    (checkout / ".venv/pyvenv.cfg").write_text(f"version = 3.1.4\n{command}\n")
    bootstrap.make_venv()
    assert steps == ["making .venv"]
    assert capsys.readouterr().err == f"set-up: replacing {bootstrap.VENV}: it was made with another Python\n"
    assert list(bootstrap.VENV.iterdir()) == [bootstrap.OWN]


def test_a_slow_machine_has_minutes_to_import_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Sequence[str], timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        if timeout < seconds:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(
            command, returncode, "2.13.0 13.0\n", "Traceback\nOSError: no libc\n"
        )

    monkeypatch.setattr(subprocess, "run", run)
    seconds, returncode = 300, 0
    assert bootstrap.installed_torch() == ("2.13.0", "13.0")
    seconds = 10**6
    with pytest.raises(
        SetupError, match=r"^import torch took longer than 15 minutes: run the same command again"
    ):
        bootstrap.installed_torch()
    seconds, returncode = 0, 1
    with pytest.raises(SetupError, match=r"^torch cannot be imported \(OSError: no libc\): "):
        bootstrap.installed_torch()


def test_a_cache_that_cannot_be_written_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    with pytest.raises(
        SetupError, match=r"^/dev/null/cache/dfvt/wheels cannot be written .*: set XDG_CACHE_HOME"
    ):
        bootstrap.wheel_cache()


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    here = [pin for pin in found if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): pin for pin in here}


def test_pins_carry_no_addresses_and_no_variant_of_torch() -> None:
    text = (ROOT / "requirements.txt").read_text()
    assert not re.search(r"://|@|\+|--", text)
    assert all(str(pin.specifier).startswith("==") for pin in pins().values())


def test_pins_satisfy_the_ranges_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins()
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        version = str(pinned[canonicalize_name(wanted.name)].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{wanted} is pinned to {version}: run make pins"
