"""Two processes train one detector: they agree, and they do not wait for each other forever."""

from __future__ import annotations

import copy
import json
import socket
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmcv import Config
from mmcv.runner import HOOKS, Hook

from dfvt.engine import datasets
from dfvt.engine.callbacks import Callback, EvaluationRecord
from dfvt.engine.config import load_config
from dfvt.engine.config_text import config_text
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.evaluate import evaluate_model, predict
from dfvt.engine.hooks import TrainingStopped
from dfvt.engine.infer import load_detector
from dfvt.engine.launch import launch
from dfvt.engine.runner import DetectorRunner
from dfvt.engine.train import train

pytestmark = pytest.mark.usefixtures("forked_processes")
WORLD_SIZE = 2
CPU = torch.device("cpu")
SHORT = {"runner.max_epochs": 1, "evaluation.interval": 0}


class Evaluations(Callback):
    def __init__(self) -> None:
        self.records: list[EvaluationRecord] = []

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.records.append(record)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def work(rank: int, port: int, folder: Path) -> None:
    """What each process does; results are left in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD_SIZE)
    trained: list[torch.nn.Module] = []
    averaged: list[torch.nn.Module] = []
    run = DetectorRunner.run

    def keep_model(runner: DetectorRunner, loader: Any) -> None:
        run(runner, loader)
        trained.append(runner.model.module)
        if runner.average:
            averaged.append(runner.average.module)

    DetectorRunner.run = keep_model  # type: ignore[assignment,method-assign]
    build, builds = datasets.build_dataset, []

    def noting(cfg: Any, arguments: dict[str, Any]) -> Any:
        builds.append("val" if arguments["test_mode"] else "train")
        return build(cfg, arguments)

    datasets.build_dataset = noting
    evaluations = Evaluations()
    result = train(load_config(folder / "config.py"), folder / "work", seed=6, callbacks=[evaluations])
    assert result.checkpoint.is_file(), "it is there when any process returns"
    torch.save(trained[0].state_dict(), folder / f"weights{rank}.pth")
    (folder / f"builds{rank}.json").write_text(json.dumps(builds))

    cfg = load_config(folder / "config.py")
    results = predict(trained[0], build_coco_dataset(cfg.data.test, test_mode=True), CPU)
    if rank:
        assert results is None
        assert not evaluations.records
    else:
        assert results is not None
        numbers = {"results": len(results), "metrics": result.metrics, "records": len(evaluations.records)}
        (folder / "numbers.json").write_text(json.dumps(numbers))

    again = train(load_config(folder / "config.py"), folder / "work", seed=6)
    assert again.step == result.step

    short = load_config(folder / "config.py", SHORT)
    train(short, folder / "in_one_message", seed=6)
    wrapped = load_config(folder / "config.py", {**SHORT, "find_unused_parameters": True})
    train(wrapped, folder / "wrapped", seed=6)

    train(
        load_config(folder / "config.py", {"runner.max_epochs": 1, "ema.decay": 0.9}), folder / "ema", seed=6
    )
    torch.save(averaged[0].state_dict(), folder / f"averaged{rank}.pth")

    empty = load_config(folder / f"half_empty{rank}.py")
    train(empty, folder / "half_empty")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(session_config: Config, forked_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that trained, predicted, and trained while one of them saw no objects."""
    folder = tmp_path_factory.mktemp("distributed")
    cfg = copy.deepcopy(session_config)
    cfg.merge_from_dict({"data.samples_per_gpu": 1, "checkpoint_config.interval": 2})
    (folder / "config.py").write_text(config_text(cfg, formatted=False))

    cfg.merge_from_dict({"runner.max_epochs": 1, "evaluation.interval": 0})
    cfg.data.train.filter_empty_gt = False
    (folder / "half_empty0.py").write_text(config_text(cfg, formatted=False))
    content = json.loads(Path(cfg.data.train.ann_file).read_text())
    (folder / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    cfg.data.train.ann_file = str(folder / "empty.json")
    (folder / "half_empty1.py").write_text(config_text(cfg, formatted=False))

    mp.spawn(work, (free_port(), folder), nprocs=WORLD_SIZE)  # type: ignore[attr-defined]
    return folder


def test_one_process_of_a_node_reads_the_annotations_to_train_on(folder: Path) -> None:
    builds = [json.loads((folder / f"builds{rank}.json").read_text()) for rank in range(WORLD_SIZE)]
    assert builds == [["train", "val"], ["val"]]


def test_both_processes_end_with_the_same_weights_and_buffers(folder: Path) -> None:
    first, second = (torch.load(folder / f"weights{rank}.pth", weights_only=True) for rank in range(2))
    assert any(name.endswith("running_var") for name in first)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_both_processes_validate_the_same_averaged_detector(folder: Path) -> None:
    first, second = (torch.load(folder / f"averaged{rank}.pth", weights_only=True) for rank in range(2))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_gradients_in_one_message_train_as_those_that_are_averaged_one_by_one(folder: Path) -> None:
    one_by_one, together = (
        torch.load(folder / name / "checkpoint.pth", weights_only=True)["state_dict"]
        for name in ("wrapped", "in_one_message")
    )
    assert [name for name in one_by_one if not torch.equal(one_by_one[name], together[name])] == []


def test_every_image_is_predicted_once_and_the_first_process_evaluates(folder: Path, config: Config) -> None:
    numbers = json.loads((folder / "numbers.json").read_text())
    content = json.loads(Path(config.data.val.ann_file).read_text())
    assert numbers["results"] == len(content["images"])
    assert numbers["records"] == 2


def test_one_process_evaluates_the_checkpoint_to_the_numbers_of_two(folder: Path) -> None:
    cfg = load_config(folder / "config.py")
    model, dataset = load_detector(cfg, folder / "work" / "checkpoint.pth", CPU)
    evaluation = evaluate_model(model, dataset, CPU)
    assert evaluation is not None
    assert evaluation.metrics == json.loads((folder / "numbers.json").read_text())["metrics"]


def boxes_found(device: torch.device, folder: Path, num_images: int) -> list[Any] | None:
    """Of the first images, class by class; nothing in all processes but the first."""
    torch.set_num_threads(1)
    model, dataset = load_detector(
        load_config(folder / "config.py"), folder / "work" / "checkpoint.pth", device
    )
    model.roi_head.test_cfg.score_thr = 0.0
    dataset.data_infos, dataset.img_ids = dataset.data_infos[:num_images], dataset.img_ids[:num_images]
    results = predict(model, dataset, device)
    return None if results is None else [result[0] for result in results]


@pytest.mark.parametrize("num_images", [5, 2])
def test_three_processes_find_what_one_finds_in_images_that_they_cannot_share_evenly(
    folder: Path, num_images: int
) -> None:
    alone = boxes_found(CPU, folder, num_images)
    together = launch(boxes_found, [CPU] * 3, folder, num_images)
    assert alone is not None and len(alone) == len(together) == num_images
    assert sum(len(boxes) for image in alone for boxes in image) > num_images
    for ours, theirs in zip(alone, together, strict=True):
        for mine, its in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(its, rel=1e-5, abs=1e-5)


def train_twice(device: torch.device, folder: Path, work_dir: Path, options: dict[str, Any]) -> int:
    """Trains, and trains again with an interruption; returns after how many iterations that was."""
    torch.set_num_threads(1)
    cfg = load_config(folder / "config.py", {**SHORT, "runner.max_epochs": 3, **options})
    train(cfg, work_dir / "whole", device=device, seed=6)
    calls = count(1)
    with pytest.raises(TrainingStopped) as stopped:
        train(cfg, work_dir / "parts", device=device, seed=6, stop_asked=lambda: next(calls) == 3)
    train(cfg, work_dir / "parts", device=device, seed=6)
    return int(stopped.value.step)


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}], ids=str)
def test_three_processes_go_on_bit_for_bit_as_if_nothing_had_happened(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Of three summands the order matters: it has to be that of an iteration in the middle."""
    stopped_after = launch(train_twice, [CPU] * 3, folder, tmp_path, options)
    whole, parts = (
        torch.load(tmp_path / name / "checkpoint.pth", weights_only=True) for name in ("whole", "parts")
    )
    assert 0 < stopped_after < whole["meta"]["iter"] - 1
    first, second = whole["state_dict"], parts["state_dict"]
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_process_whose_images_have_no_objects_does_not_stop_the_training(folder: Path) -> None:
    assert (folder / "half_empty" / "checkpoint.pth").is_file()


@HOOKS.register_module()
class FreezesNorms(Hook):
    """Keeps BatchNorm at its running statistics: those of a batch depend on how many images share them."""

    def before_train_iter(self, runner: DetectorRunner) -> None:
        for module in runner.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()


def train_frozen(device: torch.device, config_file: Path, work_dir: Path, batch_size: int) -> None:
    torch.set_num_threads(1)
    train(load_config(config_file, {"data.samples_per_gpu": batch_size}), work_dir, device=device, seed=6)


def test_four_processes_of_one_image_train_as_one_process_of_four(config: Config, tmp_path: Path) -> None:
    """Every image has the same objects and no other regions, so that all parts of a batch weigh the same."""
    content = json.loads(Path(config.data.train.ann_file).read_text())
    first = content["images"][0]["id"]
    objects = [one for one in content["annotations"] if one["image_id"] == first and not one["iscrowd"]]
    content["annotations"] = [
        {**one, "image_id": image["id"], "id": number * len(objects) + place}
        for number, image in enumerate(content["images"])
        for place, one in enumerate(objects)
    ]
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(content))
    config.merge_from_dict(
        {
            **SHORT,
            "data.train.ann_file": str(annotations),
            "model.backbone.drop_path_rate": 0.0,
            "model.train_cfg.rpn.sampler.num": 10**6,  # nothing is drawn
            "model.train_cfg.rcnn.sampler.num": 10**6,
            "model.train_cfg.rpn_proposal.min_bbox_size": 10**6,  # no proposals but the objects
            "custom_hooks": [{"type": "FreezesNorms"}],
            "optimizer": {"_delete_": True, "type": "SGD", "lr": 0.01},
            "optimizer_config": {"_delete_": True},
        }
    )
    for step in config.data.train.pipeline:
        if step.type == "RandomFlip":
            step.flip_ratio = 0.0
    (tmp_path / "config.py").write_text(config_text(config, formatted=False))
    launch(train_frozen, [CPU], tmp_path / "config.py", tmp_path / "one", 4)
    launch(train_frozen, [CPU] * 4, tmp_path / "config.py", tmp_path / "four", 1)
    one, four = (
        torch.load(tmp_path / name / "checkpoint.pth", weights_only=True)["state_dict"]
        for name in ("one", "four")
    )
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=1e-4, atol=1e-5, msg=name)
