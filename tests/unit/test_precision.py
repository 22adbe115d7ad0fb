"""Mixed precision: who asks for it, and what stays in float32 when it is on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv import Config, ConfigDict
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from torch import nn
from torchvision.ops import roi_align

from dfvt.data.loading import EpochBatchSampler, build_train_loader
from dfvt.engine.assembly import seed_everything
from dfvt.engine.build import build_model
from dfvt.engine.callbacks import Callback, TrainingStart
from dfvt.engine.compat import to_device
from dfvt.engine.config import load_config
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.evaluate import predict
from dfvt.engine.infer import build_bare_detector
from dfvt.engine.precision import Precision, guard_interfaces, precision_of, to_float32
from dfvt.engine.train import train

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PUBLISHED = load_config(Path(__file__).parents[2] / "configs/DFvT/maskrcnn_DFvT_tiny_1x_coco.py")


def config_of(**sections: Any) -> Config:
    return Config({name: ConfigDict(value) if value else value for name, value in sections.items()})


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, Precision()),
        ({"fp16": None, "optimizer_config": None}, Precision()),
        ({"optimizer_config": {"use_fp16": True}}, Precision(torch.float16)),
        ({"optimizer_config": {"use_fp16": True}, "fp16": None}, Precision(torch.float16)),
        ({"optimizer_config": {"use_fp16": False}}, Precision()),
        ({"optimizer_config": {"use_fp16": True, "dtype": "bfloat16"}}, Precision(torch.bfloat16)),
        ({"fp16": {"loss_scale": "dynamic"}}, Precision(torch.float16)),
        ({"fp16": {"loss_scale": 512.0}}, Precision(torch.float16, {"init_scale": 512.0}, 512.0)),
        ({"fp16": {"loss_scale": {"init_scale": 64}}}, Precision(torch.float16, {"init_scale": 64})),
    ],
)
def test_the_config_decides_on_a_gpu_and_the_cpu_is_float32(
    sections: dict[str, Any], expected: Precision
) -> None:
    cfg = config_of(**sections)
    assert precision_of(cfg, GPU) == expected
    assert precision_of(cfg, CPU) == Precision()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimizer_config": {"use_fp16": True, "dtype": "float8"}}, "float16 or bfloat16"),
        ({"fp16": {"loss_scale": -1}}, r"loss_scale -1 "),
        ({"fp16": {"loss_scale": "static"}}, r"loss_scale 'static' "),
    ],
)
def test_what_is_no_precision_is_refused_on_any_device(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        precision_of(config_of(**sections), CPU)


def test_only_float16_scales_its_loss() -> None:
    enabled = [Precision(dtype).build_scaler(CPU).is_enabled() for dtype in (torch.float16, torch.bfloat16)]
    assert enabled == [True, False]
    assert not Precision().build_scaler(CPU).is_enabled()
    assert Precision(torch.float16, {"init_scale": 64.0}).build_scaler(CPU).get_scale() == 64


def test_only_half_precision_is_cast_and_containers_keep_their_kind() -> None:
    half, index = torch.ones(1).half(), torch.ones(1, dtype=torch.int64)
    tuple_, list_, integer, nothing = to_float32(((half, index), [half.bfloat16()], 3, None))
    assert [type(tuple_), type(list_)] == [tuple, list]
    assert [tuple_[0].dtype, tuple_[1].dtype, list_[0].dtype] == [torch.float32, torch.int64, torch.float32]
    assert (integer, nothing) == (3, None)


def losses_of(config: Config, precision: Precision, seen: dict[str, set[torch.dtype]]) -> dict[str, float]:
    """Losses of the first batch; `seen` gets the dtypes of maps, and of what heads return."""
    seed_everything(0)
    dataset = build_coco_dataset(config.data.train, test_mode=False)
    model = build_model(copy.deepcopy(config), dataset.CLASSES, CPU)
    model.train()

    def note(name: str) -> Any:
        return lambda _, inputs, outputs: seen.setdefault(name, set()).update(
            tensor.dtype for tensor in torch.utils._pytree.tree_leaves(outputs)
        )

    head = model.roi_head
    for name, module in {
        "backbone": model.backbone,
        "neck": model.neck,
        "RoIs": head.bbox_roi_extractor,
        "RPN": model.rpn_head,
        "boxes": head.bbox_head,
        "masks": head.mask_head,
        "layer of a head": head.bbox_head.shared_fcs[0],
    }.items():
        module.register_forward_hook(note(name))
    assert isinstance(head.bbox_roi_extractor, BaseRoIExtractor)
    (batch, *_) = build_train_loader(dataset, EpochBatchSampler(dataset.flag, 2, seed=0), 0)
    with precision.autocast(CPU):
        outputs = model.train_step(to_device(batch.inputs, CPU), None)
    outputs["loss"].backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    return outputs["log_vars"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_run_in_half_precision_but_rois_and_predictions_do_not(
    config: Config, dtype: torch.dtype
) -> None:
    seen: dict[str, set[torch.dtype]] = {}
    losses = losses_of(config, Precision(dtype), seen)
    assert seen.pop("layer of a head") == seen.pop("backbone") == seen.pop("neck") == {dtype}
    assert seen == {key: {torch.float32} for key in ("RoIs", "RPN", "boxes", "masks")}
    full = losses_of(config, Precision(), {})
    assert losses["loss"] == pytest.approx(full["loss"], rel=0.05)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [False, True])
def test_roi_features_are_those_of_torchvision_however_maps_lie_in_memory(
    layout: torch.memory_format, training: bool
) -> None:
    seed_everything(0)
    model = build_model(PUBLISHED, ("thing",), CPU) if training else build_bare_detector(PUBLISHED)
    maps = [torch.rand(2, 8, 64 // 2**i, 96 // 2**i).to(memory_format=layout) for i in range(4)]
    corners = torch.rand(40, 2, 2) * torch.tensor([384.0, 256.0])
    rois = torch.cat([torch.arange(40)[:, None] % 2, corners.amin(1), corners.amax(1)], dim=1)
    extractor = model.roi_head.bbox_roi_extractor
    extractor.out_channels = 8
    features = extractor(maps, rois)
    levels = extractor.map_roi_levels(rois, len(maps))
    assert len(levels.unique()) > 1 and not extractor.roi_layers[0].use_torchvision
    for level, (values, stride) in enumerate(zip(maps, extractor.featmap_strides, strict=True)):
        expected = roi_align(values.contiguous(), rois, 7, 1 / stride, aligned=True)
        torch.testing.assert_close(features[levels == level], expected[levels == level])


@pytest.mark.parametrize("batch", [1, 2])
def test_deformable_convolutions_read_channels_last_maps_rightly(batch: int) -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), ModulatedDeformConv2dPack(8, 6, 3, padding=1)).double()
        nn.init.normal_(model[1].conv_offset.weight, std=0.1)
        guard_interfaces(model.to(memory_format=layout))
        images = torch.randn(batch, 3, 10, 12, dtype=torch.float64).to(memory_format=layout)
        out = model(images)
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), list(model.parameters()))])
    torch.testing.assert_close(results[1], results[0])


def test_a_channels_last_detector_has_the_losses_of_a_contiguous_one(config: Config) -> None:
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):  # as published: mmcv's RoIAlign
        config.model.roi_head[name].roi_layer.use_torchvision = False
    dataset = build_coco_dataset(config.data.train, test_mode=False)
    (batch, *_) = build_train_loader(dataset, EpochBatchSampler(dataset.flag, 2, seed=0), 0)
    losses = []
    for layout in (torch.contiguous_format, torch.channels_last):
        seed_everything(0)
        model = build_model(copy.deepcopy(config), dataset.CLASSES, CPU).train().to(memory_format=layout)
        losses.append(model.train_step(to_device(batch.inputs, CPU), None)["log_vars"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def flags() -> tuple[bool, bool, bool]:
    """What the process computes in TF32 (convolutions, matrix products), and whether cuDNN measures."""
    backends = torch.backends
    return backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("options", "inside"),
    [
        ({}, (True, False, False)),
        ({"tf32": "convolutions"}, (True, False, False)),
        ({"tf32": "none", "cudnn_benchmark": True}, (False, False, True)),
        ({"tf32": "all"}, (True, True, False)),
    ],
    ids=str,
)
def test_a_training_has_the_configs_float32_and_leaves_the_process_as_it_was(
    config: Config, tmp_path: Path, options: dict[str, Any], inside: tuple[bool, bool, bool]
) -> None:
    class StoppedError(Exception):
        pass

    class Started(Callback):
        def on_start(self, start: TrainingStart) -> None:
            self.flags = flags()
            raise StoppedError

    config.merge_from_dict(options)
    before, started = flags(), Started()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not inside[0]
    others = flags()
    try:
        with pytest.raises(StoppedError):
            train(config, tmp_path, callbacks=[started])
        assert started.flags == inside
        assert flags() == others
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before[:2]


@pytest.mark.parametrize("tf32", ["none", "all"])
def test_predictions_have_the_float32_of_the_config(config: Config, tf32: str) -> None:
    config.tf32 = tf32
    before, seen = flags(), []
    model: Any = build_bare_detector(config)
    model.backbone.register_forward_hook(lambda *_: seen.append(flags()[:2]))
    dataset = build_coco_dataset(config.data.test, test_mode=True)
    dataset.data_infos = dataset.data_infos[:1]
    predict(model, dataset, CPU)
    assert seen == [{"none": (False, False), "all": (True, True)}[tf32]]
    assert flags() == before


def test_a_word_that_is_no_way_to_compute_is_refused(config: Config, tmp_path: Path) -> None:
    config.tf32 = "yes"
    for build in (lambda: train(config, tmp_path), lambda: build_bare_detector(config)):
        with pytest.raises(ValueError, match="tf32 'yes' must be one of none, convolutions, all"):
            build()
