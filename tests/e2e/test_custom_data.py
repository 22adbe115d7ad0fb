"""Real images, as a user's own data set, through the whole pipeline, from pretrained weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from mmdet.models import build_backbone

from dfvt.engine.config import load_config
from tests.conftest import ROOT, Project

COCO128 = Path(os.environ.get("DFVT_COCO128", ROOT.parent / "shared/coco128"))
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not COCO128.is_dir(), reason=f"{COCO128} is absent (DFVT_COCO128 names another place)"
    ),
]


@pytest.fixture
def released_backbones(tmp_path: Path) -> Path:
    """A folder like that of the released files, with random weights in them."""
    folder = tmp_path / "released files"
    folder.mkdir()
    for variant in ("tiny", "small", "base"):
        cfg = load_config(ROOT / f"configs/DFvT/maskrcnn_DFvT_{variant}_1x_coco.py")
        backbone = build_backbone(cfg.model.backbone)
        weights = {"state_dict": {f"module.{name}": value for name, value in backbone.state_dict().items()}}
        torch.save(weights, folder / f"DFvT_{variant}_coco_pretrained.pth")
    return folder


def test_real_images_of_80_classes_train_and_evaluate(project: Project, released_backbones: Path) -> None:
    annotations = next(iter((COCO128 / "annotations").glob("*.json"))).relative_to(COCO128)
    images = next(folder for folder in COCO128.iterdir() if folder.name != "annotations").name
    project.set_params(
        profile="custom",
        configs="configs/mini",
        data__root=str(COCO128),
        data__train_annotations=str(annotations),
        data__train_images=images,
        data__val_annotations=str(annotations),
        data__val_images=images,
        weights__base_url=released_backbones.as_uri(),
        train__num_epochs=1,
        train__batch_size=16,
    )
    result = project.repro("evaluate@tiny")  # the other variants differ in their config alone
    assert result.returncode == 0, result.stderr
    assert "images with the content of one of another split" in result.stderr  # train and val are one
    metrics = json.loads((project.path / "metrics/evaluate_tiny.json").read_text())
    assert 0 <= metrics["bbox_mAP"] <= 1
    config = (project.path / "runs/tiny/config.py").read_text().replace(" ", "")
    assert "pretrained='weights/tiny/backbone.pth'" in config
    assert "num_classes=80" in config
    per_class = (project.path / "evaluations/tiny/per_class.csv").read_text().splitlines()
    assert len(per_class) == 1 + 80
