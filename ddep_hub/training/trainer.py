"""What a run trains: the model, its examples, what is minimised, and how it is measured and shown."""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ddep_hub import DDePPreTrainedModel
from ddep_hub.data.dataloading import reading
from ddep_hub.data.samplers import slice_of_batch
from ddep_hub.utils.files import atomic_dir, atomic_write, warn_on_write_error

from .arguments import RunArguments, micro_batches, parse_time
from .checkpointing import Resumer
from .feeds import Feed
from .logging import Tracking
from .optim import Weights, build_optimizer, set_learning_rate
from .run_dir import Interruption, RunInterrupted


Batch = dict[str, Any]


class Objective(Protocol):
    """What is minimised: the sum of some terms, each a sum over elements (pixels, images) divided by their number."""

    def counts(self, batch: Batch) -> Sequence[torch.Tensor]:
        """What the sum of each term is divided by, once added up over the global batch; on the batch's device."""
        ...

    def loss_sums(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> Sequence[torch.Tensor]:
        """The sum of each term; `positions` are the examples' places in the global batch."""
        ...


@dataclass(kw_only=True)
class Task:
    """What a run trains, and how it is measured and shown.

    Args:
        model: the model to train, in place.
        feed: the training examples.
        objective: what is minimised.
        evaluate: measures a model; called in every process.
        score: the figure by which the best model is chosen, more is better.
        picture: draws what a model does.
        save: writes a model into a folder, so that `from_pretrained` loads it.
        set_mode: puts the model into training mode for a step counted from 0.
        encoder_factors: factors on the learning rate of the encoder's parameters.
        record: writes what else belongs to the run, beside its arguments.
        skipped: broken files that were passed over already.
    """

    model: DDePPreTrainedModel
    feed: Feed
    objective: Objective
    evaluate: Callable[[nn.Module], dict[str, Any]]
    score: Callable[[Mapping[str, Any]], float]
    picture: Callable[[nn.Module], Image.Image]
    save: Callable[[DDePPreTrainedModel, Path], None]
    set_mode: Callable[[int], Any]
    encoder_factors: Mapping[str, float] | None = None
    record: Callable[[], None] = lambda: None
    skipped: Sequence[str] = ()


MAX_SKIPPED_STEPS = 100


class Training:
    """A run between its first and its last step.

    Args:
        accelerator: the process's accelerator.
        task: what is trained.
        args: the run's arguments.

    Attributes:
        weights: the weights, trained in place.
        tracking: where metrics go.

    Raises:
        CheckpointError: the checkpoint to resume from is damaged or belongs to another run.
    """

    def __init__(self, accelerator: Accelerator, task: Task, args: RunArguments) -> None:
        self.accelerator, self.task, self.args = accelerator, task, args
        self.output = Path(args.output_dir)
        self.weights = Weights(accelerator, task.model, args)
        optimizer = build_optimizer(task.model, args, task.encoder_factors)
        wrapped, self.optimizer = accelerator.prepare(task.model, optimizer)
        self.wrapped = torch.compile(wrapped) if args.torch_compile else wrapped
        self.trainable = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.positions = slice_of_batch(args.batch_size, accelerator.process_index, accelerator.num_processes)
        self.resumer = Resumer(accelerator, self.weights, self.optimizer, task.feed, args)
        # What a checkpoint holds of the loop itself.
        progress = self.resumer.load()
        self.step: int = progress.get("step", 0)
        self.logged_at: int = progress.get("logged_at", 0)
        self.seconds: float = progress.get("seconds", 0.0)
        self.seconds_at_log: float = progress.get("seconds_at_log", 0.0)
        self.row: dict[str, Any] = progress.get("row", {})
        best = progress.get("best")
        self.best: float = -math.inf if best is None else best
        self.states: dict[str, Any] = progress.get("states", {})
        total = progress.get("loss_sum", 0.0) if accelerator.is_main_process else 0.0
        self.loss_sum = torch.tensor(total, device=accelerator.device)
        self.first_bad = torch.full((1,), 2**62, device=accelerator.device)  # step, counted from 1
        self.unchecked: list[tuple[int, list[str]]] = []  # steps not known to be finite, and their files
        self.votes: list[torch.Tensor] = []  # how many processes wanted to stop, in the last two steps
        self.skipped_steps = 0
        self.tracking = Tracking(accelerator, args, self.step)
        self.tracking.note_skipped(task.skipped)

    def run(self) -> dict[str, Any]:
        """Trains to the last step.

        Returns:
            The row of the last step for `tracking`, which the caller writes with what it measures.

        Raises:
            FloatingPointError: a loss or gradient is not finite; names the step and its files.
            RunInterrupted: a signal came or the time was up, and a checkpoint was written.
            CheckpointError: a checkpoint could not be written.
        """
        args = self.args
        loader = self.task.feed.loader(self.accelerator, args, self.step, self.states or None)
        self.accelerator.print(
            f"{self.task.feed.description}, {args.max_steps} steps of {args.batch_size} on "
            f"{self.accelerator.num_processes} process(es), {torch.get_num_threads()} thread(s) each, device "
            f"{self.accelerator.device}" + (f", going on after step {self.step}" if self.step else "")
        )
        progress = tqdm(
            total=args.max_steps, initial=self.step, disable=not self.accelerator.is_main_process, mininterval=2
        )
        started = time.perf_counter()
        with progress, Interruption(parse_time(args.max_time)) as interruption, reading(loader) as batches:
            for batch in batches:
                self._train(batch, wants_to_stop=interruption.reason is not None)
                progress.update()
                at_the_end = self.step == args.max_steps
                due = self.step % args.logging_steps == 0 or at_the_end
                if due:
                    self._check_finite()  # waits for the device
                self.seconds += time.perf_counter() - started
                self.row = self._measured_row() if due else {}
                if due:
                    progress.set_postfix(
                        loss=f"{self.row['loss']:.4f}", images_per_s=self.row["images_per_second"], refresh=False
                    )
                if args.eval_steps and self.step % args.eval_steps == 0 and not at_the_end:
                    self.row = {"step": self.step, **self.row, **self._evaluate()}
                if self.row and not at_the_end:
                    self.tracking.write(self.row)
                stop = self._agreed_to_stop(interruption) and not at_the_end
                if stop or (args.save_steps and (self.step % args.save_steps == 0 or at_the_end)):
                    path = self._save()
                if stop:
                    self._interrupt(interruption.reason or "another process", path)
                started = time.perf_counter()
        return self.row

    def _interrupt(self, reason: str, path: Path) -> None:
        message = (
            f"Stopped by {reason} after step {self.step} of {self.args.max_steps}; checkpoint: {path}. Go on with "
            "`--resume_from_checkpoint latest`."
        )
        self.accelerator.print(message, flush=True)
        raise RunInterrupted(message)

    def keep_if_best(self, results: Mapping[str, Any], model: DDePPreTrainedModel) -> None:
        """Keeps a model in best/ where it is the best one measured so far; called in every process."""
        score = self.task.score(results)
        if score <= self.best:
            return
        self.best = score
        if self.accelerator.is_main_process:
            best = self.output / "best"
            with warn_on_write_error(best), atomic_dir(best) as folder:
                self.task.save(model, folder)
                atomic_write(folder / "results.json", json.dumps({"step": self.step, **results}, indent=1) + "\n")

    def _train(self, batch: Batch, *, wants_to_stop: bool) -> None:
        """One optimizer step."""
        accelerator, step = self.accelerator, self.step
        self.tracking.note_skipped(batch.pop("skipped", []))
        if "state" in batch:
            self.states[str(batch.pop("lane"))] = batch.pop("state")
        paths = list(batch.pop("path", []))
        self.task.set_mode(step)
        device = accelerator.device
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        # Sums divided by the global count, not means of means: processes and micro-batches may hold different numbers
        # of valid pixels. The wish to stop travels along. Nothing here waits for the device.
        vote = torch.full((), float(wants_to_stop), device=device)
        counts = torch.stack([count.float() for count in self.task.objective.counts(batch)] + [vote])
        counts = accelerator.reduce(counts, "sum")
        self.votes, counts = [*self.votes[-1:], counts[-1]], counts[:-1]
        counts = torch.where(counts > 0, counts, 1.0)
        parts = micro_batches(self.args, accelerator.num_processes)
        bounds = [len(self.positions) * part // parts for part in range(parts + 1)]
        total = torch.zeros((), device=device)
        for part, (start, end) in enumerate(itertools.pairwise(bounds)):
            piece = {name: value[start:end] for name, value in batch.items()}
            last = part == parts - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                sums = self.task.objective.loss_sums(self.wrapped, piece, step, self.positions[start:end])
                loss = sum(term / count for term, count in zip(sums, counts.unbind(), strict=True))
                # Gradients are averaged over processes; the sum is wanted.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        accelerator.unscale_gradients()
        # Not Accelerate's own: under FSDP that wants the parameters in the model's order.
        norm = nn.utils.clip_grad_norm_(self.trainable, self.args.max_grad_norm or math.inf)
        self.grad_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        set_learning_rate(self.optimizer, step, self.args)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._check_skipped_steps()
        self.step = step + 1
        if self.weights.average is not None:
            self.weights.average.update(self.task.model, step=self.step)
        self.loss_sum += total
        finite = total.isfinite()
        if accelerator.scaler is None:  # float16's scaler looks for such gradients itself, and skips the step
            finite = finite & self.grad_norm.isfinite()
        # On the device, so that it need not be waited for: it is looked at before anything is logged or saved.
        self.first_bad = torch.where(finite, self.first_bad, self.first_bad.clamp(max=self.step))
        self.unchecked.append((self.step, paths))

    def _check_skipped_steps(self) -> None:
        """Float16's scaler skips a step whose gradients overflow, and halves its scale: rare, unless they always do.

        Raises:
            FloatingPointError: it skipped too many in a row.
        """
        self.skipped_steps = self.skipped_steps + 1 if self.optimizer.step_was_skipped else 0
        if self.skipped_steps == MAX_SKIPPED_STEPS:
            raise FloatingPointError(
                f"The gradients were not finite in {MAX_SKIPPED_STEPS} steps, up to step {self.step + 1}, one after "
                "another: none of them changed the weights. Train in bf16 or float32, or lower learning_rate."
            )

    def _check_finite(self) -> None:
        """Called before anything is logged, measured or saved.

        Raises:
            FloatingPointError: a step since the last call was not finite.
        """
        first = int(self.accelerator.gather(self.first_bad).min())
        if first < 2**62:
            files = gather_object([path for step, paths in self.unchecked if step == first for path in paths])
            raise FloatingPointError(
                f"The loss or its gradient is not finite in step {first}, with the files {', '.join(files)}. No "
                "checkpoint holds it. Look at these files; or lower learning_rate, raise warmup_steps, or clip "
                "gradients with max_grad_norm."
            )
        self.unchecked.clear()

    def _measured_row(self) -> dict[str, Any]:
        steps = self.step - self.logged_at
        row = {
            "step": self.step,
            "loss": float(self.accelerator.reduce(self.loss_sum, "sum")) / steps,
            "learning_rate": set_learning_rate(self.optimizer, self.step - 1, self.args),
            "grad_norm": float(self.grad_norm) if self.grad_norm.isfinite() else None,
            "images_per_second": round(steps * self.args.batch_size / (self.seconds - self.seconds_at_log), 1),
        }
        self.logged_at, self.seconds_at_log = self.step, self.seconds
        self.loss_sum.zero_()
        return row | self.tracking.skipped_so_far()

    def _evaluate(self) -> dict[str, Any]:
        self._check_finite()
        model = self.weights.plain()
        results = self.task.evaluate(model)
        self.keep_if_best(results, model)
        if self.accelerator.is_main_process:
            picture = self.output / "pictures" / f"step-{self.step}.png"
            with warn_on_write_error(picture):
                picture.parent.mkdir(exist_ok=True)
                self.task.picture(model).save(picture)
        return results

    def _agreed_to_stop(self, interruption: Interruption) -> bool:
        """Whether the run stops now; the same in all processes."""
        if self.accelerator.num_processes == 1:
            return interruption.reason is not None
        # The votes of the step before: those of this one the device has yet to count.
        return len(self.votes) == 2 and bool(self.votes[0] > 0)

    def _save(self) -> Path:
        self._check_finite()
        path = self.resumer.save(
            {
                "step": self.step,
                "logged_at": self.logged_at,
                "loss_sum": float(self.accelerator.reduce(self.loss_sum, "sum")),
                "seconds": self.seconds,
                "seconds_at_log": self.seconds_at_log,
                "row": self.row,
                "best": self.best if math.isfinite(self.best) else None,
            },
            self.states,
        )
        return path
