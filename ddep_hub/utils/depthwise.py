"""Fast gradients of depthwise convolutions in bfloat16 on a CPU, where oneDNN lacks fast kernels for most shapes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


TILE = 3  # the kernel size with a fast gradient


class FastDepthwise(TorchFunctionMode):
    """Computes the gradients of depthwise convolutions faster, in forward and backward passes inside the context.

    On a CPU with AMX, in torch 2.14, the gradient of a 5x5 kernel takes 30 to 130 times as long as the convolution
    itself, that of a 3x3 kernel twice as long; with a stride, the input's gradient takes 10 to 100 times as long in
    bfloat16, twice as long in float32. Larger kernels are therefore tiled with 3x3 kernels, and the input's gradient
    of a strided convolution is computed in float32. Gradients equal the plain ones up to rounding. Other convolutions
    are not affected.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d and len(args) == 7 and torch.is_grad_enabled():
            hidden, weight, bias, stride, padding, dilation, groups = args
            options = [] if isinstance(padding, str) else [_pair(value) for value in (stride, padding, dilation)]
            is_depthwise = hidden.ndim == 4 and len(weight) == hidden.shape[1] == groups
            if options and is_depthwise and _is_slow(weight.shape[2:], options[0]):
                if torch.is_autocast_enabled("cpu") and hidden.dtype != torch.float64:
                    dtype = torch.get_autocast_dtype("cpu")
                    hidden, weight = hidden.to(dtype), weight.to(dtype)
                output: torch.Tensor = _DepthwiseConv.apply(hidden, weight, *options)
                return output if bias is None else output + bias.to(output.dtype)[:, None, None]
        return func(*args, **(kwargs or {}))


def has_slow_gradients(model: nn.Module) -> bool:
    """Whether a model trains depthwise convolutions that [`FastDepthwise`] speeds up."""
    return any(
        isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels > 1
        and module.weight.requires_grad
        and _is_slow(module.kernel_size, module.stride)
        for module in model.modules()
    )


def _is_slow(kernel_size: Sequence[int], stride: Sequence[int]) -> bool:
    return max(kernel_size) > TILE or max(stride) > 1


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, stride: Any, padding: Any, dilation: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.options = stride, padding, dilation
        return F.conv2d(hidden, weight, None, stride, padding, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.options
        grad_hidden = grad_weight = None
        if ctx.needs_input_grad[0]:
            tensors = grad_output, hidden, weight
            if max(stride) > 1:
                tensors = grad_output.float(), hidden.float(), weight.float()
            grad_hidden = _conv_gradient(*tensors, stride, padding, dilation, index=0).to(hidden.dtype)
        if ctx.needs_input_grad[1]:
            kernel_size = weight.shape[2:]
            if min(kernel_size) > TILE and all(size % 2 for size in kernel_size) and max(dilation) == 1:
                grad_weight = _tiled_weight_gradient(grad_output, hidden, weight, stride, padding)
            else:
                grad_weight = _conv_gradient(grad_output, hidden, weight, stride, padding, dilation, index=1)
        return grad_hidden, grad_weight, None, None, None


def _tiled_weight_gradient(
    grad_output: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, stride: Any, padding: Any
) -> torch.Tensor:
    """Tiles a kernel of odd size with 3x3 kernels that share a row or column, each on a shifted part of the input."""
    padded = F.pad(hidden, (padding[1], padding[1], padding[0], padding[0])) if max(padding) else hidden
    height, width = [(size - 1) * step + TILE for size, step in zip(grad_output.shape[2:], stride, strict=True)]
    result, tile = torch.empty_like(weight), weight[:, :, :TILE, :TILE]
    for row in range(0, weight.shape[2] - 1, TILE - 1):
        for column in range(0, weight.shape[3] - 1, TILE - 1):
            window = padded[:, :, row : row + height, column : column + width]
            window = window.contiguous(memory_format=torch.channels_last)
            result[:, :, row : row + TILE, column : column + TILE] = _conv_gradient(
                grad_output, window, tile, stride, (0, 0), (1, 1), index=1
            )
    return result


def _conv_gradient(
    grad_output: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    *,
    index: int,
) -> torch.Tensor:
    """The gradient with respect to the input (`index` 0) or the weight (1)."""
    mask = [index == 0, index == 1, False]
    gradients: Sequence[torch.Tensor] = torch.ops.aten.convolution_backward(
        grad_output, hidden, weight, None, stride, padding, dilation, False, [0, 0], len(weight), mask
    )
    return gradients[index]


def _pair(value: Any) -> tuple[int, int]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1])
