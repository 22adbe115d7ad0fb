"""Configs: read with mmcv's meaning, pointed at a data set, written as one file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmcv import Config, ConfigDict
from mmdet.datasets import CocoDataset

import dfvt.models
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.config import (
    arguments_of,
    input_shape_of,
    largest_input_of,
    load_config,
    override_config,
    use_dataset,
    with_absolute_paths,
    write_config,
)
from dfvt.engine.config_text import config_text, read_config_text
from dfvt.engine.dataset_configs import dataset_configs
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.image_size import image_size_of, set_image_size
from dfvt.engine.infer import build_bare_detector
from dfvt.engine.options import merge_options, misspelt_names
from dfvt.engine.precision import precision_of
from dfvt.engine.served import ServedDetector

ROOT = Path(__file__).parents[2]
PUBLISHED = [
    ROOT / f"configs/DFvT/maskrcnn_DFvT_{variant}_1x_coco.py" for variant in ("tiny", "small", "base")
]
FAST = [ROOT / f"configs/fast/maskrcnn_DFvT_{variant}_1x_coco.py" for variant in ("tiny", "small", "base")]
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


WRAPPERS: dict[str, Any] = {
    "repeated": lambda data: {"type": "RepeatDataset", "times": 3, "dataset": data},
    "balanced": lambda data: {"type": "ClassBalancedDataset", "oversample_thr": 1e-3, "dataset": data},
    "mixed": lambda data: {"type": "MultiImageMixDataset", "dataset": data, "pipeline": []},
    "joined": lambda data: {"type": "ConcatDataset", "datasets": [data]},
    "listed": lambda data: [data],
    "nested": lambda data: {
        "type": "RepeatDataset",
        "times": 2,
        "dataset": {"type": "ConcatDataset", "datasets": [data, {**data, "filter_empty_gt": False}]},
    },
    "listed files": lambda data: {**data, "ann_file": [data["ann_file"]], "img_prefix": [data["img_prefix"]]},
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_every_data_set_in_a_wrapper_is_that_of_the_project(wrap: Any, manifest: DatasetManifest) -> None:
    cfg = load_config(PUBLISHED[0])
    for split in ("train", "val", "test"):
        cfg.data[split] = wrap(cfg.data[split])
    cfg = Config(cfg._cfg_dict.to_dict())
    use_dataset(cfg, manifest)
    absolute = with_absolute_paths(cfg, Path("/projects/x"))
    for split, name in (("train", "train"), ("val", "val"), ("test", "val")):
        for part in dataset_configs(cfg.data[split]):
            assert (part.ann_file, part.img_prefix, part.data_root) == (f"{name}.json", name, "data/own")
            assert part.classes == ["nut", "bolt", "washer"]
        parts = list(dataset_configs(absolute.data[split]))
        assert parts and {part.data_root for part in parts} == {"/projects/x/data/own"}
    assert cfg.data.val.type == cfg.data.test.type == "CocoDataset", "what is evaluated is evaluated once"
    assert "ann_file" not in cfg.data.train or isinstance(cfg.data.train.ann_file, str)


@pytest.mark.parametrize("how", ["datasets", "list", "files"])
def test_several_data_sets_in_one_split_are_refused(how: str, manifest: DatasetManifest) -> None:
    cfg = load_config(PUBLISHED[0])
    data, other = cfg.data.train, {**cfg.data.train, "ann_file": "other.json"}
    cfg.data.train = {
        "datasets": {
            "type": "RepeatDataset",
            "times": 2,
            "dataset": {"type": "ConcatDataset", "datasets": [data, other]},
        },
        "list": [data, other],
        "files": {**data, "ann_file": [data.ann_file, "other.json"]},
    }[how]
    with pytest.raises(ValueError, match=r"data\.train joins 2 data sets \(.*train2017\.json, other\.json\)"):
        use_dataset(Config(cfg._cfg_dict.to_dict()), manifest)


def test_addresses_of_weights_are_no_paths() -> None:
    cfg = load_config(PUBLISHED[0], {"model.pretrained": "torchvision://resnet50", "load_from": "x.pth"})
    cfg.data.train.ann_file = "a.json"
    absolute = with_absolute_paths(cfg, Path("/projects/x"))
    assert absolute.model.pretrained == "torchvision://resnet50"
    assert absolute.load_from == "/projects/x/x.pth"
    assert absolute.data.train.ann_file == "/projects/x/a.json", "there is no data_root"


odd_text = st.text(max_size=12) | st.sampled_from(
    [
        "it's",
        'a "b"',
        "\\",
        "a\nb",
        "\x00",
        "'" * 3,
        "{{ fileDirname }}",
        "{{fileBasename}}",
        "{{ _base_.x }}",
        "ü\udcff",
        "\u2028 \xa0",
    ]
)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | odd_text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(odd_text | st.integers() | st.sampled_from(["class", "lr"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=plain_values)
def test_any_config_is_read_back_equal_from_its_text(value: Any) -> None:
    cfg = Config({"value": value, "inner": {"value": value}, "steps": [{"value": value}, {}]})
    assert read_config_text(config_text(cfg))._cfg_dict == cfg._cfg_dict


@pytest.mark.parametrize("path", [*PUBLISHED, *MINI, *FAST], ids=lambda path: path.stem)
def test_the_text_of_an_ordinary_config_is_that_of_mmcv(path: Path, manifest: DatasetManifest) -> None:
    cfg = load_config(path)
    use_dataset(cfg, manifest)
    assert config_text(cfg) == cfg.pretty_text, "config.hash and the names of states depend on it"


def test_a_name_that_python_cannot_assign_to_is_refused() -> None:
    with pytest.raises(ValueError, match="'my-key', which is no name in Python"):
        config_text(Config({"my-key": 1}))


def test_a_config_of_data_in_a_folder_with_an_apostrophe(manifest: DatasetManifest, tmp_path: Path) -> None:
    cfg = load_config(PUBLISHED[0])
    use_dataset(cfg, manifest.model_copy(update={"root": Path("Bob's \\ data")}))
    write_config(cfg, tmp_path / "it's" / "config.py")
    written = load_config(tmp_path / "it's" / "config.py")
    assert written.data.train.data_root == "Bob's \\ data"
    assert written._cfg_dict == cfg._cfg_dict


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose backbone a module in the working directory registers."""
    name = f"own_backbones_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from mmdet.models.builder import BACKBONES\nfrom mmdet.models.backbones import ResNet\n\n"
        f"@BACKBONES.register_module(name={name!r})\nclass Own(ResNet):\n"
        "    def __init__(self, own_argument=1, **kwargs):\n        super().__init__(**kwargs)\n"
    )
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = [{str(PUBLISHED[0])!r}]\n"
        f"custom_imports = dict(imports=[{name!r}], allow_failed_imports=False)\n"
        f"model = dict(backbone=dict(_delete_=True, type={name!r}, depth=18),\n"
        "    neck=dict(in_channels=[64, 128, 256, 512]))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return config


def test_modules_that_a_config_imports_can_be_built_from(own_module: Path) -> None:
    cfg = load_config(own_module, {"model.backbone.own_argument": 2})
    assert type(build_bare_detector(cfg).backbone).__name__ == "Own"
    assert read_config_text(config_text(cfg)).custom_imports == cfg.custom_imports


def test_a_module_that_cannot_be_imported_is_one_sentence(own_module: Path) -> None:
    for file in own_module.parent.glob("own_backbones*.py"):
        file.write_text("import nonsense_module")
    with pytest.raises(ValueError, match=r"own_backbones.*No module named 'nonsense_module'.*run") as caught:
        load_config(own_module)
    assert "\n" not in str(caught.value)


def test_the_config_of_a_logged_model_imports_nothing(own_module: Path) -> None:
    model = own_module.parent / "model"
    write_config(load_config(own_module), model / "config.py")
    for file in own_module.parent.glob("own_backbones*.py"):
        file.write_text("raise SystemExit")
    with pytest.raises(ValueError, match="config of a logged model runs no code"):
        ServedDetector(model)


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


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (
            "img_scale",
            r"nothing reads img_scale of the config, set data\.train\.pipeline\.2\.img_scale",
        ),
        ("train_pipeline.2.img_scale", "nothing reads train_pipeline of the config"),
        ("dataset_type", "nothing reads dataset_type of the config"),
        ("img_norm_cfg.to_rgb", "nothing reads img_norm_cfg of the config"),
        ("evaluation.metric", r"nothing reads evaluation\.metric of the config"),
        ("log_config.hooks", r"nothing reads log_config\.hooks of the config"),
        ("optimizer_config.coalesce", r"nothing reads optimizer_config\.coalesce of the config"),
        ("log_level", "nothing reads log_level of the config"),
    ],
)
def test_a_key_of_the_config_that_nothing_reads_is_refused(key: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_config(MINI[0], {key: [320, 256]})


SCALE = "data.train.pipeline.3.policies.0.0.img_scale"


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({SCALE: [320, 256]}, SCALE, (320, 256)),
        ({SCALE: [[320, 256], [400, 256]]}, SCALE, [(320, 256), (400, 256)]),
        ({"data.val.pipeline.1.img_scale": [320, 256]}, "data.val.pipeline.1.img_scale", (320, 256)),
        ({"model.neck.in_channels.1": 5}, "model.neck.in_channels", [48, 5, 192, 384]),
        (
            {"data.train.pipeline.3": {"_delete_": True, "type": "Resize", "img_scale": [320, 256]}},
            "data.train.pipeline.3",
            {"type": "Resize", "img_scale": [320, 256]},
        ),
        (
            {"data.train.pipeline.3._delete_": True, "data.train.pipeline.3.type": "PhotoMetricDistortion"},
            "data.train.pipeline.3",
            {"type": "PhotoMetricDistortion"},
        ),
        (
            {"optimizer._delete_": True, "optimizer.type": "SGD", "optimizer.lr": 0.1},
            "optimizer",
            {"type": "SGD", "lr": 0.1},
        ),
        ({"optimizer_config.grad_clip.max_norm": 1.0}, "optimizer_config.grad_clip", {"max_norm": 1.0}),
    ],
)
def test_sections_are_replaced_and_entries_of_nested_lists_set(
    options: dict[str, Any], key: str, value: object
) -> None:
    value_at: Any = load_config(PUBLISHED[0], options)
    for part in key.split("."):
        value_at = value_at[int(part)] if part.isdigit() else value_at[part]
    assert value_at == value and type(value_at).__name__.replace("ConfigDict", "dict") == type(value).__name__


def test_options_change_no_other_config() -> None:
    cfg = load_config(PUBLISHED[0])
    other = Config(cfg._cfg_dict)
    options = {"data.train.pipeline.2": {"_delete_": True, "type": "Resize"}, SCALE: [320, 256]}
    merge_options(cfg, options)
    assert other.data.train.pipeline[2].type == "RandomFlip"
    assert options["data.train.pipeline.2"] == {"_delete_": True, "type": "Resize"}


@pytest.mark.parametrize(
    "path", [*PUBLISHED, *MINI, *FAST], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_one_setting_changes_the_size_of_all_images(path: Path) -> None:
    cfg, before = load_config(path), load_config(path)
    long, short = (side // 2 for side in image_size_of(cfg))
    set_image_size(cfg, (long, short))
    assert image_size_of(cfg) == (long, short)
    for data in (cfg.data.val, cfg.data.test):
        assert data.pipeline[1].img_scale == (long, short)
    largest = [
        max(map(max, scales_in(data))) for data in (before.data.train.pipeline, cfg.data.train.pipeline)
    ]
    assert largest == [image_size_of(before)[0], long]
    assert len(scales_in(cfg.data.train.pipeline)) == len(scales_in(before.data.train.pipeline))
    height, width = largest_input_of(cfg)
    if "canvases" in before:
        assert all(
            any(h >= a and w >= b for h, w in cfg.canvases) for a, b in ((height, width), (width, height))
        )
        assert max(cfg.canvases) < max(before.canvases)
        assert all(side % 32 == 0 for canvas in cfg.canvases for side in canvas)
    set_image_size(before, image_size_of(before))
    assert before._cfg_dict == load_config(path)._cfg_dict, "its own size changes nothing"


def scales_in(steps: Any) -> list[tuple[int, int]]:
    """All scales of a pipeline."""
    if isinstance(steps, dict):
        own = steps.get("img_scale", [])
        own = own if isinstance(own, list) else [own]
        return own + scales_in(list(steps.values()))
    return [scale for step in steps for scale in scales_in(step)] if isinstance(steps, list) else []


def test_a_training_of_several_scales_keeps_their_proportion() -> None:
    cfg = load_config(PUBLISHED[0])
    set_image_size(cfg, (667, 400))
    first, second = cfg.data.train.pipeline[3].policies
    assert first[0].img_scale[0] == (240, 667) and first[0].img_scale[-1] == (400, 667)
    assert second[1].crop_size == (192, 300)


@pytest.mark.parametrize(
    ("options", "size", "sentence"),
    [
        ({}, (400, 667), "the longer side first"),
        ({}, (667, 16), "at least 32 pixels"),
        ({}, (667, 400.5), "two whole numbers"),
        (
            {"data.test.pipeline.1.img_scale": (640, 640)},
            (667, 400),
            r"two equal sides: .* squares of 640×640",
        ),
        (
            {"data.test.pipeline": [{"type": "LoadImageFromFile"}]},
            (667, 400),
            "no MultiScaleFlipAug with an img",
        ),
    ],
)
def test_an_image_size_that_cannot_be_is_one_sentence(
    options: dict[str, Any], size: tuple[int, int], sentence: str
) -> None:
    cfg = load_config(PUBLISHED[0], options)
    with pytest.raises(ValueError, match=sentence):
        set_image_size(cfg, size)


def test_sizes_that_are_shares_or_relative_to_nothing_stay() -> None:
    steps = [
        {"type": "RandomCrop", "crop_type": "relative_range", "crop_size": (0.5, 0.5)},
        {"type": "Resize", "img_scale": (1333, 800), "ratio_range": (0.5, 2.0)},
        {"type": "Pad", "size": (800, 1333)},
        {"type": "Pad", "size_divisor": 32},
        {"type": "RandomAffine", "border": (-400, -1333)},
    ]
    cfg = load_config(PUBLISHED[0], {"data.train.pipeline": steps})
    set_image_size(cfg, (2666, 1600))
    crop, resize, fixed, pad, affine = cfg.data.train.pipeline
    assert crop.crop_size == (0.5, 0.5) and resize.ratio_range == (0.5, 2.0) and pad.size_divisor == 32
    assert (resize.img_scale, fixed.size, affine.border) == ((2666, 1600), (1600, 2666), (-800, -2666))


def test_a_mistake_in_what_is_built_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(self: Any, ann_file: str) -> list[Any]:
        return ann_file.no_such_method()  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr(CocoDataset, "load_annotations", mistaken)
    data = ConfigDict(type="CocoDataset", ann_file="a.json", pipeline=[])
    with pytest.raises(AttributeError, match="no_such_method"), arguments_of("data.train"):
        build_coco_dataset(data, test_mode=True)


def test_an_assertion_of_ours_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("never")

    cfg = load_config(MINI[0])
    mistaken = compile("def broken(*_, **__):\n    assert False, 'never'\n", dfvt.models.__file__, "exec")
    space: dict[str, Any] = {}
    exec(mistaken, space)
    monkeypatch.setattr(dfvt.models.dfvt.DFvT, "__init__", space["broken"])
    with pytest.raises(AssertionError, match="never"):
        build_bare_detector(cfg)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("model.backbone.type", "DFvTT", "DFvTT is not in the models registry"),
        ("model.backbone", {"_delete_": True, "embed_dim": 96}, "type"),
        ("model.backbone.depths", 3, ""),
        ("model.neck.num_outs", "five", ""),
        ("model.roi_head.bbox_roi_extractor.roi_layer.type", "RoIAlignn", "layer_type"),
        ("model.backbone", {"_delete_": True, "type": "ResNet", "depth": 51}, "invalid depth 51"),
        (
            "model.backbone",
            {"_delete_": True, "type": "ResNet", "depth": 18, "norm_cfg": {"type": "BNN"}},
            "BNN",
        ),
        ("model.rpn_head.anchor_generator.strides", 4, ""),
    ],
)
def test_a_wrong_argument_of_a_detector_is_one_sentence(option: str, value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"the config's model cannot be built: .*{reason}") as caught:
        build_bare_detector(load_config(PUBLISHED[0], {option: value}))
    assert caught.value.__cause__ is not None, "--debug shows where it comes from"


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
