"""The backbone is the published one, number by number and name by name, on images of every size."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv import Config
from mmdet.models import build_backbone, build_detector, build_neck
from torch import Tensor, nn
from torch.nn import functional as F

from dfvt.models import DFvT
from dfvt.models.blocks import FusionBlock, WindowAttention, fold_2x2, shifted_window_mask

PROJECT = Path(__file__).parents[2]
REFERENCE = PROJECT / "tests/reference"
VARIANTS = ("tiny", "small", "base")
WINDOW = 7


def load_fill() -> ModuleType:
    """The filler behind the golden file; `tests` is no package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("fill", REFERENCE / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILL = load_fill()


@cache
def model_config(variant: str) -> Config:
    return Config.fromfile(str(PROJECT / f"configs/DFvT/maskrcnn_DFvT_{variant}_1x_coco.py")).model


@cache
def filled_backbone(variant: str) -> nn.Module:
    return FILL.fill(build_backbone(model_config(variant).backbone)).eval()


def narrow_backbone(**options: Any) -> DFvT:
    """DFvT-T of a third of the width, with weights that make every part matter."""
    options = {"embed_dim": 16, "num_heads": (1, 2, 4, 8), "mlp_ratio": 1.0, "drop_path_rate": 0.0} | options
    return FILL.fill(DFvT(**options))


def loss_of(outs: tuple[Tensor, ...]) -> Tensor:
    """A scalar that no LayerNorm cancels."""
    return sum((out.square() * torch.linspace(0, 1, out.numel()).view_as(out)).mean() for out in outs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("batch", "height", "width", "seed"), [(1, 224, 224, 0), (2, 224, 352, 1)])
def test_outputs_are_those_of_the_published_backbone(
    variant: str, batch: int, height: int, width: int, seed: int
) -> None:
    with torch.no_grad():
        outs = filled_backbone(variant)(FILL.image(batch, height, width, seed=seed))
    with np.load(REFERENCE / "backbone_golden.npz") as golden:
        for level, out in enumerate(outs):
            key = f"{variant}/eval/{batch}x{height}x{width}/level{level}"
            assert out.shape == tuple(golden[f"{key}/shape"])
            flat = out.numpy().ravel()
            sample = flat[np.linspace(0, flat.size - 1, min(2048, flat.size)).astype(np.int64)]
            np.testing.assert_allclose(sample, golden[f"{key}/sample"], rtol=1e-4, atol=1e-4 * flat.std())
            mean, std = golden[f"{key}/meanstd"]
            assert (flat.mean(), flat.std()) == pytest.approx((mean, std), rel=1e-4, abs=1e-4 * std)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_detector_has_exactly_the_names_and_shapes_of_the_released_checkpoints(variant: str) -> None:
    with torch.device("meta"):
        detector = build_detector(model_config(variant))
    released = json.loads((REFERENCE / "state_dict_keys.json").read_text())[variant]
    assert {name: list(value.shape) for name, value in detector.state_dict().items()} == released


def test_importing_the_package_registers_the_backbone_in_mmdet() -> None:
    script = "import dfvt, mmdet.models as m; assert m.BACKBONES.get('DFvT').__module__ == 'dfvt.models.dfvt'"
    subprocess.run([sys.executable, "-c", script], cwd=PROJECT, check=True)


@settings(max_examples=20)
@given(height=st.integers(32, 120), width=st.integers(32, 120))
def test_images_of_every_size_give_maps_that_a_pyramid_merges(height: int, width: int) -> None:
    backbone = narrow_backbone().eval()
    neck = build_neck({"type": "FPN", "in_channels": backbone.num_features, "out_channels": 4, "num_outs": 5})
    with torch.no_grad():
        outs = backbone(FILL.image(1, height, width))
        levels = neck(outs)
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
    assert [out.shape for out in outs] == [(1, 16 * 2**i, *size) for i, size in enumerate(sizes)]
    assert [level.shape[-2:] for level in levels[:4]] == sizes
    assert all(out.isfinite().all() for out in outs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_lie_in_memory_as_images_do(layout: torch.memory_format) -> None:
    backbone, image = narrow_backbone(), torch.rand(2, 3, 64, 96)
    maps = backbone(image.to(memory_format=layout))
    assert all(level.is_contiguous(memory_format=layout) for level in maps)
    for one, other in zip(maps, backbone(image), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_image_is_padded_on_the_bottom_and_right_to_a_multiple_of_four() -> None:
    backbone = narrow_backbone().eval()
    image = FILL.image(1, 33, 46)
    with torch.no_grad():
        for actual, expected in zip(backbone(image), backbone(F.pad(image, (0, 2, 0, 3))), strict=True):
            torch.testing.assert_close(actual, expected)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    backbone = narrow_backbone(depths=(2, 2, 2, 2)).eval()
    images = FILL.image(3, 72, 88)
    with torch.no_grad():
        together = backbone(images)
        alone = [backbone(image[None]) for image in images]
    for level, out in enumerate(together):
        torch.testing.assert_close(out, torch.cat([outs[level] for outs in alone]), rtol=1e-4, atol=1e-5)


def test_folding_orders_the_neighbours_column_by_column_and_pads_odd_sides() -> None:
    folded = fold_2x2(torch.arange(1.0, 16.0).view(1, 1, 3, 5))
    assert folded[0, :, 0, 0].tolist() == [1, 6, 2, 7]
    assert folded[0, :, 1, 2].tolist() == [15, 0, 0, 0]
    assert folded.shape == (1, 4, 2, 3)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (14, 7), (14, 21)])
def test_the_shifted_window_mask_separates_what_the_shift_brought_together(height: int, width: int) -> None:
    shift = 3
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([rows, columns], dim=-1)
    # Neighbours in a shifted window are neighbours in the image when the way between them did not change.
    origins = torch.roll(positions, (-shift, -shift), dims=(0, 1))

    def windows(grid: Tensor) -> Tensor:
        cells = [grid[r : r + 7, c : c + 7] for r in range(0, height, 7) for c in range(0, width, 7)]
        return torch.stack([cell.reshape(WINDOW**2, 2) for cell in cells])

    def ways(points: Tensor) -> Tensor:
        return points[:, :, None] - points[:, None]

    together = (ways(windows(positions)) == ways(windows(origins))).all(dim=-1)
    mask = shifted_window_mask(height, width, WINDOW, shift, torch.device("cpu"))
    assert torch.equal(mask, torch.where(together, 0.0, -100.0))


def plain_attention(attention: WindowAttention, x: Tensor, height: int, width: int, shift: int) -> Tensor:
    """Attention among all positions of a map (H, W, C) whose rows and columns lie in the same shifted window.

    No partition, no cyclic shift and an explicit softmax: a window is what ⌊(position − shift) / 7⌋ names.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    down, across = rows[:, None] - rows[None], columns[:, None] - columns[None]
    region_rows, region_columns = (rows - shift) // WINDOW, (columns - shift) // WINDOW
    same = (region_rows[:, None] == region_rows) & (region_columns[:, None] == region_columns)
    index = ((down + WINDOW - 1) * (2 * WINDOW - 1) + across + WINDOW - 1).where(same, 0)

    q, k, v = attention.qkv(x.view(height * width, -1)).chunk(3, dim=-1)
    heads = []
    for head, (qh, kh, vh) in enumerate(
        zip(*(t.chunk(attention.num_heads, dim=-1) for t in (q, k, v)), strict=True)
    ):
        logits = qh @ kh.T / qh.shape[-1] ** 0.5 + attention.relative_position_bias_table[index, head]
        heads.append(logits.masked_fill(~same, -torch.inf).softmax(dim=-1) @ vh)
    return attention.proj(torch.cat(heads, dim=-1)).view(height, width, -1)


@pytest.mark.parametrize("shift", [0, 3])
def test_window_attention_and_its_gradients_are_those_of_a_plain_softmax(shift: int) -> None:
    build_attn = partial(WindowAttention, 16, WINDOW, 4)
    block = FILL.fill(FusionBlock(16, build_attn, WINDOW, shift, 1.0, 0.0)).train()
    height, width = 9, 12
    x = torch.randn(2, height * width, 16, generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(-1, 1, x.numel()).view_as(x)

    actual = block.attend(x, height, width)
    gradients = torch.autograd.grad((actual * weights).sum(), list(block.attn.parameters()))
    padded = F.pad(x.view(2, height, width, 16), (0, 0, 0, 2, 0, 5))
    expected = torch.stack([plain_attention(block.attn, image, 14, 14, shift) for image in padded])
    expected = expected[:, :height, :width].reshape(x.shape)
    plain_gradients = torch.autograd.grad((expected * weights).sum(), list(block.attn.parameters()))

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-4, atol=1e-4)


def test_training_gives_every_parameter_a_gradient_and_moves_every_statistic() -> None:
    """A gradient counts if float32 and float64 agree about it: one that is only rounding differs in them.

    Below 48 channels the first layers have one or two features to normalise, whose LayerNorm is constant.
    """
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        backbone = narrow_backbone(embed_dim=48, num_heads=(3, 6, 12, 24)).to(dtype).train()
        statistics = {name: b.clone() for name, b in backbone.named_buffers() if "running" in name}
        loss_of(backbone(FILL.image(2, 64, 96).to(dtype))).backward()
        moved = dict(backbone.named_buffers())
        assert statistics
        assert not any(torch.equal(moved[name], before) for name, before in statistics.items())
        gradients[dtype] = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    for name, exact in gradients[torch.float64].items():
        rounded = gradients[torch.float32][name]
        assert exact is not None and rounded is not None and exact.isfinite().all(), name
        # BatchNorm takes away what the bias before it adds, through a 1×1 convolution too.
        before_norm = name.startswith("patch_embed.proj") or name.startswith("multiresolution_conv")
        if not (before_norm and name.endswith(("proj1.bias", "proj2.bias", ".1.bias"))):
            assert (rounded - exact).norm() < 0.01 * exact.norm(), name


@pytest.mark.parametrize("frozen", [{}, {"frozen_stages": 2}])
def test_recomputing_blocks_changes_neither_outputs_nor_gradients(frozen: dict[str, int]) -> None:
    results = []
    for use_checkpoint in (False, True):
        backbone = narrow_backbone(use_checkpoint=use_checkpoint, drop_path_rate=0.5, **frozen).train()
        torch.manual_seed(0)
        outs = backbone(FILL.image(2, 64, 64))
        loss_of(outs).backward()
        results.append((outs, {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0], results[1])


def test_drop_path_rises_linearly_over_all_blocks_and_only_trains() -> None:
    backbone = narrow_backbone(depths=(1, 1, 2, 1), drop_path_rate=0.4)
    rates = [m.drop_path.drop_prob for m in backbone.modules() if isinstance(m, FusionBlock)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    image = FILL.image(2, 64, 64)
    with torch.no_grad():
        first, second = backbone.eval()(image), backbone(image)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def frozen_parts(backbone: DFvT) -> set[str]:
    return {".".join(n.split(".")[:2]) for n, p in backbone.named_parameters() if not p.requires_grad}


def test_frozen_stages_keep_their_weights_and_statistics_in_training() -> None:
    assert frozen_parts(narrow_backbone()) == set()
    embedding = {f"patch_embed.{name}" for name in ("proj1", "proj2", "norm1", "norm")}
    assert frozen_parts(narrow_backbone(frozen_stages=0, ape=True)) == embedding
    backbone = narrow_backbone(frozen_stages=1, ape=True).train()
    stage = {
        "layers.0",
        "convlayers.0",
        "multiresolution_conv.0",
        "conv1x1layers.0",
        "norm0.weight",
        "norm0.bias",
    }
    assert frozen_parts(backbone) == embedding | stage | {"absolute_pos_embed"}
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    loss_of(backbone(FILL.image(2, 64, 64))).backward()
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(
        name.startswith(("patch_embed.", "convlayers.0.", "multiresolution_conv.0.")) for name in changed
    )
    assert any(name.startswith("convlayers.1.") for name in changed)


def test_a_frozen_backbone_trains_nothing_and_stays_in_evaluation_mode() -> None:
    backbone = narrow_backbone(frozen_backbone=True, drop_path_rate=0.5).train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_the_absolute_position_embedding_is_stretched_to_the_image_and_matters() -> None:
    plain, embedded = narrow_backbone().eval(), narrow_backbone(ape=True).eval()
    added = set(embedded.state_dict()) - set(plain.state_dict())
    assert added == {"absolute_pos_embed"} and embedded.absolute_pos_embed is not None
    assert embedded.absolute_pos_embed.shape == (1, 16, 56, 56)
    image = FILL.image(1, 40, 72)
    with torch.no_grad():
        embedded.absolute_pos_embed.normal_()
        assert not torch.allclose(plain(image)[0], embedded(image)[0], atol=0.1)
        embedded.absolute_pos_embed.zero_()
        assert torch.equal(plain(image)[0], embedded(image)[0])


def test_only_the_wanted_levels_are_returned() -> None:
    image = FILL.image(1, 64, 64)
    with torch.no_grad():
        levels = narrow_backbone().eval()(image)
        wanted = narrow_backbone(out_indices=(1, 3)).eval()(image)
    assert len(wanted) == 2 and torch.equal(wanted[0], levels[1]) and torch.equal(wanted[1], levels[3])


def test_initial_weights_are_the_published_distributions() -> None:
    torch.manual_seed(0)
    backbone = DFvT(embed_dim=48)
    backbone.init_weights()
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.5), name
        elif isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.2), name
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert (module.weight == 1).all(), name
        bias = getattr(module, "bias", None)
        assert bias is None or (bias == 0).all(), name
        if isinstance(module, WindowAttention):
            table = module.relative_position_bias_table
            assert table.std().item() == pytest.approx(0.02, rel=0.2), name


def test_mixed_precision_stays_close_to_full_precision() -> None:
    backbone = narrow_backbone(depths=(2, 2, 2, 2)).eval()
    image = FILL.image(1, 64, 96)
    with torch.no_grad():
        full = backbone(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = backbone(image)
    for a, b in zip(full, mixed, strict=True):
        assert (a - b).abs().mean() < 0.05 * a.std()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": (3, 6, 12, 24)}, "embed_dim 16"),
        ({"embed_dim": 8}, "embed_dim 8"),
        ({"depths": (1, 1, 1)}, "each stage"),
        ({"patch_norm": False}, "patches always"),
        ({"out_indices": (0, 4)}, "stages 0 to 3"),
        ({"init_cfg": {"type": "Kaiming", "layer": "Conv2d"}}, "Pretrained"),
        ({"init_cfg": {"type": "Pretrained", "checkpoint": "a"}, "pretrained": "b"}, "without pretrained"),
    ],
)
def test_contradicting_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        narrow_backbone(**options)


def test_the_arguments_of_a_swin_that_change_nothing_change_nothing() -> None:
    swin = {"qkv_bias": True, "qk_scale": None, "drop_rate": 0.0, "attn_drop_rate": 0.0, "patch_norm": True}
    image = FILL.image(1, 64, 96)
    outputs = (FILL.fill(narrow_backbone(**options)).train()(image) for options in ({}, swin))
    for ours, theirs in zip(*outputs, strict=True):
        assert torch.equal(ours, theirs)


def test_the_scale_of_attention_is_that_of_its_heads_unless_given() -> None:
    x = torch.randn(1, WINDOW**2, 16, generator=torch.Generator().manual_seed(0))
    default, same, other = (FILL.fill(WindowAttention(16, WINDOW, 4, scale=s))(x) for s in (None, 0.5, 0.1))
    torch.testing.assert_close(default, same)
    assert not torch.allclose(default, other)


def test_queries_keys_and_values_go_without_a_bias() -> None:
    biases = {name for name in narrow_backbone().state_dict() if name.endswith("qkv.bias")}
    assert biases
    assert (
        narrow_backbone().state_dict().keys() - narrow_backbone(qkv_bias=False).state_dict().keys() == biases
    )


@pytest.mark.parametrize("rate", ["drop_rate", "attn_drop_rate"])
def test_dropout_acts_in_training_alone(rate: str) -> None:
    plain, dropping = (FILL.fill(narrow_backbone(**options)) for options in ({}, {rate: 0.5}))
    image = FILL.image(1, 64, 64)
    assert torch.equal(plain.eval()(image)[-1], dropping.eval()(image)[-1])
    assert not torch.equal(plain.train()(image)[-1], dropping.train()(image)[-1])
