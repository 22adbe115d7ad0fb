"""Building blocks of the DFvT backbone (Gao et al., "Doubly-Fused ViT", ECCV 2022).

Attribute names are the names in the released state dicts and therefore fixed.
Maps are (B, C, H, W), tokens (B, H·W, C).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -100.0  # what Swin adds to the attention logits of pairs from different regions


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pads the last two dimensions on the bottom and right up to a multiple of `multiple`."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))


def fold_2x2(x: Tensor) -> Tensor:
    """Folds 2×2 neighbourhoods into channels: (B, C, H, W) to (B, 4C, ⌈H/2⌉, ⌈W/2⌉), odd sides zero-padded.

    The order of the four groups is (row, column) = (even, even), (odd, even), (even, odd), (odd, odd).
    """
    x = pad_to_multiple(x, 2)
    return torch.cat([x[..., 0::2, 0::2], x[..., 1::2, 0::2], x[..., 0::2, 1::2], x[..., 1::2, 1::2]], dim=1)


def shifted_window_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Additive attention mask of cyclically shifted windows, (num_windows, window², window²) of 0 and −100.

    `height` and `width` are multiples of `window`. Source: Swin Transformer, ICCV 2021, section 3.2.
    """
    # A CUDA graph would outlive a kept one, and then read whatever has its place; what is made while a
    # program is traced is no tensor for others.
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    anew = capturing or torch.compiler.is_compiling()
    make = make_shifted_window_mask.__wrapped__ if anew else make_shifted_window_mask
    return make(height, width, window, shift, device)


@lru_cache(maxsize=128)
def make_shifted_window_mask(
    height: int, width: int, window: int, shift: int, device: torch.device
) -> Tensor:
    regions = torch.zeros(height, width, device=device)
    spans = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(spans):
        for j, columns in enumerate(spans):
            regions[rows, columns] = 3 * i + j
    regions = partition_windows(regions[None, :, :, None], window).squeeze(-1)
    return (regions[:, None, :] != regions[:, :, None]).float() * MASKED


def partition_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B·num_windows, window², C); H and W are multiples of `window`."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def merge_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Inverse of `partition_windows`."""
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a relative position bias.

    `scale` of the products is num_channels_of_a_head^-0.5 where it is None; `attn_drop` and `drop` are the
    dropout rates of the attention and of what it returns. Source: Swin Transformer, ICCV 2021, section 3.2.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        channels: int,
        window: int,
        num_heads: int,
        qkv_bias: bool = True,
        scale: float | None = None,
        attn_drop: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.attn_drop = attn_drop
        self.drop = nn.Dropout(drop)
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        row_offset = rows.flatten()[:, None] - rows.flatten()[None] + window - 1
        column_offset = columns.flatten()[:, None] - columns.flatten()[None] + window - 1
        self.register_buffer("relative_position_index", row_offset * (2 * window - 1) + column_offset)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` is (B·num_windows, window², C), `mask` (num_windows, window², window²); returns `x`'s shape."""
        num_windows, length, channels = x.shape
        qkv = self.qkv(x).view(num_windows, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        bias = bias.view(length, length, self.num_heads).permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(num_windows // len(mask), 1, 1, 1)
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bias.to(q.dtype),
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.scale,
        )
        return self.drop(self.proj(x.transpose(1, 2).reshape(num_windows, length, channels)))


class Mlp(nn.Module):
    """Linear, GELU, Linear, with dropout after each of the linear maps."""

    def __init__(self, channels: int, hidden_channels: int, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop)
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`x` is (…, channels); returns the same shape."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class DynamicFusion(nn.Module):
    """DANE, the fusion of global tokens x with local tokens z: z·m + x·(1 − m), m from space and channels."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        reduced = channels // reduction
        self.fc_spatial = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 1, bias=False))
        self.fc_channel = nn.Sequential(
            nn.Linear(channels, reduced, bias=False),
            nn.SiLU(),
            nn.LayerNorm(reduced),
            nn.Linear(reduced, channels, bias=False),
        )

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """`x` and `z` are tokens (B, L, C); returns (B, L, C)."""
        weight = torch.sigmoid(self.fc_spatial(z) + self.fc_channel(x.mean(dim=1, keepdim=True)))
        return z * weight + x * (1 - weight)


class FusionBlock(nn.Module):
    """Window attention, fusion with the local tokens, MLP; `shift` > 0 moves the windows cyclically."""

    def __init__(
        self,
        channels: int,
        build_attn: Callable[[], WindowAttention],
        window: int,
        shift: int,
        mlp_ratio: float,
        drop_path: float,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.select = DynamicFusion(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attn = build_attn()
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), drop)

    def forward(self, x: Tensor, z: Tensor, height: int, width: int) -> Tensor:
        """`x` and `z` are tokens (B, height·width, C); returns (B, height·width, C)."""
        x = x + self.drop_path(self.attend(self.norm1(x), height, width))
        x = self.select(x, z)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor, height: int, width: int) -> Tensor:
        """Window attention of normed tokens (B, height·width, C); the zero padding takes part, as in Swin."""
        batch, length, channels = x.shape
        bottom, right = -height % self.window, -width % self.window
        x = F.pad(x.view(batch, height, width, channels), (0, 0, 0, right, 0, bottom))
        mask = None
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
            mask = shifted_window_mask(height + bottom, width + right, self.window, self.shift, x.device)
        windows = self.attn(partition_windows(x, self.window), mask)
        x = merge_windows(windows, self.window, height + bottom, width + right)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width].reshape(batch, length, channels)


class ChannelExpansion(nn.Module):
    """Doubles the channels of tokens between stages; the resolution stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduction = nn.Linear(channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` is tokens (B, L, C); returns (B, L, 2C)."""
        return self.reduction(self.norm(x))


class PatchEmbed(nn.Module):
    """Two strided convolutions: (B, 3, H, W) to (B, C, ⌈H/4⌉, ⌈W/4⌉)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(channels // 2)
        self.proj2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`x` is images (B, 3, H, W); returns (B, C, ⌈H/4⌉, ⌈W/4⌉)."""
        x = F.silu(self.norm1(self.proj1(pad_to_multiple(x, 4))))
        return F.silu(self.norm(self.proj2(x)))


def depthwise3x3(channels: int, stride: int = 1) -> nn.Conv2d:
    """3×3 depthwise convolution without bias."""
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


def normed(conv: nn.Conv2d) -> list[nn.Module]:
    """The convolution, BatchNorm and SiLU as the list that the state dicts number."""
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.SiLU()]


class ConvStream(nn.Module):
    """The convolution stream of a stage: the skip map at full and the tokens at half (or full) resolution."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1x1_1 = nn.Sequential(
            *normed(nn.Conv2d(channels, channels, 1, bias=False)),
            *normed(depthwise3x3(channels)),
            *normed(depthwise3x3(channels)),
        )
        self.conv1 = nn.Sequential(*normed(depthwise3x3(channels, stride)))
        self.conv1x1_2 = nn.Sequential(*normed(nn.Conv2d(channels, channels, 1, bias=False)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (skip map (B, C, H, W), token map (B, C, ⌈H/stride⌉, ⌈W/stride⌉))."""
        skip = self.conv1x1_1(x)
        return skip, self.conv1x1_2(self.conv1(skip))
