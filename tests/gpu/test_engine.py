"""On a GPU: the engine resumes, leaks nothing, compiles, trains on real images and on two GPUs."""

from __future__ import annotations

import gc
import json
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from dfvt.cli import main
from dfvt.data.loading import ForkingLoader
from dfvt.engine.callbacks import Callback, StepRecord
from dfvt.engine.config import load_config
from dfvt.engine.hooks import TrainingStopped
from dfvt.engine.train import train
from tests.gpu.conftest import PROJECT, Recorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda", 0)
COCO128 = os.environ.get("COCO128", "")  # a folder with real images and their annotations
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def losses_of(config_file: Path, work_dir: Path, **options: Any) -> list[float]:
    """The loss of each iteration of a training on one GPU, where float32 is exact unless said otherwise."""
    stop_asked: Callable[[], bool] = options.pop("stop_asked", lambda: False)
    options = {"log_config.interval": 1, "tf32": "none", **options}
    cfg, recorder = load_config(config_file, options), Recorder()
    train(cfg, work_dir, device=GPU, callbacks=[recorder], stop_asked=stop_asked)
    return recorder.losses


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(config_file: Path, tmp_path: Path) -> None:
    options = {"optimizer_config.use_fp16": False, "evaluation.interval": 0}
    whole = losses_of(config_file, tmp_path / "whole", **options)
    # the state in the middle of the very same training: another one differs, as RoIAlign adds in any order
    (tmp_path / "parts").mkdir()
    (tmp_path / "whole" / "latest-1.pth").rename(tmp_path / "parts" / "latest.pth")
    rest = losses_of(config_file, tmp_path / "parts", **options)
    assert len(whole) == 16
    assert len(rest) == 8
    assert rest[0] == pytest.approx(whole[8], rel=1e-4), (rest, whole)
    assert np.mean(rest) == pytest.approx(np.mean(whole[8:]), rel=0.05), (rest, whole)


def test_a_training_that_is_asked_to_stop_leaves_its_state(config_file: Path, tmp_path: Path) -> None:
    calls = iter(range(100))
    with pytest.raises(TrainingStopped) as stopped:
        losses_of(config_file, tmp_path, stop_asked=lambda: next(calls) == 9)
    assert len(losses_of(config_file, tmp_path)) == 16 - stopped.value.step


def test_float32_is_tf32_in_convolutions_unless_the_config_says_exact(
    config_file: Path, tmp_path: Path
) -> None:
    """The first loss shows it: from the second iteration on RoIAlign's order of additions matters, too."""
    options = {"optimizer_config.use_fp16": False, "evaluation.interval": 0, "runner.max_epochs": 1}
    first = {}
    for tf32 in ("convolutions", "none", "all"):
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        first[tf32] = losses_of(config_file, tmp_path / tf32, tf32=tf32, **options)[0]
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    again = losses_of(config_file, tmp_path / "again", **options)[0]
    rounding = abs(again - first["none"])
    for tf32 in ("convolutions", "all"):
        assert first[tf32] == pytest.approx(first["none"], rel=2e-2), first
        assert abs(first[tf32] - first["none"]) > 3 * rounding, (first, again)


def test_a_training_in_production_mode_learns_as_an_exact_one(config_file: Path, tmp_path: Path) -> None:
    options = {"optimizer_config.use_fp16": False, "evaluation.interval": 0, "runner.max_epochs": 4}
    exact = losses_of(config_file, tmp_path / "exact", **options)
    cfg = load_config(config_file, {"log_config.interval": 1, **options})
    assert "tf32" not in cfg, "the default is tried"
    recorder = Recorder()
    train(cfg, tmp_path / "production", device=GPU, callbacks=[recorder])
    assert np.isfinite(recorder.losses).all()
    assert np.mean(recorder.losses[-8:]) == pytest.approx(np.mean(exact[-8:]), rel=0.1)


class Memory(Callback):
    """Notes the device's and the process's memory, and open files, at each record."""

    def __init__(self) -> None:
        self.noted: list[tuple[int, int, int]] = []

    def on_step(self, record: StepRecord) -> None:
        gc.collect()
        process = psutil.Process()
        self.noted.append((torch.cuda.memory_allocated(), process.memory_info().rss, process.num_fds()))


def test_two_hundred_iterations_leak_nothing(config_file: Path, tmp_path: Path) -> None:
    options = {"runner.max_epochs": 25, "evaluation.interval": 0, "log_config.interval": 8}
    memory = Memory()
    train(load_config(config_file, options), tmp_path, device=GPU, callbacks=[memory])
    assert len(memory.noted) == 25
    device, host, files = np.array(memory.noted).T
    assert device[-1] <= device[4] * 1.02
    assert host[-1] <= host[4] + 64 * 2**20
    assert files[-1] <= files[4] + 2


def test_a_compiled_backbone_trains_like_one_that_is_not(config_file: Path, tmp_path: Path) -> None:
    options = {"optimizer_config.use_fp16": False, "evaluation.interval": 0, "runner.max_epochs": 1}
    options["model.backbone.drop_path_rate"] = 0.0  # compiled code has random numbers of its own
    plain = losses_of(config_file, tmp_path / "plain", **options)
    compiled = losses_of(config_file, tmp_path / "compiled", compile_backbone=True, **options)
    assert compiled[0] == pytest.approx(plain[0], rel=1e-3), (compiled, plain)
    assert np.mean(compiled) == pytest.approx(np.mean(plain), rel=0.1), (compiled, plain)


class CollectsGarbage:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return gc.collect()


def test_a_loader_process_leaves_memory_of_the_gpu_to_its_parent() -> None:
    """Freed in a process without the GPU, what was copied to or from it would abort that process."""
    on_gpu = torch.ones(1000, device=GPU)
    garbage: list[Any] = [on_gpu.to("cpu", non_blocking=True), on_gpu]
    assert garbage[0].is_pinned()
    garbage.append(garbage)
    del on_gpu, garbage
    assert len(list(ForkingLoader(CollectsGarbage(), 2))) == 4


@pytest.mark.skipif(not COCO128, reason="COCO128 names no folder of real images")
@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
@pytest.mark.parametrize(
    "precision",
    [{}, {"optimizer_config.dtype": "bfloat16"}, {"optimizer_config.use_fp16": False}],
    ids=["float16", "bfloat16", "float32"],
)
def test_the_published_recipe_trains_on_real_images(
    variant: str, precision: dict[str, Any], tmp_path: Path
) -> None:
    overfit = runpy.run_path(str(PROJECT / "benchmarks/overfit.py"))
    coco = Path(COCO128)
    annotations = overfit["first_images"](
        coco / "annotations/instances_train2017.json", 48, tmp_path / "annotations.json"
    )
    options: dict[str, Any] = {"runner.max_epochs": 2, "evaluation.interval": 0, "data.workers_per_gpu": 4}
    options |= {"lr_config.warmup_iters": 4, "data.samples_per_gpu": 4, "log_config.interval": 1, **precision}
    cfg = load_config(PROJECT / f"configs/DFvT/maskrcnn_DFvT_{variant}_1x_coco.py", options)
    for split in ("train", "val", "test"):
        cfg.data[split].update(ann_file=str(annotations), img_prefix=str(coco / "train2017"), data_root=None)
    recorder = Recorder()
    train(cfg, tmp_path, device=GPU, callbacks=[recorder])
    assert len(recorder.losses) >= 24
    assert np.isfinite(recorder.losses).all()
    assert np.mean(recorder.losses[-6:]) < 0.8 * np.mean(recorder.losses[:6])


@two_gpus
@pytest.mark.parametrize(
    "switches",
    [
        ["sync_batchnorm=False"],
        ["sync_batchnorm=True"],
        ["compile_backbone=True"],
        ["fast_heads=True", "cuda_graphs=True", "canvases=[(128,160)]", "channels_last=True"],
    ],
    ids=lambda switches: switches[0],
)
def test_two_gpus_have_the_loss_of_one_with_the_same_batch(
    config_file: Path, tmp_path: Path, switches: list[str]
) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    common = ["evaluation.interval=0", "log_config.interval=1", "optimizer_config.use_fp16=False"]
    common.append("tf32=none")
    curves = []
    for num_gpus, batch in ((1, 4), (2, 2)):
        work_dir = tmp_path / str(num_gpus)
        options = ["--gpus", str(num_gpus), "--work-dir", str(work_dir), "--cfg-options", *common, *switches]
        assert main(["train", str(config_file), *options, f"data.samples_per_gpu={batch}"]) == 0
        rows = (work_dir / "curve.csv").read_text().splitlines()
        column = rows[0].split(",").index("loss")
        curves.append([float(row.split(",")[column]) for row in rows[1:]])
    one, two = curves
    assert len(one) == len(two)
    # BatchNorm sees half of the batch on each GPU unless it is shared, and the heads' samplers draw anew
    tolerance = 0.02 if switches == ["sync_batchnorm=True"] else 0.1
    assert abs(two[0] - one[0]) < tolerance * one[0], json.dumps(curves)
    assert abs(np.mean(two) - np.mean(one)) < 0.15 * np.mean(one), json.dumps(curves)
