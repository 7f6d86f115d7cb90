"""Optimizer, learning rates, and the weights that are trained."""

import contextlib
import copy
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.layers import convert_sync_batchnorm
from timm.models import group_parameters
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from ddep_hub.modeling_base_ddep import DDePPreTrainedModel

from .run_arguments import RunArguments


Tensors = dict[str, torch.Tensor]


ENCODER, HEAD = "ddep.encoder.", "classifier."


def learning_rate_factors(
    model: nn.Module, encoder: float, layer_decay: float = 1.0, head: float = 1.0
) -> dict[str, float]:
    """Multipliers of the learning rate of a model's parameters, by parameter name.

    `encoder` is the multiplier of the encoder's last layer and `head` that of the classifier. `layer_decay` is an
    additional multiplier for each earlier encoder layer, as grouped by timm's `group_matcher`.
    """
    factors = {name: head if name.startswith(HEAD) else 1.0 for name, _ in model.named_parameters()}
    timm_model = model.get_submodule(ENCODER[:-1])
    return factors | {
        ENCODER + name: factor for name, factor in _encoder_factors(timm_model, encoder, layer_decay).items()
    }


def _encoder_factors(encoder: nn.Module, factor: float, layer_decay: float) -> dict[str, float]:
    names = [name for name, _ in encoder.named_parameters()]
    if layer_decay == 1.0:
        return dict.fromkeys(names, factor)
    layers: Mapping[str, int]
    if hasattr(encoder, "group_matcher"):
        layers = group_parameters(encoder, encoder.group_matcher(coarse=False), reverse=True)
    else:  # a few timm families define no groups; a layer is then a block, such as `stages.1.blocks.0`
        blocks = list(dict.fromkeys(map(_block_name, names)))
        layers = {name: blocks.index(_block_name(name)) for name in names}
    last_layer = max(layers[name] for name in names)
    return {name: factor * layer_decay ** (last_layer - layers[name]) for name in names}


def _block_name(name: str) -> str:
    match = re.match(r"(?:[^.]+\.)*?\d+\.(?:[^.\d]+\.\d+\.)?", name)
    return match[0] if match else name.split(".")[0]


def rate_table(model: nn.Module, args: RunArguments, factors: Mapping[str, float]) -> str:
    """A table of the learning rates of a model's trainable weights, from input to output.

    `factors` come from [`learning_rate_factors`].
    """
    names: dict[tuple[str, float], list[str]] = {}
    sizes: Counter[tuple[str, float]] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "encoder" if name.startswith(ENCODER) else "head" if name.startswith(HEAD) else "decoder"
            names.setdefault((part, factors[name]), []).append(_block_name(name.removeprefix(ENCODER)).rstrip("."))
            sizes[part, factors[name]] += parameter.numel()
    lines = [f"{'weights':40} {'number':>12} {'learning rate':>14}"]
    part_order = ["encoder", "decoder", "head"]
    for part, factor in sorted(names, key=lambda row: (part_order.index(row[0]), row[1])):
        first, last = names[part, factor][0], names[part, factor][-1]
        label = f"encoder: {first}" + (f" to {last}" if last != first else "") if part == "encoder" else part
        lines.append(f"{label:40} {sizes[part, factor]:12,} {args.learning_rate * factor:14.3g}")
    return "\n".join(lines)


def parameter_groups(
    model: nn.Module, args: RunArguments, factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups the trainable parameters by learning rate and weight decay.

    Weight decay excludes norms, biases and the encoder's `no_weight_decay()`, such as position embeddings. `factors`
    come from [`learning_rate_factors`]; `None` means 1 for all.
    """
    patterns = [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    ]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = parameter.ndim > 1 and not any(fnmatch(name, pattern) for pattern in patterns)
            groups.setdefault((factors[name] if factors else 1.0, decay), []).append(parameter)
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
    """Multiplier of the peak learning rate at a step, counted from 0: linear warm-up, then the chosen schedule."""
    if step < args.warmup_steps:
        return (step + 1) / (args.warmup_steps + 1)
    progress = min(1.0, (step - args.warmup_steps) / max(1, args.max_steps - args.warmup_steps))
    match args.lr_scheduler_type:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "polynomial":
            return (1.0 - progress) ** 0.9
        case "constant":
            return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, args: RunArguments) -> float:
    """Sets the learning rates of a step, which depend only on the step, and returns that of the decoder."""
    factor = learning_rate_factor(step, args)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return args.learning_rate * factor


def build_optimizer(
    model: nn.Module, args: RunArguments, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters, fused where the device supports it."""
    groups = parameter_groups(model, args, factors)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    optimizer_class = torch.optim.AdamW if args.optim == "adamw" else torch.optim.Adam
    return optimizer_class(groups, lr=args.learning_rate, fused=fused)


class Weights:
    """Holds the model to train and its EMA, and returns the unwrapped model to evaluate and save.

    The model is moved to the device and, with `sync_bn`, its BatchNorms are converted to SyncBatchNorm. Raises a
    ValueError for arguments that do not work with FSDP.

    Attributes:
        model: the model, trained in place.
        average: its EMA, or `None`.
    """

    def __init__(self, accelerator: Accelerator, model: DDePPreTrainedModel, args: RunArguments) -> None:
        self.accelerator = accelerator
        self.sharded = getattr(accelerator, "is_fsdp2", False)
        for name in ("model_ema_decay", "freeze_encoder_steps", "denoising_weight"):
            if self.sharded and getattr(args, name, 0):
                raise ValueError(f"{name} does not work with FSDP. Leave it out, or use DDP.")
        if args.sync_bn and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            convert_sync_batchnorm(model)  # timm's: torch's would lose the activation inside timm's own BatchNorm
        # Convolutions run fastest in channels_last, on GPUs and CPUs; files use the contiguous format.
        # FSDP only shards contiguous parameters.
        order = torch.contiguous_format if self.sharded else torch.channels_last
        self.model = model.to(accelerator.device, memory_format=order)
        if args.activation_checkpointing:
            if hasattr(model, "activation_checkpointing_enable"):
                model.activation_checkpointing_enable()
            else:  # older releases of transformers
                model.gradient_checkpointing_enable()
        self.average = ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=True) if args.model_ema_decay else None
        self._unsharded = copy.deepcopy(model) if self.sharded else model

    def get_eval_model(self) -> DDePPreTrainedModel:
        """The model to evaluate and save, the same in every process: the EMA if there is one.

        BatchNorm statistics come from rank 0, as in DDP.
        """
        if self.sharded:
            options = StateDictOptions(full_state_dict=True)
            state, _ = get_state_dict(self.model, [], options=options)
            self._unsharded.load_state_dict(state)
        model = self._unsharded if self.average is None else self.average.module
        if self.accelerator.num_processes > 1:
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer.clone()))
        return model

    def gather(self, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors | None, dict[str, Any]]:
        """Gathers the full state dicts of model, EMA and optimizer on rank 0; called in every process."""
        if self.sharded:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            model, states = get_state_dict(self.model, optimizer, options=options)
        else:
            model, states = self.model.state_dict(), optimizer.state_dict()
        average = None if self.average is None else self.average.module.state_dict()
        return model, average, states

    def load_state_dict(
        self, optimizer: torch.optim.Optimizer, model: Tensors, average: Tensors | None, states: dict[str, Any]
    ) -> None:
        """Loads the state dicts from [`gather`]; called in every process."""
        if self.sharded:
            options = StateDictOptions(full_state_dict=True)
            set_state_dict(self.model, optimizer, model_state_dict=model, optim_state_dict=states, options=options)
            return
        self.model.load_state_dict(model)
        optimizer.load_state_dict(states)
        if self.average is not None and average is not None:
            self.average.module.load_state_dict(average)


@contextlib.contextmanager
def disable_mixed_precision(model: nn.Module) -> Iterator[None]:
    """Removes Accelerate's autocast wrapper around `forward`, so that the model is evaluated as it will be loaded."""
    mixed_forward = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if mixed_forward is not None:
            model.__dict__["forward"] = mixed_forward


def set_encoder_mode(model: DDePPreTrainedModel, *, frozen: bool, frozen_norms: bool) -> None:
    """Puts a model into training mode, except its encoder if `frozen`, or the encoder's norms if `frozen_norms`.

    Frozen modules get no gradients, and frozen norms keep their statistics.
    """
    encoder = model.ddep.encoder
    model.train()
    encoder.train(not frozen).requires_grad_(not frozen)
    if frozen_norms:
        for module in encoder.modules():
            if is_norm(module):
                module.eval().requires_grad_(False)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises activations; timm's own kinds are recognised by name."""
    norm_types = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    # Not timm's ConvNormAct, which holds a convolution too.
    has_norm_name = "Norm" in type(module).__name__ and all(parameter.ndim < 2 for parameter in module.parameters())
    return isinstance(module, norm_types) or has_norm_name
