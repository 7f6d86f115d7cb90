"""Publishing a folder: one commit of all its files."""

import pytest

from ddep_hub.publishing import publish


class Hub:
    """Records the calls to the Hub's client."""

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, private, exist_ok):
        calls.append(("create_repo", repo_id, private, exist_ok))
        return type("Url", (), {"repo_id": repo_id})

    def create_commit(self, repo_id, operations, commit_message):
        calls.append(("create_commit", repo_id, [operation.path_in_repo for operation in operations]))
        return type("Commit", (), {"commit_url": "https://hub/commit"})


calls: list[tuple] = []


def test_one_commit_of_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "HfApi", Hub)
    calls.clear()
    for name in ("config.json", "model.safetensors", "README.md", ".hidden"):
        (tmp_path / name).write_text("x")
    assert publish.publish_folder(tmp_path, "org/name", private=True) == "https://hub/commit"
    assert calls == [
        ("create_repo", "org/name", True, True),
        ("create_commit", "org/name", ["README.md", "config.json", "model.safetensors"]),
    ]


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        publish.publish_folder(tmp_path, "org/name")
