"""Objects drawn in COCO, LabelMe, CVAT and Label Studio give the masks that were drawn."""

import base64
import io
import json

import numpy as np
import pytest
from annotated_sources import HEIGHT, LARGE, NAMES, SMALL, TRUTH, WIDTH, check, coco, corners, masks_of, put_images
from PIL import Image

import ddep_hub
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.preparation.label_studio import decode_brush


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
