"""Publishing a folder to the Hub."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi


def publish_folder(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Uploads all files of a folder in one commit; the repository is made where there is none.

    Args:
        folder: a folder that `from_pretrained` loads, with its card.
        repo_id: `org/name`.
        private: whether a new repository is private.
        token: token to use instead of the stored one.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: the folder holds no `config.json`.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused; the folder is untouched.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json. Publish a folder that save_pretrained wrote.")
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    operations = [
        CommitOperationAdd(path.relative_to(folder).as_posix(), path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    commit = api.create_commit(repo_id, operations, commit_message="Upload DDeP model")
    return str(commit.commit_url)
