"""`ddep-hub prepare`: tiles, names, splits, and a folder that holds the work of others."""

import json
import shutil

import numpy as np
import pytest
from annotated_sources import LARGE, NAMES, TRUTH, check, coco, corners, masks_of, put_images, put_masks
from PIL import Image

import ddep_hub
from ddep_hub.data.image_io import decode_channels
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.tiff import read_nodata_tag


pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")


def test_tiles_of_a_single_raster_are_divided(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the limit is for images of strangers
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (100, 40), dtype=np.uint8)
    (tmp_path / "source" / "images").mkdir(parents=True)
    (tmp_path / "source" / "masks").mkdir()
    Image.fromarray(np.stack([truth * 9] * 3, -1)).save(tmp_path / "source" / "images" / "ortho.png")
    Image.fromarray(truth).save(tmp_path / "source" / "masks" / "ortho.png")
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output", tile=32, overlap=4, val_fraction=0.3)
    rows = {"train": set(), "val": set()}
    for split, found in rows.items():
        dataset = SegmentationFolder(tmp_path / "output", split)
        for index, name in enumerate(dataset.sample_ids):
            top, left = map(int, name.split("_")[1:])
            mask = dataset.mask(index)
            assert np.array_equal(mask, truth[top : top + mask.shape[0], left : left + 32])
            assert np.array_equal(np.asarray(dataset[index]["image"])[..., 0], mask * 9)
            found.update(range(top, top + mask.shape[0]))
    assert rows == {"train": set(range(70)), "val": set(range(70, 100))}
    with pytest.raises(ValueError, match="val_fraction leaves no row of an image of 100"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "none", tile=32, val_fraction=0.001)


@pytest.mark.parametrize("bands", [1, 4])
def test_tiles_and_pages_state_the_value_of_pixels_without_data(bands, tmp_path):
    """Or training on the tiles of a GeoTIFF would take -9999 for reflectances."""
    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    values = np.linspace(0, 0.3, 64 * 64 * bands, dtype=np.float32).reshape(bands, 64, 64)
    values[:, :8] = -9999
    nodata, config = [(42113, "s", 0, "-9999", True)], {"planarconfig": "separate"} if bands > 1 else {}
    for name in "ab":
        put_masks(tmp_path / "source", {name: np.ones((64, 64), np.uint8)}, (64, 64))
        (tmp_path / "source" / "images" / f"{name}.png").unlink()
        tifffile.imwrite(
            tmp_path / "source" / "images" / f"{name}.tif",
            values.squeeze(),
            photometric="minisblack",
            extratags=nodata,
            **config,
        )
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output", tile=32)
    images = tmp_path / "source" / "images"
    ddep_hub.prepare(images, tmp_path / "unlabelled", format="unlabelled", tile=32)
    for output in ("output", "unlabelled"):
        tiles = sorted((tmp_path / output / "images").rglob("*.tif"))
        assert len(tiles) == 8 and all(read_nodata_tag(tile) == -9999 for tile in tiles)
        assert min(decode_channels(tile, bands).pixels.min() for tile in tiles) >= 0


def test_tiles_cover_every_pixel(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "large" / "images").mkdir(parents=True)
    (tmp_path / "large" / "masks").mkdir()
    truth, pixels = {}, {}
    for name in NAMES:
        truth[name] = rng.integers(0, 3, (75, 100), dtype=np.uint8)
        pixels[name] = rng.integers(0, 255, (75, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels[name]).save(tmp_path / "large" / "images" / f"{name}.png")
        Image.fromarray(truth[name]).save(tmp_path / "large" / "masks" / f"{name}.png")
    ddep_hub.prepare(tmp_path / "large", tmp_path / "output", tile=32, overlap=8)
    seen, splits = {name: np.zeros((75, 100), bool) for name in NAMES}, {}
    for split in ("train", "val"):
        dataset = SegmentationFolder(tmp_path / "output", split)
        for index, tile in enumerate(dataset.sample_ids):
            name, top, left = tile.rsplit("_", 2)
            where = slice(int(top), int(top) + 32), slice(int(left), int(left) + 32)
            sample = dataset[index]
            assert np.array_equal(sample["annotation"], truth[name][where]) and sample["annotation"].shape == (32, 32)
            assert np.array_equal(np.asarray(sample["image"]), pixels[name][where])
            seen[name][where] = True
            splits.setdefault(name, set()).add(split)
    assert all(mask.all() for mask in seen.values()) and all(len(found) == 1 for found in splits.values())


def test_nothing_of_others_is_touched(tmp_path, scenes):
    output = tmp_path / "output"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is not empty"):
            ddep_hub.prepare(scenes, output, overwrite=overwrite)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    (output / "mine.txt").unlink()
    ddep_hub.prepare(scenes, output)
    with pytest.raises(FileExistsError, match="--overwrite"):
        ddep_hub.prepare(scenes, output)
    ddep_hub.prepare(scenes, output, overwrite=True)
    with pytest.raises(ValueError, match="is inside the source"):
        ddep_hub.prepare(output, output / "inner")
    (tmp_path / "link").symlink_to(output)
    with pytest.raises(FileExistsError, match="is a link"):
        ddep_hub.prepare(scenes, tmp_path / "link", overwrite=True)
    (output / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"added or edited since it was written: mine\.txt"):
        ddep_hub.prepare(scenes, output, overwrite=True)
    (output / "mine.txt").unlink()
    classes = (output / "classes.json").read_text()
    (output / "classes.json").write_text(classes.replace("sky", "clouds"))
    with pytest.raises(FileExistsError, match=r"classes\.json was edited"):
        ddep_hub.prepare(scenes, output, overwrite=True)
    assert "clouds" in (output / "classes.json").read_text()


def test_the_home_folder_may_be_written_as_in_a_shell(tmp_path, scenes, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scenes, tmp_path / "data")
    ddep_hub.prepare("~/data", "~/out")
    assert (tmp_path / "out" / "classes.json").is_file() and not (tmp_path / "~").exists()


def test_names_stay_below_the_output(tmp_path):
    """Lists name images beside them, or by absolute paths; LabelMe those beside its folder."""
    put_masks(tmp_path / "data", dict.fromkeys(NAMES, TRUTH))
    lists = tmp_path / "lists"
    lists.mkdir()
    rows = [f"../data/images/{name}.png,../data/masks/{name}.png" for name in NAMES[:2]]
    rows += [f"{tmp_path}/data/images/{name}.png,{tmp_path}/data/masks/{name}.png" for name in NAMES[2:]]
    (lists / "pairs.csv").write_text("\n".join(["image,mask", *rows]))
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.png")}
    for tile, count in ((None, 5), (15, 30)):
        output = tmp_path / f"output-{tile}"
        ddep_hub.prepare(lists, output, tile=tile)
        assert len(masks_of(output)) == count
        assert sorted(path.name for path in (output / "images").iterdir()) == ["train", "val"]
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.png")} == before
    annotations = tmp_path / "data" / "json"
    annotations.mkdir()
    for name in NAMES:
        shape = {"label": "large", "points": corners(LARGE), "shape_type": "polygon"}
        content = {"imagePath": f"..\\images\\{name}.png", "shapes": [shape]}
        (annotations / f"{name}.json").write_text(json.dumps(content))
    ddep_hub.prepare(tmp_path / "data", tmp_path / "labelme")
    assert {name.split("/")[-1] for name in masks_of(tmp_path / "labelme")} == set(NAMES)


def test_groups_of_a_list_stay_together(tmp_path):
    names = [f"{index:02}" for index in range(12)]
    put_masks(tmp_path / "data", dict.fromkeys(names, TRUTH))
    rows = [f"images/{name}.png,masks/{name}.png,{int(name) % 3}" for name in names]
    (tmp_path / "data" / "pairs.csv").write_text("\n".join(["image,mask,group", *rows]))
    ddep_hub.prepare(tmp_path / "data", tmp_path / "output", val_fraction=0.3)
    validation = SegmentationFolder(tmp_path / "output", "val").sample_ids
    assert len(validation) == 4 and len({int(name) % 3 for name in validation}) == 1


def test_splits_of_the_users_own_stay(tmp_path):
    put_masks(tmp_path / "data", dict.fromkeys(NAMES, TRUTH))
    rows = [f"images/{name}.png,masks/{name}.png,site{int(name[0]) % 2}" for name in NAMES]
    (tmp_path / "data" / "pairs.csv").write_text("\n".join(["image,mask,split", *rows]))
    text = ddep_hub.prepare(tmp_path / "data", tmp_path / "output", val_fraction=0)
    assert "--train_split site0 --eval_split site1" in text
    assert sorted(path.name for path in (tmp_path / "output" / "images").iterdir()) == ["site0", "site1"]


def test_a_share_that_cannot_be_is_named(tmp_path):
    put_masks(tmp_path / "data", dict.fromkeys(NAMES, TRUTH))
    with pytest.raises(ValueError, match=r"val_fraction 0 is not in \(0, 1\]"):
        ddep_hub.prepare(tmp_path / "data", tmp_path / "output", val_fraction=0)


def test_batches_are_no_splits(tmp_path):
    for batch, names in (("batch1", NAMES[:3]), ("batch2", NAMES[3:])):
        put_images(tmp_path / "coco" / batch, names)
        (tmp_path / "coco" / f"{batch}.json").write_text(json.dumps(coco(names)))
    check(tmp_path / "coco", tmp_path)


def test_the_current_folder_is_filled(tmp_path, scenes, monkeypatch):
    (tmp_path / "output").mkdir()
    monkeypatch.chdir(tmp_path / "output")
    ddep_hub.prepare(scenes, ".")
    assert SegmentationFolder(".", "train").sample_ids and not list((tmp_path / "output").glob(".*"))
    with pytest.raises(FileExistsError, match="is the current folder"):
        ddep_hub.prepare(scenes, ".", overwrite=True)
    assert SegmentationFolder(".", "train").sample_ids


def test_what_another_process_wrote_meanwhile_stays(tmp_path, scenes, monkeypatch):
    def draw(*args):
        (tmp_path / "output").mkdir()
        (tmp_path / "output" / "mine.txt").write_text("mine")
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr("ddep_hub.preparation._draw_preview", draw)
    with pytest.raises(FileExistsError, match=r"output is not empty\. Choose another folder"):
        ddep_hub.prepare(scenes, tmp_path / "output")
    assert [path.name for path in tmp_path.rglob("*")] == ["output", "mine.txt"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"notes.txt": ""}, {}, r"source holds notes\.txt, in no recognised format\. Looked for COCO"),
        ({"a.json": "{"}, {"source": "a.json"}, r"a\.json is not valid JSON"),
        ({"annotations.xml": "<a>"}, {}, r"annotations\.xml is not valid XML"),
        ({}, {"source": "nowhere"}, "nowhere does not exist"),
        ({"notes.txt": ""}, {"format": "coco"}, "is not in the format coco"),
        ({"notes.txt": ""}, {"format": "coca"}, "format 'coca' is unknown. Choose one of coco"),
        ({"a.json": "{}", "pairs.csv": "image,mask\n"}, {"source": "a.json"}, "is not an annotation file of COCO"),
        ({"notes.txt": ""}, {"tile": 0}, "tile must be positive, got 0"),
        ({"notes.txt": ""}, {"tile": 8, "overlap": 8}, "overlap must be 0 to 7, less than the tile, got 8"),
        ({"notes.txt": ""}, {"overlap": 8}, "overlap has no effect without tile"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, files, options, message):
    source = tmp_path / "source"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)
    options = dict(options)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        ddep_hub.prepare(source / options.pop("source", ""), tmp_path / "output", **options)
    assert not (tmp_path / "output").exists()
