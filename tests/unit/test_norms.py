"""Normalisation layers have right gradients on a CPU, however their input and the gradient lie in memory."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch
from torch import Tensor, nn

from dfvt.models.norms import align_norm_gradients


def lying(values: Tensor, order: tuple[int, ...]) -> Tensor:
    """The values, whose dimensions lie in memory in this order; sides of one get arbitrary strides."""
    inverse = [order.index(dimension) for dimension in range(values.dim())]
    return values.permute(order).contiguous().permute(inverse)


def plain_gradients(x: Tensor, gradient: Tensor, norm: nn.Module, *, of_image: bool) -> list[Tensor]:
    """Gradients of the input, the weight and the bias, written out."""
    x = x.clone(memory_format=torch.contiguous_format).requires_grad_()
    dims = [*([] if of_image else [0]), *range(2, x.dim())]
    mean, var = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
    sides = [1, -1] + [1] * (x.dim() - 2)
    if not norm.training:
        mean, var = norm.running_mean.view(sides), norm.running_var.view(sides)
    out = (x - mean) / (var + norm.eps).sqrt() * norm.weight.view(sides) + norm.bias.view(sides)
    return list(torch.autograd.grad(out, [x, norm.weight, norm.bias], gradient.contiguous()))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm2d, (1, 4, 3, 5)),
        (nn.BatchNorm2d, (2, 4, 3, 5)),
        (nn.BatchNorm2d, (1, 4, 1, 5)),
        (nn.BatchNorm2d, (2, 4, 5, 1)),
        (nn.BatchNorm2d, (1, 1, 3, 5)),
        (nn.BatchNorm1d, (1, 4, 5)),
        (nn.InstanceNorm2d, (1, 4, 3, 5)),
        (nn.InstanceNorm2d, (3, 4, 3, 5)),
    ],
)
def test_gradients_are_right_for_every_order_in_memory(
    kind: type[nn.Module], shape: tuple[int, ...], training: bool
) -> None:
    torch.manual_seed(0)
    of_image = kind is nn.InstanceNorm2d
    norm = kind(shape[1], affine=True, track_running_stats=True).double().train(training)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.running_mean)
    align_norm_gradients(norm)
    x, gradient = torch.randn(2, *shape, dtype=torch.float64)
    expected = plain_gradients(x, gradient, norm, of_image=of_image)
    orders = list(permutations(range(len(shape))))
    for input_order, gradient_order in product([orders[0], (0, *orders[0][2:], 1), orders[-2]], orders):
        own = lying(x, input_order).requires_grad_()
        found = torch.autograd.grad(norm(own), [own, norm.weight, norm.bias], lying(gradient, gradient_order))
        message = f"input {input_order}, gradient {gradient_order}"
        for value, wanted in zip(found, expected, strict=True):
            assert torch.allclose(value, wanted), message


def test_a_volume_with_a_batch_of_one_has_right_gradients() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm3d(4).double()
    align_norm_gradients(norm)
    x, gradient = torch.randn(2, 1, 4, 3, 2, 5, dtype=torch.float64)
    expected = plain_gradients(x, gradient, norm, of_image=False)
    x.requires_grad_()
    tokens = gradient.flatten(2).transpose(1, 2).contiguous()
    found = torch.autograd.grad(norm(x).flatten(2).transpose(1, 2), [x, norm.weight, norm.bias], tokens)
    torch.testing.assert_close(list(found), expected)


def test_an_activation_in_place_follows_as_in_a_residual_network() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 5, dtype=torch.float64)
    results = []
    for inplace, as_tokens in ((False, False), (True, True)):
        torch.manual_seed(1)
        layers = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace)).double()
        align_norm_gradients(layers)
        out = layers(x)
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
        if as_tokens:
            out, weights = (one.flatten(2).transpose(1, 2) for one in (out, weights))
        results.append(torch.autograd.grad((out * weights.contiguous()).sum(), list(layers.parameters())))
    torch.testing.assert_close(results[1], results[0])


def test_only_gradients_that_could_be_misread_are_copied() -> None:
    """With two images all strides count: their gradients stay those that PyTorch makes, bit for bit."""
    torch.manual_seed(0)
    plain, aligned = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    align_norm_gradients(aligned)
    x = torch.randn(2, 4, 6, 5, requires_grad=True)
    gradient = torch.randn(2, 4, 6, 5).to(memory_format=torch.channels_last)
    gradients = [torch.autograd.grad(norm(x), x, gradient)[0] for norm in (plain, aligned)]
    assert torch.equal(gradients[0], gradients[1])


def test_each_layer_is_aligned_once() -> None:
    norm = nn.BatchNorm2d(4)
    align_norm_gradients(norm)
    align_norm_gradients(nn.Sequential(norm))
    assert len(norm._forward_hooks) == 1
