"""Mixed precision: who asks for it, and what stays in float32 when it is on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmcv import Config, ConfigDict
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor

from dfvt.data.loading import EpochBatchSampler, build_train_loader
from dfvt.engine.build import build_model
from dfvt.engine.compat import to_device
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.precision import Precision, precision_of, to_float32
from dfvt.engine.train import seed_everything

CPU, GPU = torch.device("cpu"), torch.device("cuda")


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
