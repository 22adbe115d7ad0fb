"""A config with the published recipe trains and tests, its checkpoints are mmdet's; a ResNet's too.

It is written from what is known of the published ones; its backbone arguments are those of mmdet's Swin.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.runner import load_checkpoint
from mmdet.apis import inference_detector, init_detector
from mmdet.datasets import CocoDataset
from mmdet.models import build_detector
from test_backbone import FILL

from dfvt.cli import main
from dfvt.data.shapes import generate_shapes
from dfvt.engine.config import load_config
from dfvt.engine.infer import load_detector

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")
PUBLISHED_FORM = """
_base_ = [
    '../_base_/models/mask_rcnn_DFvT_fpn.py', '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py'
]
model = dict(
    pretrained=None,
    backbone=dict(embed_dim=48, depths=[1, 1, 2, 1], num_heads=[3, 6, 12, 24], window_size=7, mlp_ratio=4.,
                  qkv_bias=True, qk_scale=None, drop_rate=0., attn_drop_rate=0., drop_path_rate=0.1,
                  ape=False, patch_norm=True, out_indices=(0, 1, 2, 3), use_checkpoint=False),
    neck=dict(in_channels=[48, 96, 192, 384]))
find_unused_parameters = True
optimizer = dict(_delete_=True, type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05,
                 paramwise_cfg=dict(custom_keys={'absolute_pos_embed': dict(decay_mult=0.),
                                                 'relative_position_bias_table': dict(decay_mult=0.),
                                                 'norm': dict(decay_mult=0.)}))
lr_config = dict(step=[8, 11])
runner = dict(type='EpochBasedRunnerAmp', max_epochs=12)
fp16 = None
optimizer_config = dict(type="DistOptimizerHook", update_interval=1, grad_clip=None, coalesce=True,
                        bucket_size_mb=-1, use_fp16=True)
"""
RESNET = """
_base_ = ['../_base_/models/mask_rcnn_DFvT_fpn.py', '../_base_/datasets/coco_instance.py',
          '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py']
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3),
                  frozen_stages=1,
                  norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch'),
    neck=dict(in_channels=[256, 512, 1024, 2048]))
custom_hooks = [dict(type='NumClassCheckHook')]
"""
# Three images and one epoch; everything else is as it was published.
SHORT = ["data.samples_per_gpu=1", "data.workers_per_gpu=0", "runner.max_epochs=1"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configs in the published form, and images under the relative path that they name."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(CONFIGS / "_base_", folder / "configs/_base_")
    (folder / "configs/DFvT").mkdir()
    (folder / "configs/DFvT/published.py").write_text(PUBLISHED_FORM)
    (folder / "configs/DFvT/resnet.py").write_text(RESNET)
    generate_shapes(folder / "data/coco", num_train=2, num_val=1)
    for path in (folder / "data/coco/annotations").iterdir():
        content = json.loads(path.read_text())
        content["categories"] = [{"id": i, "name": name} for i, name in enumerate(CocoDataset.CLASSES, 1)]
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def trained(checkout: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)
        options = ["--gpus", "0", "--work-dir", "out", "--cfg-options", *SHORT]
        assert (
            main(["train", "configs/DFvT/published.py", *options, "model.backbone.use_checkpoint=True"]) == 0
        )
    return checkout / "out/checkpoint.pth"


def test_the_published_form_is_the_recipe_of_ours(checkout: Path) -> None:
    theirs = load_config(checkout / "configs/DFvT/published.py")
    ours = load_config(CONFIGS / "DFvT/maskrcnn_DFvT_tiny_1x_coco.py")
    for section in ("optimizer", "optimizer_config", "lr_config", "runner", "evaluation"):
        assert theirs[section] == ours[section], section
    assert build_detector(theirs.model).state_dict().keys() == build_detector(ours.model).state_dict().keys()


def test_a_config_of_the_published_form_trains_and_tests(
    trained: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    arguments = ["configs/DFvT/published.py", str(trained), "--gpus", "0", "--out", "numbers.json"]
    assert main(["test", *arguments, "--eval", "bbox", "segm"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    numbers = json.loads(Path("numbers.json").read_text())
    assert list(printed) == list(numbers)
    assert len(numbers) == 2 * 12
    for kind in ("bbox", "segm"):
        records = json.loads(Path(f"numbers.{kind}.json").read_text())
        assert all({"image_id", "category_id", "score"} <= record.keys() for record in records)


def test_stock_mmdet_uses_our_checkpoint(trained: Path, checkout: Path) -> None:
    stock = init_detector(str(checkout / "configs/DFvT/published.py"), str(trained), device="cpu")
    assert tuple(stock.CLASSES) == CocoDataset.CLASSES
    load_checkpoint(stock, str(trained), map_location="cpu", strict=True)
    boxes, masks = inference_detector(stock, np.zeros((64, 64, 3), np.uint8))
    assert len(boxes) == len(masks) == 80


def test_a_checkpoint_of_stock_mmdet_goes_in_and_out_unchanged(checkout: Path, tmp_path: Path) -> None:
    from mmcv.runner import save_checkpoint

    cfg = load_config(checkout / "configs/DFvT/published.py")
    for split in ("train", "val", "test"):
        for key in ("ann_file", "img_prefix"):
            cfg.data[split][key] = str(checkout / cfg.data[split][key])
    stock = FILL.fill(build_detector(cfg.model))
    save_checkpoint(stock, str(tmp_path / "stock.pth"), meta={"CLASSES": CocoDataset.CLASSES})
    ours, _ = load_detector(cfg, tmp_path / "stock.pth", CPU)
    for name, value in stock.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_another_detector_of_mmdet_trains(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    arguments = ["configs/DFvT/resnet.py", "--gpus", "0", "--work-dir", "resnet"]
    options = [*SHORT, "data.samples_per_gpu=2", "data.train.pipeline.2.img_scale=(400,240)"]
    assert main(["train", *arguments, "--cfg-options", *options]) == 0
    assert Path("resnet/checkpoint.pth").is_file()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("optimizer.lr=abc", "optimizer.lr 'abc' must be a number"),
        ("runner.max_epochs=-1", "runner.max_epochs -1 must be a whole number from 1"),
        ("data.samples_per_gpu=0", "data.samples_per_gpu 0 must be a whole number from 1"),
        ("lr_config.policy=foo", "the config's lr_config cannot be built: FooLrUpdaterHook"),
        ("model.roi_head.mask_head.num_classes=3", "num_classes is 3, data.train has 80 classes (person"),
        ("data.train.ann_file=list.json", "the config's data.train cannot be built: CocoDataset: annotation"),
        ("data.train.ann_file=damaged.json", "annotations damaged.json are not valid JSON: Expecting"),
        ("optimizer.betas=1", "the config's optimizer cannot be built"),
        (
            "evaluation.save_best=mAPP",
            "evaluation.save_best 'mAPP' must be auto or one of bbox_mAP, bbox_mAP_50",
        ),
        ("evaluation.interval=often", "evaluation.interval 'often' must be a whole number from 0 (never)"),
        ("data.train.pipeline.2.img_scale=big", "Resize: assert mmcv.is_list_of(self.img_scale, tuple)"),
        (
            "data.train.pipeline.1.type=LoadAnotations",
            "CocoDataset: LoadAnotations is not in the pipeline reg",
        ),
        (
            "model.neck.init_cfg.type=Pretrained model.neck.init_cfg.checkpoint=http://127.0.0.1:9/x.pth",
            "the config's model names a file that cannot be fetched",
        ),
    ],
)
def test_a_mistake_in_a_training_is_one_sentence(
    checkout: Path,
    option: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(checkout)
    Path("list.json").write_text("[]")
    Path("damaged.json").write_text('{"images": ')
    arguments = ["configs/DFvT/published.py", "--gpus", "0", "--work-dir", "nothing"]
    assert main(["train", *arguments, "--cfg-options", *SHORT, *option.split()]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert "\n" not in said


def test_an_image_that_cannot_be_read_in_a_test_is_named(
    trained: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    shutil.copytree("data/coco/val2017", "spoiled")
    image = next(Path("spoiled").iterdir())
    image.write_bytes(b"no image")
    for number_of_workers in (0, 1):
        options = ["data.test.img_prefix=spoiled/", f"data.workers_per_gpu={number_of_workers}"]
        arguments = ["configs/DFvT/published.py", str(trained), "--gpus", "0", "--cfg-options", *options]
        assert main(["test", *arguments]) == 2
        assert f"image {image} cannot be" in capsys.readouterr().err


def test_a_checkpoint_of_another_variant_is_named(
    trained: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    arguments = [str(CONFIGS / "DFvT/maskrcnn_DFvT_small_1x_coco.py"), str(trained), "--gpus", "0"]
    assert main(["test", *arguments]) == 2
    assert "is of DFvT-T, but the config's detector is DFvT-S" in capsys.readouterr().err


def test_resuming_what_is_not_there_is_one_sentence(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    arguments = ["configs/DFvT/published.py", "--gpus", "0", "--work-dir", "nowhere", "--resume"]
    assert main(["train", *arguments]) == 2
    assert "no training to resume: nowhere does not exist" in capsys.readouterr().err
    assert not Path("nowhere").exists()
