"""Compile mmcv-full's published source in a few units, each of which includes many of its files.

torch's headers take eight of the nine seconds of processor time that a file takes: read once for a unit, not
once for a file, they hardly count. The files are the published ones; their own setup.py makes the wheel.

The Python of an environment with torch, setuptools and ninja runs this file; no network is needed:
``python tools/compile_mmcv.py mmcv-full-1.7.2.tar.gz FOLDER`` leaves the wheel in FOLDER.
"""

from __future__ import annotations

import os
import re
import runpy
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

GIGABYTES_A_JOB = 2.5  # pybind.cpp takes 2.2

# A file belongs to the first unit that has it; what no unit has is compiled alone. Files of one unit must not
# define equal names: bilinear_interpolate_gradient is in three files of cpu/, Point in seven of cuda/.
UNITS = {
    "cuda_1.cu": "ball_query* convex_iou* psamask* roi_align_rotated* roipoint* upfirdn2d*",
    "cuda_2.cu": "border_align* focal* min_area* roi_pool_* roiaware* rotated_feature* three_nn*",
    "cuda_3.cu": "carafe_cuda* knn* masked_conv* prroi* scatter* tin_shift*",
    "cuda_4.cu": "bbox_overlaps* iou3d* ms_deform* stack_group*",
    "cuda_5.cu": "assign* box_iou_rotated* deform_roi* furthest* nms_cuda* points_in_boxes* stack_ball*",
    "cuda_6.cu": "active* box_iou_quadri* correlation* gather* modulated* sync_bn*",
    "cuda_7.cu": "carafe_naive* diff_iou* nms_rotated* roi_align_cuda* three_interpolate* voxelization*",
    "cuda_8.cu": "chamfer* deform_conv* fused_bias* group_points* nms_quadri* points_in_polygons* riroi*",
    "sparse.cpp": "cpu/sparse_*.cpp cpu/rotated_feature_align.cpp",
    "cpu.cpp": "cpu/[!r]*.cpp cpu/roi_align.cpp",
    "dispatch.cpp": "pytorch/[!p]*.cpp pytorch/p[!y]*.cpp cpu/roi_align_rotated.cpp",
}


def unit_of(source: str) -> str:
    """Name the unit of a source file, or the file itself where it is compiled alone."""
    path = PurePath(source)
    for unit, files in UNITS.items():
        if path.suffix == PurePath(unit).suffix and any(map(path.match, files.split())):
            return unit
    return source


def grouped(sources: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each unit, what takes long first: files alone, then CUDA's units."""
    units: dict[str, list[str]] = {source: [source] for source in sources if unit_of(source) == source}
    units |= {unit: [source for source in sorted(sources) if unit_of(source) == unit] for unit in UNITS}
    for files in units.values():  # psamask.cpp defines the macros min and max, for all that come after it
        files.sort(key=lambda file: PurePath(file).stem == "psamask")
    return {unit: files for unit, files in units.items() if files}


def write_units(sources: Sequence[str], folder: Path) -> list[str]:
    """Write a file for each unit that includes its sources.

    Args:
        sources: paths of source files, as setup.py lists them.
        folder: where the units are written.

    Returns:
        What is compiled in place of the sources: units, and files that are in none.
    """
    folder.mkdir(exist_ok=True)
    compiled = []
    for name, files in grouped(sources).items():
        if name in UNITS:
            text = "".join(f'#include "{Path(file).resolve()}"\n' for file in files)
            (folder / name).write_text(text, encoding="utf-8")
        compiled.append(str(folder / name) if name in UNITS else name)
    return compiled


def in_units(extension: Callable[..., Any]) -> Callable[..., Any]:
    """Let torch's CppExtension or CUDAExtension compile units, without debug information."""

    def make(name: str, sources: Sequence[str], **options: Any) -> Any:
        flags = dict(options.pop("extra_compile_args", {}))
        # Python's own flags have -g, which doubles the time of a file, and the size of the wheel.
        flags["cxx"] = [*flags.get("cxx", []), "-g0"]
        compiled = write_units(sources, Path("units"))
        print(f"{len(sources)} files of {name} are compiled in {len(compiled)} units", flush=True)
        return extension(name, compiled, extra_compile_args=flags, **options)

    return make


def read(path: str) -> str:
    """Return a file of the system, or nothing where it has no such file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def jobs() -> int:
    """Return how many compilers may run at once: there must be a processor and memory for each."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    available = re.search(r"^MemAvailable: +(\d+) kB", read("/proc/meminfo"), flags=re.MULTILINE)
    memory = [int(available[1]) * 1024] if available else []
    # A container may have less than its host.
    if quota := re.match(r"(\d+) (\d+)", read("/sys/fs/cgroup/cpu.max")):
        cores = min(cores, int(quota[1]) / int(quota[2]))
    if limit := re.match(r"\d+", read("/sys/fs/cgroup/memory.max")):
        memory.append(int(limit[0]))
    return max(1, round(min([cores, *(size / 2**30 / GIGABYTES_A_JOB for size in memory)])))


def main(archive: Path, wheels: Path) -> None:
    """Compile the archive of mmcv-full's source, and put the wheel into a folder."""
    from torch.utils import cpp_extension

    cpp_extension.CppExtension = in_units(cpp_extension.CppExtension)
    cpp_extension.CUDAExtension = in_units(cpp_extension.CUDAExtension)
    os.environ.setdefault("MAX_JOBS", str(jobs()))
    archive, wheels = archive.resolve(), wheels.resolve()
    with tempfile.TemporaryDirectory(dir=wheels) as folder:
        with tarfile.open(archive) as source:
            source.extractall(folder, filter="data")
        os.chdir(next(Path(folder).iterdir()))
        sys.argv = ["setup.py", "bdist_wheel", "--dist-dir", str(wheels)]
        runpy.run_path("setup.py", run_name="__main__")
        os.chdir(wheels)  # the folder is removed


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
