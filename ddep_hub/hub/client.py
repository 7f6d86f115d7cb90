"""Calls to the Hub: transient errors are retried, other errors are explained."""

import time
from collections.abc import Callable
from typing import TypeVar

# httpx's: the base of what the Hub's client raises for a refusal or a lost connection.
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled


Result = TypeVar("Result")

WAITS = (1.0, 5.0)  # seconds before the second and the third try
LONGEST_WAIT = 60.0  # upper limit on the time that the Hub asks to wait
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
HINTS = {
    401: "The token is missing or unknown. Log in with `hf auth login`, or set HF_TOKEN.",
    403: "The token has no right to write there. Use one that has.",
    404: "There is no such repository or branch, or the token may not see it. Check the name and the token.",
    409: "Someone else is changing the repository at the same time. Look at the changes, then publish again.",
    412: "Someone else committed at the same time. Look at the changes, then publish again.",
    413: "A file is too large for the Hub. Publish `decoder_only`, or save the model in smaller shards.",
    429: "The Hub takes no more requests for now. Wait, then publish again.",
}
SERVER_ERROR = "The Hub does not work as it should. Wait, then publish again."
NO_ANSWER = "There was no answer. Check the network, check whether it was done anyway, then publish again."


class PublishError(OSError):
    """Publishing failed. The message says what is on the Hub and what to do; the local folder is unchanged."""


class StaleError(PublishError):
    """The branch moved between reading it and committing to it."""


def call_hub(action: Callable[[], Result], what: str, *, once: bool = False, hint: str = "") -> Result:
    """Calls the Hub, with up to `len(WAITS)` retries after a lost connection or a transient server error.

    Args:
        action: The call; it may be made several times.
        what: What it does, for messages, such as `"the commit to org/name"`.
        once: Do not repeat a call that the server may have carried out.
        hint: What to do about an error that is not an answer of the Hub.

    Raises:
        StaleError: The repository was changed at the same time.
        PublishError: The Hub refused, or cannot be reached.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except PublishError:
            raise
        except (HTTPError, OSError, RuntimeError) as error:
            # Uploads wrap the client's own error in a RuntimeError, downloads in a FileNotFoundError.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, HTTPError):
                cause = cause.__cause__
            response = getattr(cause, "response", None)
            status = None if response is None else response.status_code
            transient = status in TRANSIENT or (status is None and cause is not None)
            if wait is None or not transient or (once and status not in (429, 503)):
                if status is not None:
                    hint = HINTS.get(status, SERVER_ERROR)
                elif isinstance(error, OfflineModeIsEnabled):
                    hint = "HF_HUB_OFFLINE is set. Unset it to publish."
                elif cause is not None:
                    hint = NO_ANSWER
                reason = " ".join(str(cause or error).split()) or type(cause or error).__name__
                kind = StaleError if status in (409, 412) else PublishError
                raise kind(f"{what} failed ({reason}). {hint}".rstrip()) from error
            asked = "" if response is None else response.headers.get("Retry-After", "")
            time.sleep(max(wait, min(float(asked), LONGEST_WAIT)) if asked.isdigit() else wait)
    raise AssertionError("the last try returns or raises")
