"""`ddep-hub prepare`, files of masks and images: values as they were meant, images with all that they hold."""

import json
from collections import Counter

import numpy as np
import pytest
from annotated_sources import BLOCKS, HEIGHT, NAMES, TRUTH, WIDTH, check, masks_of, put_images, put_masks
from PIL import Image

import ddep_hub
from ddep_hub import image_conversion
from ddep_hub.data.image_io import decode_channels
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.preparation import masks as mask_sources
from ddep_hub.preparation.formats import read_source


SHAPE = (TRUTH > 0).astype(np.uint8)


# --- JPEG


@pytest.mark.parametrize("quality", [60, 75, 95])
@pytest.mark.parametrize("values", [[0, 2, 2], [0, 1, 255], [0, 1, 2]])
def test_class_ids_in_jpegs_are_refused(tmp_path, values, quality):
    masks = dict.fromkeys("ab", np.array(values, np.uint8)[BLOCKS])
    put_masks(tmp_path / "source", masks, (64, 64), ".jpg", quality=quality)
    with pytest.raises(ValueError, match=r"a\.jpg is a JPEG that is not just black and white.*; save the mask as PNG"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


@pytest.mark.parametrize("quality", [25, 40, 60, 70, 75, 90])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_black_and_white_jpegs_without_an_object(tmp_path, mode, quality):
    """At some qualities black comes back as 1 or 2."""
    drawn = np.array([0, 255, 255], np.uint8)[BLOCKS]
    masks = {"a": drawn, "b": drawn, "none": 0 * drawn, "all": 0 * drawn + 255}
    masks = {name: Image.fromarray(mask).convert(mode) for name, mask in masks.items()}
    put_masks(tmp_path / "source", masks, (64, 64), ".jpg", quality=quality)
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    found = masks_of(tmp_path / "output")
    assert np.array_equal(found["a"], BLOCKS > 0) and not found["none"].any() and found["all"].all()


def circle(white=255):
    y, x = np.mgrid[:128, :96]
    return (white * (np.hypot(y - 64, x - 48) < 30)).astype(np.uint8)


def test_black_and_white_jpegs_that_were_saved_twice(tmp_path):
    Image.fromarray(circle()).save(tmp_path / "first.jpg", quality=20)
    first = np.asarray(Image.open(tmp_path / "first.jpg"))
    put_masks(tmp_path / "source", dict.fromkeys("ab", first), (96, 128), ".jpg", quality=90)
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert all((mask != circle(1)).mean() < 0.001 for mask in masks_of(tmp_path / "output").values())


@pytest.mark.parametrize("white", [240, 254])
def test_jpegs_whose_white_is_not_quite_white(tmp_path, white):
    put_masks(tmp_path / "source", dict.fromkeys("ab", circle(white)), (96, 128), ".jpg", quality=90)
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert all(np.array_equal(mask, circle(1)) for mask in masks_of(tmp_path / "output").values())


def test_black_and_white_jpegs_that_are_turned(tmp_path):
    """At this quality black comes back as 1: the step of the compression says that it is black."""
    exif = Image.Exif()
    exif[0x0112] = 6
    put_masks(tmp_path / "source", dict.fromkeys("ab", circle()), (128, 96), ".jpg", quality=40, exif=exif)
    assert np.asarray(Image.open(tmp_path / "source" / "masks" / "a.jpg"))[0, 0] == 1
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert all(np.array_equal(mask, np.rot90(circle(1), -1)) for mask in masks_of(tmp_path / "output").values())


# --- Transparency


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("color", [0, 255])
@pytest.mark.parametrize("alpha", [255, 128])
def test_shapes_in_the_alpha_channel(tmp_path, mode, color, alpha):
    bands = [Image.new("L", (WIDTH, HEIGHT), color)] * (len(mode) - 1)
    mask = Image.merge(mode, [*bands, Image.fromarray(alpha * SHAPE)])
    empty = Image.merge(mode, [*bands, Image.new("L", (WIDTH, HEIGHT), 0)])
    put_masks(tmp_path / "source", {"a": mask, "b": mask, "none": empty})
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    found = masks_of(tmp_path / "output")
    assert np.array_equal(found["a"], SHAPE) and np.array_equal(found["b"], SHAPE) and not found["none"].any()


def test_what_was_erased_is_background(tmp_path):
    """Red, half of it erased to transparent red; one image has nothing, another is all erased."""
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[..., 3] = 255 * SHAPE
    masks = {"a": pixels, "b": pixels, "none": 0 * pixels, "erased": pixels * np.array([1, 1, 1, 0], np.uint8)}
    put_masks(tmp_path / "source", masks)
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "(0, 0, 0), (255, 0, 0)" in text
    found = masks_of(tmp_path / "output")
    assert np.array_equal(found["a"], SHAPE) and not found["none"].any() and not found["erased"].any()


def test_what_was_erased_beside_known_colours(tmp_path):
    """The source is a folder that fine-tuning reads."""
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[..., 3] = 255 * SHAPE
    root = put_masks(tmp_path / "source", {"a": pixels, "b": pixels})
    entries = [{"id": 0, "name": "other", "color": [0, 0, 0]}, {"id": 1, "name": "red", "color": [255, 0, 0]}]
    (root / "classes.json").write_text(json.dumps({"classes": entries}))
    for output, classes in (("one", None), ("two", root / "classes.json")):
        ddep_hub.prepare(root, tmp_path / output, classes=classes)
        assert all(np.array_equal(mask, SHAPE) for mask in masks_of(tmp_path / output).values())


def test_colours_under_full_transparency_are_an_error(tmp_path):
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[..., 0] = 255 * SHAPE
    put_masks(tmp_path / "source", {"a": pixels, "b": pixels})
    with pytest.raises(ValueError, match=r"a\.png is fully transparent, but has colours"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


@pytest.mark.parametrize("alpha", [0, 255])
def test_masks_without_an_object_are_an_error(tmp_path, alpha):
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[..., 3] = alpha
    put_masks(tmp_path / "source", {"a": pixels, "b": pixels})
    with pytest.raises(ValueError, match="All masks hold only 0: they show no object"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


def test_masks_of_255_alone_are_an_error(tmp_path):
    put_masks(tmp_path / "source", dict.fromkeys("ab", np.full((HEIGHT, WIDTH), 255, np.uint8)))
    with pytest.raises(ValueError, match="All masks hold only 255"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


# --- A mask for each object


def put_objects(root, suffix=".png"):
    for name in NAMES:
        put_images(root / name / "images", [name])
        (root / name / "masks").mkdir()
        for value in (1, 2):
            mask = Image.fromarray(255 * (value == TRUTH).astype(np.uint8))
            mask.save(root / name / "masks" / f"{value}{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".JPG"])
def test_files_beside_the_masks_of_objects(tmp_path, suffix):
    put_objects(tmp_path / "objects", suffix)
    for name in NAMES:
        for file in (".DS_Store", "Thumbs.db", "._0.png"):
            (tmp_path / "objects" / name / "images" / file).write_bytes(b"x")
            (tmp_path / "objects" / name / "masks" / file).write_bytes(b"x")
    if suffix != ".JPG":
        check(tmp_path / "objects", tmp_path, SHAPE, labels=["background", "object"])
        return
    ddep_hub.prepare(tmp_path / "objects", tmp_path / "output")
    assert all((mask != SHAPE).mean() < 0.02 for mask in masks_of(tmp_path / "output").values())


def test_folders_are_searched_once(tmp_path, monkeypatch, scenes):
    """For objects, and for pairs of images and masks."""
    calls = Counter()

    def counted(module, name):
        function = getattr(module, name)

        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(mask_sources, "_object_folders")
    counted(mask_sources, "pair_files")
    put_objects(tmp_path / "objects")
    read_source(tmp_path / "objects")
    assert calls == {"_object_folders": 1}
    calls.clear()
    read_source(scenes, "masks")  # it has a classes.json, so that `SegmentationFolder` pairs the files
    assert calls == {}


def test_object_folders_with_other_contents(tmp_path):
    put_objects(tmp_path / "objects")
    folder = tmp_path / "objects" / NAMES[0]
    (folder / "images" / f"{NAMES[0]}.png").unlink()
    text = ddep_hub.prepare(tmp_path / "objects", tmp_path / "output")
    assert f"1 folder with masks but no image, such as {NAMES[0]}: skipped" in text
    assert len(masks_of(tmp_path / "output")) == len(NAMES) - 1
    put_images(folder / "images", ["x", "y"])
    with pytest.raises(ValueError, match=r"images holds 2 images, x\.png among them\. Keep one"):
        ddep_hub.prepare(tmp_path / "objects", tmp_path / "other")
    (folder / "images" / "x.png").unlink()
    for path in (folder / "masks").iterdir():
        path.unlink()
    np.savez(folder / "masks" / "1.npz", TRUTH)
    with pytest.raises(ValueError, match=r"masks holds 1\.npz: save the masks as PNG"):
        ddep_hub.prepare(tmp_path / "objects", tmp_path / "other")
    np.save(folder / "masks" / "1.npy", TRUTH)
    ddep_hub.prepare(tmp_path / "objects", tmp_path / "other")
    assert np.array_equal(masks_of(tmp_path / "other")[NAMES[0]], TRUTH != 0)


# --- Images of other depths and channels


def pictures(kind):
    """Random images, the suffix of their files, how to save one, and the channels of it."""
    rng = np.random.default_rng(0)
    shape, kind_of, suffix = {
        "grey 16": ((64, 48), np.uint16, ".png"),
        "grey 8": ((64, 48), np.uint8, ".png"),
        "RGB 8": ((64, 48, 3), np.uint8, ".png"),
        "RGBA": ((64, 48, 4), np.uint8, ".png"),
        "grey 16 TIFF": ((64, 48), np.uint16, ".tif"),
        "float": ((64, 48), np.float32, ".tif"),
        "RGB 16": ((64, 48, 3), np.uint16, ".tif"),
        "infrared": ((64, 48, 4), np.uint8, ".tif"),
        "five channels": ((64, 48, 5), np.uint8, ".tif"),
        "pages": ((4, 64, 48), np.uint16, ".tif"),
        "grey array": ((64, 48), np.uint8, ".npy"),
        "array": ((5, 64, 48), np.float32, ".npy"),
    }[kind]
    values = [rng.random(shape) * (1 if kind_of == np.float32 else np.iinfo(kind_of).max) for _ in range(3)]
    return [value.astype(kind_of) for value in values], suffix


KINDS = "grey 16,grey 8,RGB 8,RGBA,grey 16 TIFF,float,RGB 16,infrared,five channels,pages,grey array,array".split(",")


def test_a_warning_names_an_image_as_the_user_finds_it(tmp_path, monkeypatch):
    """The preview is drawn while the folder has another name."""
    monkeypatch.setattr(image_conversion, "_warned", set())
    root = tmp_path / "source"
    put_masks(root, {"a": TRUTH, "b": TRUTH}, TRUTH.shape[::-1])
    for name in "ab":
        Image.fromarray(np.full(TRUTH.shape, 4000, np.uint16)).save(root / "images" / f"{name}.png")
    with pytest.warns(UserWarning, match=r"/output/images/(train|val)/[ab]\.png has 16 bits, but hardly a"):
        ddep_hub.prepare(root, tmp_path / "output")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [None, 32])
def test_depth_and_channels_are_kept(tmp_path, kind, tile):
    values, suffix = pictures(kind)
    root = tmp_path / "source"
    put_masks(root, {f"p{n}": np.full((64, 48), n, np.uint8) for n in range(3)}, (48, 64))
    for number, value in enumerate(values):
        path = root / "images" / f"p{number}{suffix}"
        (root / "images" / f"p{number}.png").unlink()
        if suffix == ".npy":
            np.save(path, value)
        elif suffix == ".png" or value.dtype == np.float32:
            Image.fromarray(value).save(path)
        else:
            tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
            color = "rgb" if kind in ("RGB 16", "infrared") else "minisblack"
            extra = ["unspecified"] if kind == "infrared" else None
            config = "contig" if kind == "five channels" else None
            tifffile.imwrite(path, value, photometric=color, planarconfig=config, extrasamples=extra)
    text = ddep_hub.prepare(root, tmp_path / "output", tile=tile)
    assert ("3 images with several pages and a mask of one" in text) == (kind == "pages")
    files = sorted(path for path in (tmp_path / "output" / "images").rglob("*") if path.is_file())
    assert len(files) == (12 if tile else 3)
    for file in files:
        number, top, left = map(int, f"{file.stem[1:]}_0_0".split("_")[:3])
        whole = values[number]
        channels = 1 if whole.ndim == 2 else min(whole.shape)
        other = decode_channels(root / "images" / f"p{number}{suffix}", channels).pixels
        expected = other[:, top : top + 32, left : left + 32] if tile else other
        assert np.array_equal(decode_channels(file, channels).pixels, expected)
        assert (file.suffix == ".png") == (suffix == ".png" or (kind == "grey 16 TIFF" and tile is not None))


def test_names_that_begin_alike(tmp_path):
    names = ["img", "img.1", "img.1.x", "img_2", "a"]
    put_masks(tmp_path / "source", dict.fromkeys(names, TRUTH))
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert sorted(masks_of(tmp_path / "output")) == sorted(names)


# --- Palettes


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_palettes_that_a_program_has_numbered_are_read_by_colour(tmp_path, suffix):
    """In another order in each file."""
    colors = np.array([(0, 0, 0), (0, 255, 0), (255, 0, 0)], np.uint8)
    truth = {name: ((BLOCKS + shift) % 3).astype(np.uint8) for shift, name in enumerate("abc")}
    masks = {name: Image.fromarray(BLOCKS, "P") for name in truth}
    for shift, mask in enumerate(masks.values()):
        mask.putpalette(np.roll(colors, -shift, axis=0).ravel().tolist())
    put_masks(tmp_path / "source", masks, (64, 64), suffix)
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    found = masks_of(tmp_path / "output")
    assert all(np.array_equal(found[name], truth[name]) for name in truth)


def test_a_palette_that_stays_the_same_is_read_by_index(tmp_path):
    """Also where it ends before the index of ignored pixels, or not."""
    ids = np.where(BLOCKS == 2, 255, BLOCKS).astype(np.uint8)
    masks = {}
    for name, rest in (("a", [3, 3, 3] * 18), ("b", [3, 3, 3] * 253)):
        masks[name] = Image.fromarray(ids, "P")
        masks[name].putpalette([9, 9, 9, 5, 0, 0, 0, 0, 7, *rest])
    put_masks(tmp_path / "source", masks, (64, 64))
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert all(np.array_equal(mask, ids) for mask in masks_of(tmp_path / "output").values())


def test_an_index_that_is_ignored_is_so_in_palettes_that_are_read_by_colour(tmp_path):
    ids = np.where(BLOCKS == 2, 255, BLOCKS).astype(np.uint8)
    masks = {name: Image.fromarray(ids, "P") for name in "abc"}
    for mask, green in zip(masks.values(), (200, 100, 200), strict=True):
        mask.putpalette([0, 0, 0, 0, green, 0, *[9] * (3 * 253), 224, 224, 192])
    source = put_masks(tmp_path / "source", masks, (64, 64))
    ddep_hub.prepare(source, tmp_path / "output")
    assert all(np.array_equal(mask == 255, ids == 255) for mask in masks_of(tmp_path / "output").values())
    assert len(SegmentationFolder(tmp_path / "output", "train").classes.names) == 3


def test_masks_with_soft_borders_are_refused(tmp_path):
    soft = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
    put_masks(tmp_path / "source", {"a": soft, "b": soft})
    with pytest.raises(ValueError, match=r"The masks hold 255 different values: they are smoothed, or not masks"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


# --- Classes by name


@pytest.mark.parametrize("kind", ["palette", "grey RGB"])
def test_names_alone_name_the_values_of_masks(tmp_path, kind):
    image = Image.fromarray(BLOCKS)
    if kind == "palette":
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    put_masks(
        tmp_path / "source", dict.fromkeys("ab", image.convert("RGB") if kind == "grey RGB" else image), (64, 64)
    )
    (tmp_path / "classes.json").write_text('["sky", "road", "car"]')
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output", classes=tmp_path / "classes.json")
    assert all(np.array_equal(mask, BLOCKS) for mask in masks_of(tmp_path / "output").values())


def test_grey_masks_that_were_saved_in_colour_hold_ids_of_classes_with_colours(tmp_path):
    """As the file that `prepare` writes gives them."""
    entries = [{"id": i, "name": name, "color": [200, i, 0]} for i, name in enumerate("xyz")]
    masks = {
        "a": Image.fromarray(BLOCKS).convert("RGB"),
        "b": Image.new("RGB", (64, 64)),
        "c": Image.fromarray(BLOCKS),
    }
    put_masks(tmp_path / "source", masks, (64, 64))
    (tmp_path / "classes.json").write_text(json.dumps(entries))
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output", classes=tmp_path / "classes.json")
    found = masks_of(tmp_path / "output")
    assert all(np.array_equal(found[name], 0 * BLOCKS if name == "b" else BLOCKS) for name in masks)


def test_names_alone_do_not_name_colours(tmp_path):
    colors = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 200]], np.uint8)[BLOCKS]
    put_masks(tmp_path / "source", dict.fromkeys("ab", colors), (64, 64))
    (tmp_path / "classes.json").write_text('["sky", "road", "car"]')
    with pytest.raises(ValueError, match=r'belongs to no class\. Add it to the classes, with a "color" for each'):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output", classes=tmp_path / "classes.json")


@pytest.mark.parametrize(("values", "noted"), [([0, 128, 255], True), ([0, 1, 2], False), ([0, 255, 255], False)])
def test_white_that_is_ignored_is_told(tmp_path, values, noted):
    put_masks(tmp_path / "source", dict.fromkeys("ab", np.array(values, np.uint8)[BLOCKS]), (64, 64))
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert ("255 is read as pixels to ignore" in text) == noted


def test_a_class_without_a_pixel_is_told(tmp_path):
    folder = put_masks(tmp_path / "source", dict.fromkeys("ab", circle()), (96, 128))
    (folder / "classes.json").write_text('["object"]')
    text = ddep_hub.prepare(folder, tmp_path / "output")
    assert "No pixel shows object. If the masks have another value for it, such as 255" in text


def test_a_missing_mask_of_a_known_folder_is_named(tmp_path):
    for split in ("train", "val"):
        put_images(tmp_path / "source" / "images" / split, ["a", "b"])
        (tmp_path / "source" / "annotations" / split).mkdir(parents=True)
        for name in ("a", "b"):
            Image.fromarray(TRUTH).save(tmp_path / "source" / "annotations" / split / f"{name}.png")
    (tmp_path / "source" / "classes.json").write_text('["sky", "road", "car"]')
    (tmp_path / "source" / "annotations" / "train" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .* have no mask .*: b\.png"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


@pytest.mark.parametrize("values", [[1, 255], [1], [7, 255]])
def test_one_value_is_the_object(tmp_path, values):
    """And what is not drawn is unlabelled, if anything."""
    mask = np.where(BLOCKS > 0, values[0], values[-1]).astype(np.uint8)
    put_masks(tmp_path / "source", {"a": mask, "b": mask}, (64, 64))
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert SegmentationFolder(tmp_path / "output", "train").classes.names == ("background", "object")
    for found in masks_of(tmp_path / "output").values():
        assert np.array_equal(found, np.where(mask == 255, 255, 1))


def numbered(number, dtype):
    """A mask of so many objects, each with an id of its own."""
    mask = np.zeros((64, 64), dtype)
    for index in range(number):
        row, column = divmod(index, 16)
        mask[3 * row : 3 * row + 3, 4 * column : 4 * column + 4] = index + 1
    return mask


@pytest.mark.parametrize(("suffix", "numbers"), [(".png", (9, 14)), (".tif", (300, 180))])
def test_masks_that_number_their_objects_are_one_class(tmp_path, suffix, numbers):
    dtype = np.uint8 if max(numbers) < 256 else np.uint16
    masks = {name: numbered(number, dtype) for name, number in zip("abc", (*numbers, 0), strict=True)}
    source = put_masks(tmp_path / "source", masks, (64, 64), suffix)
    text = ddep_hub.prepare(source, tmp_path / "output")
    assert "each mask numbers its objects" in text and "2 classes" in text
    found = masks_of(tmp_path / "output")
    assert all(np.array_equal(found[name], mask > 0) for name, mask in masks.items())

    # Without preparing them, the file to save says the same.
    with pytest.raises(FileNotFoundError, match="These are instance masks") as caught:
        SegmentationFolder(source, "train")
    (source / "classes.json").write_text(str(caught.value)[str(caught.value).index("{") :])
    dataset = SegmentationFolder(source, "train")
    assert dataset.classes.single and dataset.classes.labels == ("object",)
    for name, index in zip(dataset.sample_ids, range(3), strict=True):
        assert np.array_equal(dataset.mask(index), masks[name] > 0)


@pytest.mark.parametrize("numbers", [(12, 12), (9, 10), (12, 11)])
def test_values_that_may_be_classes_stay_classes(tmp_path, numbers):
    masks = dict(zip("ab", (numbered(number, np.uint8) for number in numbers), strict=True))
    put_masks(tmp_path / "source", masks, (64, 64))
    assert f"{max(numbers) + 1} classes" in ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


def test_grey_values_number_no_objects(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    put_masks(tmp_path / "source", {"a": noise, "b": noise // 2}, (64, 64))
    with pytest.raises(ValueError, match="they are smoothed, or not masks"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


@pytest.mark.parametrize("other", ["ignore", "cell"])
def test_other_colours_without_colours_of_the_classes(tmp_path, other):
    """Each object in a colour of its own, on black."""
    colors = np.array([[0, 0, 0], [200, 10, 30], [9, 8, 7]], np.uint8)[BLOCKS]
    source = put_masks(tmp_path / "source", {"a": colors, "b": colors}, (64, 64))
    table = {"classes": [{"id": 0, "name": "cell"}], "other_values": other}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    ddep_hub.prepare(source, tmp_path / "output", classes=tmp_path / "classes.json")
    for found in masks_of(tmp_path / "output").values():
        assert np.array_equal(found, np.where(BLOCKS > 0, 1 if other == "cell" else 255, 0))


@pytest.mark.parametrize("ignore_index", [255, 254])
def test_other_values_and_colours_are_ignored_on_request(tmp_path, ignore_index):
    entries = [{"id": 0, "name": "a", "color": [0, 0, 0]}, {"id": 1, "name": "b", "color": [255, 0, 0]}]
    table = {"classes": entries, "ignore_index": ignore_index, "other_values": "ignore"}
    values = np.repeat([[0, 1, 77]], 16, axis=0).repeat(8, axis=1).astype(np.uint8)
    colors = np.array([[0, 0, 0], [255, 0, 0], [3, 3, 3]], np.uint8)[np.where(values == 77, 2, values)]
    (tmp_path / "classes.json").write_text(json.dumps(table))
    for kind, mask in (("values", values), ("colours", colors)):
        source = put_masks(tmp_path / kind, {"x": mask, "y": mask}, size=(24, 16))
        ddep_hub.prepare(source, tmp_path / f"{kind}-out", classes=tmp_path / "classes.json")
        for found in masks_of(tmp_path / f"{kind}-out").values():
            assert np.array_equal(found, np.where(values == 77, ignore_index, values))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("class_dict.csv", ["name,r,g,b", "level1,255,0,0", '"level 2", 0,255,0']),
        ("label_colors.txt", ["255 0 0\tlevel1", "0 255 0 level 2"]),
        ("labelmap.txt", ["# label:color_rgb:parts:actions", "level1:255,0,0::", "level 2:0,255,0::"]),
    ],
)
def test_names_of_colours_may_hold_digits(tmp_path, name, lines):
    colors = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)[np.repeat([[0, 1]], 16, axis=0).repeat(8, axis=1)]
    source = put_masks(tmp_path / "source", {"x": colors, "y": colors}, size=(16, 16))
    (source / name).write_text("\n".join(lines))
    ddep_hub.prepare(source, tmp_path / "output")
    assert SegmentationFolder(tmp_path / "output", "train").classes.names == ("level1", "level 2")
