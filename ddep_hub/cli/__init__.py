"""The command `ddep-hub`."""

import sys
from collections.abc import Callable
from importlib import import_module


# Each is a function `main(argv)` of the module of its name: a command imports what it needs, and nothing else.
COMMANDS = {
    "evaluate": "measure a fine-tuned model on labelled images",
    "predict": "write the masks and overlays of images",
    "export": "write a fine-tuned model as ONNX and as a torch.export program",
    "convert": "convert a U-Net of segmentation_models.pytorch or a denoising checkpoint, or to them",
    "card": "write the card of a model anew, or check it",
    "publish": "upload a model to the Hub, and check that it loads from there",
}
USAGE = "usage: ddep-hub COMMAND ...\n\n{}\n\n`ddep-hub COMMAND --help` lists its options.".format(
    "\n".join(f"{name:<9} {summary}" for name, summary in COMMANDS.items())
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: what follows `ddep-hub`; `sys.argv[1:]` by default.

    Returns:
        Exit code: 0, or 1 where images, model, data or the Hub cannot be used.

    Raises:
        SystemExit: after help, and for arguments that cannot be read (code 2).
    """
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in COMMANDS:
        print(f"{USAGE}\n\nddep-hub: unknown command {command!r}" if command else USAGE, file=sys.stderr)
        return 2
    run: Callable[[list[str]], None] = import_module(f"ddep_hub.cli.{command}").main
    try:
        run(rest)
    except (OSError, ValueError) as error:
        print(f"ddep-hub: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
