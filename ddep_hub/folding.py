# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Folds BatchNorms into the preceding convolutions, for inference."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn

from .decoder import DDePDecoderConv


# Their forward uses `weight` as it is stored, and adds `bias`.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame, DDePDecoderConv)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
# Largest relative difference of an output; rounding alone gives 1e-5 at most.
TOLERANCE = 1e-4


def example_images(channels: int, device: torch.device | str) -> torch.Tensor:
    """One image `(1, channels, 224, 224)` to run a network on, large enough for every encoder and always the same."""
    return torch.randn(1, channels, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Runs convolutions in full float32 on GPUs: TF32 would round folded weights differently."""
    convolutions = torch.backends.cudnn.conv
    precision, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = precision


@torch.no_grad()
@_without_tf32()
def fold_batch_norms(module: nn.Module, run: Callable[[nn.Module], list[torch.Tensor]]) -> nn.Module:
    """Folds each BatchNorm in eval mode into the convolution whose output it normalises, in a copy of a network.

    The convolutions are found by running the module, so this works for any architecture; `run` runs a network on an
    example and returns its outputs. The copy's outputs are compared with those of `module`, which is returned instead
    if they differ, for example because a convolution's output is used twice or its weight is transformed before use.
    `module` is also returned if there is nothing to fold, or it is in half precision.
    """
    if not any(type(child) in _NORMS for child in module.modules()):
        return module
    if next(module.parameters()).dtype != torch.float32:
        return module
    folded = copy.deepcopy(module)
    expected, pairs = _convolutions_before_norms(folded, run)
    if not pairs:
        return module
    for norm, conv in pairs.items():
        _fold(conv, norm)
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if child in pairs:
                parent.register_module(name, child.act if isinstance(child, BatchNormAct2d) else nn.Identity())
    outputs = run(folded)
    is_equivalent = all(
        (output - reference).norm() <= TOLERANCE * reference.norm()
        for output, reference in zip(outputs, expected, strict=True)
    )
    return folded if is_equivalent else module


def _convolutions_before_norms(
    module: nn.Module, run: Callable[[nn.Module], list[torch.Tensor]]
) -> tuple[list[torch.Tensor], dict[nn.Module, nn.Conv2d]]:
    """Runs a network; returns its outputs and, for each norm that can be folded, its convolution."""
    conv_by_output: dict[int, nn.Conv2d] = {}  # by the id of its output
    live_outputs: list[torch.Tensor] = []  # kept alive, so that no id is reused
    calls: list[nn.Module] = []
    pairs: dict[nn.Module, nn.Conv2d] = {}

    def record_convolution(conv: nn.Module, inputs: object, output: torch.Tensor) -> None:
        calls.append(conv)
        live_outputs.append(output)
        if isinstance(conv, nn.Conv2d):
            conv_by_output[id(output)] = conv

    def record_norm(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls.append(norm)
        conv = conv_by_output.get(id(inputs[0]))
        if conv is not None and not norm.training:
            pairs[norm] = conv

    handles = []
    for child in module.modules():
        if type(child) in _CONVOLUTIONS:
            handles.append(child.register_forward_hook(record_convolution))
        elif type(child) in _NORMS:
            handles.append(child.register_forward_pre_hook(record_norm))
    outputs = run(module)
    for handle in handles:
        handle.remove()
    called_once = {child for child in calls if calls.count(child) == 1}
    return outputs, {norm: conv for norm, conv in pairs.items() if norm in called_once and conv in called_once}


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Folds a norm into a convolution's weights, computed in float64."""
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    factor = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    shift = norm.bias.double() - mean.double() * factor
    if conv.bias is not None:
        shift = shift + conv.bias.double() * factor
    weight = (conv.weight.double() * factor[:, None, None, None]).to(conv.weight)
    order = torch.channels_last if conv.weight.is_contiguous(memory_format=torch.channels_last) else None
    weight = weight.contiguous(memory_format=order or torch.contiguous_format)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight), requires_grad=False)
