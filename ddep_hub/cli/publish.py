"""`ddep-hub publish`: uploads a folder to the Hub."""

from dataclasses import dataclass

from ddep_hub.hub.publish import publish_folder
from ddep_hub.utils.arguments import arg, parse_command


POSITIONALS = {
    "folder": {"help": "Folder that save_pretrained or a training script wrote, such as runs/finetune/final."},
    "repository": {"help": "Repository on the Hub, org/name; created if there is none."},
}


@dataclass(kw_only=True)
class PublishArguments:
    """Uploads a folder to the Hub. The token is that of `hf auth login`, or HF_TOKEN."""

    private: bool = arg(False, "Make a new repository private.")
    revision: str | None = arg(None, "Branch to publish to, created from main if there is none; default: main.")
    tag: str | None = arg(None, "Name for the commit, such as v1.")
    create_pr: bool = arg(False, "Open a pull request instead of committing.")
    decoder_only: bool = arg(False, "Leave the encoder out; it must be unchanged since it was loaded.")
    remote_code: bool = arg(
        False, "Publish the model's code too, so that trust_remote_code=True loads it without ddep_hub."
    )
    verify: bool = arg(True, "Read the files back, load the model from the Hub and compare it with the local one.")


def main(argv: list[str]) -> None:
    """Runs `ddep-hub publish`."""
    args, given = parse_command(PublishArguments, argv, command="ddep-hub publish", positionals=POSITIONALS)
    address = publish_folder(
        given["folder"],
        given["repository"],
        private=args.private,
        revision=args.revision,
        tag=args.tag,
        create_pr=args.create_pr,
        decoder_only=args.decoder_only,
        remote_code=args.remote_code,
        verify=args.verify,
    )
    print(f"Published: {address}")
