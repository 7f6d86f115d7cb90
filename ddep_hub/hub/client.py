"""Calls to the Hub: what passes by itself is tried again, and what does not is said in words that help."""

import time
from collections.abc import Callable
from typing import TypeVar

# httpx's, in either of its releases: the base of what the Hub's client raises for a refusal or a lost connection.
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled


Result = TypeVar("Result")

WAITS = (1.0, 5.0)  # seconds before the second and the third try
LONGEST_WAIT = 60.0  # however long the Hub asks to wait
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
MEND = {
    401: "The Hub does not know the token, or there is none: log in with `hf auth login`, or set HF_TOKEN.",
    403: "The token has no right to write there: use one that has, of a user or an organisation that may.",
    404: "There is no such repository or branch, or the token may not see it: check the name and the token.",
    409: "Someone else is changing it at the same time: look at what was changed, then publish again.",
    412: "Someone else committed to it at the same time: look at what was changed, then publish again.",
    413: "It is too large for the Hub: publish `decoder_only`, or save the model in smaller shards.",
    429: "The Hub takes no more requests for now: wait, then publish again.",
}
NO_ANSWER = "There was no answer: check the network, look whether it was done all the same, then publish again."


class PublishError(OSError):
    """Publishing failed; the message says what is on the Hub and what to do. The local folder is as it was."""


class StaleError(PublishError):
    """The branch is no longer what it was when the commit was made."""


def asked(action: Callable[[], Result], what: str, *, once: bool = False, mend: str = "") -> Result:
    """What a call to the Hub returns.

    A busy or failing server and a lost connection are tried again, `len(WAITS)` times. The client itself tries some
    requests again too (those for uploading a file), but not those that make a repository, a commit or a branch.

    Args:
        action: the call. It may be made several times.
        what: what it does, in words, such as `"the commit to org/name"`.
        once: not again after a lost connection or an error of the server: it may have been obeyed.
        mend: what to do about an error that is none of the Hub's answers.

    Raises:
        StaleError: the repository was changed at the same time.
        PublishError: the Hub refused, or cannot be reached.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except (HTTPError, OSError, RuntimeError) as error:
            status, asked_wait = _status_of(error)
            passes = status in TRANSIENT or (status is None and _http_error(error) is not None)
            if wait is None or not passes or (once and status not in (429, 503)):
                raise _in_words(error, status, what, mend) from error
            time.sleep(max(wait, min(asked_wait, LONGEST_WAIT)))
    raise AssertionError("the last try returns or raises")


def _http_error(error: BaseException | None) -> BaseException | None:
    """The client's own error: an upload wraps it in a RuntimeError, a download in a FileNotFoundError."""
    while error is not None and not isinstance(error, HTTPError):
        error = error.__cause__
    return error


def _status_of(error: BaseException) -> tuple[int | None, float]:
    """Status of the Hub's answer, `None` where there was none; and the seconds that it asks to wait."""
    response = getattr(_http_error(error), "response", None)
    if response is None:
        return None, 0.0
    text = response.headers.get("Retry-After", "")
    return response.status_code, float(text) if text.isdigit() else 0.0


def _in_words(error: BaseException, status: int | None, what: str, mend: str) -> PublishError:
    if isinstance(error, PublishError):
        return error
    if isinstance(error, OfflineModeIsEnabled):
        return PublishError(f"{what} failed: HF_HUB_OFFLINE is set. Unset it to publish.")
    if status is None:
        mend = NO_ANSWER if _http_error(error) is not None else mend
    else:
        mend = MEND.get(status, "The Hub does not work as it should: wait, then publish again.")
    cause = _http_error(error) or error
    reason = " ".join(str(cause).split()) or type(cause).__name__
    kind = StaleError if status in (409, 412) else PublishError
    return kind(f"{what} failed ({reason}). {mend}".rstrip())
