"""One optimizer step: gradients over processes and micro-batches, and a check that they are finite."""

import contextlib
import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import nn

from ddep_hub.data.samplers import batch_slice
from ddep_hub.utils.depthwise import FastDepthwise, has_slow_gradients
from ddep_hub.utils.hardware import get_native_precision

from .optim import set_learning_rate
from .run_arguments import RunArguments, micro_batches


Batch = dict[str, Any]
MAX_SKIPPED_STEPS = 100


class Losses(Protocol):
    """Terms of a loss; each is a sum over elements (pixels, images), divided by their number in the global batch."""

    @abstractmethod
    def loss_counts(self, batch: Batch) -> list[torch.Tensor]:
        """Numbers of elements, which are summed over the global batch to divide the loss sums by."""

    @abstractmethod
    def loss_sums(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> list[torch.Tensor]:
        """Sums each term over its elements; `positions` are the examples' indices in the global batch."""


class _AsyncScalar:
    """A scalar copied to the CPU without blocking; reading it waits only for the work queued before the copy."""

    def __init__(self, number: torch.Tensor) -> None:
        self.number = number.to("cpu", non_blocking=number.is_cuda)
        self.event = torch.cuda.Event() if number.is_cuda else None
        if self.event is not None:
            self.event.record()

    def is_positive(self) -> bool:
        if self.event is not None:
            self.event.synchronize()
        return bool(self.number > 0)


class TrainingStep:
    """Takes optimizer steps on a model wrapped by `accelerator.prepare`, without synchronising the device.

    Attributes:
        loss_sum: Sum of this process's losses since the last reset; a resumed run starts with the saved sum.
        grad_norm: Norm of the last step's gradients.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        args: RunArguments,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        loss_sum: float,
    ) -> None:
        self.accelerator, self.args, self.optimizer = accelerator, args, optimizer
        # Elsewhere, plain gradients are just as fast; torch.compile does not trace function modes.
        is_cpu_bf16 = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
        is_native_bf16 = is_cpu_bf16 and get_native_precision(accelerator.device) == "bf16"
        self.slow_depthwise = is_native_bf16 and not args.torch_compile and has_slow_gradients(model)
        self.model = torch.compile(model) if args.torch_compile else model
        self.trainable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.positions = batch_slice(args.batch_size, accelerator.process_index, accelerator.num_processes)
        self.loss_sum = torch.tensor(loss_sum, device=accelerator.device)
        self.grad_norm = torch.zeros((), device=accelerator.device)
        self.first_bad = torch.full((1,), 2**62, device=accelerator.device)  # step, counted from 1
        self.unchecked: list[tuple[int, list[str]]] = []  # steps not known to be finite, and their files
        self.stop_counts: list[_AsyncScalar] = []  # how many processes wanted to stop, in the last two steps
        self.skipped_steps = 0

    def take(self, losses: Losses, batch: Batch, step: int, paths: list[str], *, wants_to_stop: bool) -> None:
        """Takes one step, counted from 0. `batch` is this process's part of the global batch, on its device.

        `paths` are the files of the batch, for error messages. `wants_to_stop` is whether this process wants to stop,
        which is shared with the others, see [`should_stop`]. Raises a FloatingPointError if the gradient scaler has
        skipped the last `MAX_SKIPPED_STEPS` steps.
        """
        accelerator = self.accelerator
        # Sums divided by the global count, not means of means: processes and micro-batches may have different numbers
        # of valid pixels.
        stop_flag = torch.full((), float(wants_to_stop), device=accelerator.device)
        counts = torch.stack([count.float() for count in losses.loss_counts(batch)] + [stop_flag])
        counts = accelerator.reduce(counts, "sum")
        self.stop_counts, counts = [*self.stop_counts[-1:], _AsyncScalar(counts[-1])], counts[:-1]
        loss = self._backward(losses, batch, step, torch.where(counts > 0, counts, 1.0))
        accelerator.unscale_gradients()
        # Not Accelerate's own: under FSDP it expects the parameters in the model's order.
        norm = nn.utils.clip_grad_norm_(self.trainable, self.args.max_grad_norm or math.inf)
        self.grad_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        set_learning_rate(self.optimizer, step, self.args)
        self.optimizer.step()
        self.optimizer.zero_grad()
        # The float16 gradient scaler skips steps whose gradients overflow, and lowers its scale.
        self.skipped_steps = self.skipped_steps + 1 if self.optimizer.step_was_skipped else 0
        if self.skipped_steps == MAX_SKIPPED_STEPS:
            raise FloatingPointError(
                f"The gradients were not finite in the {MAX_SKIPPED_STEPS} steps up to step {step + 1}, none of which "
                "changed the weights. Train in bf16 or float32, or lower learning_rate."
            )
        self.loss_sum += loss
        is_finite = loss.isfinite()
        if accelerator.scaler is None:
            is_finite = is_finite & self.grad_norm.isfinite()
        # Kept on the device to avoid synchronisation; it is read before anything is logged or saved.
        self.first_bad = torch.where(is_finite, self.first_bad, self.first_bad.clamp(max=step + 1))
        self.unchecked.append((step + 1, paths))

    def _backward(self, losses: Losses, batch: Batch, step: int, counts: torch.Tensor) -> torch.Tensor:
        """Accumulates the gradients of the micro-batches; returns this process's share of the loss."""
        parts = micro_batches(self.args, self.accelerator.num_processes)
        bounds = [len(self.positions) * part // parts for part in range(parts + 1)]
        total = torch.zeros((), device=self.accelerator.device)
        for part, (start, end) in enumerate(itertools.pairwise(bounds)):
            micro_batch = {name: value[start:end] for name, value in batch.items()}
            is_last = part == parts - 1
            sync = contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model)
            with sync, FastDepthwise() if self.slow_depthwise else contextlib.nullcontext():
                sums = losses.loss_sums(self.model, micro_batch, step, self.positions[start:end])
                loss = sum(term / count for term, count in zip(sums, counts.unbind(), strict=True))
                # Gradients are averaged over processes, but their sum is needed.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        return total

    def check_finite(self) -> None:
        """Raises a FloatingPointError if a step since the last call was not finite; synchronises the device.

        Called before anything is logged, evaluated or saved.
        """
        first_bad = int(self.accelerator.gather(self.first_bad).min())
        if first_bad < 2**62:
            files = gather_object([path for step, paths in self.unchecked if step == first_bad for path in paths])
            raise FloatingPointError(
                f"The loss or its gradient is not finite in step {first_bad}, with the files {', '.join(files)}. No "
                "checkpoint contains it. Check these files, lower learning_rate, or set warmup_steps or "
                "max_grad_norm."
            )
        self.unchecked.clear()

    def should_stop(self, wants_to_stop: bool) -> bool:
        """Whether the run stops now, the same in all processes."""
        if self.accelerator.num_processes == 1:
            return wants_to_stop
        # The count of the previous step: that of this step may not be computed yet.
        return len(self.stop_counts) == 2 and self.stop_counts[0].is_positive()
