"""A detector's training iteration replayed as CUDA graphs: two launches in place of some thousands.

The forward graph goes from images and objects to the losses. The masks' targets alone, which come from
bitmaps of any size, are made outside of it. The backward graph goes from the losses to the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from mmcv import Config
from torch import Tensor, nn

from dfvt.data.canvases import Canvas
from dfvt.engine.failures import BufferCopies
from dfvt.engine.gradients import GradientPlaces
from dfvt.engine.precision import Precision
from dfvt.models.fast_roi import FastRoIHead, PredictedMasks
from dfvt.models.fast_rpn import FastRPNHead, ImageSizes, is_plain_nms
from dfvt.models.targets import Objects, pad_objects

# Objects that an image of a graph has places for: few of COCO's images have more than 32, none more than 96.
# A batch with more is trained without a graph.
CAPACITIES = (32, 96)
NUM_WARMUPS = 2  # iterations in which libraries choose their algorithms
NUM_MISSES = 20  # batches without a graph, from the first one on, after which the user hears of it
LOSSES = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "acc", "loss_bbox")


class FixedPart(nn.Module):
    """What an iteration computes in tensors whose shapes its images' canvas fixes."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.neck = detector.neck
        self.rpn_head = detector.rpn_head
        self.roi_head = detector.roi_head
        self.proposal_cfg = detector.train_cfg.get("rpn_proposal", detector.test_cfg.rpn)

    def forward(self, images: Tensor, objects: Objects, sizes: ImageSizes) -> tuple[Tensor, ...]:
        """The values of `LOSSES`, and if there is a mask head those of `PredictedMasks`."""
        maps = self.neck(self.backbone(images))
        scores, deltas = self.rpn_head(maps)
        losses = self.rpn_head.losses_of(scores, deltas, objects, sizes)
        proposals = self.rpn_head.proposals_of(scores, deltas, sizes.own, self.proposal_cfg)
        regions = self.roi_head.sample(proposals, objects)
        losses |= self.roi_head.bbox_losses(maps, regions)
        values = [losses[name] for name in LOSSES]
        if self.roi_head.with_mask:
            values += self.roi_head.predict_masks(maps, regions)
        return tuple(values)


@dataclass(frozen=True)
class Places:
    """Where graphs find their inputs and leave their gradients: the same memory for every canvas.

    Attributes:
        pixels: of the largest batch.
        objects, sizes: of its images, as many objects as the largest capacity.
        gradients: of the parameters that are trained.
    """

    pixels: Tensor
    objects: Objects
    sizes: ImageSizes
    gradients: GradientPlaces

    @classmethod
    def make(cls, part: nn.Module, batch_size: int, num_pixels: int, device: torch.device) -> Places:
        """For `batch_size` images of at most `num_pixels`."""
        labels = torch.zeros(batch_size, max(CAPACITIES), dtype=torch.long, device=device)
        bboxes = torch.tensor([8.0, 8.0, 40.0, 40.0], device=device).repeat(batch_size, max(CAPACITIES), 1)
        return cls(
            torch.rand(batch_size * 3 * num_pixels, device=device),
            Objects(bboxes, labels, labels == 0),
            ImageSizes(*(torch.full((batch_size, 2), 64.0, device=device) for _ in range(2))),
            GradientPlaces.make(parameter for parameter in part.parameters() if parameter.requires_grad),
        )

    def differentiate(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor] | None = None) -> None:
        """Leaves the gradients of the parameters at their places."""
        differentiable = [one for one in outputs if one.requires_grad]
        gradients = gradients or [torch.ones_like(one) for one in differentiable]
        with torch.autocast(self.pixels.device.type, enabled=False):
            found = torch.autograd.grad(
                differentiable,
                self.gradients.parameters,
                gradients,
                allow_unused=True,
                materialize_grads=True,
            )
        torch._foreach_copy_(self.gradients.places, found)

    def objects_of(self, capacity: int) -> Objects:
        """The places of that many objects an image."""
        return Objects(*(getattr(self.objects, one.name)[:, :capacity] for one in fields(Objects)))

    def images(self, shape: tuple[int, ...], memory_format: torch.memory_format) -> Tensor:
        """The place of images (B, 3, H, W)."""
        flat = self.pixels[: torch.Size(shape).numel()]
        if memory_format is torch.channels_last:
            batch, channels, height, width = shape
            return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return flat.view(shape)


class GraphPair:
    """The graphs of one canvas and capacity."""

    def __init__(self, part: FixedPart, images: Tensor, objects: Objects, places: Places, pool: Any) -> None:
        self.images, self.objects, self.places = images, objects, places
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, pool=pool):
            outputs = part(images, objects, places.sizes)
        self.output_gradients = [torch.ones_like(one) for one in outputs if one.requires_grad]
        with torch.cuda.graph(self.backward, pool=pool):
            places.differentiate(outputs, self.output_gradients)
        self.differentiable = [one.requires_grad for one in outputs]
        self.outputs = [one.detach() for one in outputs]


class Replay(torch.autograd.Function):
    """A graph pair as one step of autograd, from the parameters to the outputs."""

    @staticmethod
    def forward(ctx: Any, pair: GraphPair, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.pair = pair
        pair.forward.replay()
        outputs = tuple(one.detach() for one in pair.outputs)
        ctx.mark_non_differentiable(
            *(one for one, wanted in zip(outputs, pair.differentiable, strict=True) if not wanted)
        )
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pair: GraphPair = ctx.pair
        given = [one for one, wanted in zip(gradients, pair.differentiable, strict=True) if wanted]
        torch._foreach_copy_(pair.output_gradients, given)
        pair.backward.replay()
        return (None, *(place.detach() for place in pair.places.gradients.places))


class GraphedTraining:
    """A detector's `forward_train` that replays graphs for batches of known shapes.

    All graphs use the same memory: what an iteration computed is gone with the next one.

    Args:
        batch_size: images that pass through the detector at once in this process.
        warn: hears of it, once, if none of the first `NUM_MISSES` batches has a graph.
    """

    def __init__(
        self,
        detector: Any,
        batch_size: int,
        memory_format: torch.memory_format,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.detector = detector
        self.warn = warn
        self.num_misses: int | None = 0  # None once a batch had a graph
        self.forward_train = detector.forward_train
        self.batch_size = batch_size
        self.memory_format = memory_format
        self.pairs: dict[tuple[tuple[int, ...], int], GraphPair] = {}

    def __call__(
        self,
        img: Tensor,
        img_metas: Sequence[dict[str, Any]],
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        gt_bboxes_ignore: Sequence[Tensor] | None = None,
        gt_masks: Sequence[Any] | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """The losses of `forward_train`."""
        most = max(len(one) for one in gt_bboxes)
        capacity = next((one for one in CAPACITIES if one >= most), 0)
        pair = self.pairs.get((tuple(img.shape), capacity))
        self.count(img, most, hit=pair is not None)
        if pair is None:
            return self.forward_train(
                img, img_metas, gt_bboxes, gt_labels, gt_bboxes_ignore, gt_masks, **options
            )
        places, objects = pair.places, pad_objects(gt_bboxes, gt_labels, capacity)
        sizes = ImageSizes.of(img_metas, img.device)
        # gradients that wait for more may lie where the graph is about to write new ones
        for parameter in places.gradients.parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        for place, value in (
            (pair.images, img),
            *((getattr(pair.objects, name), getattr(objects, name)) for name in vars(objects)),
            *((getattr(places.sizes, name), getattr(sizes, name)) for name in vars(sizes)),
        ):
            place.copy_(value)
        outputs = Replay.apply(pair, *places.gradients.parameters)
        losses = dict(zip(LOSSES, outputs, strict=False))
        if self.detector.roi_head.with_mask:
            assert gt_masks is not None
            masks = PredictedMasks(*outputs[len(LOSSES) :])
            losses["loss_mask"] = self.detector.roi_head.mask_loss(masks, gt_masks)
        return losses

    def count(self, images: Tensor, num_objects: int, *, hit: bool) -> None:
        """Counts batches until one has a graph, and warns if that takes too long."""
        if self.num_misses is None:
            return
        if hit:
            self.num_misses = None
            return
        self.num_misses += 1
        if self.num_misses == NUM_MISSES:
            shapes = sorted({shape for shape, _ in self.pairs})
            self.warn(
                f"cuda_graphs: none of the first {NUM_MISSES} batches had a graph, so the training is slow. "
                f"The last batch had the shape {tuple(images.shape)} and up to {num_objects} objects in an "
                f"image; the graphs are for the shapes {', '.join(map(str, shapes))} and up to "
                f"{max(CAPACITIES)} objects. Set canvases to the shapes that come, or cuda_graphs=False"
            )

    def capture(
        self, canvases: Sequence[Canvas], precision: Precision, device: torch.device
    ) -> GradientPlaces:
        """Captures the graphs of canvases; weights, buffers and generators stay as they are.

        Returns where the graphs leave the gradients.
        """
        buffers, random_state = BufferCopies(self.detector), torch.cuda.get_rng_state(device)
        part, pool = FixedPart(self.detector), torch.cuda.graph_pool_handle()
        num_pixels = max(height * width for height, width in canvases)
        places = Places.make(part, self.batch_size, num_pixels, device)
        # the largest first: the memory of the others is a part of its
        shapes = [
            (self.batch_size, 3, *canvas) for canvas in sorted(canvases, key=lambda one: -one[0] * one[1])
        ]
        # weights that autocast keeps in half precision would be kept for all replays
        with torch.autocast(device.type, precision.dtype, enabled=precision.mixed, cache_enabled=False):
            self.warm_up(part, places, shapes)
            for shape in shapes:
                images = places.images(shape, self.memory_format)
                for capacity in CAPACITIES:
                    objects = places.objects_of(capacity)
                    self.pairs[shape, capacity] = GraphPair(part, images, objects, places, pool)
        torch.cuda.synchronize(device)
        buffers.restore()
        torch.cuda.set_rng_state(random_state, device)
        return places.gradients

    def warm_up(self, part: FixedPart, places: Places, shapes: Sequence[tuple[int, ...]]) -> None:
        """Lets libraries choose their algorithms, which must not be captured.

        All of it before the first graph: what it needs of memory is given back when that is captured.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for shape in shapes:
                images = places.images(shape, self.memory_format)
                for _ in range(NUM_WARMUPS):
                    places.differentiate(part(images, places.objects, places.sizes))
        torch.cuda.current_stream().wait_stream(side)


def worth_a_graph(canvases: Sequence[Canvas]) -> list[Canvas]:
    """Those that grouped batches come for: not one that holds the widest and the highest, if they are others.

    Only a batch between two groups needs it, and its graph would need the most memory.
    """
    largest = tuple(max(sides) for sides in zip(*canvases, strict=True))
    needed = [canvas for canvas in canvases if canvas != largest]
    return needed if all(any(canvas[i] == largest[i] for canvas in needed) for i in (0, 1)) else [*canvases]


def graph_training(
    model: Any,
    cfg: Config,
    canvases: Sequence[Canvas],
    precision: Precision,
    device: torch.device,
    *,
    batch_size: int,
    warn: Callable[[str], None] = lambda _: None,
) -> GradientPlaces | None:
    """Lets a detector's training replay graphs if `cuda_graphs = True` of its config says so.

    They are captured here, in seconds each, before other threads ask the device for anything. Returns where
    they leave the gradients.

    Args:
        batch_size: images that pass through the detector at once in this process. On another number of
            processes than the config was written for, these are not `data.samples_per_gpu`.
        warn: see `GraphedTraining`.

    Raises:
        ValueError: the config has no canvases or no fast heads, or something that graphs do not take.
    """
    if not cfg.get("cuda_graphs"):
        return None
    if device.type != "cuda":
        raise ValueError("cuda_graphs needs a GPU: set cuda_graphs=False")
    if not canvases:
        raise ValueError("cuda_graphs needs canvases, shapes that come again: set canvases too")
    rpn_head, roi_head = getattr(model, "rpn_head", None), getattr(model, "roi_head", None)
    if not isinstance(rpn_head, FastRPNHead) or not isinstance(roi_head, FastRoIHead):
        raise ValueError("cuda_graphs needs heads that do not wait for the device: set fast_heads=True")
    if not is_plain_nms(model.train_cfg.get("rpn_proposal", model.test_cfg.rpn).nms):
        raise ValueError(
            "cuda_graphs takes proposals of plain nms alone: set model.train_cfg.rpn_proposal.nms"
        )
    if cfg.get("sync_batchnorm"):
        raise ValueError("cuda_graphs takes no sync_batchnorm: set one of them to False")
    if getattr(model.backbone, "use_checkpoint", False) or cfg.model.backbone.get("with_cp"):
        raise ValueError("cuda_graphs recomputes nothing: set model.backbone.use_checkpoint=False")
    layout = torch.channels_last if cfg.get("channels_last") else torch.contiguous_format
    model.train()
    graphed = GraphedTraining(model, batch_size, layout, warn)
    wanted = worth_a_graph(canvases) if cfg.get("group_by_canvas") else canvases
    gradients = graphed.capture(wanted, precision, device)
    model.forward_train = graphed
    return gradients
