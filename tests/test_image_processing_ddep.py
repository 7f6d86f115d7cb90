"""What the image processors promise beyond transformers' common tests: maps, sizes, messages, both backends alike."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from launching import run
from packaging.version import Version
from PIL import Image
from transformers import AutoImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput

from ddep_hub import image_conversion
from ddep_hub.data.image_io import decode_image
from ddep_hub.image_conversion import to_8_bit
from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.image_processing_pil_ddep import DDePImageProcessorPil


BACKENDS = [DDePImageProcessor, DDePImageProcessorPil]


@pytest.fixture(params=BACKENDS, ids=["torchvision", "pil"])
def processor_class(request):
    return request.param


def random_image(height=48, width=64, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def random_map(height=48, width=64, classes=19, dtype=np.uint8):
    return np.random.default_rng(1).integers(0, classes, (height, width)).astype(dtype)


def test_defaults_give_a_batch_of_one_size(processor_class):
    batch = processor_class()([random_image(48, 64), random_image(90, 30)], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 512, 512)
    assert batch["pixel_values"].dtype == torch.float32


def test_default_normalisation_maps_0_to_255_onto_minus_1_to_1(processor_class):
    image = np.zeros((8, 8, 3), np.uint8)
    image[0] = 255
    pixels = processor_class(do_resize=False)(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels[:, 0], torch.ones(3, 8))
    torch.testing.assert_close(pixels[:, 1:], -torch.ones(3, 7, 8))


def test_native_resolution_keeps_image_and_map(processor_class):
    segmentation_map = random_map()
    batch = processor_class(do_resize=False)(random_image(), segmentation_map, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 48, 64)
    assert batch["labels"].dtype == torch.int64
    np.testing.assert_array_equal(batch["labels"][0], segmentation_map)


@pytest.mark.parametrize(
    "size, expected", [({"shortest_edge": 24}, (24, 32)), ({"height": 20, "width": 50}, (20, 50)), (40, (40, 40))]
)
def test_map_takes_the_size_of_its_image(processor_class, size, expected):
    batch = processor_class(size=size)(random_image(), random_map(), return_tensors="pt")
    assert batch["pixel_values"].shape[-2:] == batch["labels"].shape[-2:] == expected


@pytest.mark.parametrize("height, width", [(20, 50), (96, 128), (31, 64), (3, 2), (97, 13)])
def test_maps_are_resized_by_nearest_neighbour(processor_class, height, width):
    ids = np.arange(48 * 64).reshape(48, 64)
    processor = processor_class(size={"height": height, "width": width})
    labels = processor(random_image(), ids, return_tensors="np")["labels"][0]
    assert labels.shape == (height, width)
    rows, columns = labels // 64, labels % 64
    # The chosen pixel's centre is at most half a pixel of the map away from the centre of the new pixel.
    assert (abs((np.arange(height)[:, None] + 0.5) * 48 / height - rows - 0.5) < 0.5 + 1e-6).all()
    assert (abs((np.arange(width) + 0.5) * 64 / width - columns - 0.5) < 0.5 + 1e-6).all()


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.int64, np.float32])
def test_ids_beyond_a_byte_survive_resizing(processor_class, dtype):
    segmentation_map = random_map(classes=1000, dtype=dtype)
    processor = processor_class(size={"height": 96, "width": 128})
    labels = processor(random_image(), segmentation_map, return_tensors="np")["labels"][0]
    np.testing.assert_array_equal(labels, segmentation_map.astype(np.int64).repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        torch.from_numpy,
        lambda ids: ids[None],
        lambda ids: [ids[..., None]],
        lambda ids: torch.from_numpy(ids)[None],
        lambda ids: [Image.fromarray(ids).convert("I")],
        lambda ids: [[ids]],
    ],
)
def test_forms_of_a_map(processor_class, convert):
    ids = random_map()
    labels = processor_class(do_resize=False)(random_image(), convert(ids), return_tensors="np")["labels"]
    np.testing.assert_array_equal(labels, ids[None])


def test_nested_images_and_maps(processor_class):
    maps = [random_map(), random_map() + 1]
    processor = processor_class(do_resize=False)
    labels = processor([[random_image()], [random_image()]], [[ids] for ids in maps], return_tensors="np")["labels"]
    np.testing.assert_array_equal(labels, np.stack(maps))


def test_palette_map_counts_as_its_indices(processor_class):
    ids = random_map()
    image = Image.fromarray(ids)
    image.putpalette(list(range(255, -1, -1)) * 3)
    labels = processor_class(do_resize=False)(random_image(), image, return_tensors="np")["labels"][0]
    np.testing.assert_array_equal(labels, ids)


def test_reduce_labels_touches_maps_only_and_not_the_callers(processor_class):
    image, ids = random_image(), np.array([[0, 1, 2, 150, 255]], np.uint8).repeat(8, 0)
    before = ids.copy()
    processor = processor_class(do_resize=False, do_reduce_labels=True)
    batch = processor(image[:8, :5], ids, return_tensors="np")
    np.testing.assert_array_equal(batch["labels"][0, 0], [255, 0, 1, 149, 255])
    np.testing.assert_array_equal(ids, before)
    plain = processor(image[:8, :5], ids, do_reduce_labels=False, return_tensors="np")
    np.testing.assert_array_equal(plain["labels"][0], before)
    np.testing.assert_array_equal(plain["pixel_values"], batch["pixel_values"])


@pytest.mark.parametrize(
    "maps, message",
    [
        ([random_map(), random_map()], r"1 image\(s\) came with 2"),
        (random_map(24, 64), "map 0 is 24x64 .* image is 48x64"),
        ([random_image()], "one class id per pixel"),
        (random_map() / 19, "fractional values"),
        (["mask.png"], "map 0 is a str"),
    ],
)
def test_maps_that_do_not_fit_are_named(processor_class, maps, message):
    with pytest.raises(ValueError, match=message):
        processor_class(do_resize=False)(random_image(), maps)


def test_images_of_different_sizes(processor_class):
    images = [random_image(48, 64), random_image(30, 64)]
    processor = processor_class(do_resize=False)
    assert [tuple(pixels.shape) for pixels in processor(images)["pixel_values"]] == [(3, 48, 64), (3, 30, 64)]
    with pytest.raises(ValueError, match=r"2 sizes cannot be stacked.*do_resize=True"):
        processor(images, return_tensors="pt")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_pil_mode_becomes_three_channels(processor_class, mode):
    image = Image.fromarray(random_image()).convert(mode)
    assert processor_class(do_resize=False)(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 64)


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 1), (1, 48, 64)])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_grey_arrays_become_three_equal_channels(processor_class, shape, convert):
    grey = random_image()[..., 0].reshape(shape)
    pixels = processor_class(do_resize=False)(convert(grey), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 48, 64)
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_other_numbers_of_channels_need_their_own_statistics(processor_class):
    processor = processor_class(do_resize=False, do_convert_rgb=False, image_mean=[0.5] * 4, image_std=[0.5] * 4)
    batch = processor(random_image(channels=4), input_data_format="channels_last", return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 4, 48, 64)


@pytest.mark.parametrize("channels", [3, 4])
def test_arrays_with_negative_strides(processor_class, channels):
    """As `bgr[..., ::-1]` of an image that OpenCV has read."""
    processor = processor_class() if channels == 3 else processor_class(image_mean=[0.5] * 4, image_std=[0.5] * 4)
    flipped = random_image(channels=channels)[::-1, :, ::-1]
    for image in (flipped, flipped / np.float32(255)):
        expected = processor(np.ascontiguousarray(image), return_tensors="pt").pixel_values
        assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)


def test_grey_arrays_may_be_said_to_have_their_channels_last(processor_class):
    processor, grey = processor_class(do_resize=False), random_image()[..., 0]
    expected = processor([grey], return_tensors="pt")["pixel_values"]
    images = [random_image(), grey]
    batch = processor(images, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    assert torch.equal(batch[1:], expected)


def test_one_mean_for_all_channels(processor_class):
    image = random_image()
    one, three = (processor_class(do_resize=False, image_mean=[0.4] * n, image_std=[0.3] * n) for n in (1, 3))
    assert torch.equal(*(processor(image, return_tensors="pt")["pixel_values"] for processor in (one, three)))
    for std in ({}, {"image_std": 0.5}, {"image_std": [0.5]}) if processor_class is DDePImageProcessor else ():
        assert three(image, image_mean=[0.5], return_tensors="pt", **std)["pixel_values"].shape == (1, 3, 48, 64)


def test_tensors_of_other_channels(processor_class):
    processor = processor_class(do_resize=False, do_convert_rgb=False, image_mean=[0.5] * 4, image_std=[0.5] * 4)
    image = torch.rand(4, 8, 8)
    for tensor in (image.bfloat16(), image.clone().requires_grad_()):
        assert processor(tensor, return_tensors="pt")["pixel_values"].shape == (1, 4, 8, 8)
    with pytest.raises(ValueError, match="reads URLs as RGB"):
        processor("https://example.org/a.tif")


def test_ids_that_reducing_would_ignore_are_refused(processor_class):
    processor = processor_class(do_resize=False, do_reduce_labels=True)
    with pytest.raises(ValueError, match="ids must not exceed it"):
        processor(random_image(), np.full((48, 64), 256))


def test_backends_agree():
    image, segmentation_map = Image.fromarray(random_image(300, 400)), random_map(300, 400)
    first, second = (
        backend(size={"shortest_edge": 128})(image, segmentation_map, return_tensors="pt") for backend in BACKENDS
    )
    torch.testing.assert_close(first["pixel_values"], second["pixel_values"], atol=2 / 127.5 + 1e-6, rtol=0)
    assert torch.equal(first["labels"], second["labels"])


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_saved_folder_loads_by_either_backend(processor_class, backend, tmp_path):
    import ddep_hub

    processor_class(size={"shortest_edge": 96}, do_reduce_labels=True).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "DDePImageProcessor"
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is (ddep_hub.DDePImageProcessor if backend == "torchvision" else DDePImageProcessorPil)
    assert dict(loaded.size) == {"shortest_edge": 96}
    assert loaded.do_reduce_labels
    assert loaded.image_mean == (0.5, 0.5, 0.5) or loaded.image_mean == [0.5, 0.5, 0.5]


def test_travels_as_remote_code(processor_class, tmp_path):
    processor_class.register_for_auto_class()
    try:
        processor_class(size={"shortest_edge": 96}).save_pretrained(tmp_path)
    finally:
        processor_class._auto_class = None
    module = Path(sys.modules[processor_class.__module__].__file__).stem
    assert (tmp_path / f"{module}.py").exists()
    # In a process that knows nothing of the package, from another folder; Pillow's without torchvision.
    # transformers 5.17 asks for torchvision in AutoImageProcessor itself, 5.23 does not.
    needs_it = Version(transformers.__version__) < Version("5.23")
    removable = processor_class is DDePImageProcessorPil and not needs_it
    # Of what is loaded, too: an import of a submodule looks there first.
    removed = "{name for name in sys.modules if name.startswith('torchvision.')} | {'torchvision'}"
    without = f"sys.modules.update(dict.fromkeys({removed})); " if removable else ""
    (tmp_path / "elsewhere").mkdir()
    script = (
        f"import sys; {without}from transformers import AutoImageProcessor\n"
        "p = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert 'ddep_hub' not in sys.modules\n"
        "import numpy as np; p(np.zeros((40, 50), np.uint8), return_tensors='pt')\n"
        "print(type(p).__name__, dict(p.size))"
    )
    variables = {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": ""}
    result = run("-c", script, str(tmp_path), cwd=tmp_path / "elsewhere", **variables)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [processor_class.__name__, "{'shortest_edge':", "96}"]


def test_post_processing_resizes_logits_to_the_original_size(processor_class):
    logits = torch.zeros(2, 3, 8, 8)
    logits[0, 1, :, :4] = 5.0
    logits[0, 2, :, 4:] = 5.0
    processor = processor_class()
    maps = processor.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits))
    assert [tuple(item.shape) for item in maps] == [(8, 8), (8, 8)]
    maps = processor.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), [(16, 32), (5, 7)])
    assert [tuple(item.shape) for item in maps] == [(16, 32), (5, 7)]
    assert (maps[0][:, :16] == 1).all() and (maps[0][:, 16:] == 2).all()
    scored = processor.post_process_semantic_segmentation(
        SemanticSegmenterOutput(logits=logits), [(16, 32), (5, 7)], return_segmentation_scores=True
    )
    assert scored[0].segmentation_scores.shape == (3, 16, 32)
    for sizes in (torch.tensor([[16, 32], [5, 7]]), np.array([[16, 32], [5, 7]]), [np.array([16, 32]), (5, 7)]):
        again = processor.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), sizes)
        assert all(torch.equal(one, other) for one, other in zip(again, maps, strict=True))


@pytest.mark.parametrize(
    "sizes", [[(16, 32)], (5, 6), 5, [(5, 6, 1)] * 2, [(5.5, 6)] * 2, [(0, 6)] * 2, torch.ones(2)]
)
def test_sizes_that_are_no_pair_an_image_are_refused(processor_class, sizes):
    outputs = SemanticSegmenterOutput(logits=torch.zeros(2, 3, 8, 8))
    with pytest.raises(
        ValueError, match=r"target_sizes must be a list or array of \(height, width\) for each of 2 images"
    ):
        processor_class().post_process_semantic_segmentation(outputs, sizes)


@pytest.mark.parametrize("images", [None, [None], {"image": random_image()}, 5, b"\x89PNG"])
@pytest.mark.parametrize("channels", [3, 4])
def test_what_is_no_image_is_named(processor_class, images, channels):
    kind = type(images[0] if isinstance(images, list) else images).__name__
    processor = processor_class(image_mean=[0.5] * channels, image_std=[0.5] * channels)
    with pytest.raises(TypeError, match=f"images: got {kind}. Pass PIL images, arrays, tensors, paths or URLs"):
        processor(images)


def test_floats_slightly_above_one_are_warned_of_once(processor_class, monkeypatch):
    monkeypatch.setattr(image_conversion, "_warned", set())
    image = random_image() / 255
    image[0, 0] = 1.01
    processor = processor_class(do_resize=False)
    with pytest.warns(UserWarning, match=r"floats up to 1\.01\..*nearly black.*clip them"):
        processor(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor(image)
        monkeypatch.setattr(image_conversion, "_warned", set())
        processor(image.clip(0, 1))
        processor(image * 200)


@pytest.mark.parametrize("processor_class", [DDePImageProcessor, DDePImageProcessorPil])
def test_16_bit_images_are_scaled_and_not_clipped(processor_class):
    ramp = np.array([[0, 85, 170, 255]], dtype=np.uint16)
    processor = processor_class(do_resize=False, do_normalize=False, do_rescale=False)
    found = processor(Image.fromarray(ramp * 257), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(found[0], np.repeat(ramp[None], 3, axis=0))


def kinds_of_images():
    """Images of every kind, whose right values are computed by hand: name, image, RGB array (height, width, 3)."""
    rng = np.random.default_rng(3)
    grey, colour = rng.integers(0, 256, (6, 9), dtype=np.uint8), rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    alpha = np.where(np.arange(9) < 4, 0, 255).astype(np.uint8).repeat(6).reshape(9, 6).T.copy()
    three = grey[..., None].repeat(3, 2)
    on_white = np.where(alpha[..., None] == 0, np.uint8(255), colour)
    wide = rng.integers(0, 65536, (6, 9))
    scaled = np.rint(wide / 257).astype(np.uint8)[..., None].repeat(3, 2)
    dark = np.full((6, 9), 256, np.uint16)  # one of 65,535: black, though it is the image's own maximum
    palette = Image.fromarray(colour).quantize(8)
    bilevel = Image.fromarray(grey > 100)
    return {
        "L": (Image.fromarray(grey), three),
        "RGB": (Image.fromarray(colour), colour),
        "bilevel": (bilevel, np.where(grey > 100, 255, 0).astype(np.uint8)[..., None].repeat(3, 2)),
        "palette": (palette, np.asarray(palette.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(palette)]),
        "LA": (
            Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]),
            np.where(alpha[..., None] == 0, np.uint8(255), three),
        ),
        "RGBA": (Image.fromarray(np.dstack([colour, alpha])), on_white),
        "16 bits": (Image.fromarray(wide.astype(np.uint16)), scaled),
        "dark 16 bits": (Image.fromarray(dark), np.ones((6, 9, 3), np.uint8)),
        "32 bits": (Image.fromarray(wide.astype(np.int32)), scaled),
        "32 bits of 8": (Image.fromarray(grey.astype(np.int32)), three),
        "float": (Image.fromarray((grey / 255).astype(np.float32)), three),
        "float of 255": (Image.fromarray(grey.astype(np.float32)), three),
        "CMYK": (Image.fromarray(colour).convert("CMYK"), colour),
    }


@pytest.mark.parametrize("kind", kinds_of_images())
def test_every_kind_of_image_has_the_values_of_training(processor_class, tmp_path, kind):
    image, expected = kinds_of_images()[kind]
    path = tmp_path / f"a.{'tif' if 'float' in kind or '32' in kind or kind == 'CMYK' else 'png'}"
    image.save(path)
    forms = [image, path, str(path), [image]]
    if kind not in ("palette", "CMYK"):  # an array says nothing of a palette, and four channels are RGBA
        values = np.array(image)
        forms += [values, torch.from_numpy(values)]
        if values.ndim == 3:
            forms += [np.moveaxis(values, -1, 0), torch.from_numpy(values).permute(2, 0, 1)]
    assert np.array_equal(np.asarray(decode_image(path)), expected)
    processor = processor_class(do_resize=False)
    wanted = (expected / 255 - 0.5) / 0.5
    for form in forms:
        pixels = processor(form, return_tensors="np")["pixel_values"]
        assert pixels.shape == (1, 3, 6, 9)
        np.testing.assert_allclose(pixels[0], wanted.transpose(2, 0, 1), atol=1e-5)


def test_colour_arrays_of_16_bits_and_floats(processor_class):
    colour = random_image()
    for values in (colour.astype(np.uint16) * 257, colour.astype(np.float32), colour / 255, colour.astype(np.int64)):
        pixels = processor_class(do_resize=False)(values, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(pixels[0], (colour / 127.5 - 1).transpose(2, 0, 1), atol=1e-5)
    kept = processor_class(do_resize=False, do_rescale=False, do_normalize=False)(colour / 300, return_tensors="np")
    np.testing.assert_allclose(kept["pixel_values"][0], (colour / 300).transpose(2, 0, 1), atol=1e-6)
    with pytest.raises(ValueError, match=r"values from -1 to .* outside 0\.\.255"):
        processor_class()(np.array(colour, np.float32) - 1)


@pytest.mark.parametrize("options", [{"do_resize": False}, {"size": {"height": 32, "width": 32}}])
def test_a_map_must_have_the_size_of_its_upright_image(processor_class, tmp_path, options):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = random_image(48, 64)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    processor = processor_class(**options)
    with pytest.raises(ValueError, match=r"map 0 is 48x64 .* image is 64x48"):
        processor(tmp_path / "a.png", random_map(48, 64))
    with Image.open(tmp_path / "a.png") as image:
        for form in (image, tmp_path / "a.png"):
            batch = processor(form, random_map(64, 48), return_tensors="np")
            assert batch["labels"].shape[-2:] == batch["pixel_values"].shape[-2:]
    if "size" not in options:
        np.testing.assert_allclose(batch["pixel_values"][0, 0], np.rot90(pixels, -1)[..., 0] / 127.5 - 1, atol=1e-5)


def test_tags_that_cannot_be_read_do_not_stop_an_image(processor_class, tmp_path):
    Image.fromarray(random_image()).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    pixels = processor_class(do_resize=False)(tmp_path / "a.png", return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels[0], random_image().transpose(2, 0, 1) / 127.5 - 1, atol=1e-5)


def test_images_of_twelve_bits_are_warned_of_once(monkeypatch):
    monkeypatch.setattr(image_conversion, "_warned", set())
    with pytest.warns(UserWarning, match=r"cell\.tif has 16 bits, but hardly a value above 4080.*num_channels=1"):
        pixels = to_8_bit(np.array([[0, 4080]], np.uint16), "cell.tif")
    np.testing.assert_array_equal(pixels, [[0, 16]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_8_bit(np.array([[0, 4080]], np.uint16), "another.tif")
        monkeypatch.setattr(image_conversion, "_warned", set())
        to_8_bit(np.array([[0, 40000]], np.uint16), "bright.tif")
        to_8_bit(np.array([[0, 255]], np.int32), "eight-in-32.tif")


def test_files_that_pillow_does_not_read_have_the_values_of_training(processor_class, tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    colour = random_image(20, 30)
    planes = np.ascontiguousarray(np.moveaxis(colour, -1, 0))
    tifffile.imwrite(tmp_path / "pages.tif", planes, photometric="minisblack", metadata=None)
    tifffile.imwrite(tmp_path / "floats.tif", colour.astype(np.float32), photometric="rgb")
    np.save(tmp_path / "array.npy", planes.astype(np.uint16) * 257)
    for name in ("pages.tif", "floats.tif", "array.npy"):
        np.testing.assert_allclose(decode_image(tmp_path / name).pixels, planes, atol=1e-3)
        for layout in (None, "channels_last"):
            pixels = processor_class(do_resize=False)(tmp_path / name, input_data_format=layout, return_tensors="np")
            np.testing.assert_allclose(pixels["pixel_values"][0], planes / 127.5 - 1, atol=1e-4)
