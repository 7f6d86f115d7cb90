"""Images that `ddep-hub predict` reads from files, and the masks that it writes."""

import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

import ddep_hub
from ddep_hub import DDePImageProcessor
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.synthetic import SCENE_CLASSES
from ddep_hub.evaluation import predict as prediction
from ddep_hub.evaluation.arguments import PredictArguments
from ddep_hub.evaluation.predict import MAX_PENDING, predict_images
from ddep_hub.evaluation.prediction_files import MaskWriter, read_image


def test_a_folder_gets_the_masks_of_its_images_in_order(folder, scenes, tmp_path):
    """They are read and written by other threads than the one that predicts."""
    images = sorted((scenes / "images" / "train").iterdir())
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    names = predict_images([str(scenes / "images" / "train")], arguments)
    assert names == [path.stem for path in images] and len(names) > MAX_PENDING
    for path, mask in zip(images, ddep_hub.predict(folder, images), strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "ids" / f"{path.stem}.png")), mask)


def test_images_of_one_name_keep_their_endings(folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "a.tif", "b.jpg"):
        Image.new("RGB", (40, 36)).save(images / name)
    assert len(ddep_hub.predict(folder, images)) == 3
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    for name in (str(images), str(images / "*")):
        assert predict_images([name], arguments) == ["a.jpg", "a.tif", "b"]


def test_a_pattern_for_any_depth_leaves_out_earlier_predictions(folder, tmp_path):
    Image.new("RGB", (40, 36)).save(tmp_path / "a.png")
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    predict_images([str(tmp_path / "a.png")], arguments)
    arguments.output_dir = str(tmp_path / "again")
    assert predict_images([f"{tmp_path}/**/*.png"], arguments) == ["a"]


def test_an_evaluation_leaves_the_masks_of_predict(folder, scenes, tmp_path):
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    predict_images([str(scenes / "images" / "train")], arguments)
    before = sorted((tmp_path / "masks" / "ids").iterdir())
    ddep_hub.evaluate(folder, str(scenes), output_dir=str(tmp_path), predictions=["ids"])
    ddep_hub.evaluate(folder, str(scenes), output_dir=str(tmp_path))
    assert set(before) <= set((tmp_path / "masks" / "ids").iterdir())


def test_damaged_images_are_skipped_and_named_at_the_end(folder, scenes, tmp_path, caplog):
    mixed = tmp_path / "images"
    mixed.mkdir()
    for number, path in enumerate(sorted((scenes / "images" / "train").iterdir())):
        (mixed / f"{number}.png").write_bytes(path.read_bytes()[: {1: 100, 4: 0}.get(number)])
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    said = r"2 of 6 images could not be read and were skipped; the results .* are in .*masks: .*/1\.png, .*/4\.png\."
    with pytest.raises(BadFileError, match=said):
        predict_images([str(mixed)], arguments)
    written = sorted((tmp_path / "masks" / "ids").iterdir())
    assert [path.stem for path in written] == ["0", "2", "3", "5"]
    assert all(Image.open(path).size == (64, 64) for path in written)
    assert "4.png is empty (0 bytes)" in caplog.text and "skipping it" in caplog.text


def test_values_that_cannot_be_scaled_are_skipped_too(model_of, tmp_path, caplog):
    model_of(2).save_pretrained(tmp_path / "model")
    processor = DDePImageProcessor(image_mean=[0.4] * 2, image_std=[0.3] * 2, do_convert_rgb=False, do_resize=False)
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for name, value in (("a", 0.5), ("b", -3.4e38), ("c", 0.2)):
        np.save(tmp_path / "images" / f"{name}.npy", np.full((2, 48, 64), value, np.float32))
    arguments = PredictArguments(
        model=str(tmp_path / "model"), predictions=["ids"], output_dir=str(tmp_path / "masks")
    )
    with pytest.raises(BadFileError, match=r"1 of 3 images could not be read and were skipped.*/b\.npy\."):
        predict_images([str(tmp_path / "images")], arguments)
    assert sorted(path.stem for path in (tmp_path / "masks" / "ids").iterdir()) == ["a", "c"]
    assert "b.npy holds values that are not finite, or too large" in caplog.text


def test_addresses_and_long_names(tmp_path):
    with pytest.raises(OSError, match=r"could not be downloaded \(<urlopen error"):  # and not for its letters
        read_image("http://127.0.0.1:9/ä b.jpg")
    name = "x" * 247
    MaskWriter(tmp_path, SCENE_CLASSES, ["ids"]).write(name, np.zeros((4, 4), np.uint8))
    assert [path.name for path in tmp_path.rglob("*.png")] == [f"{name}.png"]


def test_few_large_rasters_are_held_at_a_time(folder, tmp_path, monkeypatch):
    for name in range(12):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name:02d}.png")
    held, most = [], []
    read = prediction.read_image

    def read_image(source, channels):
        image = read(source, channels)
        held.append(weakref.ref(image))
        most.append(sum(reference() is not None for reference in held))
        return image

    monkeypatch.setattr(prediction, "read_image", read_image)
    arguments = {"model": str(folder), "predictions": ["ids"], "output_dir": str(tmp_path / "masks")}
    assert len(prediction.predict_images([str(tmp_path)], PredictArguments(window=[16], **arguments))) == 12
    assert max(most) <= 5


def test_nothing_is_written_where_no_image_can_be_read(folder, tmp_path):
    (tmp_path / "a.png").touch()
    arguments = PredictArguments(model=str(folder), output_dir=str(tmp_path / "masks"))
    with pytest.raises(BadFileError, match=r"a\.png is empty"):
        predict_images([str(tmp_path / "a.png")], arguments)
    assert not (tmp_path / "masks").exists()


def test_masks_stay_in_their_folder(tmp_path):
    writer = MaskWriter(tmp_path / "out", SCENE_CLASSES, ["ids", "colors"])
    names = [f"{tmp_path}/photos/x", "../photos/y", "C:\\photos\\z"]
    writer.check(names)
    for name in names:
        writer.write(name, np.zeros((2, 2), int))
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    expected = {f"{tmp_path.as_posix().lstrip('/')}/photos/x", "photos/y", "photos/z"}
    assert written == {f"out/{kind}/{name}.png" for kind in ("ids", "colors") for name in expected}
    with pytest.raises(ValueError, match=r"\.\./a and a would both be written as a\.png"):
        writer.check(["../a", "a"])


def test_a_killed_command_leaves_no_half_mask_and_runs_again(folder, scenes, tmp_path, monkeypatch):
    arguments = PredictArguments(model=str(folder), predictions=["ids"], output_dir=str(tmp_path / "masks"))
    images, original, saved = [str(scenes / "images" / "val")], Image.Image.save, []

    def killed(self, place, *args, **kwargs):
        saved.append(place)
        if len(saved) == 3:
            Path(place).write_bytes(b"half")
            raise KeyboardInterrupt
        original(self, place, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", killed)
        predict_images(images, arguments)
    left = sorted((tmp_path / "masks" / "ids").glob("[!.]*"))
    assert left and all(Image.open(path).size == (64, 64) for path in left)
    assert len(predict_images(images, arguments)) == 3
    assert not list((tmp_path / "masks").rglob("*.partial"))


def test_masks_of_geotiffs_keep_their_place(folder, tmp_path):
    info = ImageFileDirectory_v2()
    info[33550], info[33922] = (10.0, 10.0, 0.0), (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0)
    Image.new("RGB", (64, 48)).save(tmp_path / "placed.tif", tiffinfo=info)
    Image.new("RGB", (64, 48)).save(tmp_path / "plain.tif")
    predict_images([str(tmp_path)], PredictArguments(model=str(folder), output_dir=str(tmp_path / "masks")))
    for kind in ("ids", "overlays"):
        files = sorted(path.name for path in (tmp_path / "masks" / kind).iterdir())
        assert files == ["placed.png", "placed.png.aux.xml", "plain.png"]


def test_what_cannot_be_written_is_named(folder, scenes, tmp_path, monkeypatch):
    images = [str(scenes / "images" / "val")]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"output_dir: .*file is a file"):
        predict_images(images, PredictArguments(model=str(folder), output_dir=str(tmp_path / "file")))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(
            OSError, match=r"output_dir: .*legend\.png could not be written: No space left.*Free some space"
        ):
            predict_images(images, PredictArguments(model=str(folder), output_dir=str(tmp_path / "masks")))
    monkeypatch.setattr("ddep_hub.utils.files._flush", full)
    with pytest.raises(OSError, match=r"output_dir: .*scores could not be written: No space left.*Free some space"):
        ddep_hub.evaluate(str(folder), str(scenes), split="val", output_dir=str(tmp_path / "scores"))
    assert not list((tmp_path / "scores").iterdir())
