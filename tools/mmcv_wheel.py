"""The wheel of mmcv-full, which is published as source only: one that is there and works, or a compiled one.

A wheel is tried in the environment itself before it counts: its name does not say which torch it is for. What
works is kept in the user's cache folder (XDG_CACHE_HOME), for each Python, torch and kind of ops.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compile_mmcv import jobs
from mmcv_ops import Ops, choose_ops, missing_to_compile, toolkit_version, visible_archs
from steps import SetupError, last_line, output_of, run, say

INSTALLERS_WORDS = re.compile(r"^((cause|error|ERROR): )+")  # before the reason that pip or uv gives
VARIABLE = "DFVT_MMCV_WHEEL"
PLACES = ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")  # where somebody may offer a wheel
TRIAL_SECONDS = 900
COMPILE = Path(__file__).with_name("compile_mmcv.py")
VERIFY = """
import sys, torch, torchvision, mmcv._ext
from mmcv.ops import nms
for device in sys.argv[1:]:
    boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 4.], [5., 5., 9., 9.]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == nms(boxes, scores, 0.5)[1].tolist() == [0, 2]
"""


@dataclass(frozen=True)
class Environment:
    """The environment that gets mmcv-full: its Python, and uv's command to install something into it."""

    python: Path
    pip_install: Sequence[str | Path]
    env: Mapping[str, str]

    @property
    def pip(self) -> list[str | Path]:
        return [self.python, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]

    @property
    def packages(self) -> Path:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return self.python.parent.parent / f"lib/python{version}/site-packages"


def wheel_cache(pin: str) -> Path:
    """Return the folder of wheels that work, made now if need be.

    Raises:
        SetupError: this user cannot write there.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dfvt", "wheels")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache / pin.replace("==", "-")
    except OSError as error:
        raise SetupError(
            f"{cache} cannot be written ({error.strerror}), but the compiled mmcv-full is kept there: "
            "set XDG_CACHE_HOME to a folder that you can write to."
        ) from error


def given_wheels(environ: Mapping[str, str]) -> list[Path]:
    """Return the wheels that the user names: in our variable, or in the folders in which pip and uv look.

    Raises:
        SetupError: our variable names what does not exist, is no wheel, or holds none.
    """
    named = Path(environ[VARIABLE]).expanduser() if environ.get(VARIABLE) else None
    if named and not named.exists():
        raise SetupError(
            f"{VARIABLE}: {named} does not exist: name a wheel of mmcv-full, or a folder of wheels."
        )
    if named and named.is_file():
        if not (named.name.startswith("mmcv_full-") and named.suffix == ".whl"):
            raise SetupError(f"{VARIABLE}: {named} is no wheel of mmcv-full, whose name is mmcv_full-….whl.")
        return [named]
    found = sorted(named.rglob("mmcv_full-*.whl")) if named else []
    if named and not found:
        raise SetupError(f"{VARIABLE}: {named} has no wheel of mmcv-full: name a folder with one.")
    for link in environ.get("PIP_FIND_LINKS", "").split() + environ.get("UV_FIND_LINKS", "").split(","):
        if link:
            found += sorted(Path(link.removeprefix("file://")).glob("mmcv_full-*.whl"))
    return found


def check_machine(pin: str, environ: Mapping[str, str]) -> None:
    """Look before anything is downloaded whether there is a wheel of mmcv-full, or what compiling needs.

    Raises:
        SetupError: it cannot.
    """
    kept = any(wheel_cache(pin).rglob("*.whl"))
    offered = given_wheels(environ) or any("://" in environ.get(place, "") for place in PLACES)
    if not kept and not offered and (lack := missing_to_compile(environ)):
        raise SetupError(lack)


def torch_versions(environment: Environment) -> tuple[str, str]:
    """Return the versions of torch and of its CUDA ("" for a CPU build), without the seconds of an import."""
    versions = runpy.run_path(str(environment.packages / "torch" / "version.py"))
    return versions["__version__"], versions["cuda"] or ""


def reason_of_failure(code: str, environment: Environment, *arguments: str) -> str | None:
    """Run code in the environment; return the reason if it fails.

    Raises:
        SetupError: it did not end.
    """
    command: list[str | Path] = [environment.python, "-I", "-c", code, *arguments]
    try:
        # The first import of torch reads 5 GB from disk: minutes where other programs are at work.
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TRIAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"import torch took longer than {TRIAL_SECONDS / 60:.0f} minutes: "
            "run the same command again when this machine is less busy.",
            exit_code=1,
        ) from None
    return last_line(done.stderr) if done.returncode else None


def check_torch(environment: Environment) -> None:
    """Raise SetupError if torch itself cannot be imported: no wheel is to blame then."""
    if reason := reason_of_failure("import torch", environment):
        raise SetupError(
            f"torch cannot be imported ({reason}): {environment.python} -c 'import torch' shows more.",
            exit_code=1,
        )


def install_and_verify(wheel: Path, ops: Ops, environment: Environment, torch: str) -> str | None:
    """Install a wheel; return the reason if the wheel cannot be installed or its ops do not work."""
    done = subprocess.run(
        [*environment.pip_install, "--reinstall-package", "mmcv-full", wheel],
        env={**os.environ, **environment.env},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        return f"it cannot be installed ({INSTALLERS_WORDS.sub('', last_line(done.stderr))})"
    reason = reason_of_failure(VERIFY, environment, "cpu", *([] if ops.name == "cpu" else ["cuda"]))
    return reason and f"it does not work with torch {torch} ({reason})"


def published_wheels(pin: str, folder: Path, environment: Environment) -> Iterator[Path]:
    """Yield a wheel from the indexes and links that pip knows; the public index has none."""
    output_of(*environment.pip, "download", "--no-deps", "--only-binary", ":all:", "--dest", folder, pin)
    yield from folder.glob("*.whl")


def compiled_wheels(
    pin: str, ops: Ops, folder: Path, log: Path, environment: Environment, cuda: str
) -> Iterator[Path]:
    """Yield the wheel compiled from the published source: in units and, if that does not work, file by file.

    Args:
        pin: which mmcv-full.
        ops: which of its ops are compiled.
        folder: an empty one, for the source and the wheels.
        log: file that gets what the compiler prints.
        environment: the environment whose torch it is for.
        cuda: version of CUDA of that torch.

    Raises:
        SetupError: this machine cannot compile, or the source cannot be had.
    """
    if lack := missing_to_compile(os.environ):
        raise SetupError(lack)
    check_torch(environment)
    say(f"mmcv-full gets {'CPU' if ops.name == 'cpu' else 'CUDA'} ops: {ops.reason}")
    env = {
        **ops.env,
        "MMCV_WITH_OPS": "1",
        "PATH": f"{environment.python.parent}{os.pathsep}{os.environ['PATH']}",  # for ninja
        # A toolkit may come without the headers of cuBLAS and cuSPARSE; torch's own packages have them.
        "CPATH": f"{environment.packages}/nvidia/cu{cuda.partition('.')[0]}/include",
    }
    options = ["--no-deps", "--no-build-isolation"]
    source = [*environment.pip, "download", *options, "--no-binary", ":all:", "--dest", folder, pin]
    run("downloading the source of mmcv-full", source, env)
    archive = next(folder.glob("*.tar.gz"))
    in_units, by_file = folder / "in units", folder / "by file"
    in_units.mkdir()
    try:
        run("compiling mmcv-full", [environment.python, "-I", COMPILE, archive, in_units], env, log)
        yield from in_units.glob("*.whl")
    except SetupError:
        say(f"compiling mmcv-full in a few units failed, {log} says why")
    say("mmcv-full is compiled file by file instead of in a few units: that takes more than ten minutes")
    env = {"MAX_JOBS": str(jobs()), **env}
    # pip's own cache of wheels does not ask which torch a wheel was compiled for.
    options += ["--use-pep517", "--no-cache-dir", "--wheel-dir"]
    step = "compiling mmcv-full file by file"
    run(step, [*environment.pip, "wheel", *options, by_file, archive], env)
    yield from by_file.glob("*.whl")


def install_mmcv(pin: str, environment: Environment) -> None:
    """Install the first wheel of mmcv-full that works: a given, a kept, a published or a compiled one.

    Raises:
        SetupError: there is none.
    """
    torch, cuda = torch_versions(environment)
    ops = choose_ops(cuda or None, visible_archs(os.environ), toolkit_version(os.environ))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    key = f"py{version}-{sys.platform}-{platform.machine()}-torch{torch}-{ops.name}"
    kept = wheel_cache(pin) / key
    kept.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory(dir=kept) as aside:
        published, compiled = Path(aside, "published"), Path(aside, "compiled")
        compiled.mkdir()

        def wheels() -> Iterator[Path]:
            yield from given_wheels(os.environ)
            yield from kept.glob("*.whl")
            yield from published_wheels(pin, published, environment)
            yield from compiled_wheels(pin, ops, compiled, kept / "compile.log", environment, cuda)

        tried = set[bytes]()
        for wheel in wheels():
            digest = hashlib.sha256(wheel.read_bytes()).digest()
            if digest in tried:  # pip finds what lies in a folder of PIP_FIND_LINKS, too
                continue
            tried.add(digest)
            reason = install_and_verify(wheel, ops, environment, torch)
            if reason is None:
                if Path(aside) in wheel.parents:
                    wheel = wheel.replace(kept / wheel.name)
                say(f"mmcv-full is installed from {wheel}, its ops work")
                return
            check_torch(environment)
            say(f"{wheel} is not used: {reason}")
    raise SetupError(
        f"mmcv-full was compiled, but {reason}: "
        f"name another compiler in CXX, or a wheel of mmcv-full in {VARIABLE}.",
        exit_code=1,
    )
