"""Optimizer groups and the course of the learning rate."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from .arguments import RunArguments


def encoder_rates(encoder: nn.Module, factor: float, layer_decay: float) -> dict[str, float]:
    """Factors on the learning rate of an encoder's parameters, by name.

    Args:
        encoder: a timm model.
        factor: that of its last layer.
        layer_decay: further factor for each layer before it, in the layers that timm groups parameters into.
    """
    names = [name for name, _ in encoder.named_parameters()]
    if layer_decay == 1.0:
        return dict.fromkeys(names, factor)
    layers: Mapping[str, int] = group_parameters(encoder, encoder.group_matcher(coarse=False), reverse=True)
    last = max(layers[name] for name in names)
    return {name: factor * layer_decay ** (last - layers[name]) for name in names}


def parameter_groups(
    model: nn.Module, args: RunArguments, encoder_factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters, split by learning rate and weight decay (norms and biases are spared).

    Args:
        model: a model with `ddep.encoder`.
        args: the run's arguments.
        encoder_factors: see [`encoder_rates`]; 1 where `None`.
    """
    prefix = "ddep.encoder."
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_encoder = encoder_factors is not None and name.startswith(prefix)
            factor = encoder_factors[name.removeprefix(prefix)] if encoder_factors and in_encoder else 1.0
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": args.learning_rate * factor,
            "peak_lr": args.learning_rate * factor,
            "weight_decay": args.weight_decay if decay else 0.0,
        }
        for (factor, decay), parameters in groups.items()
    ]


def learning_rate_factor(step: int, args: RunArguments) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then the chosen course to 0."""
    if step < args.warmup_steps:
        return (step + 1) / (args.warmup_steps + 1)
    progress = min(1.0, (step - args.warmup_steps) / max(1, args.max_steps - args.warmup_steps))
    match args.lr_scheduler:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "polynomial":
            return (1.0 - progress) ** 0.9
        case "constant":
            return 1.0
        case other:
            raise ValueError(f"lr_scheduler must be cosine, polynomial or constant, got {other}.")


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, args: RunArguments) -> float:
    """Sets the learning rates of a step, a function of the step alone, and gives that of the decoder."""
    factor = learning_rate_factor(step, args)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return args.learning_rate * factor


def build_optimizer(
    model: nn.Module, args: RunArguments, encoder_factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters, fused where the device has it."""
    groups = parameter_groups(model, args, encoder_factors)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    kind = torch.optim.AdamW if args.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=args.learning_rate, fused=fused)
