"""Publishing a folder on the Hub: one commit, read back and compared."""

import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download

from .client import PublishError, StaleError, call_hub
from .model_card import CARD, published_card
from .staging import model_class, read_config, stage
from .verify import Verifier


WEIGHTS = "model*.safetensors*"


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
    """Uploads all files of a folder in one commit, reads them back, and compares the model with the local one.

    The repository is created if there is none. The card is written from the folder's files, see [`published_card`].
    Weights of an earlier model that the folder does not have are removed in the same commit. The folder itself is not
    changed.

    Args:
        folder: A folder that `from_pretrained` loads.
        repo_id: `org/name`.
        private: Make a new repository private.
        revision: Branch to publish to, created from main if there is none; default: main.
        tag: Name for the commit, given after the comparison.
        create_pr: Open a pull request instead of committing to the branch.
        token: Token to use instead of `HF_TOKEN` or the stored one.
        decoder_only: Leave the encoder out.
        remote_code: Publish the model's code too, so that `trust_remote_code=True` loads it without this package.
        verify: Read back and compare.

    Returns:
        URL of the commit, or of the pull request.

    Raises:
        FileNotFoundError: The folder has no `config.json`.
        PublishError: The Hub refused or cannot be reached, and nothing was published; or what was published is not
            what was sent, and the message names the commit.
        OSError, RuntimeError: The folder cannot be loaded; nothing was published.
        ValueError: Arguments that exclude each other, or a damaged file in the folder.
    """
    if tag and create_pr:
        raise ValueError("tag names a commit, and create_pr only proposes one. Set one of them.")
    folder, api = Path(folder), HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="ddep-publish-") as temporary:
        staged = Path(temporary) / folder.name
        staged.mkdir()
        stage(folder, staged, decoder_only=decoder_only, remote_code=remote_code)
        published_card(staged, repo_id)  # a damaged file shows up before anything is sent
        verifier = Verifier(staged) if verify else None
        message = f"Upload {model_class(staged).__name__}"
        message += ", decoder only" if read_config(staged).get("decoder_only") else ""
        message += ", with its code" if remote_code else ""
        repo_id = prepare_repository(api, repo_id, private=private, revision=revision, tag=tag)
        try:
            commit, sent = _commit(api, repo_id, staged, revision, message, create_pr)
        except StaleError:
            # Someone else committed meanwhile, or the answer to our commit was lost: then nothing is left to commit.
            commit, sent = _commit(api, repo_id, staged, revision, message, create_pr)
        if verifier is not None:
            try:
                verifier.check(repo_id, commit.oid, sent, token=token, remote_code=remote_code)
            except PublishError as error:
                raise PublishError(f"{error} The commit is {commit.oid} ({commit.commit_url}).") from error
    if tag:
        what = f"{commit.commit_url} is published, but the tag {tag} on it"
        call_hub(lambda: api.create_tag(repo_id, tag=tag, revision=commit.oid), what)
    return str(commit.pr_url or commit.commit_url)


def prepare_repository(
    api: HfApi, repo_id: str, *, private: bool = False, revision: str | None = None, tag: str | None = None
) -> str:
    """Creates the repository and the branch if they do not exist; arguments as in [`publish_folder`].

    Returns:
        The repository's full name.

    Raises:
        PublishError: The Hub refused, the tag is taken, or the repository is public and should be private.
    """
    created = call_hub(lambda: api.create_repo(repo_id, private=private, exist_ok=True), f"creating {repo_id}")
    repo_id = created.repo_id
    if private and not call_hub(lambda: api.repo_info(repo_id), f"looking at {repo_id}").private:
        raise PublishError(
            f"{repo_id} is public already, and `private` makes only a new repository private. Make it private in its "
            "settings on the Hub, choose another name, or leave `private` out."
        )
    if tag or revision:
        refs = call_hub(lambda: api.list_repo_refs(repo_id), f"listing the branches of {repo_id}")
        tags, branches = ([ref.name for ref in kind] for kind in (refs.tags, refs.branches))
        if tag in tags:
            raise PublishError(f"tag: {repo_id} has a tag {tag} already. Choose another.")
        if revision in tags:
            raise PublishError(f"revision: {revision} is a tag of {repo_id}. Publish to a branch.")
        if revision and revision not in branches and not revision.startswith("refs/"):
            what = f"creating the branch {revision} of {repo_id}"
            call_hub(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), what)
    return repo_id


def _commit(
    api: HfApi, repo_id: str, staged: Path, revision: str | None, message: str, create_pr: bool
) -> tuple[CommitInfo, dict[str, Path]]:
    """The one commit, onto the branch as it is now."""
    head = call_hub(lambda: api.repo_info(repo_id, revision=revision), f"looking at {repo_id}")
    existing = [sibling.rfilename for sibling in head.siblings or []]
    sent = {file.relative_to(staged).as_posix(): file for file in sorted(staged.rglob("*")) if file.is_file()}
    card = staged.parent / CARD  # not in `staged`, where the user's is a link
    on_hub = None
    if CARD in existing:
        place = {"revision": head.sha, "cache_dir": staged.parent, "token": api.token}
        path = call_hub(lambda: hf_hub_download(repo_id, CARD, **place), f"reading the card of {repo_id}")
        on_hub = Path(path).read_text(encoding="utf-8")
    text = published_card(staged, repo_id, on_hub)
    if text is not None:
        card.write_text(text, encoding="utf-8")
        sent[CARD] = card
    old = [name for name in existing if name not in sent and fnmatch(name, WEIGHTS) and "/" not in name]
    operations: list[Any] = [CommitOperationAdd(name, file) for name, file in sent.items()]
    operations += [CommitOperationDelete(name) for name in old]
    options: dict[str, Any] = {"revision": revision, "parent_commit": head.sha, "create_pr": create_pr}
    commit = call_hub(
        lambda: api.create_commit(repo_id, operations, commit_message=message, **options),
        f"the commit to {repo_id}",
        once=create_pr,  # nothing would tell a second pull request from the first
        hint="Check the network and the token, or upload without xet: set HF_HUB_DISABLE_XET=1.",
    )
    return commit, sent
