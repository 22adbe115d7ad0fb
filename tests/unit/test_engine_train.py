"""A training of a debug-size detector: what it tells, what it leaves, what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv import Config

from dfvt.engine.build import build_merged_optimizer, build_model
from dfvt.engine.callbacks import Callback, EvaluationRecord, StepRecord, TrainingStart
from dfvt.engine.curves import CurveFiles
from dfvt.engine.evaluate import evaluate_model
from dfvt.engine.infer import load_detector
from dfvt.engine.support import check_supported, unfinished_warmup
from dfvt.engine.train import TrainResult, train
from dfvt.models.checkpoints import load_fitting_weights, read_checkpoint

CPU = torch.device("cpu")
NUM_STEPS = 8  # two epochs of four iterations


class Recorder(Callback):
    """Keeps everything that it is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_start(self, start: TrainingStart) -> None:
        self.events.append(("start", start))

    def on_step(self, record: StepRecord) -> None:
        self.events.append(("step", record))

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.events.append(("evaluation", record))

    def on_checkpoint(self, path: Path, step: int) -> None:
        self.events.append(("checkpoint", step))

    def on_end(self, checkpoint: Path) -> None:
        self.events.append(("end", checkpoint))

    def on_warning(self, message: str) -> None:
        self.events.append(("warning", message))

    def of(self, kind: str) -> list[Any]:
        return [event for name, event in self.events if name == kind]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(
    session_config: Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainResult, Recorder]:
    """One training from start to end."""
    work_dir, recorder = tmp_path_factory.mktemp("finished") / "new" / "work", Recorder()
    callbacks = [recorder, CurveFiles(work_dir)]
    return train(session_config, work_dir, seed=1, callbacks=callbacks, meta={"origin": "test"}), recorder


def test_callbacks_hear_of_everything_in_order(finished: tuple[TrainResult, Recorder]) -> None:
    result, recorder = finished
    epoch = ["step", "step", "evaluation", "checkpoint"]
    assert [name for name, _ in recorder.events] == ["start", *epoch, *epoch, "end"]
    assert recorder.of("start") == [TrainingStart(0, NUM_STEPS, 0, 2, None)]
    steps = recorder.of("step")
    assert [(record.step, record.max_steps, record.epoch) for record in steps] == [
        (2, NUM_STEPS, 1),
        (4, NUM_STEPS, 1),
        (6, NUM_STEPS, 2),
        (8, NUM_STEPS, 2),
    ]
    assert {"loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask", "acc"} == set(
        steps[0].losses
    )
    assert all(record.images_per_second > 0 and record.data_seconds > 0 for record in steps)
    assert [(record.step, record.epoch) for record in recorder.of("evaluation")] == [(4, 1), (8, 2)]
    assert recorder.of("checkpoint") == [4, 8]
    assert recorder.of("end") == [result.checkpoint]
    assert result.metrics == recorder.of("evaluation")[-1].metrics


def test_curves_are_written_beside_the_state(finished: tuple[TrainResult, Recorder]) -> None:
    work_dir = finished[0].checkpoint.parent
    assert len((work_dir / "curve.csv").read_text().splitlines()) == 1 + 4
    assert len((work_dir / "val.csv").read_text().splitlines()) == 1 + 2


def test_the_checkpoint_says_what_it_is(finished: tuple[TrainResult, Recorder], config: Config) -> None:
    content = read_checkpoint(finished[0].checkpoint)
    assert content["meta"]["CLASSES"] == tuple(config.data.train.classes)
    assert (content["meta"]["iter"], content["meta"]["epoch"]) == (NUM_STEPS, 2)
    assert content["meta"]["origin"] == "test"
    assert Config.fromstring(content["meta"]["config"], ".py")._cfg_dict == config._cfg_dict


def test_the_same_seed_gives_the_same_weights_however_often_they_are_evaluated(
    finished: tuple[TrainResult, Recorder], config: Config, tmp_path: Path
) -> None:
    config.evaluation.interval = 0
    before = copy.deepcopy(config._cfg_dict)
    result = train(config, tmp_path, seed=1)
    assert result.metrics == {}
    assert config._cfg_dict == before, "the caller's config is left alone"
    assert equal(weights(result.checkpoint), weights(finished[0].checkpoint))


def test_another_seed_gives_other_weights(
    finished: tuple[TrainResult, Recorder], config: Config, tmp_path: Path
) -> None:
    config.merge_from_dict({"evaluation.interval": 0, "runner.max_epochs": 1})
    assert not equal(weights(train(config, tmp_path, seed=2).checkpoint), weights(finished[0].checkpoint))


def test_a_few_images_are_learnt_and_the_checkpoint_has_the_numbers_of_the_last_validation(
    config: Config, tmp_path: Path
) -> None:
    for name in ("ann_file", "img_prefix"):
        config.data.val[name] = config.data.test[name] = config.data.train[name]
    config.merge_from_dict(
        {
            "runner.max_epochs": 30,
            "evaluation.interval": 100,
            "checkpoint_config.interval": 0,
            "data.samples_per_gpu": 4,
            "optimizer.lr": 2e-3,
            "lr_config.warmup_iters": 10,
            "log_config.interval": 100,
            "model.backbone.drop_path_rate": 0.0,
        }
    )
    recorder = Recorder()
    result = train(config, tmp_path, callbacks=[recorder])
    losses = [record.losses["loss"] for record in recorder.of("step")]
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    assert recorder.of("checkpoint") == []

    model, dataset = load_detector(config, result.checkpoint, CPU)
    evaluation = evaluate_model(model, dataset, CPU)
    assert evaluation is not None
    assert evaluation.metrics == result.metrics
    assert result.metrics["bbox_mAP_50"] > 0.1


def test_weight_decay_spares_what_the_recipe_names(config: Config) -> None:
    model = build_model(config, ("a",), CPU)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_merged_optimizer(model, config.optimizer).param_groups
    assert len(groups) == 2
    decay = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay.keys() == set(names.values())
    spared = {name for name, value in decay.items() if value == 0}
    assert spared == {name for name in decay if "norm" in name or "relative_position_bias_table" in name}
    assert set(decay.values()) == {0, 0.05}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workflow": [("train", 1), ("val", 1)]}, "workflow"),
        ({"optimizer_config.update_interval": 0}, "update_interval must be 1 or more"),
        ({"optimizer_config.cumulative_iters": 0}, "optimizer_config.cumulative_iters and"),
        ({"runner.type": "IterBasedRunner"}, "runner.type 'IterBasedRunner' is not supported"),
        ({"resume_from": "latest.pth"}, "resume_from is not supported"),
    ],
)
def test_an_unsupported_config_is_refused_before_anything_is_built(
    config: Config, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    config.merge_from_dict(options)
    config.data.train.ann_file = "nowhere.json"
    config.model.type = "NoSuchDetector"
    with pytest.raises(ValueError, match=sentence) as error:
        train(config, tmp_path / "work")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "work").exists()


def test_a_detector_of_other_classes_is_where_a_training_starts(
    config: Config, finished: tuple[TrainResult, Recorder], tmp_path: Path
) -> None:
    donor = finished[0].checkpoint
    model = build_model(config, ("a",), CPU)
    assert load_fitting_weights(model, donor) == ""
    assert equal(dict(model.state_dict()), weights(donor))

    config.load_from = str(donor)
    config.model.roi_head.bbox_head.num_classes = config.model.roi_head.mask_head.num_classes = 1
    for split in ("train", "val", "test"):
        config.data[split].classes = config.data[split].classes[:1]
    config.optimizer.lr = 0.0
    recorder = Recorder()
    result = train(config, tmp_path, callbacks=[recorder])
    (warning,) = recorder.of("warning")
    assert "fc_cls.weight" in warning and "conv_logits.weight" in warning
    name = "backbone.layers.2.blocks.0.attn.qkv.weight"
    assert torch.equal(weights(result.checkpoint)[name], weights(donor)[name])


def test_a_detector_of_another_backbone_is_not_where_a_training_starts(
    config: Config, finished: tuple[TrainResult, Recorder], tmp_path: Path
) -> None:
    config.load_from = str(finished[0].checkpoint)
    config.model.backbone.mlp_ratio = 2.0
    with pytest.raises(ValueError, match=r"does not fit the config's detector: 15 of 331"):
        train(config, tmp_path)


def test_a_neck_that_does_not_fit_the_backbone_is_refused(config: Config, tmp_path: Path) -> None:
    config.model.neck.in_channels = [16, 32, 64, 256]
    sentence = (
        r"model.neck.in_channels is \[16, 32, 64, 256\], but the backbone's maps have \[16, 32, 64, 128\]"
    )
    with pytest.raises(ValueError, match=sentence):
        train(config, tmp_path)


def test_a_config_without_a_schedule_is_refused(config: Config) -> None:
    del config._cfg_dict["lr_config"]
    with pytest.raises(ValueError, match="config section 'lr_config' is missing"):
        check_supported(config)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (
            {"warmup_iters": NUM_STEPS},
            f"takes {NUM_STEPS} iterations, and the whole training has {NUM_STEPS}: ",
        ),
        ({"warmup_iters": 2, "warmup_by_epoch": True}, "takes 2 epochs, and the whole training has 2: "),
        ({"warmup_iters": NUM_STEPS - 1}, None),
        ({"warmup_iters": 500, "warmup": None}, None),
    ],
)
def test_a_warmup_that_outlasts_the_training_is_told(
    config: Config, schedule: dict[str, Any], told: str | None
) -> None:
    config.lr_config.update(schedule)
    sentence = unfinished_warmup(config, NUM_STEPS, 2)
    assert (sentence is None) if told is None else (told in str(sentence))


def test_a_training_tells_names_that_look_misspelt(config: Config, tmp_path: Path) -> None:
    config.fast_haeds = True
    recorder = Recorder()
    config.data.train.classes = ("disk", "unicorn")
    with pytest.raises(ValueError, match="unicorn"):
        train(config, tmp_path, callbacks=[recorder])
    assert recorder.of("warning") == ["the config's fast_haeds is read by nothing: is fast_heads meant?"]


@pytest.mark.parametrize("value", ["maybe", 3, [True]])
def test_what_torch_compile_cannot_take_is_refused(config: Config, value: Any) -> None:
    config.compile_backbone = value
    with pytest.raises(ValueError, match=r"compile_backbone .* must be True, False or a dictionary of torch"):
        check_supported(config)


def test_classes_that_the_annotations_lack_are_named(config: Config, tmp_path: Path) -> None:
    config.data.train.classes = ("disk", "unicorn")
    with pytest.raises(ValueError, match=r"no category 'unicorn': set data\.train\.classes"):
        train(config, tmp_path)


def test_losses_are_added_and_logged_as_mmdet_does(config: Config) -> None:
    torch.manual_seed(0)
    losses = {
        "loss_one": torch.rand(3, requires_grad=True),
        "loss_levels": [torch.rand(2, requires_grad=True) for _ in range(5)],
        "accuracy": torch.rand(1),
    }
    model = build_model(config, ("shape",), torch.device("cpu"))
    loss, numbers = model._parse_losses(losses)
    expected, logged = type(model)._parse_losses(model, losses)
    assert torch.equal(loss, expected) and loss.requires_grad
    assert list(numbers.items()) == list(logged.items())
