"""Comparison on the user's own data: its methods, and steps within a time budget."""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from ddep_hub.configuration_ddep import DDePConfig
from ddep_hub.data.preprocessing import EvalTransform, Normalize, to_tensor
from ddep_hub.data.splits import evenly_spaced
from ddep_hub.data.statistics import channel_statistics
from ddep_hub.encoders import fixed_image_size
from ddep_hub.evaluation.visualization import segmentation_picture
from ddep_hub.pretrained import load_model, load_processor, stored_config
from ddep_hub.shipped import list_pretrained
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.finetuning_data import open_train_and_val
from ddep_hub.training.pretraining import REFERENCE_IMAGES, PretrainTrainer
from ddep_hub.training.run_dir import save_picture
from ddep_hub.training.stages import TIMED_STEPS, seconds_per_step, stage_arguments, timing_arguments
from ddep_hub.utils.arguments import build_arguments, list_field_names
from ddep_hub.utils.files import atomic_write, check_not_file, lock_file

from .config import DATA_FIELDS, OVERRIDES, Method, Study, StudyArguments
from .report import read_rows


RANDOM_DECODER, DDEP_METHOD, MASKED_METHOD = "random decoder", "DDeP on your images", "masked patches of your images"
FEATURES_METHOD, CONSISTENCY_METHOD = "features of your images", "consistency on your images"
# The shipped decoder that gained most from further pretraining on the target's images (docs/results.md).
START = "ddep-photos-lite0"
CONTINUED_METHOD = f"features of your images, from {START}"
# Corruption of each method that pretrains.
CORRUPTIONS = {
    DDEP_METHOD: "scaled",
    MASKED_METHOD: "masked",
    FEATURES_METHOD: "downsampled",
    CONTINUED_METHOD: "downsampled",
}
CONSISTENCY = {"consistency_weight": 1.0}
STEPS = "steps.json"
# With fewer steps, the results may not hold for longer runs.
MIN_RELIABLE_STEPS = 300
DEFAULT_LABELS = (6, 12)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Optimizer steps of each fine-tuning run and of each pretraining."""

    finetuning: int
    pretraining: int


def own_data_study(args: StudyArguments, steps: Steps | None = None) -> Study:
    """The study of a user's data: random decoder, shipped decoders that fit, and methods that use unlabelled images.

    Pretraining, by denoising (DDeP), by predicting masked patches or by predicting features, from a random decoder or
    a shipped one, uses the images of `unlabelled` and all training images, whether their labels are used or not, at
    the scales of fine-tuning. Consistency uses those of `unlabelled` and the labelled ones. `steps` are by default the
    preset's.

    Not optional are a random decoder, DDeP, the shipped decoders for the kind of images of `augmentation`, and the
    objective that gained most on such images (docs/does-it-pay.md).
    """
    shared = _shared_arguments(args)
    settings = build_arguments(FinetuneArguments, {**shared, "data": args.data})
    steps = steps or Steps(settings.max_steps, settings.pretraining_steps)
    shared["max_steps"] = steps.finetuning
    if args.unlabelled:  # consistency needs EMA weights, so all methods use them
        shared["model_ema_decay"] = settings.model_ema_decay or 0.99
    training, _ = open_train_and_val(settings)
    num_images = len(training)
    labels = args.labels or sorted({min(num_images, count) for count in DEFAULT_LABELS})
    if max(labels) > num_images:
        raise ValueError(f"labels: {max(labels)} is more than the {num_images} training images of {args.data}.")
    matching = {model.name: model for model in list_pretrained() if model.encoder_name == settings.encoder_name}
    decoder_fields = _decoder_fields(next(iter(matching))) if matching else {}
    statistics: dict[str, Any] = {}
    if settings.num_channels not in (None, 3):
        # Measured once, because measuring on each method's images would also compare normalisations.
        indices = evenly_spaced(num_images, REFERENCE_IMAGES)
        mean, std = channel_statistics(to_tensor(training[index]["image"]) for index in indices)
        statistics = {"image_mean": mean, "image_std": std}
    shared |= statistics
    first_stage = dataclasses.replace(
        settings, unlabelled=args.unlabelled, pretraining_steps=steps.pretraining, **decoder_fields, **statistics
    )
    pretraining = vars(stage_arguments(first_stage, training))
    del pretraining["images"]  # the study's, which may move
    without_encoder = {name: value for name, value in shared.items() if name != "encoder_name"}
    methods = [Method(RANDOM_DECODER, None, {**shared, **decoder_fields}, baseline=True)]
    is_microscopy = args.augmentation == "microscopy"
    methods += [
        Method(name, None, {**without_encoder, "pretrained": name}, False, optional=model.microscopy != is_microscopy)
        for name, model in matching.items()
    ]
    can_predict_features = not fixed_image_size(DDePConfig(encoder_name=settings.encoder_name))
    if is_microscopy or not can_predict_features:
        defaults = (DDEP_METHOD, MASKED_METHOD)
    else:
        defaults = (DDEP_METHOD, CONTINUED_METHOD if START in matching else FEATURES_METHOD)
    methods += [
        Method(name, {**pretraining, "corruption": corruption}, without_encoder, False, optional=name not in defaults)
        for name, corruption in CORRUPTIONS.items()
        if name != CONTINUED_METHOD and (name != FEATURES_METHOD or can_predict_features)
    ]
    if START in matching:
        start_fields = list_field_names(PretrainArguments, "architecture")  # set by the shipped decoder
        continued = {name: value for name, value in pretraining.items() if name not in start_fields}
        continued |= {"corruption": CORRUPTIONS[CONTINUED_METHOD], "pretrained": START}
        is_optional = CONTINUED_METHOD not in defaults
        methods.append(Method(CONTINUED_METHOD, continued, without_encoder, False, optional=is_optional))
    if args.unlabelled:
        consistency = {**shared, **decoder_fields, **CONSISTENCY}
        methods.append(Method(CONSISTENCY_METHOD, None, consistency, False, optional=True))
    seeds = {str(Fraction(count, num_images)): args.seeds or 3 for count in sorted(labels)}
    return Study(methods, seeds, args.data, args.unlabelled, None, own_data=True)


def _shared_arguments(args: StudyArguments) -> dict[str, Any]:
    """Arguments of fine-tuning shared by all methods, except for the location of the data."""
    values = {name: getattr(args, name) for name in (*DATA_FIELDS, *OVERRIDES) if name != "data"}
    preset = "few-labels-microscopy" if args.augmentation == "microscopy" else "few-labels"
    return {"preset": preset, **{name: value for name, value in values.items() if value is not None}}


def _decoder_fields(name: str) -> dict[str, Any]:
    stored = stored_config(name)
    names = {field.name for field in dataclasses.fields(FinetuneArguments)}
    return {field: value for field, value in stored.items() if field.startswith("decoder_") and field in names}


def read_steps(output: Path) -> Steps | None:
    """The steps that [`fit_steps`] chose for the runs in a folder, if it did."""
    path = output / STEPS
    return Steps(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def fit_steps(args: StudyArguments, study: Study) -> Steps:
    """Chooses steps so that all runs of `study` fit into `args.minutes`, by timing a short run of each kind.

    The steps are saved in `steps.json`. Fine-tuning and pretraining are shortened equally, and never longer than by
    default. Raises a ValueError if the time is too short for this number of runs.
    """
    output = Path(args.output_dir)
    check_not_file(output)
    output.mkdir(parents=True, exist_ok=True)
    with lock_file(output / f".{STEPS}.lock", wait=True):  # so that processes that share a study time it once
        return _fit_steps(args, study, output)


def _fit_steps(args: StudyArguments, study: Study, output: Path) -> Steps:
    full_study = own_data_study(args)
    if (chosen_steps := read_steps(output)) is not None:
        print(
            f"{output / STEPS} of an earlier call sets {chosen_steps.finetuning} steps of fine-tuning and "
            f"{chosen_steps.pretraining} of pretraining, which `minutes` does not change. Choose another output_dir "
            "for other steps."
        )
        return chosen_steps
    if read_rows(output / "results.csv"):
        raise ValueError(
            f"minutes: {output} has rows of runs with the steps of the preset. Leave minutes out, or choose another "
            "output_dir."
        )
    pretraining_methods = [method for method in study.methods if method.name in CORRUPTIONS]
    folder = output / ".timing"
    fraction = next(iter(full_study.seeds))
    finetuning = full_study.finetune_arguments(full_study.methods[0], fraction, 0, folder, None)
    full_steps = Steps(finetuning.max_steps, finetuning.pretraining_steps)
    # A loss on unlabelled images dominates the time of a step.
    slow_methods = [method for method in study.methods if method.has_unlabelled_loss]
    print(f"Timing some steps of {'pretraining and of ' * bool(pretraining_methods)}fine-tuning.", flush=True)
    start = time.monotonic()
    training_seconds = pretraining_seconds = 0.0  # of the runs, and of one step of each
    training = open_train_and_val(finetuning)[0]
    try:
        for method in pretraining_methods:  # each, because predicting features takes longer
            pretraining = timing_arguments(study.pretrain_arguments(method, folder), folder)
            training_seconds += PretrainTrainer(pretraining, more_images={"labelled": training}).run()["seconds"]
            pretraining_seconds += seconds_per_step(pretraining)
        finetuning = timing_arguments(finetuning, folder)
        training_seconds += finetune(finetuning)["seconds"]
        # Overhead of one run: building, reading, evaluating.
        overhead = (time.monotonic() - start - training_seconds) / (len(pretraining_methods) + 1)
        finetuning_seconds = seconds_per_step(finetuning) * (len(study.methods) - len(slow_methods))
        for method in slow_methods:
            slow = timing_arguments(study.finetune_arguments(method, fraction, 0, folder, None), folder)
            finetune(slow)
            finetuning_seconds += seconds_per_step(slow)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    num_seeds = sum(study.seeds.values())
    num_runs = len(study.methods) * num_seeds
    seconds = num_seeds * full_steps.finetuning * finetuning_seconds + full_steps.pretraining * pretraining_seconds
    fixed_seconds = overhead * (num_runs + len(pretraining_methods))
    budget_fraction = min(1.0, (60 * float(args.minutes or 0) - fixed_seconds) / seconds)
    steps = Steps(round(budget_fraction * full_steps.finetuning), round(budget_fraction * full_steps.pretraining))

    def minutes_for(finetuning_steps: int) -> int:
        return math.ceil((fixed_seconds + seconds * finetuning_steps / full_steps.finetuning) / 60)

    if steps.finetuning < TIMED_STEPS:
        raise ValueError(
            f"minutes: {args.minutes:g} is too short for {num_runs} runs, which take at least "
            f"{minutes_for(TIMED_STEPS + 1)}. Allow more, or compare fewer methods, labels and seeds."
        )
    if steps.finetuning < MIN_RELIABLE_STEPS:
        print(
            f"Only {steps.finetuning} steps of fine-tuning fit into {args.minutes:g} minutes with {num_runs} runs, "
            f"too few for a recommendation. For {MIN_RELIABLE_STEPS} steps, allow {minutes_for(MIN_RELIABLE_STEPS)} "
            "minutes, or compare fewer methods, labels and seeds.",
            flush=True,
        )
    atomic_write(output / STEPS, json.dumps(dataclasses.asdict(steps)) + "\n")
    return steps


def draw_examples(study: Study, finals: Mapping[str, Path], path: Path) -> None:
    """Draws predictions on validation images; `finals` maps each method to the folder of one model."""
    models = {name: load_model(folder) for name, folder in finals.items()}
    first_model = next(iter(models.values()))
    processor = load_processor(next(iter(finals.values())), first_model.config)
    picture = segmentation_picture(
        models,
        open_train_and_val(study.data_arguments)[1],
        EvalTransform(processor),
        Normalize.from_processor(processor),
    )
    save_picture(picture, path)
