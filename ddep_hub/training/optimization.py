"""Optimizer groups and the course of the learning rate."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .arguments import RunArguments


def parameter_groups(model: nn.Module, args: RunArguments, encoder_lr_factor: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters, split by learning rate (encoder or not) and weight decay (spared: norms and biases)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (".encoder." in f".{name}", parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": args.learning_rate * (encoder_lr_factor if encoder else 1.0),
            "weight_decay": args.weight_decay if decay else 0.0,
        }
        for (encoder, decay), parameters in groups.items()
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


def build_optimizer(
    model: nn.Module, args: RunArguments, encoder_lr_factor: float = 1.0
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW over the trainable parameters, and its schedule."""
    groups = parameter_groups(model, args, encoder_lr_factor)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, fused=fused)
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate_factor(step, args))
