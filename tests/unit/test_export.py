"""`dfvt export`: programs that find what the detector finds, and run without this package."""

from __future__ import annotations

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
from dfvt.engine.export import MANIFEST, check_export, export_detector, load_programs, with_programs
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
        ([*export, "--out", "x", "--batch", "0"], "--batch 0 is below 1"),
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
