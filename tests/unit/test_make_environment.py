"""The set-up: what it refuses, what it hands to uv, and when it has nothing to do."""

from __future__ import annotations

import platform
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import make_environment
from make_environment import check_python, uv_environment
from steps import SetupError

ROOT = Path(make_environment.__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that make an environment, and an environment that is not stamped."""
    root = tmp_path / "a check out"
    monkeypatch.setattr(make_environment, "ROOT", root)
    monkeypatch.setattr(make_environment, "INPUTS", (root / "requirements.txt", root / "pyproject.toml"))
    monkeypatch.setattr(make_environment, "VENV", root / ".venv")
    monkeypatch.setattr(make_environment, "PYTHON", root / ".venv" / "bin" / "python")
    monkeypatch.setattr(make_environment, "STAMP", root / ".venv" / ".ready")
    monkeypatch.setattr(make_environment, "OWN", root / ".venv" / make_environment.OWN.name)
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


def test_the_stamp_holds_until_something_changes(checkout: Path) -> None:
    assert not make_environment.is_ready()
    make_environment.STAMP.write_text(make_environment.expected_stamp())
    assert make_environment.is_ready()
    (checkout / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert not make_environment.is_ready()


def test_a_moved_environment_is_not_ready(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_environment.STAMP.write_text(make_environment.expected_stamp())
    monkeypatch.setattr(make_environment, "VENV", checkout.parent / "elsewhere" / ".venv")
    assert not make_environment.is_ready()


def test_an_environment_whose_python_is_gone_is_not_ready(checkout: Path) -> None:
    make_environment.STAMP.write_text(make_environment.expected_stamp())
    make_environment.PYTHON.unlink()
    make_environment.PYTHON.symlink_to(checkout / "gone")
    assert not make_environment.is_ready()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=8), min_size=2, max_size=2, unique=True))
def test_no_two_sets_of_files_share_a_stamp(contents: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stamps = set()
        for pair in (contents, contents[::-1]):
            left = dict(zip(("requirements.txt", "pyproject.toml"), pair, strict=True))
            monkeypatch.setattr(Path, "read_bytes", lambda path, left=left: left.get(path.name, b""))
            stamps.add(make_environment.expected_stamp())
        assert len(stamps) == 2


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
        make_environment.VENV.mkdir()

    monkeypatch.setattr(make_environment, "run", run)
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
    made_with(checkout, line.format(venv=make_environment.VENV))
    own = checkout / f".venv/lib/python3.11/site-packages/{package}/own.py"
    own.parent.mkdir(exist_ok=True)
    own.touch()
    if package == "pip":
        (checkout / ".venv/share").mkdir()
    with pytest.raises(SetupError, match=rf"{made_by}, .*: move or remove it") as error:
        make_environment.make_venv()
    assert error.value.exit_code == 2
    assert own.exists() and steps == []


def test_an_own_environment_is_kept_or_replaced_with_a_word(
    checkout: Path, steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"command = /usr/bin/python3 -m venv {make_environment.VENV}"
    made_with(checkout, command)  # stopped before it was marked
    make_environment.make_venv()
    assert steps == [] and make_environment.OWN.exists()
    (checkout / ".venv/lib/python3.11/site-packages/torch").mkdir()
    make_environment.make_venv()
    assert steps == [] and capsys.readouterr().err == ""
    (checkout / ".venv/pyvenv.cfg").write_text(f"version = 3.1.4\n{command}\n")
    make_environment.make_venv()
    assert steps == ["making .venv"]
    venv = make_environment.VENV
    assert capsys.readouterr().err == f"set-up: replacing {venv}: it was made with another Python\n"
    assert list(make_environment.VENV.iterdir()) == [make_environment.OWN]


def test_all_pins_are_installed_before_mmcv_full_is(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = ["numpy==2.4.6 ; python_full_version < '3.12'", "numpy==2.5.5 ; python_full_version >= '3.12'"]
    requirements = checkout / "requirements.txt"
    requirements.write_text("\n".join(["# pins", "mmcv-full==1.7.2", *numpy, "uv==0.13.9"]))
    monkeypatch.setattr(make_environment, "REQUIREMENTS", requirements)
    done: list[tuple[str, str]] = []

    def run(step: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        last = Path(command[-1])
        done.append((step, last.read_text() if last.is_file() else last.name))

    monkeypatch.setattr(make_environment, "run", run)
    monkeypatch.setattr(make_environment, "beside", lambda step, command: nullcontext())
    monkeypatch.setattr(make_environment, "install_mmcv", lambda pin, environment: done.append(("mmcv", pin)))
    make_environment.install()
    assert done == [
        ("installing uv", "uv==0.13.9"),
        ("installing requirements.txt", "\n".join(["# pins", *numpy, "uv==0.13.9", ""])),
        ("mmcv", "mmcv-full==1.7.2"),
        ("installing dfvt", checkout.name),
    ]


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
