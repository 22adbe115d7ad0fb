"""Which ops of mmcv-full this machine compiles: those for its GPUs or those for its processor, if any."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steps import output_of


@dataclass(frozen=True)
class Ops:
    """Which ops of mmcv-full are compiled: ``cpu`` or, for example, ``cu13.0-sm9.0``."""

    name: str
    reason: str
    env: dict[str, str] = field(default_factory=dict)


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


def visible_archs(environ: Mapping[str, str]) -> list[str]:
    if environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return []
    query = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    return re.findall(r"^\d+\.\d+$", query, flags=re.MULTILINE)


def toolkit_version(environ: Mapping[str, str]) -> str | None:
    nvcc = Path(environ["CUDA_HOME"], "bin", "nvcc") if environ.get("CUDA_HOME") else "nvcc"
    release = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))
    return release[1] if release else None


def missing_to_compile(environ: Mapping[str, str]) -> str | None:
    """Return what compiling mmcv-full lacks on this machine and what to do, None where nothing is missing."""
    compilers = shlex.split(environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler, path=environ.get("PATH", "")) for compiler in compilers):
        lack = f"No C++ compiler ({', '.join(compilers)}) is on PATH"
        cure = "install g++ or clang, or name yours in CXX"
    elif not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        lack, cure = f"Python.h of {python} is missing", f"install its headers (package {python}-dev)"
    else:
        return None
    return f"{lack} and mmcv-full must be compiled: {cure}, or name a wheel of mmcv-full in DFVT_MMCV_WHEEL."
