"""Image files: found, and their names in little memory."""

import os
import pickle
import sys

import pytest

from ddep_hub.data.image_io import PackedNames, iter_files


NAMES = ["a.jpg", "", "folder/ü.png", os.fsdecode(b"\xff.jpg"), "z" * 300]


def test_packed_names_are_a_list_of_the_names():
    packed = PackedNames(NAMES)
    assert list(packed) == NAMES and len(packed) == 5
    assert packed[-1] == NAMES[-1] and packed[1:4] == NAMES[1:4] and "a.jpg" in packed
    assert list(pickle.loads(pickle.dumps(packed))) == NAMES
    for index in (5, -6):
        with pytest.raises(IndexError):
            packed[index]
    assert list(PackedNames([])) == []


def test_packed_names_take_little_more_than_themselves():
    names = [f"n{number:08d}/n{number:08d}_{number}.JPEG" for number in range(10_000)]
    packed = PackedNames(names)
    assert len(pickle.dumps(packed)) < 1.3 * sum(map(len, names)) + 10 * len(names)
    assert len(pickle.dumps(packed)) < 0.6 * sum(map(sys.getsizeof, names))


def test_folders_that_cannot_be_read_are_warned_of(tmp_path, monkeypatch, caplog):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    scandir = os.scandir

    def scan(path):
        if os.fspath(path) == str(tmp_path / "a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert list(iter_files(tmp_path)) == ["b/x.png"]
    assert f"{tmp_path / 'a'}: skipping this folder, which cannot be read: Permission denied" in caplog.text
    caplog.clear()
    assert list(iter_files(tmp_path / "nowhere")) == [] and not caplog.text
