"""The same global batch gives the same training: in one process or several, at once or gathered in parts."""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mmcv import Config
from mmdet.core.bbox.builder import BBOX_SAMPLERS
from mmdet.core.bbox.samplers import BaseSampler
from torch import Tensor
from torch.distributed.constants import default_pg_timeout

from dfvt.engine.batches import plan_batches
from dfvt.engine.build import build_model
from dfvt.engine.callbacks import Callback, TrainingStart
from dfvt.engine.config import load_config
from dfvt.engine.config_text import config_text
from dfvt.engine.curves import CurveFiles
from dfvt.engine.hooks import TrainingStopped
from dfvt.engine.launch import launch
from dfvt.engine.train import train
from dfvt.models.checkpoints import read_checkpoint

pytestmark = pytest.mark.usefixtures("forked_processes")
CPU = torch.device("cpu")
GLOBAL_BATCH, NUM_EPOCHS = 6, 3
# Float32 sums in another order, which AdamW's division by small roots enlarges.
TOLERANCE = {"rtol": 2e-3, "atol": 2e-4}


@BBOX_SAMPLERS.register_module(force=True)
class FirstSampler(BaseSampler):
    """Takes the first candidates, always as many positives: the mean of means of processes is the mean."""

    def _sample_pos(self, assign_result: Any, num_expected: int, **_: Any) -> Tensor:
        return torch.nonzero(assign_result.gt_inds > 0).flatten()[:num_expected]

    def _sample_neg(self, assign_result: Any, num_expected: int, **_: Any) -> Tensor:
        return torch.nonzero(assign_result.gt_inds == 0).flatten()[:num_expected]


def comparable_config(config: Config) -> Config:
    """A small ResNet with fixed BatchNorm, and samplers that draw nothing."""
    config = copy.deepcopy(config)
    backbone = {"type": "ResNet", "depth": 18, "base_channels": 8, "norm_eval": True}
    sampler = {"_delete_": True, "type": "FirstSampler", "pos_fraction": 1 / 16, "num": 16}
    config.merge_from_dict(
        {
            "model.pretrained": None,
            "model.backbone": {
                "_delete_": True,
                **backbone,
                "norm_cfg": {"type": "BN", "requires_grad": False},
            },
            "model.neck.in_channels": [8, 16, 32, 64],
            "model.train_cfg.rpn.sampler": {**sampler, "neg_pos_ub": -1, "add_gt_as_proposals": False},
            "model.train_cfg.rcnn.sampler": {**sampler, "neg_pos_ub": -1, "add_gt_as_proposals": True},
            "data.samples_per_gpu": GLOBAL_BATCH,
            "runner.max_epochs": NUM_EPOCHS,
            "evaluation.interval": 0,
            "log_config.interval": 1,
        }
    )
    return config


def losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((folder / "curve.csv").open())]


def weights(folder: Path) -> dict[str, Tensor]:
    return read_checkpoint(folder / "checkpoint.pth")["state_dict"]


def train_here(device: torch.device, path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    train(load_config(path), folder, seed=7, device=device, callbacks=[CurveFiles(folder)])


def assert_same_training(one: Path, other: Path) -> None:
    assert len(losses(one)) == NUM_EPOCHS * 2
    assert losses(one) == pytest.approx(losses(other), rel=1e-4)
    assert losses(one)[-1] < 0.9 * losses(one)[0], "something was learnt that could differ"
    torch.testing.assert_close(weights(one), weights(other), **TOLERANCE)


@pytest.fixture(scope="module")
def alone(session_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves that takes the whole batch at once."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "config.py").write_text(config_text(comparable_config(session_config), formatted=False))
    train_here(CPU, folder / "config.py", folder)
    return folder


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_that_share_a_batch_train_as_one_does(
    session_config: Config, alone: Path, tmp_path: Path, num_processes: int
) -> None:
    config = comparable_config(session_config)
    config.data.samples_per_gpu = GLOBAL_BATCH // num_processes
    (tmp_path / "config.py").write_text(config_text(config, formatted=False))
    launch(train_here, [CPU] * num_processes, tmp_path / "config.py", tmp_path)
    assert_same_training(tmp_path, alone)


@pytest.mark.parametrize("name", ["cumulative_iters", "update_interval"])
def test_gradients_of_small_batches_add_up_to_those_of_a_large_one(
    session_config: Config, tmp_path: Path, name: str
) -> None:
    """Epochs of one large batch against three small ones, so that both see the same images at each update."""
    steps: dict[int, list[float]] = {}
    for accumulated in (1, 3):
        config = comparable_config(session_config)
        config.merge_from_dict(
            {
                "data.samples_per_gpu": GLOBAL_BATCH // accumulated,
                f"optimizer_config.{name}": accumulated,
                "lr_config": {"_delete_": True, "policy": "fixed"},
            }
        )
        for step in config.data.train.pipeline:
            if step.type == "RandomFlip":
                step.flip_ratio = 0.0
        keep_images(config, GLOBAL_BATCH, tmp_path / f"{accumulated}.json")
        folder = tmp_path / str(accumulated)
        train(config, folder, seed=7, callbacks=[CurveFiles(folder)])
        curve = losses(folder)
        steps[accumulated] = [
            sum(curve[i : i + accumulated]) / accumulated for i in range(0, len(curve), accumulated)
        ]
    assert len(steps[1]) == NUM_EPOCHS
    assert steps[3] == pytest.approx(steps[1], rel=1e-4)
    torch.testing.assert_close(weights(tmp_path / "3"), weights(tmp_path / "1"), **TOLERANCE)


def keep_images(config: Config, number: int, path: Path) -> None:
    """Trains on the first images alone."""
    content = json.loads(Path(config.data.train.ann_file).read_text())
    content["images"] = content["images"][:number]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in kept]
    path.write_text(json.dumps(content))
    config.data.train.ann_file = str(path)


def train_half(device: torch.device, path: Path, folder: Path) -> None:
    """Two processes train until one iteration after they are asked to stop."""
    torch.set_num_threads(1)
    asked = iter([False, False, False, True, True])  # two iterations, their epoch's end, two more iterations
    with pytest.raises(TrainingStopped):
        train(
            load_config(path),
            folder,
            seed=7,
            device=device,
            callbacks=[CurveFiles(folder)],
            stop_asked=lambda: next(asked),
        )


class Starts(Callback):
    """Keeps how a training begins."""

    note: str | None = None
    step = -1

    def on_start(self, start: TrainingStart) -> None:
        self.note, self.step = start.note, start.step


def test_one_process_goes_on_from_the_state_of_two_with_their_batch(
    session_config: Config, alone: Path, tmp_path: Path
) -> None:
    config = comparable_config(session_config)
    config.data.samples_per_gpu = GLOBAL_BATCH // 2
    config.checkpoint_config = {"interval": 1, "by_epoch": False}
    (tmp_path / "config.py").write_text(config_text(config, formatted=False))
    launch(train_half, [CPU, CPU], tmp_path / "config.py", tmp_path)
    (tmp_path / "latest-1.pth").replace(tmp_path / "latest.pth")  # in the middle of an epoch
    starts = Starts()
    train(load_config(tmp_path / "config.py"), tmp_path, seed=7, callbacks=[CurveFiles(tmp_path), starts])
    assert starts.step == 3
    assert starts.note == (
        "1 process instead of 2: the global batch stays 6, 6 images a process in 2 parts; "
        "the learning rate stays"
    )
    assert_same_training(tmp_path, alone)


def test_a_training_can_start_with_fewer_processes_than_planned(session_config: Config) -> None:
    config = comparable_config(session_config)
    config.data.samples_per_gpu = 3
    began = plan_batches(config, 1, {"num_processes": 2, "global_batch": 6})
    assert plan_batches(config, 1, None, num_processes=2) == began
    assert plan_batches(config, 2, None, num_processes=2) == plan_batches(config, 2, None)
    assert plan_batches(config, 2, None, num_processes=2).note is None


def test_the_learning_rate_can_follow_the_batch_instead(session_config: Config) -> None:
    config = comparable_config(session_config)
    config.merge_from_dict({"data.samples_per_gpu": 3, "resized_batch": "scale_lr"})
    plan = plan_batches(config, 1, {"num_processes": 2, "global_batch": 6})
    assert (plan.batch_size, plan.num_parts, plan.lr_scale) == (3, 1, 0.5)
    assert plan.note == (
        "1 process instead of 2: the global batch is 3 instead of 6, the learning rate 0.5 times as high"
    )


def test_a_batch_that_cannot_be_shared_is_refused(session_config: Config) -> None:
    config = comparable_config(session_config)
    with pytest.raises(ValueError, match="4 processes cannot share the global batch of 6 images"):
        plan_batches(config, 4, {"num_processes": 2, "global_batch": 6})
    config.resized_batch = "somehow"
    with pytest.raises(ValueError, match="must be one of keep_batch, scale_lr"):
        plan_batches(config, 1, None)


def train_and_die(device: torch.device, path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    count = iter(range(100))

    def die_in_the_second() -> bool:
        if dist.get_rank() == 1 and next(count) == 1:
            (folder / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    train(load_config(path), folder, seed=7, device=device, stop_asked=die_in_the_second)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_the_death_of_one_process_stops_the_others(
    session_config: Config, tmp_path: Path, num_processes: int
) -> None:
    config = comparable_config(session_config)
    config.data.samples_per_gpu = 1
    (tmp_path / "config.py").write_text(config_text(config, formatted=False))
    with pytest.raises(RuntimeError, match=rf"process 1 of {num_processes} was killed by SIGKILL") as error:
        launch(train_and_die, [CPU] * num_processes, tmp_path / "config.py", tmp_path)
    assert "\n" not in str(error.value)
    waited = time.time() - float((tmp_path / "died").read_text())
    assert waited < default_pg_timeout.total_seconds() / 2, "they do not wait for the process that died"


def test_an_average_follows_the_weights_and_is_what_is_saved(config: Config, tmp_path: Path) -> None:
    config.ema = {"decay": 0.5}
    config.evaluation.interval = 0
    updates: list[dict[str, Tensor]] = []

    class Keep(Callback):
        def on_checkpoint(self, path: Path, step: int) -> None:
            updates.append(read_checkpoint(path))

    config.merge_from_dict({"checkpoint_config": {"interval": 1, "by_epoch": False}})
    train(config, tmp_path, seed=1, callbacks=[Keep()])
    name = "roi_head.bbox_head.fc_cls.weight"
    states = {state["meta"]["iter"]: state for state in updates}
    for step in range(2, 8):
        before, after = states[step - 1]["state_dict"][name], states[step]["state_dict"][name]
        torch.testing.assert_close(after, (before + states[step]["model"][name]) / 2)
    assert torch.equal(weights(tmp_path)[name], states[8]["state_dict"][name])
    statistic = "backbone.patch_embed.norm.running_mean"
    assert torch.equal(weights(tmp_path)[statistic], states[8]["model"][statistic])


def test_the_decay_of_an_average_is_checked(config: Config, tmp_path: Path) -> None:
    config.ema = {"decay": 1.5}
    with pytest.raises(ValueError, match=r"ema\.decay 1\.5 must be between 0 and 1"):
        train(config, tmp_path)


def test_a_compiled_backbone_trains_to_the_same_losses(config: Config, tmp_path: Path) -> None:
    config.evaluation.interval = 0
    for name, compiled in (("plain", False), ("compiled", {"backend": "eager"})):
        config.compile_backbone = compiled
        train(config, tmp_path / name, seed=1, callbacks=[CurveFiles(tmp_path / name)])
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "plain").keys()


def test_shared_batchnorm_is_refused_on_the_cpu(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfvt.engine.build.get_dist_info", lambda: (0, 2))
    config.sync_batchnorm = True
    with pytest.raises(ValueError, match="sync_batchnorm needs GPUs"):
        build_model(config, ("a",), CPU)
