"""The DFvT backbone, registered in mmdet as `DFvT`.

Source: Gao, Nie, Li, Ren, "Doubly-Fused ViT: Fuse Information from Vision Transformer Doubly with Local
Representation", ECCV 2022. State-dict names and numbers are those of the released detectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dfvt.models.blocks import (
    ChannelExpansion,
    ConvStream,
    FusionBlock,
    PatchEmbed,
    WindowAttention,
    depthwise3x3,
    fold_2x2,
)
from dfvt.models.checkpoints import load_backbone
from dfvt.models.norms import align_norm_gradients


class TransformerStage(nn.Module):
    """The fusion blocks of a stage and the channel expansion after it (absent in the last stage)."""

    def __init__(
        self,
        channels: int,
        window: int,
        mlp_ratio: float,
        drop_paths: Sequence[float],
        last: bool,
        drop: float,
        build_attn: Callable[[], WindowAttention],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            FusionBlock(
                channels, build_attn, window, window // 2 if index % 2 else 0, mlp_ratio, drop_path, drop
            )
            for index, drop_path in enumerate(drop_paths)
        )
        self.downsample = None if last else ChannelExpansion(channels)

    def forward(self, x: Tensor, z: Tensor, use_checkpoint: bool) -> Tensor:
        """`x` and `z` are maps (B, C, H, W); returns tokens (B, H·W, C)."""
        height, width = x.shape[-2:]
        x, z = x.flatten(2).transpose(1, 2), z.flatten(2).transpose(1, 2)
        for block in self.blocks:
            if use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, z, height, width, use_reentrant=False)
            else:
                x = block(x, z, height, width)
        return x


@BACKBONES.register_module()
class DFvT(BaseModule):
    """Four stages of convolution and window-attention streams, fused twice.

    Args:
        pretrained: checkpoint file of an ImageNet-pretrained backbone; None starts from random weights.
        pretrain_img_size: image side in pixels for which `ape` makes its table.
        embed_dim: channels C of stage 0; stage i has C·2^i.
        depths, num_heads: blocks and attention heads of each stage.
        qkv_bias, qk_scale: a bias of queries, keys and values; the scale of their products, by default
            (channels of a head)^-0.5.
        drop_rate, attn_drop_rate: dropout of patches, attention's outputs and MLPs; of attention.
        drop_path_rate: rate of the last block; it rises linearly from 0 over all blocks.
        ape: add a learned absolute position embedding to the patches.
        patch_norm: DFvT normalises its patches always, so True is all that this can be.
        out_indices: the stages whose maps are returned.
        frozen_stages: −1 freezes nothing, 0 the patch embedding, k the first k stages too.
        frozen_backbone: freeze everything.
        use_checkpoint: recompute each block in the backward pass to save memory.
        init_cfg: mmdet's other way to say `pretrained`: `dict(type="Pretrained", checkpoint=FILE)`.

    Raises:
        ValueError: the arguments contradict each other.

    The arguments that it shares with mmdet's `SwinTransformer` mean what they mean there.
    `forward` takes images (B, 3, H, W), any H and W from 32 pixels up, and returns the maps of `out_indices`,
    (B, C·2^i, ⌈H/s⌉, ⌈W/s⌉) with strides s = 4, 8, 16, 32.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        pretrain_img_size: int = 224,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (1, 1, 2, 1),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        ape: bool = False,
        patch_norm: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        frozen_backbone: bool = False,
        use_checkpoint: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if init_cfg is not None:
            if pretrained or init_cfg.get("type") != "Pretrained":
                raise ValueError(
                    "DFvT takes init_cfg only as dict(type='Pretrained', checkpoint=FILE) without pretrained"
                )
            pretrained = init_cfg["checkpoint"]
        if len(depths) != len(num_heads):
            raise ValueError(f"DFvT needs one of depths {depths} and of num_heads {num_heads} for each stage")
        if embed_dim < 16 or any(embed_dim * 2**i % heads for i, heads in enumerate(num_heads)):
            raise ValueError(
                f"embed_dim {embed_dim} is below 16 or its stages are no multiples of num_heads {num_heads}"
            )
        if not set(out_indices) <= set(range(len(depths))):
            raise ValueError(
                f"DFvT has stages 0 to {len(depths) - 1}, out_indices {out_indices} names others"
            )
        if not patch_norm:
            raise ValueError("DFvT normalises its patches always: remove patch_norm=False")
        self.pretrained = pretrained
        self.num_stages = len(depths)
        self.num_features = [embed_dim * 2**i for i in range(self.num_stages)]
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.frozen_backbone = frozen_backbone
        self.use_checkpoint = use_checkpoint

        self.patch_embed = PatchEmbed(in_chans, embed_dim)
        self.absolute_pos_embed: nn.Parameter | None = None
        if ape:
            side = pretrain_img_size // 4
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
        self.drop_after_pos = nn.Dropout(drop_rate)
        rates = [drop_path_rate * index / max(sum(depths) - 1, 1) for index in range(sum(depths))]
        self.layers = nn.ModuleList()
        self.convlayers = nn.ModuleList()
        self.multiresolution_conv = nn.ModuleList()
        self.conv1x1layers = nn.ModuleList()
        for i, channels in enumerate(self.num_features):
            last = i == self.num_stages - 1
            first = sum(depths[:i])
            stage_rates = rates[first : first + depths[i]]
            build_attn = partial(
                WindowAttention,
                channels,
                window_size,
                num_heads[i],
                qkv_bias,
                qk_scale,
                attn_drop_rate,
                drop_rate,
            )
            self.layers.append(
                TransformerStage(channels, window_size, mlp_ratio, stage_rates, last, drop_rate, build_attn)
            )
            self.convlayers.append(ConvStream(channels, stride=1 if last else 2))
            if not last:
                self.multiresolution_conv.append(
                    nn.Sequential(
                        depthwise3x3(4 * channels),
                        nn.BatchNorm2d(4 * channels),
                        nn.Conv2d(4 * channels, channels, 1, bias=False),
                        nn.BatchNorm2d(channels),
                    )
                )
                self.conv1x1layers.append(nn.Conv2d(2 * channels, channels, 1, bias=False))
            self.add_module(f"norm{i}", nn.LayerNorm(channels))
        align_norm_gradients(self)  # gradients of tokens reach BatchNorm channels-last
        self.freeze()

    def frozen_modules(self) -> list[nn.Module]:
        """The modules that `frozen_stages` and `frozen_backbone` keep fixed."""
        if self.frozen_backbone:
            return [self]
        if self.frozen_stages < 0:
            return []
        stages = range(min(self.frozen_stages, self.num_stages))
        fusions = [
            m[i] for i in stages for m in (self.multiresolution_conv, self.conv1x1layers) if i < len(m)
        ]
        norms = [self.get_submodule(f"norm{i}") for i in stages]
        return [
            self.patch_embed,
            *(m[i] for i in stages for m in (self.layers, self.convlayers)),
            *fusions,
            *norms,
        ]

    def freeze(self) -> None:
        """Stops gradients and BatchNorm statistics of the frozen modules."""
        for module in self.frozen_modules():
            for submodule in module.modules():
                submodule.training = False
            for parameter in module.parameters():
                parameter.requires_grad = False
        if self.frozen_stages >= 1 and self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad = False

    def train(self, mode: bool = True) -> DFvT:
        """Sets the training mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        self.freeze()
        return self

    def init_weights(self) -> None:
        """Loads `pretrained`, or draws the published initial weights."""
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                nn.init.ones_(module.weight)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.pretrained:
            load_backbone(self, self.pretrained)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """`x` is images (B, 3, H, W); returns a map (B, C·2^i, ⌈H/s⌉, ⌈W/s⌉) for each of `out_indices`.

        The maps lie in memory as the images do, contiguous or channels-last.
        """
        # tokens lie channels-last, which mmcv's own kernels take for contiguous without a word
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + F.interpolate(self.absolute_pos_embed, size=x.shape[-2:], mode="bicubic")
        x = self.drop_after_pos(x)
        outs = []
        for i, (stage, conv_stream) in enumerate(zip(self.layers, self.convlayers, strict=True)):
            assert isinstance(stage, TransformerStage)
            last = i == self.num_stages - 1
            skip, local = conv_stream(x)
            if last:
                local, z = x + local, x
            else:
                local = F.max_pool2d(x, 3, stride=2, padding=1) + local
                z = self.multiresolution_conv[i](fold_2x2(skip))
            tokens = stage(local, z, self.use_checkpoint)
            shape = (len(x), -1, *local.shape[-2:])
            if i in self.out_indices:
                normed = self.get_submodule(f"norm{i}")(tokens).transpose(1, 2).reshape(shape)
                merged = normed if last else self.merge_levels(i, normed, skip)
                outs.append(merged.contiguous(memory_format=layout))
            if stage.downsample is not None:
                x = stage.downsample(tokens).transpose(1, 2).reshape(shape)
        return tuple(outs)

    def merge_levels(self, index: int, tokens: Tensor, skip: Tensor) -> Tensor:
        """Output map of a stage, of the skip map's shape (B, C, H, W); `tokens` is (B, C, ⌈H/2⌉, ⌈W/2⌉)."""
        height, width = skip.shape[-2:]
        upsampled = F.interpolate(tokens, scale_factor=2.0, mode="nearest")[..., :height, :width]
        return self.conv1x1layers[index](torch.cat([upsampled, skip], dim=1))
