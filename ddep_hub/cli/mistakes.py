"""Commands and scripts end on a user's mistake with one line; the traceback is behind `--debug` or DDEP_DEBUG=1."""

import os
import sys
from types import TracebackType


# What bad files, data, models and settings raise. The rest are errors of the package, whose traceback is needed.
KINDS = (ImportError, OSError, ValueError, RuntimeError, ArithmeticError)
# Of libraries that are not imported for their names alone, and no kind of the above.
NAMES = ("StrictDataclassError", "SafetensorError", "YAMLError")


def one_line(error: BaseException) -> str | None:
    """What to print of a user's mistake; `None` for other errors, and for all when a traceback is asked for."""
    named = any(kind.__name__ in NAMES for kind in type(error).__mro__)
    if os.environ.get("DDEP_DEBUG") == "1" or not (named or isinstance(error, KINDS)):
        return None
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and text.startswith("[Errno"):
        text = f"{error.filename}: {error.strerror}. Check the path."
    elif named and error.__cause__ is not None:  # without the names of validators
        text = str(error.__cause__)
    return " ".join(text.split()) or type(error).__name__


def explain_mistakes(program: str) -> None:
    """Has a script end on a user's mistake with one line and exit code 1, as the commands do.

    Takes `--debug` off the command line.

    Args:
        program: What the line begins with.
    """
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        return
    previous = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = one_line(error)
        if line is None:
            previous(kind, error, trace)
        else:
            print(f"{program}: {line}", file=sys.stderr)

    sys.excepthook = show
