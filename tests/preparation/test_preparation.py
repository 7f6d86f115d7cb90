"""`ddep-hub prepare`: every format gives the masks that were drawn, and nothing of others is touched."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from annotated_sources import (
    HEIGHT,
    LARGE,
    NAMES,
    NUMBER,
    SMALL,
    TRUTH,
    WIDTH,
    check,
    coco,
    corners,
    masks_of,
    put_images,
    put_masks,
)
from PIL import Image

import ddep_hub
from ddep_hub.data.image_io import decode_channels
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.preparation.label_studio import decode_brush
from ddep_hub.tiff import read_nodata_tag


pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")


def test_coco(tmp_path):
    put_images(tmp_path / "coco" / "pictures")
    (tmp_path / "coco" / "labels.json").write_text(json.dumps(coco()))
    text = check(tmp_path / "coco", tmp_path)
    assert "COCO, 1 file; 5 images, 3 classes" in text and "5 objects without a polygon or a mask" in text
    assert "1,300" not in text and "large" in text
    for image in (tmp_path / "output" / "images").rglob("*.png"):  # copied, not written anew
        assert image.read_bytes() == (tmp_path / "coco" / "pictures" / image.name).read_bytes()


def test_coco_with_splits_of_its_own(tmp_path):
    """Roboflow's export: a json in each folder, and a category that heads the others."""
    for split, names in (("train", NAMES[:3]), ("valid", NAMES[3:])):
        put_images(tmp_path / "coco" / split, names)
        content = coco(names)
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        for category in content["categories"][1:]:
            category["supercategory"] = "things"
        (tmp_path / "coco" / split / "_annotations.coco.json").write_text(json.dumps(content))
    check(tmp_path / "coco", tmp_path)
    assert SegmentationFolder(tmp_path / "output", "val").sample_ids == NAMES[3:]


def test_images_that_are_missing_or_without_objects(tmp_path):
    put_images(tmp_path / "coco" / "images", NAMES[1:])
    content = coco()
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 1]
    for entry in content["images"]:
        entry["file_name"] = f"C:\\data\\{entry['file_name']}"
    (tmp_path / "coco" / "a.json").write_text(json.dumps(content))
    text = ddep_hub.prepare(tmp_path / "coco" / "a.json", tmp_path / "output")
    assert "1 annotated image not found" in text
    found = masks_of(tmp_path / "output")
    assert len(found) == 4 and not found[NAMES[1]].any() and np.array_equal(found[NAMES[2]], TRUTH)


def test_an_annotation_of_the_stored_image_is_turned_with_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    put_images(tmp_path / "coco", exif=exif)
    (tmp_path / "coco" / "a.json").write_text(json.dumps(coco()))
    check(tmp_path / "coco", tmp_path, truth=np.rot90(TRUTH, -1))


def test_an_annotation_of_another_size_is_an_error(tmp_path):
    put_images(tmp_path / "coco", size=(50, 20))
    (tmp_path / "coco" / "a.json").write_text(json.dumps(coco()))
    with pytest.raises(ValueError, match=r"has 50x20 pixels, but its annotation is for 40x30"):
        ddep_hub.prepare(tmp_path / "coco", tmp_path / "output")
    assert not (tmp_path / "output").exists() and not list(tmp_path.glob(".output*"))


def encoded(pixels):
    file = io.BytesIO()
    pixels.save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("embedded", [False, True])
def test_labelme(tmp_path, embedded):
    root = tmp_path / "labelme"
    root.mkdir()
    if not embedded:
        put_images(root)
    patch = Image.fromarray(np.full((7, 16), 255, np.uint8))
    shapes = [
        {"label": "large", "shape_type": "polygon", "points": corners(LARGE)},
        {"label": "small", "shape_type": "rectangle", "points": [SMALL[2:], SMALL[:2]]},
        {"label": "small", "shape_type": "mask", "points": [SMALL[:2], SMALL[2:]], "mask": encoded(patch)},
        {"label": "small", "shape_type": "line", "points": [[0, 0], [9, 9]]},
    ]
    for name in NAMES:
        content = {"shapes": shapes, "imagePath": f"{name}.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
        if embedded:
            content["imageData"] = encoded(Image.new("RGB", (WIDTH, HEIGHT)))
        (root / f"{name}.json").write_text(json.dumps(content))
    assert "LabelMe" in check(root, tmp_path)


def test_a_circle_is_round(tmp_path):
    put_images(tmp_path / "labelme", ["a", "b"])
    shape = {"label": "disc", "shape_type": "circle", "points": [[20, 15], [20, 5]]}
    for name in "ab":
        content = {"shapes": [shape], "imagePath": f"{name}.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
        (tmp_path / "labelme" / f"{name}.json").write_text(json.dumps(content))
    ddep_hub.prepare(tmp_path / "labelme", tmp_path / "output")
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    truth = np.hypot(x - 20, y - 15) < 10
    for mask in masks_of(tmp_path / "output").values():
        assert (mask != truth).sum() <= 12


def test_cvat(tmp_path):
    put_images(tmp_path / "cvat" / "images")
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in corners(LARGE))
    box = 'label="small" xtl="20" ytl="15" xbr="36" ybr="22"'
    mask = 'label="small" left="20" top="15" width="16" height="7" rle="0, 112"'
    entries = "".join(
        f'<image id="{n}" name="{name}.png" width="{WIDTH}" height="{HEIGHT}"><{"box" if n % 2 else "mask"} '
        f'{box if n % 2 else mask} /><polygon label="large" points="{points}" /><tag label="small" /></image>'
        for n, name in enumerate(NAMES)
    )
    labels = "<label><name>large</name></label><label><name>small</name></label>"
    xml = f"<annotations><meta><task><labels>{labels}</labels></task></meta>{entries}</annotations>"
    (tmp_path / "cvat" / "annotations.xml").write_text(xml, encoding="utf-8")
    assert "CVAT" in check(tmp_path / "cvat", tmp_path)


def brush(mask):
    """Label Studio's run-length code of an RGBA picture whose alpha is the mask, in runs of equal bytes."""
    flat = np.zeros((*mask.shape, 4), np.uint8)
    flat[..., 3] = 255 * mask
    flat = flat.ravel()
    bits = f"{flat.size:032b}" + f"{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 16))
    starts = np.flatnonzero(np.diff(flat.astype(int), prepend=-1))
    for start, end in zip(starts, [*starts[1:], flat.size], strict=True):
        bits += "1" + "11" + f"{end - start - 1:016b}" + f"{flat[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def test_brushes_of_label_studio_with_literal_values():
    """Runs of equal values, and values one after the other."""
    values = [0] * 20 + [227, 26, 28, 255] * 30 + [0] * 7 + [9]
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 16))
    bits += "1" + "10" + f"{19:08b}" + f"{0:08b}"
    bits += "0" + "10" + f"{119:08b}" + "".join(f"{value:08b}" for value in values[20:140])
    bits += "1" + "00" + f"{6:03b}" + f"{0:08b}" + "0" + "00" + f"{0:03b}" + f"{9:08b}"
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]
    assert decode_brush(packed).tolist() == values


def test_label_studio(tmp_path):
    put_images(tmp_path / "studio" / "photos")
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    polygon = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners(LARGE)]
    results = [
        {**size, "type": "polygonlabels", "value": {"points": polygon, "polygonlabels": ["large"]}},
        {**size, "type": "brushlabels", "value": {"rle": brush(TRUTH == 2), "brushlabels": ["small"]}},
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    tasks = [
        {"data": {"image": address.format(name)}, "annotations": [{"result": results}]}
        for name, address in zip(
            NAMES,
            ["/data/upload/1/0123abcd-{}.png", "/data/local-files/?d=photos/{}.png", "s3://bucket/{}.png"] * 2,
            strict=False,
        )
    ]
    (tmp_path / "studio" / "export.json").write_text(json.dumps(tasks))
    assert "Label Studio" in check(tmp_path / "studio", tmp_path)


@pytest.mark.parametrize("rotation", [0, 90, 30])
def test_rotated_shapes_of_label_studio(tmp_path, rotation):
    put_images(tmp_path / "studio", "ab", size=(80, 60))
    size = {"original_width": 80, "original_height": 60, "type": "rectanglelabels"}
    value = {"x": 50, "y": 50, "width": 25, "height": 20, "rotation": rotation, "rectanglelabels": ["box"]}
    tasks = [{"data": {"image": f"{n}.png"}, "annotations": [{"result": [{**size, "value": value}]}]} for n in "ab"]
    (tmp_path / "studio" / "export.json").write_text(json.dumps(tasks))
    ddep_hub.prepare(tmp_path / "studio", tmp_path / "output")
    y, x = np.mgrid[:60, :80] + 0.5
    angle = np.deg2rad(rotation)
    along = np.cos(angle) * (x - 40) + np.sin(angle) * (y - 30)
    across = -np.sin(angle) * (x - 40) + np.cos(angle) * (y - 30)
    truth = (along > 0) & (along < 20) & (across > 0) & (across < 12)
    for mask in masks_of(tmp_path / "output").values():
        assert (mask != truth).sum() <= (20 if rotation == 30 else 0)


def test_objects_that_reach_over_the_edge(tmp_path):
    put_images(tmp_path / "coco", "ab")
    content = coco("ab")
    content["annotations"] = [
        {"image_id": n, "category_id": 9, "segmentation": [[-9, -5, 10, -5, 10, 90, -9, 90]]} for n in (0, 1)
    ]
    (tmp_path / "coco" / "a.json").write_text(json.dumps(content))
    ddep_hub.prepare(tmp_path / "coco", tmp_path / "output")
    for mask in masks_of(tmp_path / "output").values():
        assert mask[:, :10].all() and not mask[:, 10:].any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"images": [{"id": 1}], "annotations": [], "categories": []}, "no field 'file_name'"),
        ("a.json", {"images": [{"id": 1, "file_name": 3}], "annotations": [3], "categories": []}, "of another type"),
        ("a.json", {"imagePath": "a.png", "shapes": [{"label": "x", "points": [3]}]}, "of another type"),
        ("a.json", [{"data": {"image": "a.png"}, "annotations": [{}]}], "no field 'result'"),
        ("annotations.xml", '<annotations><image name="a.png"/></annotations>', "no field 'width'"),
        ("annotations.xml", "<annotations><track/></annotations>", "holds video tracks"),
    ],
)
def test_incomplete_annotations_are_named(tmp_path, name, content, message):
    put_images(tmp_path / "source", "a")
    (tmp_path / "source" / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


@pytest.mark.parametrize("values", [[0, 32, 64], [0, 1, 2], [0, 100, 255]])
def test_masks_of_any_values(tmp_path, values):
    put_images(tmp_path / "masks" / "images")
    (tmp_path / "masks" / "masks").mkdir()
    for name in NAMES:
        Image.fromarray(np.array(values, np.uint8)[TRUTH]).save(tmp_path / "masks" / "masks" / f"{name}_mask.png")
    ignored = values[-1] == 255
    names = [f"value_{value}" for value in values if value != 255]
    check(tmp_path / "masks", tmp_path, np.where(TRUTH == 2, 255, TRUTH) if ignored else TRUTH, labels=names)


def test_binary_masks(tmp_path):
    put_images(tmp_path / "masks" / "images")
    (tmp_path / "masks" / "labels").mkdir()
    for name in NAMES:
        Image.fromarray(255 * (TRUTH > 0).astype(np.uint8)).save(tmp_path / "masks" / "labels" / f"{name}.png")
    check(tmp_path / "masks", tmp_path, (TRUTH > 0).astype(np.uint8), labels=["background", "object"])


def test_binary_masks_in_jpegs(tmp_path):
    put_images(tmp_path / "masks" / "images", suffix=".jpg")
    (tmp_path / "masks" / "masks").mkdir()
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[8:24, 8:32] = 1
    for name in NAMES:
        Image.fromarray(255 * truth).save(tmp_path / "masks" / "masks" / f"{name}.jpg", quality=90)
    check(tmp_path / "masks", tmp_path, truth, labels=["background", "object"])
    Image.linear_gradient("L").resize((WIDTH, HEIGHT)).save(tmp_path / "masks" / "masks" / f"{NAMES[0]}.jpg")
    with pytest.raises(ValueError, match="is a JPEG that is not just black and white"):
        ddep_hub.prepare(tmp_path / "masks", tmp_path / "other")


@pytest.mark.parametrize("names", ["none", "labelmap.txt", "label_colors.txt", "classes.json"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_masks_in_colour(tmp_path, mode, names):
    colors = [(0, 0, 0), (10, 200, 30), (250, 1, 128)]
    root = tmp_path / "masks"
    put_images(root / "JPEGImages")
    (root / "SegmentationClass").mkdir()
    for name in NAMES:
        mask = Image.fromarray(np.array(colors, np.uint8)[TRUTH])
        if mode == "P":
            mask = Image.frombytes("P", (WIDTH, HEIGHT), TRUTH.tobytes())
            mask.putpalette([value for color in colors for value in color])
        mask.convert(mode).save(root / "SegmentationClass" / f"{name}.png")
    labels, options = ["background", "large", "small"], {}
    if names == "labelmap.txt":
        lines = [f"{label}:{','.join(map(str, color))}::" for label, color in zip(labels, colors, strict=True)]
        (root / names).write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    elif names == "label_colors.txt":
        lines = [f"{' '.join(map(str, color))}\t\t{label}" for label, color in zip(labels, colors, strict=True)]
        (root / names).write_text("\n".join(lines))
    elif names == "classes.json":
        entries = [{"id": i, "name": labels[i], "color": list(colors[i])} for i in range(3)]
        (tmp_path / names).write_text(json.dumps({"classes": entries}))
        options["classes"] = tmp_path / names
    elif mode == "P":
        labels = ["value_0", "value_1", "value_2"]
    else:
        labels = [f"color_{r}_{g}_{b}" for r, g, b in colors]
    check(root, tmp_path, labels=labels, **options)


def test_unknown_values_are_an_error(tmp_path):
    put_images(tmp_path / "masks" / "images", "ab")
    (tmp_path / "masks" / "masks").mkdir()
    for name in "ab":
        Image.fromarray(TRUTH).save(tmp_path / "masks" / "masks" / f"{name}.png")
    (tmp_path / "masks" / "classes.json").write_text('["x", "y"]')
    with pytest.raises(ValueError, match=r"holds the ids 2"):
        ddep_hub.prepare(tmp_path / "masks", tmp_path / "output")
    with pytest.raises(ValueError, match=r"masks hold 2, which belongs to no class"):
        ddep_hub.prepare(tmp_path / "masks", tmp_path / "output", classes=tmp_path / "masks" / "classes.json")


def test_one_mask_for_each_object(tmp_path):
    for name in NAMES:
        put_images(tmp_path / "objects" / name / "images", [name])
        (tmp_path / "objects" / name / "masks").mkdir()
        for number, box in enumerate((LARGE, SMALL)):
            x0, y0, x1, y1 = box
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[y0:y1, x0:x1] = 255
            Image.fromarray(mask).save(tmp_path / "objects" / name / "masks" / f"{number}.png")
    text = check(tmp_path / "objects", tmp_path, (TRUTH > 0).astype(np.uint8), labels=["background", "object"])
    assert "one mask for each object" in text


@pytest.mark.parametrize("names", [("train-volume", "train-labels"), ("images/stack", "masks/stack")])
def test_stacks(tmp_path, names):
    root = tmp_path / "stacks"
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)) for _ in range(NUMBER)]
    masks = [Image.fromarray(np.roll(TRUTH, number)) for number in range(NUMBER)]
    for name, images in zip(names, (pages, masks), strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        images[0].save(root / f"{name}.tif", save_all=True, append_images=images[1:])
    assert "TIFF stacks" in ddep_hub.prepare(root, tmp_path / "output")
    for split in ("train", "val"):
        dataset = SegmentationFolder(tmp_path / "output", split)
        for index, name in enumerate(dataset.sample_ids):
            number = int(name[-4:])
            assert np.array_equal(dataset.mask(index), np.roll(TRUTH, number))
            assert np.array_equal(np.asarray(dataset[index]["image"])[..., 0], np.asarray(pages[number]))


def test_roboflow_masks(tmp_path):
    for split, names in (("train", NAMES[:3]), ("valid", NAMES[3:])):
        put_images(tmp_path / "masks" / split, names, ".jpg")
        for name in names:
            Image.fromarray(TRUTH).save(tmp_path / "masks" / split / f"{name}_mask.png")
        rows = "Pixel Value, Class\n0, background\n1, large\n2, small\n"
        (tmp_path / "masks" / split / "_classes.csv").write_text(rows)
    assert "Roboflow" in check(tmp_path / "masks", tmp_path)


def test_folders_that_are_read_already(tmp_path, scenes):
    ddep_hub.prepare(scenes, tmp_path / "output")
    for split in ("train", "val"):
        before, after = SegmentationFolder(scenes, split), SegmentationFolder(tmp_path / "output", split)
        assert before.sample_ids == after.sample_ids and before.classes == after.classes
        assert all(np.array_equal(before.mask(index), after.mask(index)) for index in range(len(before)))


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


def test_more_classes_than_8_bits_hold(tmp_path):
    content = coco()
    content["categories"] = [{"id": index, "name": f"class {index}"} for index in range(300)]
    put_images(tmp_path / "coco" / "images")
    (tmp_path / "coco" / "labels.json").write_text(json.dumps(content))
    ddep_hub.prepare(tmp_path / "coco", tmp_path / "output")
    dataset = SegmentationFolder(tmp_path / "output", "train")
    assert dataset.classes.num_classes == 301 and dataset.classes.ignore_index == 65535
    assert set(np.unique(dataset.mask(0))) == {0, 10, 13}


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
