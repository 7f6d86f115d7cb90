"""The command `ddep-hub`, and how it and the scripts report user errors.

Errors are one line; `--debug` or DDEP_DEBUG=1 shows the traceback.
"""

import errno
import os
import sys
import time
from types import TracebackType


COMMANDS = {
    "select": "choose which images to label: a representative subset",
    "prepare": "convert labelled images in many formats to a folder that fine-tuning reads",
    "pretrain": "pretrain a decoder on unlabelled images",
    "finetune": "fine-tune a segmentation model on a few labelled images",
    "evaluate": "evaluate a fine-tuned model on labelled images",
    "predict": "segment images, and write masks and overlays",
    "compare": "compare fine-tuning with and without pretrained decoders, in many runs with a report",
    "stats": "measure the mean and standard deviation of image channels",
    "export": "export a fine-tuned model to ONNX and torch.export",
    "convert": "convert a U-Net from or to segmentation_models.pytorch",
    "card": "write the model card for a folder",
    "publish": "upload a model to the Hub and check that it loads from there",
    "list": "list the decoders and presets that ship with the package",
}
USAGE = """usage: ddep-hub COMMAND [arguments]

{}

`ddep-hub COMMAND --help` lists the arguments of a command. `--debug` or DDEP_DEBUG=1 shows the traceback of an error.
On several devices: `accelerate launch -m ddep_hub COMMAND [arguments]`.""".format(
    "\n".join(f"  {name:<9} {summary}" for name, summary in COMMANDS.items())
)


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: What follows `ddep-hub`; `sys.argv[1:]` by default.

    Returns:
        The exit code: 0; 1 if files, models, data or the Hub cannot be used; 2 for an unknown command; 75 if a run was
        stopped and can be resumed; 130 after Ctrl-C.

    Raises:
        SystemExit: After `--help`, and for arguments that cannot be parsed (code 2).
    """
    start = time.monotonic()  # before the imports, which take seconds
    for stream in (sys.stdout, sys.stderr):  # file names may contain characters that the terminal's encoding lacks
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    name, *arguments = [argument for argument in argv if argument != "--debug"] or [""]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name == "--version":
        from ddep_hub.configuration_ddep import __version__

        print(f"ddep-hub {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"{USAGE}\n\nddep-hub: unknown command {name!r}" if name else USAGE, file=sys.stderr)
        return 2
    try:
        from ddep_hub.training.interruption import track_time

        from . import commands

        with track_time(start):
            getattr(commands, name if name != "list" else "list_shipped")(arguments)
    except Exception as error:
        if hasattr(error, "exit_code"):  # a stopped run, which has printed the reason
            return int(error.exit_code)
        line = format_error(error)
        if line is None or "--debug" in argv:
            raise
        print(f"ddep-hub {name}: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if "--debug" in argv or _is_debug():
            raise
        print(f"ddep-hub {name}: interrupted", file=sys.stderr)
        return 130  # by convention, 128 plus the number of SIGINT
    return 0


# Raised for bad files, data, models and settings. Anything else is a bug in the package, and shows its traceback.
USER_ERRORS = (ImportError, OSError, ValueError, RuntimeError, ArithmeticError)
# Matched by name, to avoid importing their libraries; not subclasses of the above.
USER_ERROR_NAMES = ("StrictDataclassError", "SafetensorError", "YAMLError")


def format_error(error: BaseException) -> str | None:
    """The line to print for a user error; `None` for other errors, and for all errors in debug mode."""
    is_named = any(kind.__name__ in USER_ERROR_NAMES for kind in type(error).__mro__)
    if _is_debug() or not (is_named or isinstance(error, USER_ERRORS)):
        return None
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and text.startswith("[Errno"):
        hint = "Free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the path."
        text = f"{error.filename2 or error.filename}: {error.strerror}. {hint}"
    elif is_named and error.__cause__ is not None:  # without the names of validators
        text = str(error.__cause__)
    elif "gloo/transport" in text and "by peer" in text:
        text = "Another process of this run has ended. Look for its error in the output."
    return " ".join(text.split()) or type(error).__name__


def _is_debug() -> bool:
    return os.environ.get("DDEP_DEBUG") == "1"


def explain_mistakes(program: str) -> None:
    """Makes a script end with one line and exit code 1 on a user error, as the commands do.

    The line starts with `program`. Removes `--debug` from the command line.
    """
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        return
    previous_hook = sys.excepthook

    def print_error(error_type: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if hasattr(error, "exit_code"):  # a stopped run, which has printed the reason
            raise SystemExit(error.exit_code)
        line = format_error(error)
        if line is None:
            previous_hook(error_type, error, traceback)
        else:
            print(f"{program}: {line}", file=sys.stderr)

    sys.excepthook = print_error
