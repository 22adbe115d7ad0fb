"""`dfvt export`: programs that find what the detector finds, and run without this package."""

from __future__ import annotations

import copy
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv import Config
from PIL import Image
from pycocotools import mask as coco_mask

from dfvt.cli import main
from dfvt.data.images import read_image
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.export import (
    MANIFEST,
    TOLERANCE,
    check_export,
    describe_export,
    export_detector,
    load_programs,
    output_differences,
    with_programs,
)
from dfvt.engine.infer import build_bare_detector
from dfvt.engine.predict import Predictor
from dfvt.models.blocks import make_shifted_window_mask

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
ALONE = """
import sys, torch
maps, scores, deltas = torch.export.load(sys.argv[1]).module()(torch.ones(1, 3, 64, 96))
assert [tuple(map.shape[2:]) for map in maps][:2] == [(16, 24), (8, 12)], [map.shape for map in maps]
assert not {"dfvt", "mmdet", "mmcv"}.intersection(sys.modules)
print(float(scores[0].double().abs().sum()))
"""


def test_programs_find_what_the_detector_finds(
    config_file: str,
    checkpoint: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "exported"
    arguments = ["export", config_file, str(checkpoint), str(shapes.val_images_path)]
    assert main([*arguments, "--out", str(out), "--shape", "64", "96", "--gpus", "0"]) == 0
    output = capsys.readouterr().out
    assert "compared on 6 images with 60 objects: scores differ by 0 at most" in output
    content = json.loads((out / MANIFEST).read_text())
    dense = content["programs"]["dense"]
    assert dense["input"] == [1, 3, 64, 96] and dense["maps"][0] == [1, 16, 16, 24]
    assert content["programs"]["bbox_head"] == {
        "input": ["R >= 2", 16, 7, 7],
        "outputs": [["R >= 2", 5], ["R >= 2", 4]],
    }
    assert content["classes"] == ["disk", "box", "triangle", "star"]
    assert set(content["programs"]) == set(load_programs(out)) == {"dense", "bbox_head", "mask_head"}
    alone = subprocess.run(
        [sys.executable, "-c", ALONE, str(out / "dense.pt2")], capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    model = Predictor(Config.fromfile(config_file), checkpoint, CPU).model
    with torch.no_grad():
        scores, _ = model.rpn_head(model.neck(model.backbone(torch.ones(1, 3, 64, 96))))
    assert float(alone.stdout) == pytest.approx(float(scores[0].double().abs().sum()), rel=1e-5)


def test_what_lies_between_the_programs_is_written_out(
    config_file: str, checkpoint: Path, shapes: DatasetManifest, tmp_path: Path
) -> None:
    out, image = tmp_path / "exported", tmp_path / "image.png"
    assert main(["export", config_file, str(checkpoint), "--out", str(out), "--gpus", "0"]) == 0
    width, height = reversed(json.loads((out / MANIFEST).read_text())["images"]["scaled_to"])
    with Image.open(next(shapes.val_images_path.iterdir())) as small:
        small.convert("RGB").resize((width, height)).save(image)  # so that nobody scales it in another way
    detect = runpy.run_path(str(ROOT / "docs/detect_exported.py"))["detect"]
    found = detect(out, torch.from_numpy(np.asarray(Image.open(image), np.float32)).permute(2, 0, 1))
    (expected,) = Predictor(Config.fromfile(config_file), checkpoint, CPU)([read_image(image)])
    assert len(expected.scores) == 10
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found["labels"], expected.labels)
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=0.01)
    masks = np.stack([coco_mask.decode(mask) for mask in expected.masks or []])
    assert (found["masks"].numpy() != masks).mean() < 1e-3


def test_programs_of_other_weights_are_noticed(
    config: Config,
    checkpoint: Path,
    shapes: DatasetManifest,
) -> None:
    predictor = Predictor(config, checkpoint, CPU)
    torch.manual_seed(3)
    others = export_detector(build_bare_detector(config), 1, 64, 96)
    images = sorted(shapes.val_images_path.iterdir())
    agreement = check_export(predictor, others, (1, 3, 64, 96), images)
    assert agreement.num_images == 6
    assert len(agreement.different) + agreement.score > 0.01
    with pytest.raises(ValueError, match=f"{checkpoint}: it is no image that can be read"):
        check_export(predictor, others, (1, 3, 64, 96), [checkpoint])


def test_each_program_is_compared_without_any_image(config: Config, checkpoint: Path) -> None:
    model, shape = Predictor(config, checkpoint, CPU).model, (1, 3, 64, 96)
    programs = export_detector(model, *shape[:1], *shape[2:])
    assert max(output_differences(model, programs, shape).values()) < 1e-5
    torch.manual_seed(3)
    others = build_bare_detector(config)
    parts = {"dense": "backbone", "bbox_head": "roi_head.bbox_head", "mask_head": "roi_head.mask_head"}
    for name, part in parts.items():
        changed = copy.deepcopy(model)
        changed.get_submodule(part).load_state_dict(others.get_submodule(part).state_dict())
        differences = output_differences(changed, programs, shape)
        assert [program for program, difference in differences.items() if difference > TOLERANCE] == [name]


def test_a_comparison_without_objects_says_so_and_a_wrong_program_fails(
    config_file: str,
    checkpoint: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "exported"
    arguments = ["export", config_file, str(checkpoint), str(shapes.val_images_path), "--out", str(out)]
    arguments += ["--shape", "64", "96", "--gpus", "0", "--cfg-options", "model.test_cfg.rcnn.score_thr=0.99"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "on which the detector finds nothing: only the outputs on noise say" in printed
    assert "masks' IoU" not in printed
    programs = load_programs(out)
    monkeypatch.setattr("dfvt.engine.export.export_detector", lambda *_: programs)
    for difference in (0.5, float("nan")):
        differences = {"dense": 0.0, "mask_head": difference}
        monkeypatch.setattr("dfvt.engine.export.output_differences", lambda *_, given=differences: given)
        assert main(arguments) == 1
        assert (
            f"mask_head.pt2: its outputs differ from the detector's by {difference}"
            in capsys.readouterr().err
        )


def test_portrait_images_are_taken_by_a_program_for_landscape_ones(
    config_file: str,
    checkpoint: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, image = tmp_path / "exported", tmp_path / "portrait.png"
    Image.open(next(shapes.val_images_path.iterdir())).convert("RGB").rotate(90, expand=True).save(image)
    export = ["export", config_file, str(checkpoint), "--out", str(out), "--gpus", "0"]
    assert main([*export, "--shape", "64", "96"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["detect_exported.py", str(out), str(image)])
    runpy.run_path(str(ROOT / "docs/detect_exported.py"), run_name="__main__")
    printed = capsys.readouterr()
    sentence = "the image needs 80 x 64 pixels, the program has 64 x 96: it is scaled down further; "
    assert printed.err.startswith(sentence)
    boxes = np.array([line.split()[2:] for line in printed.out.splitlines()], float)
    assert boxes.shape == (10, 4)
    assert boxes.min() >= 0 and boxes[:, [0, 2]].max() <= 64 and boxes[:, [1, 3]].max() <= 80
    monkeypatch.setattr("dfvt.engine.export.export_detector", lambda *_: load_programs(out))
    assert main([*export, "--shape", "64", "96", str(image)]) == 2
    assert "none of the images fits the shape: --shape 96 64 holds all images" in capsys.readouterr().err


def test_no_region_and_one_are_taken_too(config: Config, checkpoint: Path) -> None:
    predictor = Predictor(config, checkpoint, CPU)
    exported = with_programs(predictor.model, export_detector(predictor.model, 1, 64, 96), (1, 3, 64, 96))
    torch.manual_seed(0)
    with torch.no_grad():
        for number in (0, 1, 2, 5):
            features = torch.rand(number, 16, 7, 7)
            for ours, theirs in zip(
                exported.roi_head.bbox_head(features),
                predictor.model.roi_head.bbox_head(features),
                strict=True,
            ):
                torch.testing.assert_close(ours, theirs)


def test_what_cannot_be_exported_is_one_sentence(
    config_file: str,
    checkpoint: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export = ["export", config_file, str(checkpoint), "--gpus", "0"]
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((90, 60, 3), np.uint8)).save(large)
    for arguments, sentence in (
        ([*export], "--out DIR is missing"),
        ([*export, "--out", "x", "--shape", "64", "90"], "the shape 64 × 90 must be of multiples of 32"),
        ([*export, "--out", "x", "--shape", "0", "-32"], "the shape 0 × -32 must be of multiples of 32"),
        ([*export, "--out", "x", "--batch", "0"], "--batch 0 is below 1"),
        ([*export, "--out", str(checkpoint)], f"{checkpoint} is not a folder: choose another place"),
        ([export[0], config_file, "--out", "x"], "no CHECKPOINT is named after the config"),
        (
            [*export[:3], str(large), "--gpus", "0", "--out", str(tmp_path / "x"), "--shape", "32", "32"],
            "none of the images fits the shape",
        ),
        (
            [*export[:3], str(large), "--gpus", "0", "--out", str(tmp_path / "x"), "--batch", "2"],
            "images are compared one by one",
        ),
    ):
        assert main(arguments) == 2
        assert sentence in capsys.readouterr().err


def test_an_export_leaves_the_detector_as_it_was(config: Config, checkpoint: Path) -> None:
    make_shifted_window_mask.cache_clear()
    model = Predictor(config, checkpoint, CPU).model
    export_detector(model, 1, 64, 96)
    with torch.no_grad():
        maps = model.backbone(torch.ones(1, 3, 64, 96))
    assert all(type(one) is torch.Tensor for one in maps)


def test_other_detectors_are_refused(config: Config) -> None:
    model = build_bare_detector(config)
    model.roi_head = torch.nn.Identity()
    with pytest.raises(ValueError, match="only detectors with an RPNHead and a StandardRoIHead"):
        export_detector(model, 1, 64, 96)


@pytest.mark.parametrize("option", [{"color_type": "color_ignore_orientation"}, {"channel_order": "rgb"}])
def test_images_that_a_config_loads_otherwise_are_refused(config: Config, option: dict[str, str]) -> None:
    config.data.test.pipeline[0].update(option)
    with pytest.raises(ValueError, match="an export knows 'color' and 'bgr' alone"):
        describe_export(config, build_bare_detector(config), (), {})
