"""Runs a study: pretraining, fine-tuning and evaluation of every method, fraction and seed, one row per run."""

import contextlib
import dataclasses
import gc
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ddep_hub.data.dataloading import compute_fingerprint
from ddep_hub.data.image_datasets import images_fingerprint
from ddep_hub.data.splits import parse_fraction
from ddep_hub.evaluation.evaluate import run_evaluation
from ddep_hub.pretrained import stored_config
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.checkpointing import checkpoint_folders
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.finetuning_data import check_held_out, describe_leaks, open_train_and_val, unlabelled_sources
from ddep_hub.training.interruption import track_time
from ddep_hub.training.pretraining import PretrainTrainer, open_sources, pretrain
from ddep_hub.training.run_dir import is_finished
from ddep_hub.utils.arguments import build_arguments, read_yaml, write_yaml
from ddep_hub.utils.files import atomic_write, check_not_file, lock_file, read_json, remove_dir
from ddep_hub.utils.processes import isolate_state
from ddep_hub.utils.values import did_you_mean

from .config import SCENES, Method, Study, StudyArguments, read_study
from .own_data import Steps, draw_examples, fit_steps, own_data_study, read_steps
from .recommendation import recommend
from .report import Row, add_row, import_figure, read_rows, write_report


logger = logging.getLogger(__name__)

ARGUMENTS = "arguments.yaml"
POLL_INTERVAL = 5.0  # seconds between checks on other processes


@track_time()
@isolate_state()
def compare(arguments: StudyArguments | None = None, **kwargs: Any) -> list[dict[str, Any]]:
    """Compares fine-tuning with and without pretrained decoders: runs what is missing and writes the report.

    Args:
        arguments: The arguments of the study.
        **kwargs: Arguments as keywords, which override `arguments`, such as `data="my-data"` and `minutes=60`.

    Returns:
        The runs, each with its `method`, `fraction` of the labels, `seed`, scores in % (`mean_iou`, ...) and
        `seconds`. `report.md`, `results.csv` and the figures are in `output_dir`.

    Raises:
        OSError, ValueError: See [`build_study`]; or there is nothing to report.
        FloatingPointError: The loss of some runs was not finite; the report covers all others.
        SystemExit: The study was launched on several processes at once.
        RunInterrupted: A signal was received; a checkpoint was written.
    """
    args = build_arguments(StudyArguments, kwargs, arguments)
    if PartialState().num_processes > 1:
        raise SystemExit(
            "A study is many small runs. Launch it as one process; to share the runs, start it several times with "
            "the same output_dir."
        )
    import_figure()  # fails now instead of after all runs
    output = Path(args.output_dir)
    steps = None
    if args.report_only and not (output / "results.csv").is_file():
        raise FileNotFoundError(
            f"report_only: {output} has no results.csv. Check output_dir, or run the study first, without report_only."
        )
    if args.report_only and args.data is None and args.study is None and (output / ARGUMENTS).is_file():
        saved = build_arguments(StudyArguments, read_yaml(output / ARGUMENTS, StudyArguments))
        methods = args.methods or saved.methods
        args = dataclasses.replace(saved, output_dir=args.output_dir, methods=methods, report_only=True)
    if args.uses_own_data and (args.report_only or args.minutes is None):
        steps = read_steps(output)
    elif args.minutes is not None:
        steps = fit_steps(args, build_study(args))
    study = build_study(args, steps)
    failures, leaks = "", _leaks(study) if study.own_data else []
    for note in leaks:
        logger.warning(note)
    if args.report_only:
        check_study(study, output / "results.csv")
    else:
        failures = run_study(study, output, args)
    # Include all methods with rows of this study, even if only others were requested.
    rows = read_rows(output / "results.csv")
    requested, finished = {method.name for method in study.methods}, {row.method for row in rows}
    all_methods = open_study(args, steps).methods
    if failures and not requested & finished:
        raise FloatingPointError(failures)
    if not requested & finished:
        raise ValueError(
            f"report_only: {output / 'results.csv'} has no rows of {', '.join(sorted(requested))}. Check output_dir, "
            "or run the study first, without report_only."
        )

    def has_rows(method: Method) -> bool:
        settings = {row.settings for row in rows if row.method == method.name}
        return bool(settings) and settings == {study.settings(method)}

    reported = [method for method in all_methods if method.name in requested or has_rows(method)]
    title = f"Label efficiency on {Path(study.data or 'rendered scenes').name}"
    files = [output / "report.md", output / "figure.png"]
    summary = None
    if study.own_data:
        shown = {method.name for method in reported}
        settings = next(method.finetuning for method in all_methods if method.baseline)
        # Only for this call's numbers of labels; the report may have others.
        requested_rows = [row for row in rows if row.fraction in study.seeds] or rows
        summary = recommend([row for row in requested_rows if row.method in shown], settings)
        summary = "\n\n".join([summary, *leaks])
        finals = {method.name: _run_folder(study, method, output) / "final" for method in reported}
        finals = {name: final for name, final in finals.items() if final.is_dir()}
        if finals:
            files.append(output / "examples.png")
            draw_examples(study, finals, files[-1])
    print(write_report(dataclasses.replace(study, methods=reported), rows, output, title=title, summary=summary))
    print(", ".join(str(file) for file in files))
    if failures:
        raise FloatingPointError(failures)
    return [dataclasses.asdict(row) for row in rows if row.method in {method.name for method in reported}]


def open_study(args: StudyArguments, steps: Steps | None = None) -> Study:
    """The study from a file, or on the user's own data, with all methods."""
    if args.uses_own_data:
        return own_data_study(args, steps)
    if args.study is None and not Path(SCENES).is_file():
        raise FileNotFoundError(
            f"data: pass your labelled images as data, or a study file as study. The default study, {SCENES}, is "
            "only in the repository."
        )
    return read_study(args.study or SCENES)


def build_study(args: StudyArguments, steps: Steps | None = None) -> Study:
    """The study with the methods, label fractions, seeds and data selected by the arguments."""
    study = open_study(args, steps)
    names = [method.name for method in study.methods]
    for name in args.methods:
        if name not in names:
            raise ValueError(f"methods: unknown {did_you_mean(name, names)} Available: {', '.join(names)}.")
    fractions = [str(parse_fraction(fraction)) for fraction in args.fractions] or list(study.seeds)
    seeds = {fraction: args.seeds or study.seeds.get(fraction, max(study.seeds.values())) for fraction in fractions}
    chosen = args.methods or [method.name for method in study.methods if not method.optional]
    return dataclasses.replace(
        study,
        methods=[method for method in study.methods if method.name in chosen],
        seeds=dict(sorted(seeds.items(), key=lambda item: parse_fraction(item[0]))),
        data=args.data or study.data,
        images=args.unlabelled or study.images,
    )


def check_study(study: Study, table: Path) -> None:
    """Checks the arguments of every run, and the existing rows, before the first run.

    Raises a ValueError if an argument of a method is wrong, or a row was made with other settings.
    """
    settings = {method.name: study.settings(method) for method in study.methods}
    for row in read_rows(table):
        if settings.get(row.method, row.settings) != row.settings:
            raise ValueError(
                f"{table}: the row of `{row.method}`, fraction {row.fraction}, seed {row.seed} was made with other "
                "settings than this study has now. Repeat the arguments of that call, or choose another output_dir."
            )


def check_data(study: Study, output: Path) -> None:
    """Compares a study's images with those with which its folder was started, by name and size.

    Settings do not include the location of the images, so they may move. `data.json` has fingerprints of the labelled
    and the unlabelled images; it is written the first time. Raises a ValueError if the images differ.
    """
    path, current = output / "data.json", _fingerprints(study)
    with lock_file(path.with_name(f".{path.name}.lock"), wait=True):
        recorded: dict[str, str] = read_json(path) if path.exists() else {}
        for name, contents in (("data", "results.csv has rows"), ("images", "pretrained/ has decoders")):
            if name in recorded and name in current and recorded[name] != current[name]:
                raise ValueError(
                    f"{output / contents} from other images than `{name}`: names or sizes of files differ. "
                    "Choose another output_dir, or pass the images it was started with."
                )
        if current.keys() - recorded.keys():
            atomic_write(path, json.dumps(recorded | current, indent=2) + "\n")


def _fingerprints(study: Study) -> dict[str, str]:
    splits = open_train_and_val(study.data_arguments)
    # On all labels, because a small selection may miss an image that a larger one has.
    check_held_out(study.data_arguments, *splits)
    parts = [(dataset.fingerprint, *dataset.classes.fingerprint) for dataset in splits]
    fingerprints = {"data": compute_fingerprint(*parts)}
    if study.own_data and not study.images:
        return fingerprints | {"images": "none"}
    for method in study.methods:
        if method.pretraining is not None and "images" not in method.pretraining:
            return fingerprints | {
                "images": images_fingerprint(open_sources(study.pretrain_arguments(method, Path())))
            }
    if study.images and any(
        method.has_unlabelled_loss and "unlabelled" not in method.finetuning for method in study.methods
    ):
        fingerprints["images"] = images_fingerprint(unlabelled_sources(study.images))
    return fingerprints


def _leaks(study: Study) -> list[str]:
    """The warnings of [`describe_leaks`] about the user's own data."""
    args = dataclasses.replace(study.data_arguments, unlabelled=study.images)
    return describe_leaks(args, *open_train_and_val(args))


def run_study(study: Study, output: Path, args: StudyArguments) -> str:
    """Runs everything without a row in `output/results.csv`, and adds a row for each finished run.

    The arguments are kept in `output/arguments.yaml` for `report_only`, decoders in `output/pretrained/`. For each
    fine-tuning run, `output/runs/<run>/` keeps the arguments, metrics, chosen images and figures, but no weights.
    Interrupted runs resume from their checkpoints. Several processes started on one folder share the runs.

    Returns the messages of runs whose loss was not finite, empty if there are none. Raises a RunInterrupted if a
    signal was received.
    """
    table = output / "results.csv"
    check_not_file(output)
    output.mkdir(parents=True, exist_ok=True)
    check_study(study, table)
    check_data(study, output)
    write_yaml(args, output / ARGUMENTS)
    # The first seed of every method and fraction, then the second, so that early reports cover all methods.
    runs = {
        (method.name, fraction, seed): method
        for seed in range(max(study.seeds.values()))
        for fraction, seeds in study.seeds.items()
        for method in study.methods
        if seed < seeds
    }
    failed: dict[tuple[str, str, int], str] = {}
    while pending := runs.keys() - failed.keys() - {row.key for row in read_rows(table)}:
        for key in (key for key in runs if key in pending):
            try:
                if _run_method(study, runs[key], *key[1:], output):
                    break
            except BlockingIOError:
                continue  # another process is running it
            except PretrainingDiverged as error:  # affects each run that needs the decoder
                failed |= {other: str(error) for other in pending if runs[other].pretraining == runs[key].pretraining}
                break
            except FloatingPointError as error:
                failed[key] = str(error)
                break
        else:
            time.sleep(POLL_INTERVAL)
    failures = [f"{name}, {fraction}, seed {seed}: {reason}" for (name, fraction, seed), reason in failed.items()]
    return "\n".join([f"{len(failed)} runs have no row:", *failures]) if failed else ""


class PretrainingDiverged(FloatingPointError):
    """The loss of a decoder's pretraining was not finite."""


def _run_method(study: Study, method: Method, fraction: str, seed: int, output: Path) -> bool:
    """Pretrains a run's decoder if it does not exist yet, fine-tunes and adds the row.

    Returns whether there was anything to do. Raises a BlockingIOError if another process is pretraining this decoder
    or running this run, and a FloatingPointError, [`PretrainingDiverged`] in pretraining, if the loss was not finite.
    """
    decoder, error, steps = None, None, 0
    if method.pretraining is not None:
        pretraining = study.pretrain_arguments(method, output / "pretrained")
        try:
            decoder, error = _pretrain_decoder(pretraining, study)
        except FloatingPointError as diverged:
            raise PretrainingDiverged(f"pretraining: {diverged}") from diverged
        steps = pretraining.max_steps
    args = study.finetune_arguments(method, fraction, seed, output / "runs", decoder)
    folder = Path(args.output_dir)
    with _lock_run(folder):
        if any(row.key == (method.name, fraction, seed) for row in read_rows(output / "results.csv")):
            return False  # another process has just finished it
        print(f"\n=== {method.name}, {fraction} of the labels, seed {seed}", flush=True)
        if is_finished(folder) and not checkpoint_folders(folder):  # its row was removed, so train again
            remove_dir(folder / "final")
        if args.pretrained is not None and not stored_config(args.pretrained).get("decoder_only"):
            args.encoder_weights = None  # the model includes its encoder
        results = finetune(args)
        if (evaluation := study.evaluate_arguments(args)) is not None:
            results |= run_evaluation(evaluation)
        row = Row(
            method=method.name,
            fraction=fraction,
            seed=seed,
            labelled=results["labelled"],
            mean_iou=round(100 * results["mean_iou"], 3),
            mean_accuracy=round(100 * results["mean_accuracy"], 3),
            overall_accuracy=round(100 * results["overall_accuracy"], 3),
            denoising_error=error,
            pretraining_steps=steps,
            finetuning_steps=args.max_steps,
            seconds=results["seconds"],
            settings=study.settings(method),
        )
        add_row(output / "results.csv", row)
        keeps_model = study.own_data and folder == _run_folder(study, method, output)
        for name in ("best", "checkpoints") if keeps_model else ("final", "best", "checkpoints"):
            shutil.rmtree(folder / name, ignore_errors=True)
    gc.collect()  # models and optimizers have reference cycles
    return True


@contextlib.contextmanager
def _lock_run(folder: Path) -> Iterator[None]:
    """Locks a run against other processes of the study; the run's own lock covers only the training, not the row.

    Raises a BlockingIOError if another process has locked the run.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(folder.with_name(f".{folder.name}.claim")):
        yield


def _run_folder(study: Study, method: Method, output: Path) -> Path:
    """The folder of a method's run whose model is kept: the first seed with the most labels."""
    largest_fraction = max(study.seeds, key=parse_fraction)
    return Path(study.finetune_arguments(method, largest_fraction, 0, output / "runs", None).output_dir)


def _pretrain_decoder(args: PretrainArguments, study: Study) -> tuple[str, float]:
    """Returns the folder of a pretrained decoder, which is trained if it does not exist, and its denoising error."""
    folder = Path(args.output_dir)
    results = folder / "final" / "results.json"  # written once the decoder is complete and evaluated
    if not results.exists():
        with _lock_run(folder):
            if not results.exists():
                print(f"\n=== pretraining {folder}", flush=True)
                if study.own_data:
                    labelled = open_train_and_val(study.data_arguments)[0]
                    PretrainTrainer(args, more_images={str(study.data): labelled}).run()
                else:
                    pretrain(args)
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    error = read_json(results)["denoising_error"]
    return str(folder / "final"), round(error, 5)
