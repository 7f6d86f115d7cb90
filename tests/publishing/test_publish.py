"""Publishing a folder over HTTP: one commit of all its files, read back and compared."""

import hashlib

import pytest
from huggingface_hub import constants

from ddep_hub.publishing.publish import publish_folder


def state(folder):
    """Names, contents and times of a folder's files."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files]


@pytest.mark.parametrize("xet", [False, True])
def test_one_commit_of_all_files(hub, folder, monkeypatch, xet):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    (folder / ".hidden").write_text("x")
    (folder / "outside").symlink_to("/etc/hostname")
    before = state(folder)
    address = publish_folder(folder, "org/name", private=True)
    repository = hub.repositories["org/name"]
    assert list(repository.messages.values()) == ["initial commit", "Upload DDeP model"]
    assert repository.private and address.endswith(repository.branches["main"])
    published = {name: content for name, content in repository.head().items() if name != ".gitattributes"}
    local = {name: (folder / name).read_bytes() for name in published}
    assert set(published) == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert published.pop("README.md") == local["README.md"].replace(b"path/to/this/folder", b"org/name")
    assert all(published[name] == local[name] for name in published)
    assert hub.counted("POST", "/v1/xorbs") == xet and hub.counted("PUT", "/lfs") == (not xet)
    assert state(folder) == before
