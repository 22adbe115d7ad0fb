"""Configs: read with mmcv's meaning, pointed at a data set, written as one file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dfvt.data.manifest import DatasetManifest
from dfvt.engine.config import (
    input_shape_of,
    largest_input_of,
    load_config,
    override_config,
    use_dataset,
    with_absolute_paths,
    write_config,
)
from dfvt.engine.options import misspelt_names
from dfvt.engine.precision import precision_of

ROOT = Path(__file__).parents[2]
PUBLISHED = [
    ROOT / f"configs/DFvT/maskrcnn_DFvT_{variant}_1x_coco.py" for variant in ("tiny", "small", "base")
]
MINI = [ROOT / f"configs/mini/maskrcnn_DFvT_{variant}_mini.py" for variant in ("tiny", "small", "base")]


@pytest.fixture
def manifest() -> DatasetManifest:
    return DatasetManifest(
        name="custom",
        generated=False,
        root=Path("data/own"),
        train_annotations=Path("train.json"),
        train_images=Path("train"),
        val_annotations=Path("val.json"),
        val_images=Path("val"),
        classes=("nut", "bolt", "washer"),
        data_hash="0" * 64,
        num_train_images=2,
        num_val_images=1,
    )


@pytest.mark.parametrize("path", [*PUBLISHED, *MINI], ids=lambda path: path.stem)
def test_a_written_config_is_read_back_the_same(
    path: Path, manifest: DatasetManifest, tmp_path: Path
) -> None:
    cfg = load_config(path)
    use_dataset(cfg, manifest)
    write_config(cfg, tmp_path / "first.py")
    write_config(load_config(tmp_path / "first.py"), tmp_path / "second.py")
    assert (tmp_path / "first.py").read_bytes() == (tmp_path / "second.py").read_bytes()
    assert load_config(tmp_path / "first.py")._cfg_dict == cfg._cfg_dict


def test_heads_and_data_are_those_of_the_data_set(manifest: DatasetManifest) -> None:
    cfg = load_config(PUBLISHED[0])
    use_dataset(cfg, manifest)
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 3
    assert cfg.data.train.data_root == cfg.data.test.data_root == "data/own"
    assert (cfg.data.train.ann_file, cfg.data.val.ann_file) == ("train.json", "val.json")
    assert with_absolute_paths(cfg, Path("/projects/x")).data.train.data_root == "/projects/x/data/own"
    assert cfg.data.train.data_root == "data/own"


def test_only_the_given_values_are_overridden() -> None:
    cfg, untouched = load_config(PUBLISHED[0]), load_config(PUBLISHED[0])
    override_config(cfg)
    assert cfg._cfg_dict == untouched._cfg_dict
    override_config(cfg, lr=0.5, num_epochs=3, batch_size=7, pretrained="weights.pth")
    assert (cfg.optimizer.lr, cfg.runner.max_epochs, cfg.data.samples_per_gpu) == (0.5, 3, 7)
    assert cfg.model.pretrained == "weights.pth"


def test_options_have_the_meaning_of_mmcv() -> None:
    cfg = load_config(
        PUBLISHED[0], {"model.backbone.drop_path_rate": 0.3, "data.train.pipeline.2.flip_ratio": 0.1}
    )
    assert cfg.model.backbone.drop_path_rate == 0.3
    assert cfg.data.train.pipeline[2].flip_ratio == 0.1


def test_a_key_that_resembles_none_is_refused_alone() -> None:
    with pytest.raises(ValueError, match=r"the config has no key seed$"):
        load_config(PUBLISHED[0], {"seed": 0})


def test_names_at_the_top_of_a_file_that_look_misspelt_are_told(tmp_path: Path) -> None:
    own = "fast_haeds = True\ncanvas = [(800, 1344)]\nimg_side = 800\ndataset_type = 'CocoDataset'\n"
    (tmp_path / "config.py").write_text(f"_base_ = [{str(PUBLISHED[0])!r}]\n{own}")
    assert misspelt_names(load_config(tmp_path / "config.py")) == [
        "the config's canvas is read by nothing: is canvases meant?",
        "the config's fast_haeds is read by nothing: is fast_heads meant?",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[Dfm]*/*.py")), ids=lambda path: path.stem)
def test_names_of_our_configs_are_not_misspelt(path: Path) -> None:
    assert misspelt_names(load_config(path)) == []


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("model.backbone.drop_path", "model.backbone.drop_path_rate"),
        ("model.backbone.use_checkpont", "model.backbone.use_checkpoint"),
        ("model.backbone.frozen_stage", "model.backbone.frozen_stages"),
        ("backbone.drop_path_rate", "model.backbone.drop_path_rate"),
        ("optimiser.lr", "optimizer.lr"),
        ("optimizer.betas_", "optimizer.betas"),
        ("runner.max_epoch", "runner.max_epochs"),
        ("lr_config.warmup_iter", "lr_config.warmup_iters"),
        ("lr_config.gama", "lr_config.gamma"),
        ("data.samples_per_gpus", "data.samples_per_gpu"),
        ("data.train.pipeline.2.flip_ration", "data.train.pipeline.2.flip_ratio"),
        ("model.roi_head.bbox_head.num_class", "model.roi_head.bbox_head.num_classes"),
        ("model.test_cfg.rcnn.score_threshold", "model.test_cfg.rcnn.score_thr"),
        ("evaluation.intervall", "evaluation.interval"),
    ],
)
def test_a_key_that_nothing_reads_is_refused_with_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"no key {re.escape(key)}, the nearest is {re.escape(nearest)}$"):
        load_config(PUBLISHED[0], {key: 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.backbone.use_checkpoint", True),
        ("model.backbone.frozen_stages", 2),
        ("model.backbone.ape", True),
        ("model.pretrained", "weights.pth"),
        ("model.roi_head.bbox_head.reg_class_agnostic", True),
        ("model.roi_head.bbox_head.num_shared_convs", 1),
        ("model.roi_head.bbox_roi_extractor.roi_layer.use_torchvision", True),
        ("model.test_cfg.rcnn.nms.min_score", 0.1),
        ("model.rpn_head.anchor_generator.scales", [4]),
        ("optimizer.amsgrad", True),
        ("optimizer.paramwise_cfg.custom_keys.bias.decay_mult", 0.0),
        ("optimizer_config.grad_clip", {"_delete_": True, "max_norm": 1.0}),
        ("lr_config.gamma", 0.5),
        ("lr_config.by_epoch", False),
        ("custom_hooks", []),
        ("load_from", "x.pth"),
        ("data.train.pipeline.2.direction", "vertical"),
        ("data.train.filter_empty_gt", False),
        ("model.neck", {"_delete_": True, "type": "PAFPN", "anything": 1}),
    ],
)
def test_what_is_read_may_be_set_though_the_config_lacks_it(key: str, value: object) -> None:
    value_at: Any = load_config(PUBLISHED[0], {key: value})
    for part in key.split("."):
        value_at = value_at[int(part)] if part.isdigit() else value_at[part]
    if isinstance(value, dict):
        value = {name: item for name, item in value.items() if name != "_delete_"}
    assert value_at == value


def test_a_changed_type_is_read_for_its_own_arguments() -> None:
    changed = {"optimizer.type": "SGD", "optimizer.momentum": 0.9}
    assert load_config(PUBLISHED[0], changed).optimizer.momentum == 0.9
    with pytest.raises(ValueError, match=r"no key optimizer\.momentum"):
        load_config(PUBLISHED[0], {"optimizer.momentum": 0.9})
    with pytest.raises(
        ValueError, match=r"no key model\.backbone\.depht, the nearest is model\.backbone\.depth"
    ):
        load_config(PUBLISHED[0], {"model.backbone": {"type": "ResNet", "depht": 50}})


def test_an_index_beyond_a_list_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        load_config(PUBLISHED[0], {"data.train.pipeline.99.flip_ratio": 0.1})


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_config(tmp_path / "absent.py")
    for text in ("model = dict(", "_base_ = './absent.py'", "import nonsense_module", "x = y"):
        (tmp_path / "config.py").write_text(text)
        with pytest.raises(
            (ValueError, FileNotFoundError), match=r"config\.py cannot be read|absent"
        ) as caught:
            load_config(tmp_path / "config.py")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("path", "shape"), [(PUBLISHED[0], (800, 1280)), (MINI[0], (128, 160))])
def test_flops_are_counted_at_the_size_of_a_test_image(path: Path, shape: tuple[int, int]) -> None:
    assert input_shape_of(load_config(path)) == shape
    height, width = largest_input_of(load_config(path))
    assert height >= shape[0] and width >= shape[1] and height % 32 == width % 32 == 0


def test_mixed_precision_is_on_in_the_published_configs_and_off_by_one_line() -> None:
    gpu = torch.device("cuda")
    assert precision_of(load_config(PUBLISHED[0]), gpu).mixed
    assert not precision_of(load_config(PUBLISHED[0], {"optimizer_config.use_fp16": False}), gpu).mixed
