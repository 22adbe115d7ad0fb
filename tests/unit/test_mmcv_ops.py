"""Which ops of mmcv-full are compiled, and how its files are grouped."""

from __future__ import annotations

from pathlib import Path

import pytest

import compile_mmcv
from compile_mmcv import in_units, jobs, unit_of
from mmcv_ops import choose_ops


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


@pytest.mark.parametrize(
    "clashing",
    [
        ["cpu/roi_align.cpp", "cpu/roi_align_rotated.cpp", "cpu/rotated_feature_align.cpp"],
        ["cuda/nms_quadri_cuda.cu", "cuda/nms_rotated_cuda.cu", "cuda/nms_cuda.cu", "cuda/iou3d_cuda.cu"],
        ["cuda/carafe_cuda.cu", "cuda/carafe_naive_cuda.cu", "cuda/correlation_cuda.cu"],
        ["pybind.cpp", "focal_loss.cpp", "cuda/cudabind.cpp", "a_file_of_a_later_version.cu"],
    ],
)
def test_files_that_define_equal_names_are_apart(clashing: list[str]) -> None:
    assert len({unit_of(f"./mmcv/ops/csrc/pytorch/{name}") for name in clashing}) == len(clashing)


def test_each_file_is_compiled_once_in_a_unit_or_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["pybind.cpp", "nms.cpp", "pixel_group.cpp", "cpu/psamask.cpp", "cpu/voxelization.cpp"]
    sources = [f"csrc/pytorch/{name}" for name in names]
    flags = {"cxx": ["-std=c++17"], "nvcc": ["--x"]}
    made = in_units(lambda name, sources, **options: (name, sources, options))(
        "mmcv._ext", sources, extra_compile_args=flags, include_dirs=["csrc"]
    )
    assert made == (
        "mmcv._ext",
        ["csrc/pytorch/pybind.cpp", "units/cpu.cpp", "units/dispatch.cpp"],
        {
            "extra_compile_args": {"cxx": ["-std=c++17", "-g0"], "nvcc": ["--x"]},
            "include_dirs": ["csrc"],
        },
    )
    folder = f"{tmp_path}/csrc/pytorch"
    assert Path("units/cpu.cpp").read_text() == (
        f'#include "{folder}/cpu/voxelization.cpp"\n#include "{folder}/cpu/psamask.cpp"\n'
    )
    assert Path("units/dispatch.cpp").read_text() == (
        f'#include "{folder}/nms.cpp"\n#include "{folder}/pixel_group.cpp"\n'
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"/proc/meminfo": "MemTotal:  99 kB\nMemAvailable:   10485760 kB\n"}, 4),
        ({"/sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n", "/sys/fs/cgroup/memory.max": f"{8 * 2**30}\n"}, 3),
        ({"/sys/fs/cgroup/memory.max": "max\n"}, 16),
        ({"/sys/fs/cgroup/memory.max": f"{2**30}\n"}, 1),
    ],
)
def test_as_many_compilers_run_as_there_are_processors_and_memory_for(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(compile_mmcv.os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(compile_mmcv, "read", lambda path: files.get(path, ""))
    assert jobs() == expected
