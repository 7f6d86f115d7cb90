"""Publishes a folder on the Hub in one commit, which is downloaded and compared; transient errors are retried."""

import filecmp
import functools
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download

# From httpx: the base class of the Hub client's errors for refusals and lost connections.
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from safetensors.torch import save_file
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ddep_hub.configuration_ddep import DDePConfig
from ddep_hub.encoders import build_encoder
from ddep_hub.modeling_base_ddep import DDePPreTrainedModel
from ddep_hub.utils.files import read_text

from .model_card import build_published_card
from .run_record import BASELINE, EVALUATION, RESULTS
from .staging import CARD, RUN, WEIGHTS_PATTERN, model_class, read_config, stage


Result = TypeVar("Result")


def publish_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    decoder_only: bool = False,
    remote_code: bool = False,
    verify: bool = True,
) -> str:
    """Uploads all files of a folder in one commit, downloads them again, and compares the model with the local one.

    The repository is created if it does not exist. The card is generated from the folder's files, see
    [`build_published_card`]. Weights and the record of an earlier model that are not in the folder are removed in the
    same commit.
    The folder itself is not changed.

    Args:
        folder: A folder that `from_pretrained` loads.
        repo_id: `org/name`.
        private: Make a new repository private.
        revision: Branch to publish to, created from main if it does not exist. Default: main.
        tag: Name for the commit, given after the comparison.
        create_pr: Open a pull request instead of committing to the branch.
        token: Token to use instead of `HF_TOKEN` or the stored one.
        decoder_only: Leave the encoder out.
        remote_code: Publish the model's code too, so that `trust_remote_code=True` loads it without this package.
        verify: Download the files again and compare.

    Returns:
        URL of the commit, or of the pull request; of the last commit if that has the same files.

    Raises:
        FileNotFoundError: The folder has no `config.json`.
        PublishError: The Hub refused or cannot be reached, and nothing was published; or the published files differ
            from those sent, and the message names the commit.
        OSError, RuntimeError: The folder cannot be loaded; nothing was published.
        ValueError: Arguments exclude each other, or a file in the folder is damaged.
    """
    if tag and create_pr:
        raise ValueError("tag names a commit, and create_pr only proposes one. Set only one of them.")
    folder, api = Path(os.path.abspath(os.path.expanduser(folder))), HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="ddep-publish-") as temporary:
        staging_dir = Path(temporary) / folder.name
        staging_dir.mkdir()
        stage(folder, staging_dir, decoder_only=decoder_only, remote_code=remote_code)
        build_published_card(staging_dir, repo_id)  # a damaged file shows up before anything is sent
        verifier = Verifier(staging_dir) if verify else None
        message = f"Upload {model_class(staging_dir).__name__}"
        message += ", decoder only" if read_config(staging_dir).get("decoder_only") else ""
        message += ", with its code" if remote_code else ""
        repo_id = prepare_repository(api, repo_id, private=private, revision=revision, tag=tag)
        try:
            commit, files = _create_commit(api, repo_id, staging_dir, revision, message, create_pr)
        except StaleError:
            # Someone else committed meanwhile, or the answer to our commit was lost: then nothing is left to commit.
            commit, files = _create_commit(api, repo_id, staging_dir, revision, message, create_pr)
        if verifier is not None:
            try:
                verifier.check(repo_id, commit.oid, files, token=token, remote_code=remote_code)
            except PublishError as error:
                raise PublishError(f"{error} The commit is {commit.oid} ({commit.commit_url}).") from error
    if tag:
        operation = f"{commit.commit_url} is published, but the tag {tag} on it"
        # `prepare_repository` has refused a name that was taken, so that one which is there now is ours.
        call_hub(lambda: api.create_tag(repo_id, tag=tag, revision=commit.oid, exist_ok=True), operation)
    return str(commit.pr_url or commit.commit_url)


def prepare_repository(
    api: HfApi, repo_id: str, *, private: bool = False, revision: str | None = None, tag: str | None = None
) -> str:
    """Creates the repository and the branch if they do not exist; returns the repository's full name.

    The arguments are those of [`publish_folder`]. Raises a PublishError if the Hub refuses, the tag is taken, or the
    repository is public although `private` is set.
    """
    # False would override what an organisation has as its default.
    repo = call_hub(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True), f"creating {repo_id}")
    repo_id = repo.repo_id
    if private and not call_hub(lambda: api.repo_info(repo_id), f"looking at {repo_id}").private:
        raise PublishError(
            f"{repo_id} is already public, and `private` only applies to new repositories. Make it private in its "
            "settings on the Hub, choose another name, or leave `private` out."
        )
    if tag or revision:
        refs = call_hub(lambda: api.list_repo_refs(repo_id), f"listing the branches of {repo_id}")
        tags, branches = ([ref.name for ref in ref_list] for ref_list in (refs.tags, refs.branches))
        if tag in tags:
            raise PublishError(f"tag: {repo_id} already has a tag {tag}. Choose another.")
        if revision in tags:
            raise PublishError(f"revision: {revision} is a tag of {repo_id}. Publish to a branch.")
        if revision and revision not in branches and not revision.startswith("refs/"):
            operation = f"creating the branch {revision} of {repo_id}"
            call_hub(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), operation)
    return repo_id


def _create_commit(
    api: HfApi, repo_id: str, staging_dir: Path, revision: str | None, message: str, create_pr: bool
) -> tuple[CommitInfo, dict[str, Path]]:
    """Creates the commit, on top of the current state of the branch."""
    repo_info = call_hub(lambda: api.repo_info(repo_id, revision=revision), f"looking at {repo_id}")
    existing = [sibling.rfilename for sibling in repo_info.siblings or []]
    files = {
        file.relative_to(staging_dir).as_posix(): file for file in sorted(staging_dir.rglob("*")) if file.is_file()
    }
    card = staging_dir.parent / CARD  # not in `staging_dir`, where the user's is a link
    hub_card = None
    if CARD in existing:
        download_options = {"revision": repo_info.sha, "cache_dir": staging_dir.parent, "token": api.token}
        path = call_hub(lambda: hf_hub_download(repo_id, CARD, **download_options), f"reading the card of {repo_id}")
        hub_card = read_text(Path(path))
    text = build_published_card(staging_dir, repo_id, hub_card)
    if text is not None:
        card.write_text(text, encoding="utf-8")
        files[CARD] = card
    # The record of an earlier run would be taken for that of the new weights.
    records = (RUN, RESULTS, BASELINE, EVALUATION) if RUN in existing else ()
    stale_files = [
        name
        for name in existing
        if name not in files and "/" not in name and (fnmatch(name, WEIGHTS_PATTERN) or name in records)
    ]
    operations: list[Any] = [CommitOperationAdd(name, file) for name, file in files.items()]
    operations += [CommitOperationDelete(name) for name in stale_files]
    options: dict[str, Any] = {"revision": revision, "parent_commit": repo_info.sha, "create_pr": create_pr}
    commit = call_hub(
        lambda: api.create_commit(repo_id, operations, commit_message=message, **options),
        f"the commit to {repo_id}",
        once=create_pr,  # nothing would distinguish a second pull request from the first
        hint="Check the network and the token, or upload without xet: set HF_HUB_DISABLE_XET=1.",
    )
    return commit, files


IMAGE_SIZE = (96, 160)  # large enough for every encoder
TOLERANCE = 1e-4  # relative to the largest output; the same weights on the same machine agree to the last digits


class Verifier:
    """Compares a published model with what its folder computed before.

    Both are run on a fixed input; a decoder-only model on a randomly initialised encoder, so that no encoder has to be
    downloaded. `folder` holds the files that are about to be published.
    """

    def __init__(self, folder: Path) -> None:
        self.cls = model_class(folder)
        self.config = DDePConfig.from_pretrained(folder)
        self.decoder_only = bool(read_config(folder).get("decoder_only"))
        self.expected = self._compute_outputs(self.cls, folder)

    def check(
        self, repo_id: str, commit: str, files: Mapping[str, Path], *, token: str | None, remote_code: bool
    ) -> None:
        """Downloads a commit into an empty cache and compares its files and its model.

        `files` are the uploaded files, keyed by their path in the repository. With `remote_code`, the model is loaded
        with the published code. Raises a PublishError if files cannot be read back or anything differs.
        """
        with tempfile.TemporaryDirectory(prefix="ddep-read-back-", ignore_cleanup_errors=True) as cache:
            hub_kwargs: dict[str, Any] = {"revision": commit, "cache_dir": cache, "token": token}
            for name, file in files.items():
                _compare_file(repo_id, name, file, hub_kwargs)

            def load() -> torch.Tensor:
                cls: Any = self.cls
                if remote_code:
                    cls = get_class_from_dynamic_module(f"modeling_ddep.{cls.__name__}", repo_id, **hub_kwargs)
                return self._compute_outputs(cls, repo_id, **hub_kwargs)

            try:
                outputs = call_hub(load, f"loading {repo_id} at {commit}")
            except (OSError, ValueError, ImportError, AttributeError) as error:
                raise PublishError(f"{error} It was published, but cannot be loaded.") from error
        difference = float((outputs - self.expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(self.expected.abs().max())):
            raise PublishError(
                f"{repo_id} at {commit} is not the model that was published: its outputs differ by up to "
                f"{difference:.3g} from those of the local one. Publish again."
            )

    @torch.no_grad()
    def _compute_outputs(self, cls: type[DDePPreTrainedModel], source: str | Path, **hub_kwargs: Any) -> torch.Tensor:
        """A model's output for a fixed input, with fixed noise if it is a pretrained one."""
        with tempfile.TemporaryDirectory(prefix="ddep-encoder-") as temporary:
            if self.decoder_only:
                # Without the recorded hash: these are not the weights that the decoder was trained on.
                hub_kwargs |= {"encoder_weights": self._random_encoder(Path(temporary)), "encoder_weights_hash": None}
            model = cls.from_pretrained(source, dtype=torch.float32, **hub_kwargs).eval()
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(1, model.config.num_channels, *IMAGE_SIZE, generator=generator)
        if cls.__name__ == "DDePForPreTraining":
            noise = torch.randn(images.shape, generator=generator)
            return model(images, noise=noise, sigma=sum(model.config.sigma_range) / 2).prediction
        output = model(images)
        return output.logits if cls.__name__ == "DDePForSemanticSegmentation" else output.last_hidden_state

    def _random_encoder(self, folder: Path) -> Path:
        """Writes the weights of a random encoder, the same each time."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            weights = build_encoder(self.config).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "encoder.safetensors")
        return folder / "encoder.safetensors"


def _compare_file(repo_id: str, name: str, local_file: Path, hub_kwargs: dict[str, Any]) -> None:
    """Raises a PublishError if a file is not what was sent; a corrupt download is repeated once."""
    for force in (False, True):
        download = functools.partial(hf_hub_download, repo_id, name, force_download=force, **hub_kwargs)
        if filecmp.cmp(call_hub(download, f"reading {name} of {repo_id} back"), local_file, shallow=False):
            return
        filecmp.clear_cache()
    raise PublishError(f"{name} of {repo_id} at {hub_kwargs['revision']} is not what was sent. Publish again.")


RETRY_DELAYS = (1.0, 5.0)  # seconds before the second and the third try
MAX_RETRY_DELAY = 60.0  # upper limit on a waiting time requested by the Hub
TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
HINTS = {
    401: "The token is missing or unknown. Log in with `hf auth login`, or set HF_TOKEN.",
    403: "The token has no write access there. Use one that has.",
    404: "There is no such repository or branch, or the token may not see it. Check the name and the token.",
    409: "Someone else is changing the repository at the same time. Look at the changes, then publish again.",
    412: "Someone else committed at the same time. Look at the changes, then publish again.",
    413: "A file is too large for the Hub. Publish `decoder_only`, or save the model in smaller shards.",
    429: "The Hub accepts no more requests for now. Wait, then publish again.",
}
SERVER_ERROR = "The Hub has a problem. Wait, then publish again."
REFUSED = "The Hub refused it. Check the names, then publish again."
NO_ANSWER = "The Hub did not answer. Check the network and whether it was done anyway, then publish again."


class PublishError(OSError):
    """Publishing failed. The message says what is on the Hub and what to do; the local folder is unchanged."""


class StaleError(PublishError):
    """The branch moved between reading it and committing to it."""


def call_hub(action: Callable[[], Result], operation: str, *, once: bool = False, hint: str = "") -> Result:
    """Calls the Hub, with up to `len(RETRY_DELAYS)` retries after a lost connection or a transient server error.

    Args:
        action: The call; it may be made several times.
        operation: What it does, for messages, such as `"the commit to org/name"`.
        once: Do not repeat a call that the server may have carried out.
        hint: What to do about an error that is not an answer of the Hub.

    Raises:
        StaleError: The repository was changed at the same time.
        PublishError: The Hub refused, or cannot be reached.
    """
    for delay in (*RETRY_DELAYS, None):
        try:
            return action()
        except (HTTPError, OSError, RuntimeError) as error:
            # Uploads wrap the client's own error in a RuntimeError, downloads in a FileNotFoundError.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, HTTPError):
                cause = cause.__cause__
            response = getattr(cause, "response", None)
            status = None if response is None else response.status_code
            is_transient = status in TRANSIENT_STATUSES or (status is None and cause is not None)
            if delay is None or not is_transient or (once and status not in (429, 503)):
                if status is not None:
                    hint = HINTS.get(status, SERVER_ERROR if status >= 500 else REFUSED)
                elif isinstance(error, OfflineModeIsEnabled):
                    hint = "HF_HUB_OFFLINE is set. Unset it to publish."
                elif cause is not None:
                    hint = NO_ANSWER
                reason = " ".join(str(cause or error).split()) or type(cause or error).__name__
                error_class = StaleError if status in (409, 412) else PublishError
                raise error_class(f"{operation} failed ({reason}). {hint}".rstrip()) from error
            retry_after = "" if response is None else response.headers.get("Retry-After", "")
            time.sleep(max(delay, min(float(retry_after), MAX_RETRY_DELAY)) if retry_after.isdigit() else delay)
    raise AssertionError("the last try returns or raises")
