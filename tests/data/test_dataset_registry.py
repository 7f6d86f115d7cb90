import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddep_hub.data.dataset_registry import get_dataset_info, list_datasets
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.masks import decode_mask


DATA = Path(os.environ.get("DDEP_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
NUMBERS = {"cityscapes": 19, "pascal_context": 59, "ade20k": 150, "pascal_voc": 21, "camvid": 11}


def read_table(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {path}; set DDEP_DATA")
    return json.loads(path.read_text(encoding="utf-8"))


def assert_classes(dataset, entries, name_key="name"):
    assert [entry["id"] for entry in entries] == list(range(dataset.classes.num_classes))
    assert list(dataset.classes.names) == [entry[name_key] for entry in entries]
    assert [list(color) for color in dataset.classes.colors] == [entry["color"] for entry in entries]


def test_every_data_set_is_whole():
    assert {name: get_dataset_info(name).classes.num_classes for name in list_datasets()} == NUMBERS
    for name in list_datasets():
        dataset = get_dataset_info(name)
        ids = set(dataset.mapping.values())
        assert ids == {*range(NUMBERS[name]), 255} and dataset.classes.ignore_index == 255
        assert dataset.home_page.startswith("http") and dataset.title and dataset.terms
        assert dataset.evaluation["flip"] and dataset.evaluation["scales"]
        assert pickle.loads(pickle.dumps(dataset)) == dataset


def test_settings():
    cityscapes, ade20k = get_dataset_info("cityscapes").evaluation, get_dataset_info("ade20k").evaluation
    assert cityscapes["window"] == cityscapes["stride"] == (1024, 1024) and cityscapes["scales"] == (1.0,)
    assert "window" not in ade20k and ade20k["scales"] == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"'voc' is unknown; choose one of cityscapes, .*camvid"):
        get_dataset_info("voc")


def test_cityscapes_equals_the_published_table():
    table = read_table("labels/cityscapes.json")
    assert_classes(get_dataset_info("cityscapes"), table["train_classes"])
    # The licence plate's -1 is never drawn.
    expected = {label["id"]: label["trainId"] for label in table["labels"] if label["id"] >= 0}
    assert get_dataset_info("cityscapes").mapping == expected
    assert len(expected) == 34


def test_pascal_context_equals_the_published_table():
    table = read_table("labels/pascal_context_59.json")
    dataset = get_dataset_info("pascal_context")
    assert_classes(dataset, table["classes"])
    assert list(dataset.id459) == [entry["id459"] for entry in table["classes"]]
    assert list(dataset.classes.names) == sorted(dataset.classes.names)
    assert dataset.mapping == {0: 255, **{value: value - 1 for value in range(1, 60)}}


def test_ade20k_equals_the_published_table():
    assert_classes(get_dataset_info("ade20k"), read_table("labels/ade20k_150.json")["classes"], name_key="short")
    assert get_dataset_info("ade20k").mapping == {0: 255, **{value: value - 1 for value in range(1, 151)}}


def test_camvid_equals_the_copy_at_hand():
    assert_classes(get_dataset_info("camvid"), read_table("camvid/classes.json")["classes"])
    assert get_dataset_info("camvid").mapping == {**{value: value for value in range(11)}, 11: 255}


def test_pascal_voc_has_the_usual_palette():
    classes = get_dataset_info("pascal_voc").classes
    colors = dict(zip(classes.names, classes.colors, strict=True))
    assert colors["background"] == (0, 0, 0)
    assert colors["aeroplane"] == (128, 0, 0)
    assert colors["person"] == (192, 128, 128)
    assert colors["tvmonitor"] == (0, 64, 128)
    assert get_dataset_info("pascal_voc").mapping == {**{value: value for value in range(21)}, 255: 255}


def test_values_are_mapped_before_ids_are_checked(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(np.array([[7, 200], [9, 7]], dtype=np.uint8)).save(path)
    mask = decode_mask(path, num_classes=2, ignore_index=255, mapping={7: 1, 200: 255, 9: 0})
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[1, 255], [0, 1]]


def test_sixteen_bit_values_are_mapped(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(np.array([[1000, 65535]], dtype=np.uint16)).save(path)
    assert decode_mask(path, num_classes=3, ignore_index=255, mapping={1000: 2, 65535: 255}).tolist() == [[2, 255]]


def test_values_outside_the_mapping_are_listed(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(np.array([[0, 3, 90]], dtype=np.uint8)).save(path)
    with pytest.raises(BadFileError, match=r"m\.png holds the values 3, 90, which are not among the 2 of the mapping"):
        decode_mask(path, num_classes=2, ignore_index=255, mapping={0: 0, 1: 1})
    with pytest.raises(BadFileError, match=r"m\.png holds the ids 5"):
        decode_mask(path, num_classes=2, ignore_index=255, mapping={0: 0, 3: 5, 90: 1})
