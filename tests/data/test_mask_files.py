"""Masks whose pixels do not say plainly what their ids are: palettes, GIFs, transparency, pages, few bits."""

import json

import numpy as np
import pytest
from PIL import Image, ImageCms

from ddep_hub.data.class_files import read_class_table, suggest_classes
from ddep_hub.data.image_io import BadFileError
from ddep_hub.data.masks import decode_mask
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.preparation.mask_values import MaskReader


COLORS = {(0, 0, 0): 0, (0, 255, 0): 1, (255, 0, 0): 2}


def test_a_palette_is_read_by_the_colours_of_the_classes(tmp_path):
    """A program that saves few colours as a palette numbers them as it likes."""
    ids = np.repeat([[0, 0, 0, 2, 2, 1]], 4, axis=0)
    rgb = np.array(list(COLORS), np.uint8)[ids]
    image = Image.fromarray(rgb).quantize(16)
    assert not np.array_equal(np.asarray(image), ids)
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name)
        found = decode_mask(tmp_path / name, num_classes=3, ignore_index=255, colors=COLORS)
        assert np.array_equal(found, ids)
    # Indices that are the ids, with colours that are those of no class, or of the same.
    for palette in ([9, 9, 9, 8, 8, 8, 7, 7, 7], [0, 0, 0, 0, 255, 0, 1, 1, 1]):
        image = Image.fromarray(ids.astype(np.uint8), "P")
        image.putpalette(palette)
        image.save(tmp_path / "b.png")
        assert np.array_equal(decode_mask(tmp_path / "b.png", num_classes=3, ignore_index=255, colors=COLORS), ids)
    # Two classes have the colours of others, and a third a colour of none.
    image.putpalette([0, 255, 0, 255, 0, 0, 5, 5, 5])
    image.save(tmp_path / "c.png")
    with pytest.raises(BadFileError, match=r"the colour \(5, 5, 5\)"):
        decode_mask(tmp_path / "c.png", num_classes=3, ignore_index=255, colors=COLORS)


@pytest.mark.parametrize(
    "palette",
    [
        [0, 0, 0, 0, 255, 0, 255, 0, 0] + [9] * 54,  # 21 colours: ends before 255
        [0, 0, 0, 0, 255, 0, 255, 0, 0] + [0] * 759,
        [0, 0, 0, 9, 9, 9, 255, 0, 0] + [0, 255, 0] * 253,
        [value for index in range(256) for value in (index, index, index)],
    ],
)
def test_ignored_pixels_of_a_palette_stay_ignored(tmp_path, palette):
    ids = np.repeat([[0, 1, 2, 255]], 4, axis=0).astype(np.uint8)
    image = Image.fromarray(ids, "P")
    image.putpalette(palette)
    image.save(tmp_path / "a.png")
    found = decode_mask(tmp_path / "a.png", num_classes=3, ignore_index=255, colors=COLORS)
    assert np.array_equal(found, ids)


def test_a_gif_in_the_order_of_the_classes(tmp_path):
    ids = np.repeat([[0, 1, 2]], 4, axis=0).astype(np.uint8)
    image = Image.fromarray(ids, "P")
    image.putpalette([value for color in COLORS for value in color])
    image.save(tmp_path / "a.gif")
    found = decode_mask(tmp_path / "a.gif", num_classes=3, ignore_index=255, colors=COLORS)
    assert np.array_equal(found, ids)


def test_the_grey_levels_of_a_gif_are_the_values(tmp_path):
    """Its writers drop the entries of the palette that do not occur."""
    values = np.repeat([[0, 0, 2, 255]], 3, axis=0).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.gif")
    assert np.array_equal(decode_mask(tmp_path / "a.gif", num_classes=4, ignore_index=255), values)
    Image.fromarray(np.array(list(COLORS), np.uint8)[[[0, 1, 2]]]).save(tmp_path / "b.gif")
    with pytest.raises(BadFileError, match="palette has no fixed order; save the mask as PNG"):
        decode_mask(tmp_path / "b.gif", num_classes=3, ignore_index=255)


def test_white_is_255_where_a_class_has_this_value(tmp_path):
    shape = np.eye(4, dtype=bool)
    Image.fromarray(shape).save(tmp_path / "a.png")
    Image.fromarray(255 * shape.astype(np.uint8)).save(tmp_path / "a.gif")
    for name in ("a.png", "a.gif"):
        for mapping in ({0: 0, 255: 1}, {0: 0, 1: 1}, {0: 0, 1: 1, 255: 255}):
            found = decode_mask(tmp_path / name, num_classes=2, ignore_index=255, mapping=mapping)
            assert np.array_equal(found, shape)
        with pytest.raises(BadFileError, match="the values 1, which are not among"):
            decode_mask(tmp_path / name, num_classes=2, ignore_index=255, mapping={0: 0, 128: 1, 255: 255})


def test_erased_pixels_are_black(tmp_path):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[:, 1:] = (255, 0, 0, 255)
    pixels[:, 2, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = decode_mask(tmp_path / "a.png", num_classes=3, ignore_index=255, colors=COLORS)
    assert found.tolist() == [[0, 2, 0]] * 2


def test_several_pages_are_refused(tmp_path):
    first, second = (Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (1, 2))
    for name in ("a.tif", "a.gif", "a.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        with pytest.raises(BadFileError, match=r"a\.\w+ has 2 pages"):
            decode_mask(tmp_path / name, num_classes=3, ignore_index=255)


def test_the_overviews_of_a_tiff_are_no_pages(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(ids)
        file.write(ids[::2, ::2], subfiletype=1)
    assert np.array_equal(decode_mask(tmp_path / "a.tif", num_classes=64, ignore_index=255), ids)


@pytest.mark.parametrize("largest", [1, 3, 100])
def test_values_of_a_pgm_are_not_stretched(largest, tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5\n%d 1\n%d\n" % (largest + 1, largest) + bytes(range(largest + 1)))
    found = decode_mask(tmp_path / "a.pgm", num_classes=101, ignore_index=255)
    assert found.tolist() == [list(range(largest + 1))]


def test_values_of_a_deep_pgm_are_not_stretched(tmp_path):
    values = np.array([[0, 5, 20, 280, 1000]], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5\n5 1\n1000\n" + values.tobytes())
    found = decode_mask(tmp_path / "a.pgm", num_classes=1001, ignore_index=-1)
    assert found.tolist() == values.tolist()


def test_missing_masks_are_named_as_the_others(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg"):
        Image.new("L", (8, 8), 1).save(tmp_path / name)
    (tmp_path / "classes.json").write_text('["background", "cell"]')
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        SegmentationFolder(tmp_path, "train")


def test_an_image_is_not_its_own_mask(tmp_path):
    """Images and masks in one folder, one image without a mask: it holds values that would pass as ids."""
    for name in "abc":
        Image.new("L", (8, 8), 1).save(tmp_path / f"{name}.png")
        if name != "c":
            Image.new("L", (8, 8), 1).save(tmp_path / f"{name}_mask.png")
    (tmp_path / "classes.json").write_text('["background", "cell"]')
    with pytest.raises(FileNotFoundError, match=r"c_mask\.png"):
        SegmentationFolder(tmp_path, "train")


def test_whole_numbers_in_floats_are_ids(tmp_path):
    """ImageJ saves labels as floats of 32 bits."""
    ids = np.array([[0, 1, 2]] * 3)
    Image.fromarray(ids.astype(np.float32)).save(tmp_path / "a.tif")
    assert np.array_equal(decode_mask(tmp_path / "a.tif", num_classes=3, ignore_index=255), ids)
    Image.fromarray(ids.astype(np.float32) / 2).save(tmp_path / "a.tif")
    with pytest.raises(BadFileError, match="has colour mode F, with fractions or NaN"):
        decode_mask(tmp_path / "a.tif", num_classes=3, ignore_index=255)


def test_masks_that_pillow_cannot_open(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.int64))
    with pytest.raises(BadFileError, match=r"a\.tif is not an image that Pillow can read.*save the mask with 8 or 16"):
        decode_mask(tmp_path / "a.tif", num_classes=3, ignore_index=255)


def test_no_classes_are_suggested_for_soft_borders(tmp_path):
    soft = np.clip(np.arange(256) * np.ones((4, 1)), 0, 255).astype(np.uint8)
    Image.fromarray(soft).save(tmp_path / "a.png")
    assert suggest_classes([tmp_path / "a.png"]).startswith(
        "The masks hold 256 values from 0 to 255. If their borders are smoothed"
    )
    Image.fromarray(np.minimum(soft, 150)).save(tmp_path / "a.png")  # ADE20K has 150 classes
    assert "mask_values" not in suggest_classes([tmp_path / "a.png"])
    Image.fromarray(soft.astype(np.uint16) + 100).save(tmp_path / "a.png")  # objects with ids of their own
    assert "mask_values" in suggest_classes([tmp_path / "a.png"])


def test_palettes_that_a_program_has_numbered_are_suggested_by_colour(tmp_path):
    colors = np.array([(0, 0, 0), (0, 255, 0), (255, 0, 0)], np.uint8)
    for shift in range(3):
        for folder in ("images", "annotations"):
            (tmp_path / folder / "train").mkdir(parents=True, exist_ok=True)
        ids = np.repeat([[(0 - shift) % 3, (2 - shift) % 3, 255]], 4, axis=0).astype(np.uint8)
        mask = Image.fromarray(ids, "P")  # black and red in each
        mask.putpalette([*np.roll(colors, -shift, axis=0).ravel().tolist(), *[224, 224, 192] * 253])
        mask.save(tmp_path / "annotations" / "train" / f"{shift}.png")
        Image.new("RGB", mask.size).save(tmp_path / "images" / "train" / f"{shift}.png")
    with pytest.raises(FileNotFoundError, match="Save this there") as error:
        SegmentationFolder(tmp_path, "train")
    lines = str(error.value).splitlines()
    text = "\n".join(lines[1 : next(number for number, line in enumerate(lines) if line.startswith("Shares"))])
    (tmp_path / "classes.json").write_text(text)
    dataset = SegmentationFolder(tmp_path, "train")
    assert dataset.classes.num_classes == 2
    assert all(np.array_equal(dataset.mask(index), np.repeat([[0, 1, 255]], 4, axis=0)) for index in range(3))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {"compression": "jpeg"}),
        ("a.webp", {"quality": 80}),
        ("a.webp", {"quality": 80, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}),
    ],
)
def test_masks_compressed_with_loss_are_refused(tmp_path, name, options):
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[20:40, 20:40] = (255, 0, 0)
    Image.fromarray(rgb).save(tmp_path / name, **options)
    with pytest.raises(BadFileError, match=r"compressed with loss, which changes class ids; save the mask as PNG"):
        MaskReader(as_colors=True).read(tmp_path / name, None)  # of `ddep-hub prepare`
    with pytest.raises(BadFileError, match=r"compressed with loss, which changes class ids; save the mask as PNG"):
        decode_mask(tmp_path / name, num_classes=3, ignore_index=255, colors=COLORS)
    Image.fromarray(rgb).save(tmp_path / name, lossless=True)
    found = decode_mask(tmp_path / name, num_classes=3, ignore_index=255, colors=COLORS)
    assert found[0, 0] == 0 and found[30, 30] == 2


def test_more_values_than_ids_are_no_suggestion_that_is_refused(tmp_path):
    for values in (np.arange(300).astype(np.uint16), np.stack([np.arange(256), np.zeros(256), np.ones(256)], -1)):
        mask = values if values.ndim == 1 else values.astype(np.uint8)
        Image.fromarray(mask[None]).save(tmp_path / "a.png")
        message = suggest_classes([tmp_path / "a.png"])
        assert message.startswith(f"The masks hold {len(values)} values. ") and '"ignore_index": -1' in message
    classes = [{"id": index, "name": f"class {index}"} for index in range(300)]
    (tmp_path / "classes.json").write_text(json.dumps({"ignore_index": -1, "classes": classes}))
    assert read_class_table(tmp_path / "classes.json").ignore_index == -1


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (4, 6, 1)])
def test_arrays_are_masks(tmp_path, kind, shape):
    ids = np.repeat([[0, 0, 1, 1, 0, 1]], 4, axis=0)
    np.save(tmp_path / "a.npy", ids.astype(kind).reshape(shape))
    found = decode_mask(tmp_path / "a.npy", num_classes=2, ignore_index=255)
    assert found.dtype == np.uint8 and np.array_equal(found, ids)


def test_arrays_of_colours_and_of_values_with_a_mapping(tmp_path):
    ids = np.repeat([[0, 1, 2]], 4, axis=0)
    np.save(tmp_path / "a.npy", np.array(list(COLORS), np.uint8)[ids])
    assert np.array_equal(decode_mask(tmp_path / "a.npy", num_classes=3, ignore_index=255, colors=COLORS), ids)
    np.save(tmp_path / "b.npy", ids.astype(np.int64) * 70_000 - 1)
    mapping = {-1: 255, 69_999: 0, 139_999: 1}
    found = decode_mask(tmp_path / "b.npy", num_classes=2, ignore_index=255, mapping=mapping)
    assert np.array_equal(found, np.array([255, 0, 1])[ids])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 4, 6)), r"holds float64 of shape \(3, 4, 6\).*\(height, width\) of whole numbers"),
        (np.full((4, 6), 0.5), "with fractions or NaN"),
        (np.full((4, 6), 2**40), "beyond 32 bits"),
        (np.full((4, 6), 1e30), "beyond 32 bits"),
        (np.zeros((0, 6), np.uint8), r"holds uint8 of shape \(0, 6\)"),
        (np.array([["sky"]]), r"holds <U3 of shape \(1, 1\)"),
        (np.array({"masks": np.zeros((4, 6))}), "holds Python objects; save the mask in it as PNG"),
        (b"\x93NUMPY", "is damaged or not an array"),
        (b"PK\x03\x04", "is damaged or not an array"),
        ({"mask": np.zeros((4, 6), np.uint8)}, "is an archive of arrays"),
        (np.full((4, 6), 2, np.uint8), "holds the ids 2"),
    ],
)
def test_arrays_that_are_no_masks(tmp_path, values, message):
    path = tmp_path / "a.npy"
    if isinstance(values, dict):
        np.savez(tmp_path / "a.npz", **values)
        (tmp_path / "a.npz").rename(path)
    else:
        path.write_bytes(values) if isinstance(values, bytes) else np.save(path, values)
    with pytest.raises(BadFileError, match=rf"a\.npy.* {message}"):
        decode_mask(path, num_classes=2, ignore_index=255)


def put_array_masks(folder, names="ab"):
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        np.save(folder / f"{name}.npy", np.full((4, 6), index, np.int64))


@pytest.mark.parametrize("kind", ["folders", "side by side", "pairs"])
def test_arrays_beside_images(tmp_path, kind):
    folder = tmp_path if kind == "side by side" else tmp_path / "images"
    folder.mkdir(exist_ok=True)
    for name in "ab":
        Image.new("RGB", (6, 4)).save(folder / f"{name}.png")
    (tmp_path / "classes.json").write_text('["sky", "road"]')
    if kind == "side by side":
        put_array_masks(tmp_path, ("a_mask", "b_mask"))
    else:
        put_array_masks(tmp_path / ("masks" if kind == "folders" else "somewhere"))
    if kind == "pairs":
        lines = [f"images/{name}.png,somewhere/{name}.npy" for name in "ab"]
        (tmp_path / "pairs.csv").write_text("\n".join(["image,mask", *lines]))
    data = SegmentationFolder(tmp_path, "train")
    assert [int(data[index]["annotation"].max()) for index in range(2)] == [0, 1]
    assert data.mask(1).shape == (4, 6)


def test_arrays_beside_masks_are_something_else(tmp_path):
    """Such as probabilities, or what a program keeps of its own."""
    (tmp_path / "images").mkdir()
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB" if folder == "images" else "L", (6, 4)).save(tmp_path / folder / "a.png")
    (tmp_path / "classes.json").write_text('["sky", "road"]')
    put_array_masks(tmp_path / "masks", ("a", "other"))
    put_array_masks(tmp_path / "labels", "a")
    data = SegmentationFolder(tmp_path, "train")
    assert [path.name for path in data._masks] == ["a.png"]


def test_classes_of_arrays_are_suggested(tmp_path):
    put_array_masks(tmp_path, "abc")
    text = suggest_classes(sorted(tmp_path.iterdir()))
    assert '{"id": 2, "name": "class 2"}' in text and "mask_values" not in text


IDS = np.repeat([[0, 1, 2, 2]], 4, axis=0).astype(np.uint8)


def palette_mask(ids, colors):
    mask = Image.fromarray(ids, "P")
    mask.putpalette([*np.array(colors, np.uint8).ravel().tolist(), *[9, 9, 9] * (256 - len(colors))])
    return mask


@pytest.mark.parametrize(
    ("name", "masks"),
    [
        ("png", [Image.fromarray(IDS), Image.fromarray(IDS[:, ::-1].copy())]),
        ("png", [Image.fromarray(IDS * 40)]),
        ("png", [Image.fromarray(np.where(IDS == 2, 255, IDS * 7).astype(np.uint8))]),
        ("tif", [Image.fromarray(IDS.astype(np.uint16) * 300)]),
        ("png", [Image.fromarray(IDS > 0)]),
        ("png", [Image.fromarray(IDS > 0), Image.fromarray((IDS > 0).astype(np.uint8) * 255)]),
        ("png", [Image.fromarray(np.array(list(COLORS), np.uint8)[IDS])]),
        ("png", [Image.fromarray(np.array(list(COLORS), np.uint8)[IDS]).convert("RGBA")]),
        ("png", [palette_mask(IDS, [(0, 0, 0), (250, 0, 0), (0, 250, 0)])] * 2),
        ("png", [palette_mask(IDS, colors) for colors in ([(0, 0, 0), (9, 0, 0), (0, 9, 0)], [(9, 0, 0)] * 3)]),
        ("gif", [palette_mask(IDS, [(0, 0, 0), (250, 0, 0), (0, 250, 0)])]),
        ("gif", [palette_mask(IDS, [(5, 5, 5), (0, 0, 0), (90, 90, 90)])]),
    ],
)
def test_what_is_suggested_is_what_is_read(tmp_path, name, masks):
    for index, mask in enumerate(masks):
        for folder in ("images", "annotations"):
            (tmp_path / folder / "train").mkdir(parents=True, exist_ok=True)
        mask.save(tmp_path / "annotations" / "train" / f"{index}.{name}")
        Image.new("RGB", mask.size).save(tmp_path / "images" / "train" / f"{index}.png")
    text = suggest_classes(sorted((tmp_path / "annotations" / "train").iterdir()))
    (tmp_path / "classes.json").write_text(text[text.index("{") : text.rindex("}") + 1])
    dataset = SegmentationFolder(tmp_path, "train")
    found = np.unique([dataset.mask(index) for index in range(len(masks))])
    assert {*found.tolist()} - {255} == {*range(dataset.classes.num_classes)}


def test_no_classes_are_suggested_for_masks_that_are_not_read(tmp_path):
    Image.fromarray(np.array(list(COLORS), np.uint8)[IDS]).save(tmp_path / "a.jpg")
    with pytest.raises(BadFileError, match=r"a\.jpg is a JPEG, which changes class ids; save the mask as PNG"):
        suggest_classes([tmp_path / "a.jpg"])


def test_two_masks_of_an_image_are_refused(tmp_path):
    for folder, name in (("images", "a.png"), ("annotations", "a.png"), ("annotations", "a.jpg")):
        (tmp_path / folder / "train").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / folder / "train" / name)
    (tmp_path / "classes.json").write_text(json.dumps({"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}))
    assert len(SegmentationFolder(tmp_path, "train")) == 1  # a JPEG shows a mask at most
    Image.new("L", (8, 8), 1).save(tmp_path / "annotations" / "train" / "a.tif")
    with pytest.raises(ValueError, match=r"holds both a\.png and a\.tif"):
        SegmentationFolder(tmp_path, "train")
