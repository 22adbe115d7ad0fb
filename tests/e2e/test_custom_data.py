"""Real images, as a user's own data set, through the whole pipeline, from pretrained weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.models import build_backbone

from dfvt.engine.config import load_config
from tests.conftest import ROOT, Project

NUM_IMAGES = 48
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


@pytest.fixture
def real_images(tmp_path: Path) -> Path:
    """A folder with some of the images, and all of the classes."""
    folder = tmp_path / "real images"
    content = json.loads((COCO128 / "annotations/instances_train2017.json").read_text())
    images = content["images"][:NUM_IMAGES]
    ids = {image["id"] for image in images}
    annotations = [item for item in content["annotations"] if item["image_id"] in ids]
    (folder / "images").mkdir(parents=True)
    for image in images:
        shutil.copy(COCO128 / "train2017" / image["file_name"], folder / "images")
    content |= {"images": images, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_real_images_of_80_classes_train_and_evaluate(
    project: Project, released_backbones: Path, real_images: Path
) -> None:
    project.set_params(
        profile="custom",
        configs="configs/mini",
        data__root=str(real_images),
        data__train_annotations="annotations.json",
        data__train_images="images",
        data__val_annotations="annotations.json",
        data__val_images="images",
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
