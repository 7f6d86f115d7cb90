"""Depthwise convolutions' gradients, against the plain ones."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ddep_hub.utils.depthwise import FastDepthwise, has_slow_gradients


CASES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 5, "padding": 2},
    {"kernel_size": 5, "stride": 2, "padding": 2},
    {"kernel_size": 5, "padding": 4, "dilation": 2},
    {"kernel_size": (5, 7), "stride": (1, 2), "padding": (1, 3)},
    {"kernel_size": 7, "padding": 3, "bias": True},
    {"kernel_size": (3, 5), "padding": (1, 2)},
    {"kernel_size": 4, "stride": 2},
    {"kernel_size": 5, "padding": "same"},
]


def gradients(conv: nn.Module, image: torch.Tensor, *, fast: bool) -> list[torch.Tensor]:
    inputs = [image.clone().requires_grad_(), *conv.parameters()]
    with FastDepthwise() if fast else contextlib.nullcontext():
        output = conv(inputs[0])
        target = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
        return [output, *torch.autograd.grad((output.float() * target).sum(), inputs)]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_equal_the_plain_ones(options, memory_format):
    conv = nn.Conv2d(6, 6, groups=6, **{"bias": False, **options})
    image = torch.randn(2, 6, 15, 18).to(memory_format=memory_format)
    for plain, fast in zip(gradients(conv, image, fast=False), gradients(conv, image, fast=True), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


def test_under_autocast_results_have_the_formats_of_the_plain_ones():
    conv = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8)
    image = torch.randn(2, 8, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, fast = gradients(conv, image, fast=False), gradients(conv, image, fast=True)
    assert fast[0].dtype == torch.bfloat16
    for one, other in zip(plain, fast, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.05)


def test_other_convolutions_and_no_grad_take_the_plain_way(monkeypatch):
    def fail(*args):
        raise AssertionError

    monkeypatch.setattr("ddep_hub.utils.depthwise._DepthwiseConv.apply", fail)
    image, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 5, 5)
    with FastDepthwise():
        nn.Conv2d(4, 4, 3, groups=4)(image)
        nn.Conv2d(4, 8, 5, groups=4)(image)
        nn.Conv2d(4, 4, 5)(image)
        nn.Conv2d(4, 4, 5, groups=4)(image[0])
        nn.Conv2d(4, 4, 3, groups=2)(image)
        with torch.no_grad():
            F.conv2d(image, weight, None, 1, 2, 1, 4)
        with pytest.raises(AssertionError):
            F.conv2d(image, weight, None, 1, 2, 1, 4)


def test_only_trained_kernels_that_are_large_or_strided_are_slow():
    def conv(**options):
        return nn.Conv2d(4, 4, **{"kernel_size": 3, "groups": 4, **options})

    assert has_slow_gradients(nn.Sequential(conv(), conv(kernel_size=5)))
    assert has_slow_gradients(conv(stride=2))
    assert not has_slow_gradients(conv())
    assert not has_slow_gradients(conv(kernel_size=5, groups=1))
    assert not has_slow_gradients(conv(kernel_size=7).requires_grad_(False))
