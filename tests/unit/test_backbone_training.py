"""In training, too, the backbone computes what was published: outputs, statistics, gradients, at odd sizes.

The golden numbers are of evaluation. Here a second, plain implementation of the description, function by
function and window by window in float64, stands for the published code.
"""

from __future__ import annotations

import pytest
import torch
from test_backbone import FILL, narrow_backbone
from torch import Tensor
from torch.nn import functional as F

from dfvt.models import DFvT

WINDOW, SHIFT = 7, 3
DEPTHS, HEADS = (1, 1, 2, 1), (1, 2, 4, 8)


class PlainBackbone:
    """Training-mode forward over a state dict; `statistics` are the running ones after it."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.statistics: dict[str, Tensor] = {}

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        bias = self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        num_values = x.numel() / x.shape[1]
        for kind, new in (("mean", mean), ("var", var * num_values / (num_values - 1))):
            key = f"{name}.running_{kind}"
            self.statistics[key] = (0.9 * self.state[key] + 0.1 * new).detach()
        scale = self.state[f"{name}.weight"] / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def conv_bn_silu(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        return F.silu(self.batch_norm(self.conv(x, conv, stride), norm))

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return normed * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        out = x @ self.state[f"{name}.weight"].T
        return out + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else out

    def attend(self, window: Tensor, regions: Tensor, num_heads: int, name: str) -> Tensor:
        """Attention inside one window (B, 49, C); tokens of another region are 100 less alike."""
        query, key, value = self.linear(window, f"{name}.qkv").chunk(3, -1)
        where = torch.arange(WINDOW**2)
        rows, cols = where // WINDOW, where % WINDOW
        offsets = (rows[:, None] - rows + WINDOW - 1) * (2 * WINDOW - 1) + cols[:, None] - cols + WINDOW - 1
        bias = self.state[f"{name}.relative_position_bias_table"][offsets]
        apart = (regions[:, None] != regions).double() * -100
        heads = []
        for head, (q, k, v) in enumerate(
            zip(query.chunk(num_heads, -1), key.chunk(num_heads, -1), value.chunk(num_heads, -1), strict=True)
        ):
            alike = q @ k.mT * q.shape[-1] ** -0.5 + bias[..., head] + apart
            heads.append(alike.softmax(-1) @ v)
        return self.linear(torch.cat(heads, -1), f"{name}.proj")

    def attention(self, x: Tensor, shift: int, num_heads: int, name: str) -> Tensor:
        """Window attention of a map (B, H, W, C), windows one after the other."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW)).roll((-shift, -shift), (1, 2))
        regions = torch.zeros(x.shape[1:3])
        if shift:
            for axis in (0, 1):
                lines = regions.transpose(0, axis)  # a view
                lines[-WINDOW:-shift] += 3**axis
                lines[-shift:] += 2 * 3**axis
        out = torch.zeros_like(x)
        for top in range(0, x.shape[1], WINDOW):
            for left in range(0, x.shape[2], WINDOW):
                place = (slice(top, top + WINDOW), slice(left, left + WINDOW))
                window = x[:, *place].flatten(1, 2)
                attended = self.attend(window, regions[place].flatten(), num_heads, name)
                out[:, *place] = attended.view_as(x[:, *place])
        return out.roll((shift, shift), (1, 2))[:, :height, :width]

    def block(self, x: Tensor, z: Tensor, shift: int, num_heads: int, name: str) -> Tensor:
        x = x + self.attention(self.layer_norm(x, f"{name}.norm1"), shift, num_heads, f"{name}.attn")
        select = f"{name}.select.fc"
        spatial = self.linear(self.layer_norm(z, f"{select}_spatial.0"), f"{select}_spatial.1")
        channel = F.silu(self.linear(x.mean((1, 2), keepdim=True), f"{select}_channel.0"))
        channel = self.linear(self.layer_norm(channel, f"{select}_channel.2"), f"{select}_channel.3")
        mix = (spatial + channel).sigmoid()
        x = z * mix + x * (1 - mix)
        hidden = F.gelu(self.linear(self.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + self.linear(hidden, f"{name}.mlp.fc2")

    def streams(self, x: Tensor, stage: int) -> tuple[Tensor, Tensor, Tensor]:
        """Skip map, input of the transformer and local representation of a stage."""
        name = f"convlayers.{stage}"
        skip = self.conv_bn_silu(x, f"{name}.conv1x1_1.0", f"{name}.conv1x1_1.1")
        skip = self.conv_bn_silu(skip, f"{name}.conv1x1_1.3", f"{name}.conv1x1_1.4")
        skip = self.conv_bn_silu(skip, f"{name}.conv1x1_1.6", f"{name}.conv1x1_1.7")
        tokens = self.conv_bn_silu(skip, f"{name}.conv1.0", f"{name}.conv1.1", 1 if stage == 3 else 2)
        tokens = self.conv_bn_silu(tokens, f"{name}.conv1x1_2.0", f"{name}.conv1x1_2.1")
        if stage == 3:
            return skip, x + tokens, x
        even = F.pad(skip, (0, skip.shape[3] % 2, 0, skip.shape[2] % 2))
        folded = torch.cat([even[..., row::2, col::2] for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))], 1)
        name = f"multiresolution_conv.{stage}"
        local = self.batch_norm(self.conv(folded, f"{name}.0"), f"{name}.1")
        local = self.batch_norm(self.conv(local, f"{name}.2"), f"{name}.3")
        return skip, F.max_pool2d(x, 3, 2, 1) + tokens, local

    def __call__(self, x: Tensor) -> list[Tensor]:
        x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        x = self.conv_bn_silu(x, "patch_embed.proj1", "patch_embed.norm1", 2)
        x = self.conv_bn_silu(x, "patch_embed.proj2", "patch_embed.norm", 2)
        outs = []
        for stage, depth in enumerate(DEPTHS):
            skip, x, local = self.streams(x, stage)
            x, local = x.permute(0, 2, 3, 1), local.permute(0, 2, 3, 1)
            for number in range(depth):
                shift = SHIFT if number % 2 else 0
                x = self.block(x, local, shift, HEADS[stage], f"layers.{stage}.blocks.{number}")
            out = self.layer_norm(x, f"norm{stage}").permute(0, 3, 1, 2)
            if stage < 3:
                out = out.repeat_interleave(2, 2).repeat_interleave(2, 3)[
                    ..., : skip.shape[2], : skip.shape[3]
                ]
                out = self.conv(torch.cat([out, skip], 1), f"conv1x1layers.{stage}")
                name = f"layers.{stage}.downsample"
                x = self.linear(self.layer_norm(x, f"{name}.norm"), f"{name}.reduction").permute(0, 3, 1, 2)
            outs.append(out)
        return outs


def gradients_of(outs: list[Tensor], parameters: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a scalar in which every value of every map has another weight."""
    total = sum(
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() for out in outs
    )
    return torch.autograd.grad(total, parameters)


@pytest.mark.parametrize(("height", "width"), [(224, 160), (96, 128), (100, 76), (75, 201), (33, 32)])
def test_training_computes_what_was_published(height: int, width: int) -> None:
    backbone: DFvT = narrow_backbone().double().train()
    parameters = dict(backbone.named_parameters())
    plain = PlainBackbone({name: value.clone() for name, value in backbone.state_dict().items()} | parameters)
    images = FILL.image(2, height, width).double()

    expected = plain(images)
    expected_gradients = gradients_of(expected, list(parameters.values()))
    outs = backbone(images)
    for out, wanted in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    for name, value, wanted in zip(
        parameters, gradients_of(list(outs), list(parameters.values())), expected_gradients, strict=True
    ):
        torch.testing.assert_close(
            value, wanted, rtol=1e-7, atol=1e-9 * float(wanted.abs().max() + 1), msg=name
        )
    statistics = {name: value for name, value in backbone.state_dict().items() if "running_" in name}
    assert statistics.keys() == plain.statistics.keys()
    for name, value in statistics.items():
        torch.testing.assert_close(value, plain.statistics[name], rtol=1e-9, atol=1e-12, msg=name)
