"""Make ``.venv``, the one environment of the project, with nothing but Python's standard library.

``make`` runs it as ``python -I dfvt/bootstrap.py``; once the environment is ready that takes milliseconds.
uv installs the pins of requirements.txt. mmcv-full is published as source only: its wheel is compiled once
for each Python, torch and kind of ops, and kept in the user's cache folder (XDG_CACHE_HOME).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PIP: list[str | Path] = [PYTHON, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]
STAMP = VENV / ".ready"
OWN = VENV / ".made-by-dfvt"
TORCH_SECONDS = 900
REQUIREMENTS = ROOT / "requirements.txt"
VERIFY = """
import torch, torchvision, mmcv._ext
from mmcv.ops import nms
boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 4.], [5., 5., 9., 9.]])
scores = torch.tensor([0.9, 0.8, 0.7])
assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == nms(boxes, scores, 0.5)[1].tolist() == [0, 2]
"""


class SetupError(Exception):
    """One sentence for the user; exit code 2: this machine lacks something, 1: a step failed."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ops:
    """Which ops of mmcv-full are compiled: ``cpu`` or, for example, ``cu13.0-sm9.0``."""

    name: str
    reason: str
    env: dict[str, str] = field(default_factory=dict)


def check_python(version: tuple[int, int]) -> None:
    """Refuse a Python that the pinned packages do not support."""
    if not (3, 11) <= version <= (3, 12):
        raise SetupError(
            f"Python {version[0]}.{version[1]} is not supported: install Python 3.11 or 3.12, "
            "or name one with make PYTHON=/path/to/python."
        )


def check_machine(environ: Mapping[str, str]) -> None:
    """Look for what making the environment and compiling mmcv-full need, before anything is downloaded."""
    compilers = shlex.split(environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler, path=environ.get("PATH", "")) for compiler in compilers):
        raise SetupError(
            f"No C++ compiler ({', '.join(compilers)}) is on PATH and mmcv-full must be compiled: "
            "install g++ or clang, or name yours in CXX."
        )
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        raise SetupError(f"Python.h of {python} is missing: install its headers (package {python}-dev).")
    if importlib.util.find_spec("ensurepip") is None:
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


def choose_ops(torch_cuda: str | None, archs: Sequence[str], toolkit: str | None) -> Ops:
    """Decide for CUDA ops when a GPU is visible and the toolkit's major version is that of torch.

    Args:
        torch_cuda: CUDA version torch was built with, None for a CPU build.
        archs: compute capabilities of the visible GPUs, such as ``9.0``.
        toolkit: version of nvcc, None without one.
    """
    hidden = {"CUDA_VISIBLE_DEVICES": "", "FORCE_CUDA": "0"}
    if not archs:
        return Ops("cpu", "no NVIDIA GPU is visible", hidden)
    if torch_cuda is None:
        return Ops("cpu", "the installed torch is a CPU build", hidden)
    if toolkit is None:
        return Ops("cpu", "a GPU is visible, but no nvcc is on PATH or in CUDA_HOME", hidden)
    if toolkit.split(".")[0] != torch_cuda.split(".")[0]:
        return Ops("cpu", f"nvcc is of CUDA {toolkit}, but torch of CUDA {torch_cuda}", hidden)
    arch_list = ";".join(sorted(set(archs), key=float))
    env = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch_list}
    return Ops(f"cu{toolkit}-sm{arch_list.replace(';', '-')}", f"a GPU and CUDA {toolkit} are there", env)


def expected_stamp() -> str:
    """Hash what the environment is made from, its place included: a moved environment does not work."""
    parts = [str(VENV).encode(), sys.version.encode(), platform.machine().encode()]
    parts += [path.read_bytes() for path in (REQUIREMENTS, ROOT / "pyproject.toml", Path(__file__))]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def is_ready() -> bool:
    return STAMP.is_file() and PYTHON.exists() and STAMP.read_text(encoding="utf-8") == expected_stamp()


def say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def output_of(*command: str | Path) -> str:
    """Return what a query prints, or nothing when it cannot be asked."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def installed_torch() -> tuple[str, str]:
    """Return the versions of torch in the environment and of its CUDA ("" for a CPU build).

    Raises:
        SetupError: torch cannot be imported.
    """
    query = "import torch; print(torch.__version__, torch.version.cuda or '')"
    try:
        # The first import reads 5 GB from disk, which takes minutes where other programs are at work.
        done = subprocess.run(
            [PYTHON, "-I", "-c", query], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"import torch took longer than {TORCH_SECONDS / 60:.0f} minutes: "
            "run the same command again when this machine is less busy.",
            exit_code=1,
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SetupError(
            f"torch cannot be imported ({reason}): {PYTHON} -c 'import torch' shows more.", exit_code=1
        )
    version, _, cuda = done.stdout.rstrip("\n").partition(" ")
    return version, cuda


def run(step: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
    """Run one step, say every minute that it goes on, and on the way out leave no process behind."""
    started = time.monotonic()
    env = {**os.environ, **(env or {})}
    child = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while True:
            try:
                code = child.wait(timeout=60)
                break
            except subprocess.TimeoutExpired:
                say(f"{step}: {(time.monotonic() - started) / 60:.0f} min so far")
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        child.wait()
        raise
    if code:
        raise SetupError(f"{step} failed, see above; run the same command again to carry on.", exit_code=1)


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


def visible_archs(environ: Mapping[str, str]) -> list[str]:
    if environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return []
    query = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    return re.findall(r"^\d+\.\d+$", query, flags=re.MULTILINE)


def toolkit_version(environ: Mapping[str, str]) -> str | None:
    nvcc = Path(environ["CUDA_HOME"], "bin", "nvcc") if environ.get("CUDA_HOME") else "nvcc"
    release = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))
    return release[1] if release else None


def wheel_cache() -> Path:
    """Return the folder of compiled wheels, made now if need be.

    Raises:
        SetupError: this user cannot write there.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dfvt", "wheels")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError as error:
        raise SetupError(
            f"{cache} cannot be written ({error.strerror}), but the compiled mmcv-full is kept there: "
            "set XDG_CACHE_HOME to a folder that you can write to."
        ) from error


def mmcv_wheel(pin: str) -> Path:
    """Return the compiled wheel of mmcv-full for this Python, torch and machine, made now if need be."""
    torch, cuda = installed_torch()
    ops = choose_ops(cuda or None, visible_archs(os.environ), toolkit_version(os.environ))
    say(f"mmcv-full has {'CPU' if ops.name == 'cpu' else 'CUDA'} ops: {ops.reason}")

    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    cache = wheel_cache()
    key = f"py{version}-{sys.platform}-{platform.machine()}-torch{torch}-{ops.name}"
    folder = cache / pin.replace("==", "-") / key
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("*.whl")):
        say("compiling mmcv-full, once for this machine: about ten minutes, more with CUDA ops")
        env = {
            **ops.env,
            "MMCV_WITH_OPS": "1",
            "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",  # for ninja
            # A toolkit may come without the headers of cuBLAS and cuSPARSE; torch's own packages have them.
            "CPATH": f"{VENV}/lib/python{version}/site-packages/nvidia/cu{cuda.partition('.')[0]}/include",
        }
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            # pip's own cache of wheels does not ask which torch a wheel was compiled for.
            options = ["--no-deps", "--no-build-isolation", "--use-pep517", "--no-cache-dir"]
            run("compiling mmcv-full", [*PIP, "wheel", *options, "--wheel-dir", aside, pin], env)
            for wheel in Path(aside).glob("*.whl"):
                wheel.replace(folder / wheel.name)
    return next(folder.glob("*.whl"))


def install() -> None:
    """Bring ``.venv`` to exactly the pins of requirements.txt, and the project itself, editable."""
    pins = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pin = {line.partition("==")[0]: line for line in pins}
    run("installing uv", [*PIP, "install", pin["uv"]])
    uv = VENV / "bin" / "uv"
    env = uv_environment(os.environ)
    # Where PYTHONDONTWRITEBYTECODE is set, every start of every process would compile what it imports.
    env["UV_COMPILE_BYTECODE"] = os.environ.get("UV_COMPILE_BYTECODE", "1")
    cache = Path(output_of(uv, "cache", "dir").strip() or VENV)
    while not cache.exists():
        cache = cache.parent
    if cache.stat().st_dev != VENV.stat().st_dev:  # uv would warn that it cannot make hard links
        env["UV_LINK_MODE"] = os.environ.get("UV_LINK_MODE", "copy")
    pip_install: list[str | Path] = [uv, "pip", "install", "--python", PYTHON, "--no-deps"]
    if os.environ.get("PIP_NO_INDEX", "").lower() in {"1", "true", "yes", "y", "t", "on"}:
        pip_install.append("--no-index")  # uv has no variable for it
    # mmcv-full is compiled against the torch that it will meet, so it comes last. Unlike "uv pip sync",
    # an exact install keeps to the constraints of pyproject.toml.
    others = VENV / "requirements.txt"
    others.write_text("".join(f"{line}\n" for line in pins if line != pin["mmcv-full"]), encoding="utf-8")
    run("installing requirements.txt", [*pip_install, "--exact", "--requirements", others], env)
    wheel = mmcv_wheel(pin["mmcv-full"])
    run("installing dfvt", [*pip_install, "--no-build-isolation", wheel, "--editable", "."], env)

    check = subprocess.run(
        [PYTHON, "-I", "-c", VERIFY], capture_output=True, text=True, errors="replace", check=False
    )
    if check.returncode:
        reason = (check.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SetupError(
            f"The compiled ops mmcv._ext do not work here ({reason}): remove {wheel}.", exit_code=1
        )


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        check_python(sys.version_info[:2])
        if is_ready():
            return 0
        check_machine(os.environ)
        wheel_cache()
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
