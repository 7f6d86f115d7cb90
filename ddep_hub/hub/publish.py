"""Calls to the Hub: what passes by itself is tried again, and what does not is said in words that help."""

import tempfile
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download

from .card_text import Card
from .client import PublishError, StaleError, asked
from .model_card import CARD, card_of, published_card
from .staging import model_class, read_config, stage
from .verify import expected_of, read_back


WEIGHTS = "model*.safetensors*"
Files = dict[str, bytes | Path]


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
    encoder_weights: str | Path | None = None,
    message: str | None = None,
    verify: bool = True,
) -> str:
    """Uploads all files of a folder in one commit, reads them back, and compares the model with the local one.

    The repository is made where there is none. Its card is made from the folder's files, see [`card_of`]; what a
    person wrote into the one in the folder or on the Hub is kept. Weights of an earlier model that the folder has not
    got are removed in the same commit. The folder is not written to.

    Args:
        folder: a folder that `from_pretrained` loads, with its card.
        repo_id: `org/name`.
        private: whether a new repository is private.
        revision: branch to publish to; made from main where there is none. Default: main.
        tag: name to give the commit when it has been read back.
        create_pr: open a pull request in place of a commit to the branch.
        token: token to use instead of `HF_TOKEN` or the stored one.
        decoder_only: leave the encoder out of what is published.
        remote_code: publish the model's code too, so that `trust_remote_code=True` loads it without this package.
        encoder_weights: file of the encoder, to compare a decoder-only model; by default it comes from timm's
            repository. Where that cannot be reached, a warning says what is compared instead.
        message: the commit's message; by default it says what is uploaded.
        verify: read back and compare.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        FileNotFoundError: the folder holds no `config.json`.
        PublishError: the Hub refused or cannot be reached, and nothing was published; or what was published is not
            what was sent, and the message names the commit. The folder is untouched.
        OSError, RuntimeError: the folder cannot be loaded; nothing was published.
        ValueError: arguments that do not go together, or the card in the folder cannot be read.
    """
    if tag and create_pr:
        raise ValueError("tag names a commit, and create_pr only proposes one. Leave one of them out.")
    folder, api = Path(folder), HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="ddep-publish-") as temporary:
        staged = Path(temporary) / "model"
        staged.mkdir()
        stage(folder, staged, decoder_only=decoder_only, remote_code=remote_code)
        message, card = message or _what(staged, remote_code=remote_code), card_of(staged)
        expected = expected_of(staged, str(folder), encoder_weights) if verify else None
        repo_id = prepare_repository(api, repo_id, private=private, revision=revision, tag=tag)
        commit, sent = _commit(api, repo_id, staged, card, revision, message, create_pr=create_pr)
        if expected is not None:
            try:
                read_back(repo_id, commit.oid, sent, expected, token=token, remote_code=remote_code)
            except PublishError as error:
                raise PublishError(f"{error} The commit is {commit.oid} ({commit.commit_url}).") from error
    if tag:
        what = f"{commit.commit_url} is published, but the tag {tag} on it"
        asked(lambda: api.create_tag(repo_id, tag=tag, revision=commit.oid), what)
    return str(commit.pr_url or commit.commit_url)


def prepare_repository(
    api: HfApi, repo_id: str, *, private: bool = False, revision: str | None = None, tag: str | None = None
) -> str:
    """Makes the repository and the branch where there are none.

    Args:
        api: the client.
        repo_id: `org/name`.
        private: whether a new repository is private.
        revision: the branch; default: main.
        tag: a tag that must not be there yet.

    Returns:
        The repository's full name.

    Raises:
        PublishError: the Hub refused, the tag is taken, or the repository is public and should be private.
    """
    made = asked(lambda: api.create_repo(repo_id, private=private, exist_ok=True), f"making {repo_id} on the Hub")
    repo_id = made.repo_id
    if private and not asked(lambda: api.repo_info(repo_id), f"looking at {repo_id}").private:
        raise PublishError(
            f"{repo_id} is public already, and private makes only a new repository private. Make it private in its "
            "settings on the Hub, choose another name, or leave private out."
        )
    if tag or revision:
        refs = asked(lambda: api.list_repo_refs(repo_id), f"listing the branches of {repo_id}")
        tags = [found.name for found in refs.tags]
        if tag in tags:
            raise PublishError(f"tag: {repo_id} has a tag {tag} already, and a tag stays where it is. Choose another.")
        if revision in tags:
            raise PublishError(f"revision: {revision} is a tag of {repo_id}. Publish to a branch.")
        known = [found.name for found in refs.branches]
        if revision and revision not in known and not revision.startswith("refs/"):
            what = f"making the branch {revision} of {repo_id}"
            asked(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), what)
    return repo_id


def _what(staged: Path, *, remote_code: bool) -> str:
    """What is uploaded, for the log of the repository."""
    parts = [f"Upload {model_class(staged).__name__}"]
    parts += ["decoder only"] if read_config(staged).get("decoder_only") else []
    parts += ["with its code"] if remote_code else []
    return ", ".join(parts)


def _commit(
    api: HfApi, repo_id: str, staged: Path, card: Card | None, revision: str | None, message: str, *, create_pr: bool
) -> tuple[CommitInfo, Files]:
    """The one commit; made once more from the branch as it is then, where someone else committed meanwhile.

    So it is where the answer to a commit was lost: then all files are there already, and no second commit is made.
    """
    try:
        return _commit_onto_head(api, repo_id, staged, card, revision, message, create_pr=create_pr)
    except StaleError:
        return _commit_onto_head(api, repo_id, staged, card, revision, message, create_pr=create_pr)


def _commit_onto_head(
    api: HfApi, repo_id: str, staged: Path, card: Card | None, revision: str | None, message: str, *, create_pr: bool
) -> tuple[CommitInfo, Files]:
    head = asked(lambda: api.repo_info(repo_id, revision=revision), f"looking at {repo_id}")
    there = [sibling.rfilename for sibling in head.siblings or []]
    sent: Files = {file.relative_to(staged).as_posix(): file for file in sorted(staged.rglob("*")) if file.is_file()}
    if card is not None:
        on_hub = _card_on_hub(api, repo_id, head.sha) if CARD in there else None
        sent[CARD] = published_card(card.named(repo_id), on_hub).text().encode()
    old = [name for name in there if name not in sent and fnmatch(name, WEIGHTS) and "/" not in name]
    operations = [
        *(CommitOperationAdd(name, content) for name, content in sent.items()),
        *(CommitOperationDelete(name) for name in old),
    ]
    commit = asked(
        lambda: api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            revision=revision,
            parent_commit=head.sha,
            create_pr=create_pr,
        ),
        f"the commit to {repo_id}",
        once=create_pr,  # nothing would tell a second pull request from the first
        mend="Check the network and the token, or upload without xet: set HF_HUB_DISABLE_XET=1.",
    )
    return commit, sent


def _card_on_hub(api: HfApi, repo_id: str, commit: str) -> str:
    """The card that a commit holds."""
    with tempfile.TemporaryDirectory(prefix="ddep-card-") as cache:
        path = asked(
            lambda: hf_hub_download(repo_id, CARD, revision=commit, cache_dir=cache, token=api.token),
            f"reading the card of {repo_id}",
        )
        return Path(path).read_text(encoding="utf-8")
