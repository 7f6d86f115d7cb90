"""The commands of `ddep-hub`: each parses its arguments, imports what it needs and calls a Python function."""

import argparse
import gc
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ddep_hub.evaluation.arguments import EncoderWeightsArguments, EvaluateArguments, ModelArguments, PredictArguments
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.utils.arguments import arg, data_arg, eval_arg, list_presets, model_arg, parse_command, to_pair


def pretrain(argv: list[str]) -> None:
    """`ddep-hub pretrain`."""
    arguments, _ = parse_command(PretrainArguments, argv, command="ddep-hub pretrain")
    from ddep_hub.training.pretraining import pretrain

    pretrain(arguments)
    _end_processes()


def finetune(argv: list[str]) -> None:
    """`ddep-hub finetune`."""
    arguments, _ = parse_command(FinetuneArguments, argv, command="ddep-hub finetune")
    from ddep_hub.training.finetuning import finetune

    finetune(arguments)
    _end_processes()


def evaluate(argv: list[str]) -> None:
    """`ddep-hub evaluate`."""
    arguments, _ = parse_command(EvaluateArguments, argv, command="ddep-hub evaluate")
    from accelerate import PartialState

    from ddep_hub.evaluation.evaluate import run_evaluation, summary

    results = run_evaluation(arguments)
    if PartialState().is_main_process:
        print(summary(results))
    _end_processes()


def predict(argv: list[str]) -> None:
    """`ddep-hub predict`."""
    images = {"nargs": "+", "help": "Image files, folders, patterns such as 'photos/*.jpg', or URLs."}
    try:
        arguments, values = parse_command(PredictArguments, argv, command="ddep-hub predict", images=images)
    except SystemExit as error:
        if error.code == 2:  # a list such as --predictions also takes the images that follow it
            print("usage: ddep-hub predict images ... [arguments], with the images first", file=sys.stderr)
        raise
    from ddep_hub.evaluation.predict import predict_images

    for name in predict_images(values["images"], arguments):
        print(name)
    print(f"Written to {arguments.output_dir}: {', '.join(arguments.predictions)}", file=sys.stderr)


def compare(argv: list[str]) -> None:
    """`ddep-hub compare`."""
    from ddep_hub.label_efficiency.config import StudyArguments

    arguments, _ = parse_command(StudyArguments, argv, command="ddep-hub compare")
    from ddep_hub.label_efficiency.runner import compare

    compare(arguments)


@dataclass(kw_only=True)
class StatsArguments:
    """Measure the mean and standard deviation of image channels, for image_mean and image_std."""

    num_channels: int = data_arg(3, "Number of channels of the images.", common=True)


def stats(argv: list[str]) -> None:
    """`ddep-hub stats`."""
    folders = {"nargs": "+", "help": "Folders of images, searched recursively."}
    arguments, values = parse_command(StatsArguments, argv, command="ddep-hub stats", folders=folders)
    from ddep_hub.data.statistics import folder_statistics

    (mean, std), num_images = folder_statistics(values["folders"], arguments.num_channels)
    print(f"{num_images} images, {len(mean)} channels")
    print(f"--num_channels {len(mean)} --image_mean {' '.join(map(str, mean))} --image_std {' '.join(map(str, std))}")


@dataclass(kw_only=True)
class ExportArguments(ModelArguments):
    """Export a fine-tuned model to ONNX and torch.export, and check both against the model."""

    size: list[int] = eval_arg(
        [],
        "Image size in pixels: one number for square images, or height and width. Default: the image processor's "
        "height and width if it has both, else any size.",
        common=True,
    )
    formats: list[str] = eval_arg(["onnx", "torch"], "Formats to write: onnx, torch.", common=True)
    output_dir: str = eval_arg(
        "runs/export", "Folder for the files; replaces those of an earlier export.", common=True, path=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.formats) <= {"onnx", "torch"} or not self.formats:
            raise ValueError(f"formats takes onnx and torch, got {self.formats}.")
        to_pair("size", self.size)
        if any(side < 1 for side in self.size):
            raise ValueError(f"size takes one positive number or two, got {self.size}.")


def export(argv: list[str]) -> None:
    """`ddep-hub export`."""
    arguments, _ = parse_command(ExportArguments, argv, command="ddep-hub export")
    from ddep_hub.export import FILES, export
    from ddep_hub.pretrained import load_model, load_processor

    model = load_model(str(arguments.model), arguments.encoder_weights)
    processor = load_processor(str(arguments.model), model.config)
    results = export(
        model,
        arguments.output_dir,
        size=to_pair("size", arguments.size),
        processor=processor,
        formats=cast(Any, arguments.formats),
    )
    for name, comparison in results.items():
        print(
            f"{arguments.output_dir}/{FILES[name]}: largest difference {comparison['difference']:.1e} of the "
            f"largest logit, {100 * comparison['same_class']:.3f}% of the pixels in the same class"
        )


@dataclass(kw_only=True)
class ConvertArguments(EncoderWeightsArguments):
    """Convert a U-Net from or to segmentation_models.pytorch."""

    to: Literal["ddep", "smp"] = model_arg(
        "ddep", "`ddep` converts from a segmentation_models.pytorch U-Net, `smp` converts to one.", common=True
    )
    output_dir: str = model_arg("runs/converted", "Folder to write, which must be empty.", common=True, path=True)


def convert(argv: list[str]) -> None:
    """`ddep-hub convert`."""
    source = {"help": "Folder or Hub id of a DDeP model or an smp.Unet."}
    arguments, values = parse_command(ConvertArguments, argv, command="ddep-hub convert", source=source)
    from ddep_hub.convert_smp import convert_from_ddep, convert_to_ddep
    from ddep_hub.pretrained import load_trained

    if arguments.to == "ddep":
        comparison = convert_to_ddep(values["source"], arguments.output_dir)
    else:
        model = load_trained(values["source"], arguments.encoder_weights)
        comparison = convert_from_ddep(model, arguments.output_dir)
    print(f"{arguments.output_dir}: outputs differ by at most {comparison['difference']:.1e} of the largest one")


@dataclass(kw_only=True)
class PrepareArguments:
    """Convert labelled images in many formats to a folder that fine-tuning reads, with a preview."""

    output_dir: str = data_arg("my-data", "Folder to write.", common=True, path=True)
    format: str | None = data_arg(
        None,
        "coco, labelme, cvat, label-studio, yolo, roboflow-masks, objects, stacks or masks; or unlabelled, for pages "
        "and tiles of images without masks. Default: detected, except for unlabelled.",
        common=True,
    )
    classes: str | None = data_arg(
        None, "Path of a classes.json that names the masks' values or colours.", common=True, path=True
    )
    image_dir: str | None = data_arg(
        None, "Folder of the images inside the source, with {split} for the split. Default: detected."
    )
    mask_dir: str | None = data_arg(
        None, "Folder of the masks inside the source, with {split} for the split. Default: detected."
    )
    mask_suffix: str | None = data_arg(
        None, "Suffix of mask names after the image's name, such as _mask. Default: detected."
    )
    val_fraction: str = data_arg("0.2", "Fraction of the images for validation, if the source has no splits.")
    group_pattern: str | None = data_arg(
        None,
        "Regular expression whose first group, or whole match, in an image's name identifies images that must stay in "
        "one split.",
    )
    tile: int | None = data_arg(None, "Cut large images into square tiles with this side.", common=True)
    overlap: int = data_arg(0, "Minimum overlap of neighbouring tiles in pixels.", common=True)
    overwrite: bool = data_arg(False, "Replace a folder that this command wrote.", common=True)


def prepare(argv: list[str]) -> None:
    """`ddep-hub prepare`."""
    source = {"help": "Folder of images, usually with masks or annotations, or an annotation file."}
    arguments, values = parse_command(PrepareArguments, argv, command="ddep-hub prepare", source=source)
    from ddep_hub.preparation import prepare

    print(prepare(values["source"], **vars(arguments)))


@dataclass(kw_only=True)
class SelectArguments(EncoderWeightsArguments):
    """Choose which images to label: a representative subset, by the features of a pretrained encoder."""

    number: int = data_arg(12, "Number of images to choose.", common=True)
    labelled: list[str] = data_arg(
        [], "Images that already have labels, files or folders; they count as already chosen.", common=True, path=True
    )
    output_dir: str = data_arg("to-label", "Folder to write, which must be empty.", common=True, path=True)
    image_size: int = data_arg(224, "Resize images to this shorter side, in pixels, for the encoder.")
    num_channels: int | None = data_arg(
        None, "Number of image channels. Default: that of the model. An RGB model sees the first three."
    )
    pretrained: str = model_arg(
        "ddep-efficientnet-lite0",
        "Model whose encoder is used: a shipped name, a folder or a Hub id.",
        common=True,
        path=True,
    )


def select(argv: list[str]) -> None:
    """`ddep-hub select`."""
    images = {"help": "Folder of images, searched recursively."}
    arguments, values = parse_command(SelectArguments, argv, command="ddep-hub select", images=images)
    from ddep_hub.preparation.selection import select

    for path in select(values["images"], **vars(arguments)):
        print(path)
    print(
        f"Copied to {arguments.output_dir}/images, listed in selected.txt, drawn in selected.png. Label them in this "
        "order.",
        file=sys.stderr,
    )


@dataclass(kw_only=True)
class CardArguments:
    """Write a model card from the model's files. Your own text between the marks in README.md is kept."""

    repository: str | None = arg(
        None, "Repository that the card's snippets load, org/name. Default: unchanged.", group="Hub", common=True
    )
    baseline: str | None = arg(
        None,
        "Folder final/ of a run with a random decoder on the same labels, to show its metrics for comparison.",
        group="Hub",
        common=True,
        path=True,
    )
    evaluation: str | None = arg(
        None,
        "Output folder of `ddep-hub evaluate` for this model; its metrics replace those of the run.",
        group="Hub",
        common=True,
        path=True,
    )

    def __post_init__(self) -> None:
        if self.repository is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository):
            raise ValueError(f"repository must be org/name, got {self.repository}.")


def card(argv: list[str]) -> None:
    """`ddep-hub card`."""
    folder = {"help": "Folder of a model, such as runs/finetune/final.", "type": Path}
    arguments, values = parse_command(CardArguments, argv, command="ddep-hub card", folder=folder)
    from ddep_hub.hub.model_card import write_card
    from ddep_hub.hub.run_record import RESULTS, add_results
    from ddep_hub.hub.staging import CARD, RUN, model_class

    model_class(values["folder"])
    add_results(
        values["folder"],
        evaluation=None if arguments.evaluation is None else Path(arguments.evaluation),
        baseline=None if arguments.baseline is None else Path(arguments.baseline),
    )
    path = values["folder"] / CARD
    previous = path.read_bytes() if path.is_file() else None
    write_card(values["folder"], arguments.repository)
    missing = [name for name in (RUN, RESULTS) if not (values["folder"] / name).is_file()]
    if missing and previous == path.read_bytes():
        print(f"{path} is unchanged: there is no {missing[0]} of a training run to generate a card from")
    else:
        print(f"{path} written")


@dataclass(kw_only=True)
class PublishArguments:
    """Upload a model's folder to the Hub. The token comes from `hf auth login` or HF_TOKEN."""

    private: bool = arg(False, "Make a new repository private.", group="Hub", common=True)
    revision: str | None = arg(
        None, "Branch to publish to, created from main if it does not exist. Default: main.", group="Hub"
    )
    tag: str | None = arg(None, "Name for the commit, such as v1.", group="Hub", common=True)
    create_pr: bool = arg(False, "Open a pull request instead of committing.", group="Hub", common=True)
    decoder_only: bool = arg(
        False, "Leave the encoder out; it must not have changed since it was loaded.", group="Hub", common=True
    )
    remote_code: bool = arg(
        False, "Add the model's code, so that trust_remote_code=True loads it without ddep_hub.", group="Hub"
    )
    verify: bool = arg(
        True, "Download the files again, load the model from the Hub and compare it with the local one.", group="Hub"
    )


def publish(argv: list[str]) -> None:
    """`ddep-hub publish`."""
    folder = {"help": "Folder written by save_pretrained or a training run, such as runs/finetune/final."}
    repository = {"help": "Repository on the Hub, org/name; created if it does not exist."}
    positionals = {"folder": folder, "repository": repository}
    arguments, values = parse_command(PublishArguments, argv, command="ddep-hub publish", **positionals)
    from ddep_hub.hub.publish import publish_folder

    address = publish_folder(values["folder"], values["repository"], **vars(arguments))
    if arguments.create_pr and "/discussions/" not in address:
        print(f"Nothing changed, so no pull request was opened: the files are those of {address}")
    else:
        print(f"Published: {address}")


def list_shipped(argv: list[str]) -> None:
    """`ddep-hub list`."""
    argparse.ArgumentParser(
        prog="ddep-hub list", description="List the decoders and presets that ship with the package."
    ).parse_args(argv)
    from ddep_hub.shipped import list_pretrained

    print("Decoders, for `--pretrained` and `from_pretrained`:")
    for model in list_pretrained():
        print(f"  {model.name} (for {model.encoder_name}, {model.size} MB, {model.license})")
        print(f"    {model.measured}")
    for kind in ("pretrain", "finetune"):
        print(f"Presets of `ddep-hub {kind}`: {', '.join(list_presets(kind))}")


def _end_processes() -> None:
    """Destroys a launcher's process group, whose threads may otherwise outlive the interpreter and abort it."""
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()  # otherwise gloo may abort the later one
    gc.collect()  # wrapped models of earlier stages hold the group
    state.destroy_process_group()
