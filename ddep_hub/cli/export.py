"""Export of a fine-tuned model to ONNX and `torch.export`."""

from dataclasses import dataclass
from typing import cast

from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.arguments import ModelArguments
from ddep_hub.export import FILES, Format, export
from ddep_hub.pretrained import load_model
from ddep_hub.utils.arguments import arg, pair, parse_command


@dataclass(kw_only=True)
class ExportArguments(ModelArguments):
    """Arguments of `ddep-hub export`."""

    size: list[int] = arg([], "Side of the images in pixels, or height and width. None: images of any size.")
    formats: list[str] = arg(list(FILES), f"Files to write, of {', '.join(FILES)}.")
    output_dir: str = arg("runs/export", "Folder of the files; those of an earlier export are replaced.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.height_and_width()
        unknown = [name for name in self.formats if name not in FILES]
        if unknown or not self.formats:
            raise ValueError(f"formats takes {' and '.join(FILES)}, got {self.formats}.")

    def height_and_width(self) -> tuple[int, int] | None:
        """The images' height and width; `None` for any.

        Raises:
            ValueError: `size` is no such thing.
        """
        size = pair("size", self.size)
        if size is not None and min(size) < 1:
            raise ValueError(f"size takes one positive number or two, got {self.size}.")
        return size


def main(argv: list[str]) -> None:
    """`ddep-hub export`."""
    args = parse_command(ExportArguments, argv, command="ddep-hub export")[0]
    model = load_model(str(args.model), args.encoder_weights)
    mean, std = encoder_mean_std(model.config.encoder_name)
    formats = cast(list[Format], args.formats)
    size = args.height_and_width()
    for name, found in export(model, args.output_dir, size=size, mean=mean, std=std, formats=formats).items():
        print(
            f"{args.output_dir}/{FILES[name]}: largest difference {found['difference']:.1e} of the "
            f"largest logit, {100 * found['same_class']:.3f} % of the pixels in the same class"
        )
