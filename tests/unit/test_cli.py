"""`dfvt` does what its commands say, and answers a mistake in one sentence with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfvt.cli import _parse, main

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/DFvT/maskrcnn_DFvT_tiny_1x_coco.py")


def test_profile_counts_the_published_detector(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", CONFIG, "--json"]) == 0
    size = json.loads(capsys.readouterr().out)
    assert (size["num_params"], size["backbone_params"]) == (23_769_651, 3_680_067)
    assert size["input_shape"] == [800, 1280]


def test_a_work_dir_takes_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["profile", CONFIG, "--shape", "64", "64", "--json", "--work-dir", str(tmp_path / "new")]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "new/profile.json").read_text()) == json.loads(capsys.readouterr().out)


def test_masks_of_a_detector_without_them_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    no_masks = ["--cfg-options", "model.roi_head.mask_head=None", "--gpus", "0"]
    assert main(["test", CONFIG, "some.pth", "--eval", "segm", *no_masks]) == 2
    assert "has no mask head: choose --eval bbox" in capsys.readouterr().err


def test_images_may_stand_after_options(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "models:/m/1", "a.jpg", "--gpus", "0", "b.jpg", "--out", "x", "c.jpg"]
    assert _parse(arguments).words == ["a.jpg", "b.jpg", "c.jpg"]
    for wrong in (["predict", "models:/m/1", "a.jpg", "--no-such", "b.jpg"], ["profile", CONFIG, "b.jpg"]):
        with pytest.raises(SystemExit) as ended:
            _parse(wrong)
        assert ended.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_an_undefined_number_of_a_test_is_a_dash_and_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"bbox_mAP": 0.40216, "bbox_mAP_l": -1.0}
    evaluation = SimpleNamespace(numbers=numbers, predictions={"bbox": []})
    monkeypatch.setattr("dfvt.engine.launch.launch", lambda *arguments: evaluation)
    out = tmp_path / "numbers.json"
    assert main(["test", CONFIG, "some.pth", "--gpus", "0", "--eval", "bbox", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == ["bbox_mAP     0.402", "bbox_mAP_l   –"]
    assert json.loads(out.read_text()) == {"bbox_mAP": 0.40216, "bbox_mAP_l": None}


def test_options_change_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["model.roi_head.bbox_head.num_classes=4", "model.roi_head.mask_head.num_classes=4"]
    assert main(["profile", CONFIG, "--json", "--cfg-options", *options]) == 0
    assert json.loads(capsys.readouterr().out)["num_params"] < 23_769_651


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["profile", "absent.py"], "config absent.py does not exist"),
        (["test", CONFIG, "absent.pth", "--gpus", "0"], "checkpoint absent.pth does not exist"),
        (["profile", CONFIG, "--cfg-options", "data.train.pipeline.x=1"], "do not fit"),
        (["profile", str(ROOT)], f"config {ROOT} is no file"),
        (["profile", __file__.replace("test_cli.py", "../reference/backbone_golden.npz")], "cannot be read"),
        (["profile", str(ROOT / "configs/_base_/models/mask_rcnn_DFvT_fpn.py")], "give --shape H W"),
        (["test", CONFIG, "some.pth", "--gpus", "0", "--out", str(ROOT)], "is a folder: name a file in it"),
        (["test", CONFIG, __file__, "--gpus", "0"], "is not a PyTorch checkpoint"),
        (["test", CONFIG, "some.pth", "--gpus", "99"], "--gpus 99 cannot be: torch sees"),
        (
            ["train", CONFIG, "--gpus", "0", "--cfg-options", "data.train.ann_file=absent.json"],
            "absent.json does not exist, which the config's data.train names",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert "\n" not in said


def test_an_unknown_argument_in_a_config_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "misspelt.py").write_text(
        f"_base_ = [{CONFIG!r}]\nmodel = dict(backbone=dict(embed_dims=48))"
    )
    assert main(["profile", str(tmp_path / "misspelt.py")]) == 2
    said = capsys.readouterr().err.strip()
    assert "the config's model cannot be built" in said and "'embed_dims'" in said
    assert "\n" not in said


def test_an_option_without_a_value_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["profile", CONFIG, "--cfg-options", "optimizer.lr"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("--cfg-options optimizer.lr: it needs a value, KEY=VALUE\n")


def test_an_option_with_half_a_bracket_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["profile", CONFIG, "--cfg-options", "lr_config.step=(8,11"])
    assert stop.value.code == 2
    assert (
        "--cfg-options lr_config.step=(8,11: Imbalanced brackets" in capsys.readouterr().err.splitlines()[-1]
    )


def test_debug_shows_where_an_error_comes_from() -> None:
    with pytest.raises(FileNotFoundError):
        main(["profile", "absent.py", "--debug"])


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["train"], ["test", CONFIG, "x.pth", "--eval", "panoptic"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
