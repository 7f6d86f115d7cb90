"""Masks of values and colours, stacks, objects and Roboflow's masks give the masks that were drawn."""

import json

import numpy as np
import pytest
from annotated_sources import HEIGHT, LARGE, NAMES, NUMBER, SMALL, TRUTH, WIDTH, check, coco, put_images
from PIL import Image

import ddep_hub
from ddep_hub.data.segmentation_datasets import SegmentationFolder


pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")


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


def test_more_classes_than_8_bits_hold(tmp_path):
    content = coco()
    content["categories"] = [{"id": index, "name": f"class {index}"} for index in range(300)]
    put_images(tmp_path / "coco" / "images")
    (tmp_path / "coco" / "labels.json").write_text(json.dumps(content))
    ddep_hub.prepare(tmp_path / "coco", tmp_path / "output")
    dataset = SegmentationFolder(tmp_path / "output", "train")
    assert dataset.classes.num_classes == 301 and dataset.classes.ignore_index == 65535
    assert set(np.unique(dataset.mask(0))) == {0, 10, 13}
