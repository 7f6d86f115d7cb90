"""The one training loop of both scripts.

A step is a global batch of a fixed size, however many processes and micro-batches share it. Which examples it holds,
how they are augmented and what noise they get are functions of (seed, epoch, index) and (seed, step, position), so
the loop keeps no random state.
"""

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ddep_hub.data.sampling import StepBatchSampler, slice_of_batch
from ddep_hub.data.transforms import AugmentedDataset

from .arguments import RunArguments
from .optimization import build_optimizer
from .run_folder import MetricsLog


Batch = dict[str, torch.Tensor]


class Objective(Protocol):
    """What is minimised: a sum over elements (pixels), and how many there are."""

    def count(self, batch: Batch) -> int:
        """Elements of a batch that the loss counts, as it comes from the workers."""
        ...

    def loss_sum(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> torch.Tensor:
        """Loss summed over those elements; `positions` are the examples' places in the global batch."""
        ...


def train(
    *,
    accelerator: Accelerator,
    model: nn.Module,
    dataset: AugmentedDataset,
    objective: Objective,
    args: RunArguments,
    log: MetricsLog,
    evaluate: Callable[[nn.Module], dict[str, Any]],
    encoder_lr_factor: float = 1.0,
) -> tuple[dict[str, Any], float]:
    """Trains a model in place.

    Args:
        accelerator: the process's accelerator.
        model: the model, in place of which nothing is returned: its weights are trained.
        dataset: the training examples.
        objective: what is minimised.
        args: the run's arguments.
        log: where metrics go.
        evaluate: measures the unwrapped model, in every process; called every `eval_every` steps, but not after the
            last one: by then the caller wants the model saved first.
        encoder_lr_factor: factor on the encoder's learning rate.

    Returns:
        The last row for `log`, which the caller writes with what it measures, and the seconds that the steps took.

    Raises:
        FloatingPointError: the loss is not finite; names the step.
    """
    # Channels last is how convolutions run fastest, on GPUs and CPUs alike; what is saved is in the usual order again.
    model.to(accelerator.device, memory_format=torch.channels_last).train()
    optimizer, scheduler = build_optimizer(model, args, encoder_lr_factor)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    sampler = StepBatchSampler(
        len(dataset),
        global_batch_size=args.batch_size,
        seed=args.seed,
        start_step=0,
        end_step=args.max_steps,
        rank=rank,
        world_size=world_size,
    )
    loader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=args.num_workers, pin_memory=accelerator.device.type == "cuda"
    )
    positions = slice_of_batch(args.batch_size, rank, world_size)
    accelerator.print(
        f"{len(dataset)} examples, {args.max_steps} steps of {args.batch_size} on {world_size} process(es), "
        f"{torch.get_num_threads()} thread(s) each, device {accelerator.device}"
    )
    progress = tqdm(total=args.max_steps, disable=not accelerator.is_main_process, file=sys.stderr, mininterval=2)
    loss_total = torch.zeros((), device=accelerator.device)
    logged_at, started, evaluating = 0, time.perf_counter(), 0.0
    window = started
    row: dict[str, Any] = {}
    for step, batch in enumerate(loader):
        loss_total += _step(accelerator, wrapped, batch, objective, args, step, positions)
        grad_norm = None
        if args.max_grad_norm > 0:
            grad_norm = accelerator.clip_grad_norm_(wrapped.parameters(), args.max_grad_norm)
        learning_rate = scheduler.get_last_lr()[-1]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        done = step + 1
        progress.update()

        row = {}
        if done % args.log_every == 0 or done == args.max_steps:
            loss = float(accelerator.reduce(loss_total, "sum")) / (done - logged_at)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"The loss is {loss} between steps {logged_at + 1} and {done}. Lower learning_rate, raise "
                    "warmup_steps, or clip gradients with max_grad_norm."
                )
            now = time.perf_counter()
            row = {"step": done, "loss": loss, "learning_rate": learning_rate}
            if grad_norm is not None:
                row["grad_norm"] = float(grad_norm)
            row["images_per_second"] = round((done - logged_at) * args.batch_size / (now - window), 1)
            progress.set_postfix(loss=f"{loss:.4f}", images_per_s=row["images_per_second"])
            logged_at, window = done, now
            loss_total.zero_()
        if args.eval_every and done % args.eval_every == 0 and done < args.max_steps:
            before = time.perf_counter()
            results = evaluate(synchronized(accelerator, model))
            model.train()
            row = {"step": done, **row, **results}
            evaluating += time.perf_counter() - before
            window += time.perf_counter() - before
        if row and done < args.max_steps:
            log.write(row)
    progress.close()
    model.to(memory_format=torch.contiguous_format)
    return row, time.perf_counter() - started - evaluating


def synchronized(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The model with the first process's buffers in every process: BatchNorm's statistics differ between them."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer.clone()))
    return model


def _step(
    accelerator: Accelerator,
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    args: RunArguments,
    step: int,
    positions: range,
) -> torch.Tensor:
    """Forward and backward of one step; gives this process's share of the mean loss over the global batch."""
    # Sums divided by the global count, not means of means: processes and micro-batches may hold different numbers of
    # valid pixels.
    count = accelerator.reduce(torch.tensor(objective.count(batch), device=accelerator.device), "sum").clamp(min=1)
    parts = min(args.gradient_accumulation_steps, len(positions))
    bounds = [len(positions) * part // parts for part in range(parts + 1)]
    total = torch.zeros((), device=accelerator.device)
    for part, (start, end) in enumerate(itertools.pairwise(bounds)):
        piece = {name: value[start:end].to(accelerator.device, non_blocking=True) for name, value in batch.items()}
        last = part == parts - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            loss = objective.loss_sum(model, piece, step, positions[start:end]) / count
            # Gradients are averaged over processes; the sum is wanted.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return total
