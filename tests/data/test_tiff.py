"""TIFF files of every kind: their pixels, or an error that says what to do, never wrong pixels."""

import importlib.util
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ddep_hub import DDePImageProcessor, image_conversion
from ddep_hub.data.image_io import BadFileError, decode_image
from ddep_hub.data.statistics import folder_statistics
from ddep_hub.data.unlabelled_transforms import PretrainTransform
from ddep_hub.image_conversion import ChannelImage


tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
ROWS, COLUMNS = np.mgrid[:40, :60]
RGB = np.stack([4 * COLUMNS, 6 * ROWS, 2 * (ROWS + COLUMNS)], axis=-1).astype(np.uint8)
FIRST = np.ascontiguousarray(RGB.transpose(2, 0, 1))
DEEP = FIRST.astype(np.uint16) * 257
NIR = 255 - RGB[..., :1]
PLANES = {"photometric": "rgb", "planarconfig": "separate"}


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return path


def pixels_of(image):
    """Height, width, channels in 0..255, of what `decode_image` gives."""
    return image.pixels.transpose(1, 2, 0) if isinstance(image, ChannelImage) else np.asarray(image)


def without_tifffile(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_planes_of_sixteen_bits(tmp_path, options, byteorder):
    path = write(tmp_path / "a.tif", DEEP, byteorder=byteorder, **PLANES, **options)
    np.testing.assert_allclose(pixels_of(decode_image(path)), RGB, atol=1e-4)


def test_what_pillow_reads_wrongly_is_refused_where_it_reads_alone(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", DEEP, **PLANES)
    with Image.open(path) as image, pytest.raises(ValueError, match=r'deep planes.*pip install "ddep-hub\[tiff\]"'):
        DDePImageProcessor()(image)
    without_tifffile(monkeypatch)
    with pytest.raises(BadFileError, match=r"a\.tif is an uncompressed TIFF .*deep planes"):
        decode_image(path)
    write(path, RGB.astype(np.float32), photometric="rgb")
    with pytest.raises(BadFileError, match=r'a\.tif is not an image.*, or pip install "ddep-hub\[tiff\]"'):
        decode_image(path)


def test_signed_bytes_and_a_first_page_that_is_a_copy_are_refused(tmp_path):
    path = write(tmp_path / "signed.tif", np.array([[-1, 0], [1, 100]], np.int8))
    with pytest.raises(BadFileError, match=r"signed\.tif has signed 8-bit values"):
        decode_image(path)
    with tifffile.TiffWriter(tmp_path / "copy.tif") as file:
        file.write(RGB[::4, ::4], subfiletype=1)
        file.write(RGB)
    with pytest.raises(BadFileError, match=r"copy\.tif starts with a reduced copy"):
        decode_image(tmp_path / "copy.tif")


def test_each_file_of_a_set_is_an_image_of_its_own(tmp_path):
    """Micro-Manager writes OME-TIFF in several files, each of which describes all."""
    pixels = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="z{z}.ome.tif">urn:uuid:{z}</UUID></TiffData>'
        for z in range(2)
    )
    for z in range(2):
        text = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{z}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
            f'SizeX="60" SizeY="40" SizeC="1" SizeZ="2" SizeT="1">{pixels}</Pixels></Image></OME>'
        )
        write(tmp_path / f"z{z}.ome.tif", RGB[..., z], description=text, metadata=None)
    with tifffile.TiffFile(tmp_path / "z0.ome.tif") as file:
        assert file.series[0].is_multifile and file.series[0].shape == (2, 40, 60)
    for z in range(2):
        image = decode_image(tmp_path / f"z{z}.ome.tif", 1)
        assert np.array_equal(image.pixels[0], RGB[..., z])


def test_each_position_of_a_set_is_an_image_of_its_own(tmp_path):
    """The other kind of Micro-Manager's sets: a file for each image, of which all name the first one first."""
    text = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}">'
    for k in range(3):
        text += (
            f'<Image ID="Image:{k}"><Pixels ID="Pixels:{k}" DimensionOrder="XYCZT" Type="uint8" SizeX="60" SizeY="40" '
            f'SizeC="1" SizeZ="1" SizeT="1"><TiffData IFD="0" PlaneCount="1"><UUID FileName="p{k}.ome.tif">'
            f"urn:uuid:{k}</UUID></TiffData></Pixels></Image>"
        )
    for k in range(3):
        content = f"{text.format(k)}</OME>"
        write(tmp_path / f"p{k}.ome.tif", RGB[..., k], description=content, metadata=None, compression="zlib")
    for k in range(3):
        assert np.array_equal(decode_image(tmp_path / f"p{k}.ome.tif", 1).pixels[0], RGB[..., k])


def write_pages(path, pages, **options):
    """A file written page by page, each of which tifffile then takes for a series of its own."""
    with tifffile.TiffWriter(path, **options) as file:
        for page in pages:
            file.write(page)
    return path


@pytest.mark.parametrize("options", [{}, {"ome": True}])
def test_pages_that_were_written_one_by_one(tmp_path, options):
    pages = [RGB[..., 0] + np.uint8(number) for number in range(4)]
    path = write_pages(tmp_path / f"pages{'.ome' * bool(options)}.tif", pages, **options)
    assert np.array_equal(decode_image(path, 4).pixels, pages)
    for channels in (1, 3):
        with pytest.raises(BadFileError, match="4 channels"):
            decode_image(path, channels)
    with pytest.raises(BadFileError, match=f"{path.name} "):
        decode_image(write_pages(path, [RGB] * 5, **options))


def test_files_of_several_images_are_refused_unless_the_others_are_smaller(tmp_path):
    for pages in ([RGB[::4, ::4], RGB], [RGB, RGB[..., 0]]):
        with pytest.raises(BadFileError, match=r"has images of several sizes or kinds; save each as a separate file"):
            decode_image(write_pages(tmp_path / "a.tif", pages))
    assert np.array_equal(pixels_of(decode_image(write_pages(tmp_path / "a.tif", [RGB, RGB[::4, ::4]]))), RGB)


def test_positions_of_several_channels_are_no_channels(tmp_path):
    positions = [np.stack([RGB[..., 0], RGB[..., 1] + np.uint8(number)]) for number in range(3)]
    path = write_pages(tmp_path / "a.ome.tif", positions, ome=True)
    for channels in (2, 6):
        with pytest.raises(BadFileError, match=r"has 3 images \(series\); save each as a separate file"):
            decode_image(path, channels)


def test_frames_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(image_conversion, "_warned", set())
    frames = [Image.new("RGB", (8, 6), (level, 0, 0)) for level in (0, 100, 200)]
    for name in ("a.gif", "a.webp", "a.png"):
        image_conversion._warned.clear()
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.warns(UserWarning, match="has 3 frames, of which only the first is read"):
            decode_image(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames[1].save(tmp_path / "single.gif")
        decode_image(tmp_path / "single.gif")


def test_more_pixels_than_the_file_holds_are_refused(tmp_path):
    """Which a damaged tag may ask for: here 40 million rows in a file of 29 kB."""
    path = write(tmp_path / "a.tif", RGB.astype(np.float32) / 255, photometric="rgb")
    np.testing.assert_allclose(pixels_of(decode_image(path)), RGB, atol=1)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["ImageLength"].overwrite(40_000_000, dtype="I")
    with pytest.raises(BadFileError, match=r"a\.tif is damaged .*40000000x60x3 does not fit"):
        decode_image(path)


@pytest.mark.parametrize("top", [1, 255])
@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_floats_of_rgb_lie_in_0_to_1_or_0_to_255(tmp_path, suffix, top):
    """The rule of grey floats, see `test_wide_values`; other channels keep their units."""
    path = tmp_path / f"a.{suffix}"
    for dtype in (np.float16, np.float32, np.float64):
        values = (RGB / 255 * top).astype(dtype)
        np.save(path, values) if suffix == "npy" else write(path, values, photometric="rgb")
        np.testing.assert_allclose(pixels_of(decode_image(path)), RGB, atol=0.2)
        crop = PretrainTransform(crop_size=16)({"image": {"path": str(path), "bytes": None}})["pixel_values"]
        assert crop.shape == (3, 16, 16) and 50 < crop.float().mean() < 150
    write(tmp_path / "one.tif", RGB[..., 0].astype(np.float32))
    assert decode_image(tmp_path / "one.tif", 1).pixels.max() == pytest.approx(236 * 255)


@pytest.mark.parametrize("offset", [-1, 100])
@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_floats_of_rgb_without_a_range_are_refused(tmp_path, suffix, offset):
    values = RGB.astype(np.float32) + offset
    np.save(tmp_path / "a.npy", values)
    write(tmp_path / "a.tif", values, photometric="rgb")
    with pytest.raises(BadFileError, match=r"a\.(tif|npy) holds values from .*outside 0\.\.255") as caught:
        decode_image(tmp_path / f"a.{suffix}")
    assert "\n" not in str(caught.value)


def test_grey_that_pillow_does_not_read_is_grey_all_the_same(tmp_path):
    found = pixels_of(decode_image(write(tmp_path / "a.tif", RGB[..., 0].astype(np.float64))))
    np.testing.assert_array_equal(found, RGB[..., [0, 0, 0]])


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(
    ("extra", "options"),
    [
        (1, {"extrasamples": ["unspecified"]}),
        (2, {"extrasamples": ["unspecified"] * 2}),
        (2, {"extrasamples": ["unassalpha", "unspecified"]}),
        (3, {"extrasamples": ["unspecified"] * 3}),
    ],
)
@pytest.mark.parametrize("planar", [False, True])
def test_more_bands_than_rgb_are_refused(tmp_path, monkeypatch, extra, options, planar, installed):
    bands = np.concatenate([RGB, *[NIR] * extra], axis=-1)
    options |= {"photometric": "rgb", "planarconfig": "separate" if planar else "contig"}
    path = write(tmp_path / "a.tif", bands.transpose(2, 0, 1) if planar else bands, **options)
    np.testing.assert_array_equal(pixels_of(decode_image(path, 3 + extra)), bands)
    if not installed:
        without_tifffile(monkeypatch)
        with pytest.raises(BadFileError, match=r"a\.tif .*(pip install|not an image)"):
            decode_image(path, 3 + extra)
        with pytest.raises(BadFileError, match=r'a\.tif .*(; set num_channels|or pip install "ddep-hub\[tiff\]")'):
            decode_image(path)
        return
    with pytest.raises(BadFileError, match=rf"a\.tif has {3 + extra} channels.* model takes 3; set num_channels"):
        decode_image(path)


def test_a_fourth_band_without_a_word_on_what_it_is_is_refused(tmp_path):
    path = write(tmp_path / "a.tif", np.concatenate([RGB, NIR], -1), photometric="rgb", extrasamples=["unspecified"])
    content = path.read_bytes()
    assert content.count(b"\x52\x01\x03\x00") == 1
    path.write_bytes(content.replace(b"\x52\x01\x03\x00", b"\xfe\xff\x03\x00"))  # the tag ExtraSamples
    with pytest.raises(BadFileError, match=r"a\.tif has 4 channels.*num_channels"):
        decode_image(path)


def test_a_band_that_is_called_opacity_but_does_not_look_like_it_is_warned_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr(image_conversion, "_warned", set())
    path = write(tmp_path / "a.tif", np.concatenate([RGB, NIR], -1), photometric="rgb", extrasamples=["unassalpha"])
    with pytest.warns(UserWarning, match=r"a\.tif marks its last channel as alpha.*num_channels=4"):
        decode_image(path)
    cut_out = np.concatenate([RGB, np.where(COLUMNS < 20, 0, 255)[..., None].astype(np.uint8)], -1)
    write(tmp_path / "b.tif", cut_out, photometric="rgb", extrasamples=["unassalpha"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(path)
        monkeypatch.setattr(image_conversion, "_warned", set())
        found = pixels_of(decode_image(tmp_path / "b.tif"))
    assert (found[:, :20] == 255).all() and np.array_equal(found[:, 20:], RGB[:, 20:])


@pytest.mark.parametrize("installed", [True, False])
def test_uncompressed_ycbcr_is_refused(tmp_path, monkeypatch, installed):
    image = Image.fromarray(RGB).convert("YCbCr")
    for name, options in (("packed", {"compression": "tiff_lzw"}), ("raw", {})):
        image.save(tmp_path / f"{name}.tif", **options)
    np.testing.assert_allclose(pixels_of(decode_image(tmp_path / "packed.tif")), RGB, atol=4)
    # Where something follows the pixels, Pillow does not notice that it reads too far.
    write(tmp_path / "strips.tif", RGB, photometric="ycbcr", rowsperstrip=8)
    (tmp_path / "strips.tif").write_bytes((tmp_path / "strips.tif").read_bytes() + b"\0" * 9999)
    if not installed:
        without_tifffile(monkeypatch)
    for name in ("raw", "strips"):
        with pytest.raises(BadFileError, match=rf"{name}\.tif .*YCbCr.*convert it to RGB"):
            decode_image(tmp_path / f"{name}.tif")


def test_white_is_255_also_where_a_file_says_that_0_is(tmp_path):
    for name, values in (("eight", FIRST[0]), ("sixteen", DEEP[0])):
        path = write(tmp_path / f"{name}.tif", values, photometric="miniswhite")
        np.testing.assert_array_equal(pixels_of(decode_image(path))[..., 0], 255 - FIRST[0])
        np.testing.assert_allclose(decode_image(path, 1).pixels[0], 255 - FIRST[0], atol=1e-4)


def test_a_palette_is_colours_unless_it_is_imagejs_way_to_show_grey(tmp_path):
    table = np.random.default_rng(0).integers(0, 65536, (3, 256), dtype=np.uint16)
    path = write(tmp_path / "a.tif", FIRST[0], photometric="palette", colormap=table)
    np.testing.assert_allclose(pixels_of(decode_image(path)), table.T[FIRST[0]] / 257, atol=1)
    with pytest.raises(BadFileError, match=r"a\.tif has palette colours; convert it to RGB or grey"):
        decode_image(path, 1)
    path = write(tmp_path / "b.tif", FIRST[0], photometric="palette", colormap=table, description="ImageJ=1.54f\n")
    np.testing.assert_array_equal(decode_image(path, 1).pixels[0], FIRST[0])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_with_any_number_of_channels(tmp_path, orientation, channels):
    stored = {1: FIRST[0], 3: RGB, 4: np.concatenate([RGB, NIR], -1)}[channels]
    options = {"photometric": "minisblack" if channels == 1 else "rgb", "extratags": [(274, 3, 1, orientation, False)]}
    path = write(tmp_path / "a.tif", stored, **options)
    # What each orientation says of the stored rows and columns, from the TIFF 6.0 specification.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored.swapaxes(0, 1)[:, ::-1],
        7: stored.swapaxes(0, 1)[::-1, ::-1],
        8: stored.swapaxes(0, 1)[::-1],
    }[orientation]
    found = pixels_of(decode_image(path, channels))
    np.testing.assert_array_equal(found[..., 0] if channels == 1 else found, upright)


def test_a_compression_that_needs_another_package_is_no_damage(tmp_path, monkeypatch):
    Image.fromarray(RGB).convert("RGBA").save(tmp_path / "a.tif", compression="tiff_lzw")
    if importlib.util.find_spec("imagecodecs") is not None:
        assert np.array_equal(decode_image(tmp_path / "a.tif", 4).pixels[:3].transpose(1, 2, 0), RGB)

    def fail(self, *args, **kwargs):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", fail)
    with pytest.raises(BadFileError, match=r"a\.tif is compressed: .*; pip install imagecodecs$"):
        decode_image(tmp_path / "a.tif", 4)


def test_arrays_of_either_byte_order(tmp_path):
    np.save(tmp_path / "a.npy", DEEP.astype(">u2"))
    np.testing.assert_allclose(pixels_of(decode_image(tmp_path / "a.npy")), RGB, atol=1e-4)


@pytest.mark.parametrize("planar", [False, True])
def test_colours_of_twelve_bits_are_warned_of(tmp_path, monkeypatch, planar):
    """Pillow reads the interleaved ones, with 8 bits, and `tifffile` the planes."""
    monkeypatch.setattr(image_conversion, "_warned", set())
    options = PLANES if planar else {"photometric": "rgb"}
    pixels = DEEP if planar else np.moveaxis(DEEP, 0, -1)
    write(tmp_path / "bright.tif", pixels, **options)
    write(tmp_path / "dark.tif", np.minimum(pixels, 4095), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(tmp_path / "bright.tif")
    with pytest.warns(UserWarning, match=r"dark\.tif has 16 bits, but hardly a value above 4095"):
        decode_image(tmp_path / "dark.tif")


def test_deep_colours_are_refused_where_pillow_reads_alone_and_their_depth_counts(tmp_path, monkeypatch):
    pixels = np.moveaxis(np.concatenate([DEEP, DEEP[:1]]), 0, -1)
    path = write(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_allclose(pixels_of(decode_image(path, 4)), pixels / 257, atol=1e-4)
    without_tifffile(monkeypatch)
    with pytest.raises(BadFileError, match=r'a\.tif has colours of 16 bits.*pip install "ddep-hub\[tiff\]"'):
        decode_image(path, 4)


@pytest.mark.parametrize(("height", "width"), [(1, 60), (40, 1), (1, 1)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", ["pages", "separate", "contig"])
def test_one_row_or_column_is_an_image(tmp_path, height, width, channels, layout):
    pixels = np.concatenate([DEEP, DEEP[:1]])[:channels, -height:, :width]
    if layout == "pages" or channels == 1:
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            for page in pixels:
                writer.write(page, photometric="minisblack", metadata=None)
    else:
        stored = np.moveaxis(pixels, 0, -1) if layout == "contig" else pixels
        photometric = "rgb" if channels == 3 else "minisblack"
        write(tmp_path / "a.tif", np.ascontiguousarray(stored), photometric=photometric, planarconfig=layout)
    found = pixels_of(decode_image(tmp_path / "a.tif", channels))
    assert found.shape == (height, width, channels)
    np.testing.assert_allclose(found, np.moveaxis(pixels, 0, -1) / 257, atol=1e-4)


def nodata_tag(text):
    return {"extratags": [(42113, "s", 0, text, True)]}


@pytest.mark.parametrize("text", ["-9999", "-3.4028234663852886e+38", "nan", "-inf"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
def test_pixels_without_data_are_the_mean_of_the_others(tmp_path, monkeypatch, text, dtype, layout):
    monkeypatch.setattr(image_conversion, "_warned", set())
    bands = (np.concatenate([FIRST, FIRST[:1]]) / 255).astype(dtype)
    expected = bands.astype(np.float32)
    missing = np.zeros(bands.shape, bool)
    missing[:, :9, :9] = missing[1, 20] = missing[3] = True
    for channel, mask in zip(expected, missing, strict=True):
        channel[mask] = 0 if mask.all() else channel[~mask].mean()
    with np.errstate(over="ignore"):
        bands[missing] = dtype(float(text))
    stored = np.moveaxis(bands, 0, -1) if layout == "contig" else bands
    options = {} if layout == "pages" else {"planarconfig": layout}
    write(tmp_path / "a.tif", np.ascontiguousarray(stored), photometric="minisblack", **options, **nodata_tag(text))
    with pytest.warns(UserWarning, match=r"a\.tif has pixels without data, of the value .*GDAL_NODATA.*mean of"):
        image = decode_image(tmp_path / "a.tif", 4)
    np.testing.assert_allclose(image.pixels, expected * 255, rtol=2e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(tmp_path / "a.tif", 4)
    with pytest.raises(ValueError, match="channel 3 is constant"):
        folder_statistics([tmp_path], 4)


def test_the_largest_double_means_no_data_if_the_tag_rounds_it_up(tmp_path, monkeypatch):
    monkeypatch.setattr(image_conversion, "_warned", set())
    bands = FIRST[:2] / 255
    bands[:, :9] = -np.finfo(np.float64).max
    path = write(tmp_path / "a.tif", bands, photometric="minisblack", **nodata_tag("-1.79769313486232e+308"))
    with pytest.warns(UserWarning, match=r"a\.tif has pixels without data"):
        found = decode_image(path, 2).pixels
    np.testing.assert_allclose(found[:, 9:], FIRST[:2, 9:], atol=1e-3)
    np.testing.assert_allclose(found[:, 0, 0], FIRST[:2, 9:].mean((1, 2)), rtol=1e-4)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_without_data_is_read_alike_by_pillow(tmp_path, monkeypatch, channels, installed):
    monkeypatch.setattr(image_conversion, "_warned", set())
    values = FIRST[0].astype(np.float32)
    mean = values[:, 9:].mean()
    values[:, :9] = -9999
    path = write(tmp_path / "a.tif", values, **nodata_tag("-9999"))
    if not installed:
        without_tifffile(monkeypatch)
    with pytest.warns(UserWarning, match=r"a\.tif has pixels without data, of the value -9999"):
        found = pixels_of(decode_image(path, channels)) / (255 if channels == 1 else 1)
    np.testing.assert_allclose(found[:, :9], np.broadcast_to(mean, (40, 9, channels)), atol=1)
    np.testing.assert_allclose(found[:, 9:, 0], FIRST[0][:, 9:], atol=1e-3)


def test_colours_without_data(tmp_path, monkeypatch):
    monkeypatch.setattr(image_conversion, "_warned", set())
    values = RGB / np.float32(255)
    values[:5] = np.nan
    path = write(tmp_path / "a.tif", values, photometric="rgb", **nodata_tag("nan"))
    with pytest.warns(UserWarning, match=r"a\.tif has pixels without data, of the value nan"):
        found = pixels_of(decode_image(path))
    np.testing.assert_allclose(found[5:], RGB[5:], atol=1e-3)
    np.testing.assert_allclose(found[:5], np.broadcast_to(RGB[5:].mean((0, 1)), (5, 60, 3)), rtol=1e-4)


def test_integers_keep_the_value_that_means_no_data(tmp_path):
    for bands in (DEEP[:2], FIRST[:2]):
        path = write(tmp_path / "a.tif", bands, photometric="minisblack", **nodata_tag("0"))
        np.testing.assert_allclose(decode_image(path, 2).pixels, FIRST[:2], atol=1e-4)


@pytest.mark.parametrize("value", [-3.4028234663852886e38, np.nan, -1e300])
def test_values_that_cannot_be_scaled_are_refused_with_their_file(tmp_path, value):
    bands = FIRST[:2].astype(np.float64)
    bands[0, 0, 0] = value
    for name, tag in (("a", {}), ("b", nodata_tag("-9999")), ("c", nodata_tag("none"))):
        path = write(tmp_path / f"{name}.tif", bands, photometric="minisblack", **tag)
        with pytest.raises(BadFileError, match=rf"{name}\.tif holds values that are not finite, or too large.*NODATA"):
            decode_image(path, 2)
    with pytest.raises(BadFileError, match=r"a\.tif holds values that are not finite"):
        folder_statistics([tmp_path], 2)


def test_pretraining_sees_the_same_pixels(tmp_path):
    """Of a TIFF that Pillow does not open: the size of JPEGs is not asked for."""
    file = {"path": str(write(tmp_path / "a.tif", RGB.astype(np.float32), photometric="rgb")), "bytes": None}
    whole = PretrainTransform(crop_size=(40, 60), scale=(1.0, 1.0), ratio=(1.5, 1.5), horizontal_flip=0)
    torch.testing.assert_close(whole({"image": file})["pixel_values"], torch.from_numpy(FIRST).float())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_uncompressed_file_on_its_side_is_upright_in_every_form(tmp_path, orientation):
    """Pillow maps such a file with the size of the turned image, where it has its name."""
    path = write(tmp_path / "a.tif", FIRST[0], extratags=[(274, 3, 1, orientation, False)])
    upright = np.asarray(decode_image(path))[..., 0]
    processor = DDePImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    with Image.open(path) as image:
        for form in (path, image):
            np.testing.assert_array_equal(processor(form, return_tensors="np")["pixel_values"][0, 0], upright)
        assert image.filename == str(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(image_conversion.extract_channels(image, 1, "it")[0], upright)


def test_multispectral_files_ask_for_the_package_that_reads_them(tmp_path, monkeypatch):
    bands = np.ascontiguousarray(np.moveaxis(np.concatenate([DEEP, DEEP[:1]]), 0, -1))
    path = write(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="contig")
    without_tifffile(monkeypatch)
    with pytest.raises(BadFileError, match=r"a\.tif is not an image that Pillow can read.*pip install") as caught:
        decode_image(path, 4)
    assert "0x" not in str(caught.value)
