"""Names of image files in little memory."""

import os
import pickle
import sys

import pytest

from ddep_hub.data.image_io import PackedNames


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
