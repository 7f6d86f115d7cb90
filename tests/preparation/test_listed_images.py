"""`ddep-hub prepare`: which images exports mean, which of them are annotated, and what is not to be learned."""

import base64
import io
import json
import tracemalloc

import numpy as np
import pytest
from annotated_sources import HEIGHT, LARGE, NAMES, SMALL, TRUTH, WIDTH, coco, corners, masks_of, put_images, put_masks
from PIL import Image

import ddep_hub
from ddep_hub.data.class_files import read_class_table
from ddep_hub.preparation.formats import read_source
from ddep_hub.preparation.shapes import Shape, import_pycocotools, shapes_mask


pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")


def labelme(path, objects, **content):
    shapes = [{"label": label, "shape_type": "polygon", "points": corners(box)} for label, box in objects.items()]
    content = {"shapes": shapes, "imagePath": f"{path.stem}.png", **content}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("tool", ["CVAT", "COCO", "LabelMe"])
def test_images_that_nobody_annotated_are_told(tmp_path, tool):
    root = tmp_path / "source"
    put_images(root, "abc")
    if tool == "CVAT":
        points = ";".join(f"{x},{y}" for x, y in corners(LARGE))
        entry = f'<image id="0" name="{{}}.png" width="{WIDTH}" height="{HEIGHT}">{{}}</image>'
        drawn = entry.format("a", f'<polygon label="large" points="{points}" />')
        xml = f"<annotations>{drawn}{entry.format('b', '')}{entry.format('c', '')}</annotations>"
        (root / "annotations.xml").write_text(xml)
    elif tool == "COCO":
        content = coco("abc")
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == 0]
        (root / "a.json").write_text(json.dumps(content))
    else:
        for name, objects in {"a": {"large": LARGE}, "b": {}, "c": {}}.items():
            labelme(root / f"{name}.json", objects)
    assert "2 images without an object: all background. Take out those not annotated yet" in ddep_hub.prepare(
        root, tmp_path / "output"
    )


def test_names_of_labelme_that_are_no_classes(tmp_path):
    put_images(tmp_path / "source", "ab")
    for name in "ab":
        objects = {"large": LARGE, "__ignore__": SMALL, "_background_": (0, 0, 3, 3)}
        labelme(tmp_path / "source" / f"{name}.json", objects)
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert read_class_table(tmp_path / "output" / "classes.json").names == ("background", "large")
    for mask in masks_of(tmp_path / "output").values():
        assert np.array_equal(mask, np.where(TRUTH == 2, 255, TRUTH))


def test_masks_of_an_images_name_are_not_the_image(tmp_path):
    put_images(tmp_path / "source" / "photos", "ab")
    put_images(tmp_path / "source" / "masks", "abc")
    (tmp_path / "source" / "a.json").write_text(json.dumps(coco("abc")))
    source = read_source(tmp_path / "source")
    assert [example.image.parent.name for example in source.examples] == ["photos", "photos"]
    assert any("1 annotated image not found" in note for note in source.notes)


def test_images_beside_their_annotations_count_in_folders_of_any_name(tmp_path):
    put_images(tmp_path / "source" / "labels", "abc")
    put_images(tmp_path / "source", ["overview"])
    for name in "abc":
        path = tmp_path / "source" / "labels" / f"{name}.json"
        labelme(path, {"large": LARGE}, imagePath={"a": "old_a.jpg"}.get(name, f"C:\\x\\{name}.png"))
    assert len(read_source(tmp_path / "source").examples) == 3


@pytest.mark.parametrize("tool", ["COCO", "CVAT", "Label Studio"])
def test_the_split_of_a_file_decides_between_images_of_one_name(tmp_path, tool):
    entries = ""
    for split in ("train", "val"):
        put_images(tmp_path / "source" / split, "a")
        (tmp_path / "source" / "annotations").mkdir(exist_ok=True)
        if tool == "COCO":
            (tmp_path / "source" / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco("a")))
        elif tool == "Label Studio":
            value = {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["large"]}
            result = {"id": "1", "type": "polygonlabels", "value": value}
            result |= {"original_width": WIDTH, "original_height": HEIGHT}
            task = {"data": {"image": "/data/upload/a.png"}, "annotations": [{"result": [result]}]}
            (tmp_path / "source" / "annotations" / f"{split}.json").write_text(json.dumps([task]))
        points = ";".join(f"{x},{y}" for x, y in corners(LARGE))
        entries += f'<image id="0" name="a.png" subset="{split}" width="{WIDTH}" height="{HEIGHT}">'
        entries += f'<polygon label="large" points="{points}" /></image>'
    if tool == "CVAT":
        (tmp_path / "source" / "annotations" / "annotations.xml").write_text(f"<annotations>{entries}</annotations>")
    source = read_source(tmp_path / "source")
    assert [(example.image.parent.name, example.split) for example in source.examples] == [
        ("train", "train"),
        ("val", "val"),
    ]


def test_images_inside_of_json_files_are_read_one_by_one(tmp_path):
    (tmp_path / "source").mkdir()
    with io.BytesIO() as file:
        noise = np.random.default_rng(0).integers(256, size=(400, 400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file, "png")
        data = base64.b64encode(file.getvalue()).decode()
    for number in range(10):
        labelme(tmp_path / "source" / f"{number}.json", {"large": LARGE}, imageData=data)
    tracemalloc.start()
    source = read_source(tmp_path / "source")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source.examples) == 10 and peak < 5 * len(data)
    assert np.array_equal(np.asarray(source.examples[0].image()), noise)


def test_objects_of_a_class_are_drawn_at_once(monkeypatch):
    mask_utils, decoded = import_pycocotools(), []
    original = mask_utils.decode
    monkeypatch.setattr(mask_utils, "decode", lambda code: decoded.append(1) or original(code))
    boxes = [(x, y, x + 3, y + 3) for x in range(0, WIDTH, 4) for y in range(0, HEIGHT - 3, 4)]
    shapes = [Shape(7, (tuple(value for corner in corners(box) for value in corner),)) for box in boxes]
    mask = shapes_mask(Image.new("RGB", (WIDTH, HEIGHT)), shapes, None)
    assert len(decoded) == 1 and (mask == 7).sum() == 9 * len(boxes)


def test_splits_without_masks_are_left_out(tmp_path):
    root = put_masks(tmp_path / "source", {}, size=(WIDTH, HEIGHT))
    (root / "masks").rmdir()
    for split in ("train", "val", "test"):
        put_images(root / "images" / split, NAMES[:2])
        if split != "test":
            (root / "annotations" / split).mkdir(parents=True)
            for name in NAMES[:2]:
                Image.fromarray(TRUTH).save(root / "annotations" / split / f"{name}.png")
    (root / "classes.json").write_text('["background", "large", "small"]')
    text = ddep_hub.prepare(root, tmp_path / "output")
    assert "split test has no masks: skipped" in text and "2 images in train, 2 images in val" in text


def test_work_on_what_was_written_is_kept(tmp_path, scenes):
    output = tmp_path / "output"
    ddep_hub.prepare(scenes, output)
    mask = sorted((output / "annotations" / "train").iterdir())[0]
    before = mask.read_bytes()
    Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    edited = mask.read_bytes()
    with pytest.raises(FileExistsError, match=f"edited since it was written: annotations/train/{mask.name}"):
        ddep_hub.prepare(scenes, output, overwrite=True)
    assert mask.read_bytes() == edited
    mask.write_bytes(before)
    ddep_hub.prepare(scenes, output, overwrite=True)
