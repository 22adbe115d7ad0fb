"""Make ``.venv``, the one environment of the project, with nothing but Python's standard library.

``make`` runs it as ``python -E -s tools/make_environment.py``; once the environment is ready that takes
milliseconds. uv installs the pins of requirements.txt, and then mmcv_wheel.py finds or compiles mmcv-full.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mmcv_wheel import Environment, check_machine, install_mmcv
from steps import SetupError, beside, output_of, run, say

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".ready"
OWN = VENV / ".made-by-dfvt"
REQUIREMENTS = ROOT / "requirements.txt"
# What the environment is made from: a change of one of them makes it anew.
INPUTS = (
    REQUIREMENTS,
    ROOT / "pyproject.toml",
    *(
        Path(__file__).with_name(name)
        for name in ("make_environment.py", "mmcv_wheel.py", "mmcv_ops.py", "compile_mmcv.py")
    ),
)


def check_python(version: tuple[int, int]) -> None:
    """Refuse a Python that the pinned packages do not support."""
    if not (3, 11) <= version <= (3, 12):
        raise SetupError(
            f"Python {version[0]}.{version[1]} is not supported: install Python 3.11 or 3.12, "
            "or name one with make PYTHON=/path/to/python."
        )


def read_pins() -> list[str]:
    return REQUIREMENTS.read_text(encoding="utf-8").splitlines()


def pin_of(package: str) -> str:
    return next(line for line in read_pins() if line.partition("==")[0] == package)


def check_venv_module() -> None:
    """Refuse a Python whose venv module is incomplete, as some distributions ship it."""
    if importlib.util.find_spec("ensurepip") is None:
        python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(f"The venv module of {python} is incomplete: install package {python}-venv.")


def uv_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Say to uv what pip's variables for indexes, links and connections say; a variable of uv's own wins."""
    same = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_CERT": "SSL_CERT_FILE", "PIP_PROXY": "ALL_PROXY"}
    lists = {"PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_TRUSTED_HOST": "UV_INSECURE_HOST"}
    found = {uv: environ.get(pip, "") for pip, uv in same.items()}
    found |= {uv: " ".join(environ.get(pip, "").split()) for pip, uv in lists.items()}
    if found[
        "UV_INDEX"
    ]:  # pip takes the best match of all indexes; uv stops at the first that knows the package
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    # pip passes over folders that do not exist; uv refuses them.
    links = environ.get("PIP_FIND_LINKS", "").split()
    found["UV_FIND_LINKS"] = ",".join(link for link in links if "://" in link or Path(link).exists())
    timeout = environ.get("PIP_DEFAULT_TIMEOUT") or environ.get("PIP_TIMEOUT") or ""
    if re.fullmatch(r"\d+(\.\d+)?", timeout):
        found["UV_HTTP_TIMEOUT"] = str(max(1, round(float(timeout))))
    older = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}
    return {k: v for k, v in found.items() if v and not {k, older.get(k, k)} & environ.keys()}


def expected_stamp() -> str:
    """Hash what the environment is made from, its place included: a moved environment does not work."""
    parts = [str(VENV).encode(), sys.version.encode(), platform.machine().encode()]
    parts += [path.read_bytes() for path in INPUTS]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def is_ready() -> bool:
    return STAMP.is_file() and PYTHON.exists() and STAMP.read_text(encoding="utf-8") == expected_stamp()


@contextmanager
def locked() -> Iterator[None]:
    """Let one set-up at a time work on this folder."""
    with (ROOT / ".venv.lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work in this folder, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_venv() -> None:
    """Keep a ``.venv`` that the set-up made here with this Python; replace another one of the set-up.

    Raises:
        SetupError: ``.venv`` has content that the set-up did not make.
    """
    config = VENV / "pyvenv.cfg"
    lines = config.read_text(encoding="utf-8").splitlines() if config.is_file() else []
    made_here = any(line.startswith("command = ") and line.endswith(f" -m venv {VENV}") for line in lines)
    if VENV.exists() and not is_own():
        tool = next(
            (line.partition(" = ")[0] for line in lines if line.startswith(("uv = ", "virtualenv = "))), None
        )
        made_by = f"was made by {tool}" if tool else "was not made by this set-up"
        raise SetupError(
            f"{VENV} {made_by}, and its packages would be replaced: "
            "move or remove it, and run the same command again."
        )
    if made_here and f"version = {platform.python_version()}" in lines and PYTHON.exists():
        OWN.touch()
        return
    if VENV.is_symlink():
        say(f"replacing the link {VENV}; what it points to is not touched")
        VENV.unlink()
    elif VENV.exists():
        why = "it was made with another Python" if made_here else "it was moved or not finished"
        say(f"replacing {VENV}: {why}")
        shutil.rmtree(VENV)
    run("making .venv", [sys.executable, "-I", "-m", "venv", VENV])
    OWN.touch()


def is_own() -> bool:
    """Whether the set-up made ``.venv``, or nothing is lost when it is replaced."""
    if VENV.is_symlink() or any(
        (VENV / name).exists() for name in (OWN.name, STAMP.name, "requirements.txt")
    ):
        return True
    # Stopped before it was marked: what Python's venv module makes, and no more.
    packages = {path.name.partition("-")[0] for path in VENV.glob("lib/python*/site-packages/*")}
    foreign = {path.name for path in VENV.iterdir()} - {
        "bin",
        "include",
        "lib",
        "lib64",
        "pyvenv.cfg",
        ".gitignore",
    }
    return not foreign and packages <= {"pip", "setuptools", "_distutils_hack", "distutils", "pkg_resources"}


def uv_install(environ: Mapping[str, str]) -> tuple[list[str | Path], dict[str, str]]:
    """Return the beginning of uv's command that installs something into ``.venv``, and its environment."""
    uv = VENV / "bin" / "uv"
    env = uv_environment(environ)
    env["UV_COMPILE_BYTECODE"] = environ.get("UV_COMPILE_BYTECODE", "1")
    cache = Path(output_of(uv, "cache", "dir").strip() or VENV)
    while not cache.exists():
        cache = cache.parent
    if cache.stat().st_dev != VENV.stat().st_dev:  # uv would warn that it cannot make hard links
        env["UV_LINK_MODE"] = environ.get("UV_LINK_MODE", "copy")
    command: list[str | Path] = [uv, "pip", "install", "--python", PYTHON, "--directory", ROOT, "--no-deps"]
    if environ.get("PIP_NO_INDEX", "").lower() in {"1", "true", "yes", "y", "t", "on"}:
        command.append("--no-index")  # uv has no variable for it
    return command, env


def install() -> None:
    """Bring ``.venv`` to exactly the pins of requirements.txt, and the project itself, editable."""
    mmcv = pin_of("mmcv-full")
    pip: list[str | Path] = [PYTHON, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run("installing uv", [*pip, "install", pin_of("uv")])
    command, env = uv_install(os.environ)
    # mmcv-full is compiled against the torch that it will meet, so it comes last. Unlike "uv pip sync",
    # an exact install keeps to the constraints of pyproject.toml.
    others = VENV / "requirements.txt"
    others.write_text("".join(f"{line}\n" for line in read_pins() if line != mmcv), encoding="utf-8")
    # Bytecode is compiled beside the next steps, which use one processor at times. Without it, or where
    # PYTHONDONTWRITEBYTECODE is set, every start of every process would compile what it imports.
    later = {**env, "UV_COMPILE_BYTECODE": "0"}
    run("installing requirements.txt", [*command, "--exact", "--requirements", others], later)
    without_tests: list[str | Path] = ["-x", "site-packages/.*/tests?/", VENV / "lib"]
    compileall = [PYTHON, "-I", "-W", "ignore", "-m", "compileall", "-qq", "-j", "0", *without_tests]
    with beside("compiling bytecode", compileall):
        install_mmcv(mmcv, Environment(PYTHON, command, env))
        run("installing dfvt", [*command, "--no-build-isolation", "--editable", ROOT], env)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        check_python(sys.version_info[:2])
        if is_ready():
            return 0
        check_venv_module()
        check_machine(pin_of("mmcv-full"), os.environ)
        with locked():
            if not is_ready():
                started = time.monotonic()
                make_venv()
                STAMP.unlink(missing_ok=True)
                install()
                STAMP.write_text(expected_stamp(), encoding="utf-8")
                say(f"ready after {time.monotonic() - started:.0f} s")
    except SetupError as error:
        say(str(error))
        return error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        say(
            f"{error.filename}: {error.strerror}: give yourself access to it, and run the same command again."
        )
        return 2
    except KeyboardInterrupt:
        say("stopped; run the same command again to carry on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
