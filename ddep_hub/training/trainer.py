"""The trainer: its loop and the folder it writes. Subclasses define what is trained and how it is evaluated."""

import contextlib
import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ddep_hub.data.dataloading import iterate_batches
from ddep_hub.data.samplers import example_seed
from ddep_hub.hub.licenses import find_restriction
from ddep_hub.hub.model_card import PREDICTIONS, write_card
from ddep_hub.hub.run_record import Kind, write_run_record
from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.modeling_base_ddep import DDePPreTrainedModel
from ddep_hub.utils.processes import build_accelerator, end_with_launcher, keep_freed_memory, on_main_process

from .checkpointing import Checkpointer
from .interruption import Interruption, RunInterrupted, parse_time
from .logging import MetricsLogger
from .models import check_single_images, get_num_channels
from .optim import Weights, build_optimizer, disable_mixed_precision, rate_table, set_learning_rate
from .run_arguments import RunArguments, micro_batches
from .run_dir import check_run_dir, remove_old_run, run_lock, save_picture, write_config
from .saving import add_pictures, check_publishing, publish_final, save_best, save_final
from .step import Batch, Losses, TrainingStep


class Trainer(Losses):
    """Trains a model and writes the run's folder.

    A subclass sets the attributes below in its `__init__`, and defines the terms of its loss, see [`Losses`], and the
    methods up to [`draw`].

    Args:
        args: The run's arguments.
        unused_parameters: Whether some parameters get no gradient in some steps.

    Attributes:
        kind: Kind of the run, which selects the model card's template.
        model: The model, trained in place.
        processor: Its image processor, saved with it.
        fingerprint: Hash of the training data; a run can be resumed only on the same data.
        validation_fingerprint: Hash of the validation data; best scores on other data are discarded.
        data: Description of the number of training images.
        run_info: What the model card states besides arguments and results, see [`write_run_record`].
        any_world_size: Whether the run can be resumed on a different number of processes.
        bad_files: Broken files that were skipped before training.
        earlier_stages: Folders in the run's folder that hold earlier stages of this run.

    Raises:
        FileExistsError: The folder holds another run, or files that are not a run's.
        RuntimeError: `torch.autocast` is on.
        ValueError: A tracker is unknown or not installed.
    """

    kind: ClassVar[Kind]
    model: DDePPreTrainedModel
    processor: DDePImageProcessor
    fingerprint: str
    validation_fingerprint: str | None = None
    data: str
    run_info: dict[str, Any]
    any_world_size: bool = True
    bad_files: Sequence[str] = ()
    earlier_stages: Sequence[str] = ()

    def __init__(self, args: RunArguments, *, unused_parameters: bool = False) -> None:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise RuntimeError(
                "torch.autocast is on, and would keep copies of old weights. Train outside of it, and set "
                "mixed_precision instead."
            )
        end_with_launcher()
        keep_freed_memory()
        trackers = [str(name) for name in get_available_trackers()]
        for name in args.report_to:
            if name not in trackers:
                raise ValueError(f"report_to: {name} is not available ({', '.join(trackers)} are). Install it.")
        self.args, self.output = args, Path(args.output_dir)
        self.accelerator = build_accelerator(
            args.mixed_precision,
            channels=get_num_channels(args),
            log_with=args.report_to or None,
            project_dir=args.output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)],
        )
        on_main_process(self.accelerator, lambda: check_run_dir(args))

    @abstractmethod
    def dataloader(self, start_step: int, states: dict[str, Any] | None) -> DataLoader[Any]:
        """Returns the dataloader of this process from `start_step` on, counted from 0.

        `states` are the states of a stream to resume from, see [`ImageStream`]; `None` at the start.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Evaluates a model; called in every process."""

    @abstractmethod
    def score(self, results: Mapping[str, Any]) -> float:
        """The metric that selects the best model; higher is better."""

    @abstractmethod
    def draw(self, model: nn.Module) -> Image.Image:
        """Draws predictions of a model."""

    def set_mode(self, model: DDePPreTrainedModel, step: int) -> None:
        """Puts the model, or a copy, into training mode for a step counted from 0."""
        if not model.training:  # setting it takes milliseconds per step
            model.train()

    def learning_rate_factors(self) -> Mapping[str, float] | None:
        """Multipliers of the learning rate, by parameter name; `None` means 1 for all."""
        return None

    def before_training(self) -> None:
        """Called before the first step, once the checkpoint is loaded and the model on its device."""
        return None

    def save_data_files(self) -> None:
        """Writes further files into the run's folder before the first step; none by default."""
        return None

    def batch_options(self, start_step: int) -> dict[str, Any]:
        """Options of the sampler or stream that depend on steps and processes."""
        return {
            "global_batch_size": self.args.batch_size,
            "start_step": start_step,
            "end_step": self.args.max_steps,
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
        }

    def run(self) -> dict[str, Any]:
        """Trains, saves, evaluates, writes card and figures, and publishes; for its errors see [`pretrain`].

        Returns the results of [`evaluate`], `seconds` of training, and `final`, the folder of the model.
        """
        final = self.output / "final"
        with contextlib.ExitStack() as stack:
            on_main_process(self.accelerator, lambda: stack.enter_context(run_lock(self.output)))
            on_main_process(self.accelerator, lambda: check_publishing(self.args))
            if self.args.pretrained is not None:
                license = on_main_process(self.accelerator, lambda: find_restriction(str(self.args.pretrained)))
                self.run_info["inherited_license"] = license
            self._prepare()
            on_main_process(self.accelerator, self._start_folder)
            self.metrics = MetricsLogger(self.accelerator, self.args, self.step, {*self.bad_files, *self.skipped})
            try:
                row = self._train()
                model = self.weights.get_eval_model().eval()
                on_main_process(self.accelerator, lambda: save_final(model, self.processor, self.args, final))
                results = {**self._evaluate(model), "seconds": round(self.seconds, 1)}
                self.metrics.write({**row, **results})
            finally:
                self.metrics.close()
            on_main_process(self.accelerator, lambda: self._describe(model, final, results))
            on_main_process(self.accelerator, lambda: publish_final(self.args, final))
        return {**results, "final": str(final)}

    def _prepare(self) -> None:
        """Wraps the model for its processes and loads the checkpoint."""
        args, accelerator = self.args, self.accelerator
        if args.batch_size // (accelerator.num_processes * micro_batches(args, accelerator.num_processes)) == 1:
            last_step = args.max_steps - 1  # when nothing is frozen temporarily
            check_single_images(self.model, self.input_side(), lambda model: self.set_mode(model, last_step))
        factors = self.learning_rate_factors()
        if args.warmup_steps >= args.max_steps:
            accelerator.print(
                "Warning: the learning rate does not reach its peak, because warmup_steps "
                f"({args.warmup_steps}) is not below max_steps ({args.max_steps}). Lower warmup_steps."
            )
        if factors and len(set(factors.values())) > 1:
            accelerator.print(rate_table(self.model, args, factors))
        self.weights = Weights(accelerator, self.model, args)
        wrapped_model, self.optimizer = accelerator.prepare(self.model, build_optimizer(self.model, args, factors))
        self.checkpointer = Checkpointer(
            accelerator,
            self.weights,
            self.optimizer,
            args,
            self.processor,
            fingerprint=self.fingerprint,
            any_world_size=self.any_world_size,
        )
        progress = self.checkpointer.load()
        self.step: int = progress.get("step", 0)
        self.logged_at: int = progress.get("logged_at", 0)
        self.seconds: float = progress.get("seconds", 0.0)
        self.seconds_at_log: float = progress.get("seconds_at_log", 0.0)
        self.row: dict[str, Any] = progress.get("row", {})
        # A resumed run may have other validation data, for which the best score does not hold.
        best = progress.get("best") if progress.get("best_on") == self.validation_fingerprint else None
        self.best: float = -math.inf if best is None else best
        self.skipped: list[str] = progress.get("bad_files", [])
        self.states: dict[str, Any] = progress.get("states", {})
        loss_sum = progress.get("loss_sum", 0.0) if accelerator.is_main_process else 0.0
        self.steps = TrainingStep(accelerator, args, wrapped_model, self.optimizer, loss_sum)
        self.before_training()

    def input_side(self) -> int:
        """Side in pixels of the model's input."""
        return int(cast(Any, self.args).crop_size)

    def _start_folder(self) -> None:
        if self.args.overwrite:
            remove_old_run(self.output, self.earlier_stages)
        write_config(self.args, self.output)
        self.save_data_files()

    def _train(self) -> dict[str, Any]:
        """Trains to the last step; returns its row of metrics, without the evaluation."""
        args, device = self.args, self.accelerator.device
        self.accelerator.print(
            f"{self.data}, {args.max_steps} steps of {args.batch_size} on {self.accelerator.num_processes} "
            f"process(es), {torch.get_num_threads()} thread(s) each, device {device}, "
            + ("float32" if self.accelerator.mixed_precision == "no" else self.accelerator.mixed_precision)
            + (f", resuming after step {self.step}" if self.step else "")
        )
        loader = self.dataloader(self.step, self.states or None)
        progress = tqdm(
            total=args.max_steps, initial=self.step, disable=not self.accelerator.is_main_process, mininterval=2
        )
        start = time.perf_counter()
        with progress, Interruption(parse_time(args.max_time)) as interruption, iterate_batches(loader) as batches:
            for batch in batches:
                self._training_step(batch, wants_to_stop=interruption.reason is not None)
                progress.update()
                is_last_step = self.step == args.max_steps
                should_log = self.step % args.logging_steps == 0 or is_last_step
                should_evaluate = bool(args.eval_steps) and self.step % args.eval_steps == 0 and not is_last_step
                should_stop = self.steps.should_stop(interruption.reason is not None)
                should_save = should_stop or (
                    bool(args.save_steps) and (self.step % args.save_steps == 0 or is_last_step)
                )
                # Synchronises the device, so that its time counts as training time.
                if should_log or should_evaluate or should_save:
                    self.steps.check_finite()
                self.seconds += time.perf_counter() - start
                self.row = self._measure_row() if should_log else {}
                if should_log:
                    progress.set_postfix(
                        loss=f"{self.row['loss']:.4f}", images_per_s=self.row["images_per_second"], refresh=False
                    )
                if should_evaluate:
                    model = self.weights.get_eval_model()
                    self.row = {"step": self.step, **self.row, **self._evaluate(model)}
                    if self.accelerator.is_main_process:
                        self._save_picture(model, f"step-{self.step}.png")
                    should_stop = self.steps.should_stop(interruption.reason is not None)  # evaluation takes time
                    should_save = should_save or should_stop
                if self.row and not is_last_step:
                    self.metrics.write(self.row)
                if should_save:
                    path = self._save_checkpoint()
                if should_stop:
                    reason = interruption.reason or "another process"
                    message = (
                        f"Stopped by {reason} after step {self.step} of {args.max_steps}; checkpoint: {path}. "
                        f"{args.how_to_resume}"
                    )
                    self.accelerator.print(message, flush=True)
                    raise RunInterrupted(message)
                start = time.perf_counter()
        return self.row

    def _training_step(self, batch: Batch, *, wants_to_stop: bool) -> None:
        self.metrics.skipped.update(batch.pop("skipped", []))
        if "state" in batch:
            self.states[str(batch.pop("virtual_worker"))] = batch.pop("state")
        paths = list(batch.pop("path", []))
        self.set_mode(self.model, self.step)
        # For an encoder's stochastic depth and dropout: a resumed run must draw the same.
        torch.manual_seed(example_seed(self.args.seed, self.step, self.accelerator.process_index))
        batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        self.steps.take(self, batch, self.step, paths, wants_to_stop=wants_to_stop)
        self.step += 1
        if self.weights.average is not None:
            self.weights.average.update(self.model, step=self.step)

    def _measure_row(self) -> dict[str, Any]:
        steps = self.step - self.logged_at
        row = {
            "step": self.step,
            "loss": float(self.accelerator.reduce(self.steps.loss_sum, "sum")) / steps,
            "learning_rate": set_learning_rate(self.optimizer, self.step - 1, self.args),
            "grad_norm": float(self.steps.grad_norm) if self.steps.grad_norm.isfinite() else None,
            "images_per_second": float(f"{steps * self.args.batch_size / (self.seconds - self.seconds_at_log):.4g}"),
        }
        self.logged_at, self.seconds_at_log = self.step, self.seconds
        self.steps.loss_sum.zero_()
        return row | self.metrics.bad_file_count()

    def _evaluate(self, model: DDePPreTrainedModel) -> dict[str, Any]:
        """Evaluates a model of the run; with `eval_steps`, saves it if it is the best so far."""
        with disable_mixed_precision(model):
            results = self.evaluate(model)
        score = self.score(results)
        if self.args.eval_steps and score > self.best:
            self.best = score
            if self.accelerator.is_main_process:
                row = {"step": self.step, **results, "seconds": round(self.seconds, 1)}
                save_best(model, self.processor, self.args, self.kind, row, self.run_info)
        return results

    def _save_checkpoint(self) -> Path:
        progress = {
            "step": self.step,
            "logged_at": self.logged_at,
            "loss_sum": float(self.accelerator.reduce(self.steps.loss_sum, "sum")),
            "seconds": self.seconds,
            "seconds_at_log": self.seconds_at_log,
            "row": self.row,
            "best": self.best if math.isfinite(self.best) else None,
            "best_on": self.validation_fingerprint,
            # Otherwise, files not yet listed would be lost.
            "bad_files": sorted(set(gather_object(sorted(self.metrics.skipped)))),
        }
        return self.checkpointer.save(progress, self.states)

    def _save_picture(self, model: nn.Module, name: str) -> bytes:
        return save_picture(self.draw(model), self.output / "pictures" / name)

    def _describe(self, model: nn.Module, final: Path, results: dict[str, Any]) -> None:
        write_run_record(final, self.kind, self.args, results, **self.run_info)
        write_card(final)  # so that a run has its card even if drawing fails
        add_pictures(final, self.args, self.run_info, self._save_picture(model, PREDICTIONS))
