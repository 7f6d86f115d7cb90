"""From a name to labelled images."""

import datasets
import numpy as np
import pytest
from PIL import Image

from ddep_hub.data.arguments import LabelledDataArguments
from ddep_hub.data.class_files import write_class_table
from ddep_hub.data.labelled_data import open_split
from ddep_hub.data.synthetic import SCENE_CLASSES, render_scene


def test_a_folder(tmp_path):
    image, mask = render_scene(0, 0, (40, 48))
    for folder, pixels in (("images", image), ("annotations", mask)):
        (tmp_path / folder / "val").mkdir(parents=True)
        for stem in "ab":
            Image.fromarray(pixels).save(tmp_path / folder / "val" / f"{stem}.png")
    write_class_table(SCENE_CLASSES, tmp_path / "classes.json")
    (tmp_path / "b.txt").write_text("b")
    args = LabelledDataArguments(data=str(tmp_path))
    rows = open_split(args, "val", str(tmp_path / "b.txt"))
    assert rows.sample_ids == ["b"] and np.array_equal(rows[0]["annotation"], mask)
    (tmp_path / "meta.parquet").touch()  # something of the user's
    assert open_split(args, "val").sample_ids == ["a", "b"]
    with pytest.raises((FileNotFoundError, ValueError), match="test"):
        open_split(args, "test")


def test_a_data_set_beside_pictures_for_its_readme(tmp_path):
    image, mask = render_scene(0, 0, (40, 48))
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "teaser.png")
    (tmp_path / "data").mkdir()
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    data = {"image": [Image.fromarray(image)], "annotation": [Image.fromarray(mask)]}
    datasets.Dataset.from_dict(data, features=features).to_parquet(str(tmp_path / "data" / "val-0.parquet"))
    write_class_table(SCENE_CLASSES, tmp_path / "classes.json")
    args = LabelledDataArguments(data=str(tmp_path), classes=str(tmp_path / "classes.json"))
    rows = open_split(args, "val")
    assert np.array_equal(rows[0]["annotation"], mask)


def test_folders_of_a_data_set_of_columns_are_refused():
    with pytest.raises(ValueError, match="mask_suffix have no effect on hf://datasets/org/name"):
        open_split(LabelledDataArguments(data="hf://datasets/org/name", mask_dir="masks"), "train")


def test_a_data_set_that_does_not_name_its_classes(tmp_path):
    image, mask = render_scene(0, 0, (40, 48))
    data = {"photo": [Image.fromarray(image)], "map": [Image.fromarray(mask)]}
    features = datasets.Features({"photo": datasets.Image(), "map": datasets.Image()})
    saved = datasets.DatasetDict({"val": datasets.Dataset.from_dict(data, features=features)})
    saved.save_to_disk(str(tmp_path / "saved"))
    write_class_table(SCENE_CLASSES, tmp_path / "classes.json")
    columns = {"image_column": "photo", "mask_column": "map"}
    args = LabelledDataArguments(data=str(tmp_path / "saved"), classes=str(tmp_path / "classes.json"), **columns)
    rows = open_split(args, "val")
    assert rows.classes == SCENE_CLASSES and np.array_equal(rows[0]["annotation"], mask)
