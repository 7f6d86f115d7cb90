# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""What the decoder is made of: a convolution, a norm and a ReLU."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class DDePDecoderConv(nn.Conv2d):
    """Convolution without bias, in front of a norm and a ReLU; pads so that stride 1 keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)

    def forward(self, hidden_state: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Convolves `hidden_state`, or its concatenation with `skip` along the channels.

        The concatenation is not made: a convolution is the sum of those over the two parts. That saves its memory,
        and with a frozen encoder the gradient with respect to `skip`.
        """
        if skip is None:
            return super().forward(hidden_state)
        if torch.compiler.is_exporting():  # a sum would ask whether the sizes, maybe symbols, are the same
            return super().forward(torch.cat([hidden_state, skip], dim=1))
        own, others = self.weight.split([hidden_state.shape[1], skip.shape[1]], dim=1)
        output = F.conv2d(hidden_state, own, self.bias, self.stride, self.padding)
        return output + F.conv2d(skip, others, None, self.stride, self.padding)


def conv_norm_act(
    in_channels: int, out_channels: int, norm: str, kernel_size: int = 3, stride: int = 1
) -> nn.Sequential:
    """Convolution, norm (`"batch"` or `"group"`) and ReLU."""
    if norm == "batch":
        layer: nn.Module = nn.BatchNorm2d(out_channels)
    else:
        # At least 8 channels a group: with one channel a group the norm would erase each channel's mean, and on a
        # 1x1 map its whole signal.
        groups = math.gcd(32, max(1, out_channels // 8))
        while out_channels % groups:
            groups //= 2
        layer = nn.GroupNorm(groups, out_channels)
    return nn.Sequential(DDePDecoderConv(in_channels, out_channels, kernel_size, stride), layer, nn.ReLU(inplace=True))


def fresh_weight_norm(weight: torch.Tensor) -> float:
    """Expected norm of a convolution's weights `(out, in, height, width)` under He initialisation."""
    fan_in = weight[0].numel()
    return (2 / fan_in * weight.numel()) ** 0.5


@torch.no_grad()
def restore_weight_norms(module: nn.Module) -> None:
    """Scales each convolution in front of a norm to the norm that He initialisation gives its weights.

    The function stays the same, as the norm divides the scale out again, but not the training that follows: a step of
    Adam has a fixed size, so weights that have grown in pretraining turn the more slowly, with the square of their
    norm. BatchNorm's running statistics are scaled along. `from_pretrained` leaves weights as they are stored:
    `examples/finetune.py` calls this before it fine-tunes a denoising decoder. Not in the paper.

    Args:
        module: a decoder or a part of one.
    """
    for layers in module.modules():
        if isinstance(layers, nn.Sequential) and len(layers) == 3 and isinstance(layers[0], DDePDecoderConv):
            weight, norm = layers[0].weight, layers[1]
            factor = fresh_weight_norm(weight) / weight.norm().clamp(min=1e-12)
            weight.mul_(factor)
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.mul_(factor)
                norm.running_var.mul_(factor**2)
