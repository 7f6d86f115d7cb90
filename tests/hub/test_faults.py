"""Faults between the client and the Hub: each is injected over HTTP, and is one row in the docs."""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_hub import Fault, Repository
from huggingface_hub import constants

from ddep_hub.hub.publish import MAX_RETRY_DELAY, RETRY_DELAYS, PublishError, publish_folder


DOCS = Path(__file__).parents[2] / "docs" / "publishing.md"
ALWAYS = 99
CREATE, COMMIT, PREUPLOAD = "/api/repos/create$", "/commit/main", "/preupload/main"
WEIGHTS = "/resolve/.*/model.safetensors$"


def someone_commits(repository: Repository) -> None:
    repository.add("theirs.txt", b"theirs")


def answer_as_ever(repository: Repository) -> None:
    """The fake Hub's own response is the fault."""


@dataclass
class Case:
    """A fault and its outcome.

    Args:
        injected: What goes wrong, for the docs.
        outcome: The outcome, for the docs.
        faults: what the Hub does; a function is called with the repository.
        error: what the error's text matches; `None` for success.
        commits: commits that `publish_folder` made.
        waited: seconds that some call waited.
        options: of `publish_folder`.
        xet: upload by xet, as is the default; else by Git LFS.
    """

    injected: str
    outcome: str
    faults: list[tuple[str, str, object, int, dict[str, str]]]
    error: str | None = None
    commits: int = 1
    waited: tuple[float, ...] = ()
    options: dict[str, bool] = field(default_factory=dict)
    xet: bool = False

    @property
    def row(self) -> str:
        return f"| {self.injected} | {self.outcome} |"


def fault(method: str, path: str, what: int | str | Callable, times: int = 1, **headers: str):
    return method, path, what, times, {name.replace("_", "-"): value for name, value in headers.items()}


CASES = [
    Case(
        "401, unknown token",
        "error: log in, or set HF_TOKEN",
        [fault("POST", "/api/", 401, ALWAYS), fault("GET", "/api/", 401, ALWAYS)],
        error="creating org/name failed.*hf auth login",
        commits=0,
    ),
    Case(
        "403, no write access to the repository",
        "error: use a token with write access",
        [fault("POST", PREUPLOAD, 403, ALWAYS)],
        error="the commit to org/name failed.*no write access",
        commits=0,
    ),
    Case(
        "404, no such repository or branch",
        "error: check the name and the token",
        [fault("POST", COMMIT, 404, ALWAYS)],
        error="the commit to org/name failed.*Check the name",
        commits=0,
    ),
    Case("409, the repository already exists", "published to it", [fault("POST", CREATE, answer_as_ever)]),
    Case(
        "409 once, another commit is in progress",
        "published on top of it, in one commit",
        [fault("POST", COMMIT, 409)],
    ),
    Case(
        "409 every time",
        "error: look at what changed",
        [fault("POST", COMMIT, 409, ALWAYS)],
        error="the commit to org/name failed.*at the same time",
        commits=0,
    ),
    Case(
        "stale revision: someone commits during the upload",
        "published on top of it, their files kept",
        [fault("POST", COMMIT, someone_commits)],
    ),
    Case(
        "stale revision every time",
        "error: look at what changed; their files kept",
        [fault("POST", COMMIT, someone_commits, ALWAYS)],
        error="the commit to org/name failed.*at the same time",
        commits=0,
    ),
    Case(
        "413, a file is too large",
        "error: publish decoder-only, or smaller shards",
        [fault("POST", COMMIT, 413, ALWAYS)],
        error="the commit to org/name failed.*too large",
        commits=0,
    ),
    Case(
        "429 once, with `Retry-After`",
        "published after that delay",
        [fault("POST", CREATE, 429, Retry_After="7")],
        waited=(7,),
    ),
    Case(
        "429 every time, with `Retry-After` of an hour",
        f"error after {len(RETRY_DELAYS)} waits of {MAX_RETRY_DELAY:.0f} s",
        [fault("POST", CREATE, 429, ALWAYS, Retry_After="3600")],
        error="creating org/name failed.*no more requests for now",
        commits=0,
        waited=(MAX_RETRY_DELAY, MAX_RETRY_DELAY),
    ),
    Case("500 once", "published after a second", [fault("POST", COMMIT, 500)], waited=RETRY_DELAYS[:1]),
    Case(
        "500 every time",
        f"error after {len(RETRY_DELAYS) + 1} tries",
        [fault("POST", COMMIT, 500, ALWAYS)],
        error="the commit to org/name failed.*has a problem",
        commits=0,
        waited=RETRY_DELAYS,
    ),
    Case(
        "503 on two requests",
        "published after a few seconds",
        [fault("POST", PREUPLOAD, 503, 2), fault("GET", "/api/models/org/name", 503, 1)],
    ),
    Case(
        "503 every time",
        f"error after {len(RETRY_DELAYS) + 1} tries",
        [fault("GET", "/api/models/org/name", 503, ALWAYS)],
        error="looking at org/name failed.*has a problem",
        commits=0,
        waited=RETRY_DELAYS,
    ),
    Case(
        "connection dropped during an upload",
        "the file is sent again; published",
        [fault("PUT", "/lfs/", "cut")],
    ),
    Case(
        "connection dropped during every upload",
        "error: check the network",
        [fault("PUT", "/lfs/", "cut", ALWAYS)],
        error="the commit to org/name failed.*Check the network",
        commits=0,
    ),
    Case(
        "connection dropped during an upload by xet",
        "sent again; published",
        [fault("POST", "/v1/shards", "cut")],
        xet=True,
    ),
    Case(
        "xet's server refuses the upload",
        "error: check network and token, or set HF_HUB_DISABLE_XET",
        [fault("POST", "/v1/shards", 403, ALWAYS)],
        error="the commit to org/name failed.*HF_HUB_DISABLE_XET=1",
        commits=0,
        xet=True,
    ),
    Case(
        "connection dropped after the commit, before the response",
        "published, in one commit, not two",
        [fault("POST", COMMIT, "no answer")],
    ),
    Case(
        "the same, for a pull request",
        "error: check whether it was opened",
        [fault("POST", COMMIT, "no answer")],
        error="the commit to org/name failed.*whether it was done anyway",
        options={"create_pr": True},
    ),
    Case(
        "connection dropped during the check's download",
        "the download resumes where it stopped; published",
        [fault("GET", WEIGHTS, "cut in the middle")],
    ),
    Case(
        "connection dropped during every such download",
        "error that names the commit",
        [fault("GET", WEIGHTS, "cut", ALWAYS)],
        error=r"reading model.safetensors of org/name back failed.*The commit is [0-9a-f]{40}",
    ),
    Case("a corrupted download", "downloaded again; published", [fault("GET", WEIGHTS, "corrupt")]),
    Case(
        "corrupted in every download",
        "error that names the file and the commit",
        [fault("GET", WEIGHTS, "corrupt", ALWAYS)],
        error=r"model.safetensors of org/name at .* is not what was sent.*The commit is [0-9a-f]{40}",
    ),
]


def state(folder: Path) -> list[tuple[str, str, int]]:
    """Names, contents and times of a folder's files."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.injected)
def test_success_or_a_clear_error(case, hub, folder, monkeypatch):
    repository = hub.add("org/name", {"notes.txt": b"notes"})
    first, before, waited = repository.branches["main"], state(folder), []
    monkeypatch.setattr(time, "sleep", waited.append)  # the client's waits as well
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not case.xet)
    for method, path, what, times, headers in case.faults:
        act = (lambda what=what: what(repository)) if callable(what) else what
        hub.faults.append(Fault(method, path, act, times, headers))
    if case.error is None:
        assert publish_folder(folder, "org/name", **case.options).endswith(repository.branches["main"])
    else:
        with pytest.raises(PublishError) as raised:
            publish_folder(folder, "org/name", **case.options)
        assert re.search(case.error, str(raised.value)), raised.value
        assert raised.value.__cause__ is not None
    assert all(found.times < wanted[3] for found, wanted in zip(hub.faults, case.faults, strict=True)), "not met"
    assert list(repository.messages.values()).count("Upload DDePForSemanticSegmentation") == case.commits
    assert [seconds for seconds in waited if seconds in case.waited] == list(case.waited)
    assert state(folder) == before
    # Whole or not at all, and beside what was there.
    published = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    whole = case.commits == 1 and not case.options
    files = set(repository.head()) - {".gitattributes", "theirs.txt"}
    assert files == {"notes.txt"} | (published if whole else set())
    theirs = any(what is someone_commits for _, _, what, _, _ in case.faults)
    assert ("theirs.txt" in repository.head()) == theirs
    if not whole and not theirs:
        assert repository.branches["main"] == first


def test_the_docs_have_these_rows_and_no_others():
    text = DOCS.read_text(encoding="utf-8")
    table = text[text.index("| Injected | Outcome |") :].split("\n\n")[0].splitlines()
    assert table == ["| Injected | Outcome |", "|---|---|", *(case.row for case in CASES)]
