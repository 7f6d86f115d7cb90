"""Folders that appear only when they are whole."""

import pytest

from ddep_hub.training.run_folder import MetricsLog, read_metrics, whole_folder


def test_the_new_folder_replaces_the_old_one(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "final") as folder:
            (folder / "file").write_text(text)
            assert folder.parent == tmp_path
    assert (tmp_path / "final" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    with whole_folder(tmp_path / "final") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(OSError, match="disk"), whole_folder(tmp_path / "final") as folder:
        (folder / "file").write_text("half")
        raise OSError("disk full")
    assert (tmp_path / "final" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_metrics(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": 0.5})
    log.write({"step": 2, "loss": 0.25})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    MetricsLog(None).write({"step": 3})
