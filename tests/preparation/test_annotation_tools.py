"""`ddep-hub prepare`, exports of tools: objects with an area are drawn where they lie, none is lost in silence."""

import json
from pathlib import Path

import numpy as np
import pytest
from annotated_sources import HEIGHT, LARGE, SMALL, TRUTH, WIDTH, check, coco, corners, masks_of, put_images

import ddep_hub
from ddep_hub.data.class_files import read_class_table
from ddep_hub.preparation.coco import _decode_counts, is_coco
from ddep_hub.preparation.labelme import is_labelme
from ddep_hub.preparation.source import read_json_files


pytest.importorskip("pycocotools", reason="extra `prepare` is not installed")


def flat(box):
    return [value for corner in corners(box) for value in corner]


def box_mask(box):
    x0, y0, x1, y1 = box
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def labelme(path, shapes, image, **options):
    content = {"shapes": shapes, "imagePath": image, "imageWidth": WIDTH, "imageHeight": HEIGHT}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), **options)


def polygon(label="large", box=LARGE):
    return {"label": label, "shape_type": "polygon", "points": corners(box)}


# --- LabelMe


@pytest.mark.parametrize("kind", ["rectangle", "rotation"])
def test_shapes_of_four_corners(tmp_path, kind):
    put_images(tmp_path / "source", "ab")
    lines = [{"label": "small", "shape_type": kind, "points": [[0, 0], [9, 9]]} for kind in ("linestrip", "line")]
    for name in "ab":
        shapes = [{"label": "large", "shape_type": kind, "points": corners(LARGE)}, *lines]
        labelme(tmp_path / "source" / f"{name}.json", shapes, f"{name}.png")
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "4 objects without a readable area or label (2 line, 2 linestrip): skipped" in text
    for mask in masks_of(tmp_path / "output").values():
        assert np.array_equal(mask, box_mask(LARGE))


def test_names_of_classes_are_told_apart(tmp_path):
    put_images(tmp_path / "source", "abc")
    for name, label in zip("abc", ("cell", " cell ", "Cell"), strict=True):
        labelme(tmp_path / "source" / f"{name}.json", [polygon(label)], f"{name}.png")
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "3 classes" in text and "the classes 'cell' and 'Cell' differ in capitals alone" in text


def test_objects_without_a_label_are_counted(tmp_path):
    put_images(tmp_path / "source", "ab")
    for name in "ab":
        labelme(tmp_path / "source" / f"{name}.json", [polygon(), polygon(""), polygon(None)], f"{name}.png")
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "4 objects without a readable area or label (4 without a label): skipped" in text
    assert read_class_table(tmp_path / "output" / "classes.json").names[1:] == ("large",)


def test_boxes_alone_are_an_error(tmp_path):
    put_images(tmp_path / "source", "ab")
    for name in "ab":
        shapes = [{"label": "cell", "shape_type": "line", "points": [[0, 0], [9, 9]]}]
        labelme(tmp_path / "source" / f"{name}.json", shapes, f"{name}.png")
    with pytest.raises(ValueError, match=r"no object with an area and a label.*\(2 line\): skipped"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    content = coco(["a", "b"])
    for annotation in content["annotations"]:
        annotation |= {"segmentation": [], "bbox": [1, 1, 5, 5]}
    put_coco(tmp_path / "coco", all=content)
    with pytest.raises(ValueError, match="none of 8 objects has a polygon or a mask"):
        ddep_hub.prepare(tmp_path / "coco" / "source", tmp_path / "output")
    for name in "ab":
        labelme(tmp_path / "source" / f"{name}.json", [], f"{name}.png")
    with pytest.raises(ValueError, match="no object with an area and a label is drawn"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


def test_an_object_smaller_than_a_pixel_is_one(tmp_path):
    put_images(tmp_path / "source", "ab")
    outside = polygon(box=(-3.6, -3.6, -3.4, -3.4))
    for name in "ab":
        labelme(tmp_path / "source" / f"{name}.json", [polygon(box=(20.6, 9.6, 21.3, 10.3)), outside], f"{name}.png")
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[9, 20] = 1
    check(tmp_path / "source", tmp_path, truth, "ab", ("background", "large"))


def test_a_coordinate_too_many_is_left_out(tmp_path):
    put_images(tmp_path / "coco" / "images")
    content = coco()
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[value for corner in corners(LARGE) for value in corner] + [9]]
    (tmp_path / "coco" / "labels.json").write_text(json.dumps(content))
    ddep_hub.prepare(tmp_path / "coco", tmp_path / "output")
    for mask in masks_of(tmp_path / "output").values():
        assert np.array_equal(mask > 0, box_mask(LARGE) > 0)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_with_a_byte_order_mark_at_any_depth(tmp_path, encoding):
    deep = tmp_path / "source" / "1" / "2" / "3"
    put_images(deep, "ab")
    for name in "ab":
        labelme(deep / f"{name}.json", [polygon("größe")], f"{name}.png", encoding=encoding)
    assert "2 images, 2 classes" in ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    for mask in masks_of(tmp_path / "output").values():
        assert np.array_equal(mask, box_mask(LARGE))


def test_json_that_cannot_be_decoded_is_named(tmp_path):
    put_images(tmp_path / "source", "abc")
    for name in "ab":
        labelme(tmp_path / "source" / f"{name}.json", [polygon()], f"{name}.png")
    labelme(tmp_path / "source" / "c.json", [polygon("größe")], "c.png", encoding="latin-1")
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert (
        "1 JSON file cannot be read: skipped" in text and "c.json is not UTF-8" in text and len(text.splitlines()) < 20
    )
    for name in "ab":
        (tmp_path / "source" / f"{name}.json").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"c\.json is not UTF-8"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "other")


def test_json_of_other_kinds_is_not_kept(tmp_path):
    """Cityscapes has gigabytes of it."""
    labelme(tmp_path / "a.json", [polygon()], "a.png")
    (tmp_path / "b.json").write_text('{"imgHeight": 9, "objects": []}')
    (tmp_path / "c.json").write_text("{")
    found, problems = read_json_files(tmp_path, [is_coco, is_labelme])
    assert list(found) == [tmp_path / "a.json"] and len(problems) == 1
    assert read_json_files(tmp_path, [is_coco])[0] == {}


def test_json_is_not_read_for_a_format_without_it(tmp_path):
    put_images(tmp_path / "source" / "images", "ab")
    put_images(tmp_path / "source" / "masks", "ab")
    (tmp_path / "source" / "c.json").write_text("{")
    assert "cannot be read" in ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "other", format="masks")
    assert "cannot be read" not in text


def test_a_renamed_json_belongs_to_the_image_of_its_name(tmp_path):
    put_images(tmp_path / "source", "abc")
    labelme(tmp_path / "source" / "a.json", [polygon()], "a.png")
    labelme(tmp_path / "source" / "b.json", [polygon("small", SMALL)], "a.png")
    labelme(tmp_path / "source" / "c.json", [], "gone.png")
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "2 JSON files name another image, such as b.json: a.png; used the image with the name of" in text
    found = masks_of(tmp_path / "output")
    assert np.array_equal(found["a"], box_mask(LARGE)) and np.array_equal(found["b"], 2 * box_mask(SMALL))
    assert not found["c"].any()
    (tmp_path / "source" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png is annotated by both .*a\.json and .*b\.json"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "other")


# --- CVAT


def cvat(folder, items, names="ab", size=(WIDTH, HEIGHT)):
    put_images(folder, names, size=size)
    images = "".join(
        f'<image id="0" name="{name}.png" width="{size[0]}" height="{size[1]}">{items}</image>' for name in names
    )
    labels = "<labels><label><name>x</name></label></labels>"
    (folder / "annotations.xml").write_text(f"<annotations><meta>{labels}</meta>{images}</annotations>")


@pytest.mark.parametrize("kind", ["box", "ellipse"])
def test_rotation_of_cvat(tmp_path, kind):
    """Clockwise about the centre: at 30 degrees the right end lies lower."""
    if kind == "box":
        item = '<box label="x" xtl="20" ytl="24" xbr="60" ybr="36" rotation="30" />'
    else:
        item = '<ellipse label="x" cx="40" cy="30" rx="20" ry="6" rotation="30" />'
    cvat(tmp_path / "source", item, size=(80, 60))
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    y, x = np.mgrid[:60, :80] + 0.5
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    along, across = cos * (x - 40) + sin * (y - 30), -sin * (x - 40) + cos * (y - 30)
    box = (abs(along) < 20) & (abs(across) < 6)
    truth = box if kind == "box" else np.hypot(along / 20, across / 6) < 1
    for mask in masks_of(tmp_path / "output").values():
        assert (mask != truth).sum() <= 25


def test_lines_of_cvat_are_counted(tmp_path):
    items = '<polyline label="x" points="0,0;9,9" /><points label="x" points="3,3" /><tag label="x" />'
    cvat(tmp_path / "source", f'{items}<box label="x" xtl="4" ytl="5" xbr="30" ybr="25" />')
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "4 objects without a readable area or label (2 points, 2 polyline): skipped" in text
    for mask in masks_of(tmp_path / "output").values():
        assert np.array_equal(mask, box_mask(LARGE))


def test_annotations_of_cvat_under_any_name(tmp_path):
    cvat(tmp_path / "source", '<box label="x" xtl="4" ytl="5" xbr="30" ybr="25" />')
    (tmp_path / "source" / "annotations.xml").rename(tmp_path / "source" / "job 1.xml")
    (tmp_path / "source" / "folder.xml").mkdir()
    (tmp_path / "source" / "a.xml").write_text("<annotation><filename>a.png</filename></annotation>")  # Pascal VOC's
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert all(np.array_equal(mask, box_mask(LARGE)) for mask in masks_of(tmp_path / "output").values())
    (tmp_path / "source" / "annotations (1).xml").write_bytes((tmp_path / "source" / "job 1.xml").read_bytes())
    with pytest.raises(ValueError, match=r"annotations \(1\)\.xml and .*job 1\.xml are exports of different tasks"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "other")


def test_masks_of_cvat_that_do_not_fit_are_named(tmp_path):
    cvat(tmp_path / "source", '<mask label="x" left="1" top="1" width="4" height="3" rle="5, 6" />')
    with pytest.raises(ValueError, match=r"annotations\.xml, a\.png: a mask has 11 pixels"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


def test_exports_of_several_tasks_are_an_error(tmp_path):
    for task in ("one", "two"):
        cvat(tmp_path / "source" / task, '<box label="x" xtl="4" ytl="5" xbr="30" ybr="25" />')
    with pytest.raises(ValueError, match="are exports of different tasks"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


# --- Label Studio


def region(box, label=None, kind="polygon", **fields):
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners(box)]
    value = {"points": points} | ({f"{kind}": [label]} if label else {})
    return {"original_width": WIDTH, "original_height": HEIGHT, "type": kind, "value": value, **fields}


def studio(tmp_path, **annotations):
    put_images(tmp_path / "source", annotations)
    tasks = [{"data": {"image": f"{name}.png"}, "annotations": done} for name, done in annotations.items()]
    (tmp_path / "source" / "export.json").write_text(json.dumps(tasks))
    return ddep_hub.prepare(tmp_path / "source", tmp_path / "output"), masks_of(tmp_path / "output")


def test_labels_apart_from_their_shapes(tmp_path):
    results = [
        region(LARGE, id="r1"),
        region(LARGE, "large", "labels", id="r1"),
        region(SMALL, id="r2"),
        {**region(SMALL, id="r3"), "type": "keypointlabels"},
    ]
    text, found = studio(tmp_path, a=[{"result": results}], b=[{"result": results}])
    assert "4 objects without a readable area or label (2 keypoint, 2 polygon without a label): skipped" in text
    for mask in found.values():
        assert np.array_equal(mask, box_mask(LARGE))


def test_uploads_are_found_by_their_first_names(tmp_path):
    """Label Studio puts eight digits in front, underscores for spaces, and drops other signs."""
    names = {"my photo 1.png": "0a1b2c3d-my_photo_1.png", "Zelle (3).png": "00000000-Zelle_3.png", "(4).png": "4.png"}
    put_images(tmp_path / "source", [name.removesuffix(".png") for name in names])
    result = [region(LARGE, "large", "polygonlabels")]
    tasks = [
        {"data": {"image": f"/data/upload/1/{name}"}, "annotations": [{"result": result}]} for name in names.values()
    ]
    (tmp_path / "source" / "export.json").write_text(json.dumps(tasks))
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "2 images" in text and "1 annotated image not found, such as /data/upload/1/4.png" in text


def test_tasks_that_nobody_finished(tmp_path):
    drawn = {"result": [region(LARGE, "large", "polygonlabels")]}
    smaller = {"result": [region(SMALL, "large", "polygonlabels")]}
    choice = {"result": [{"type": "choices", "value": {"choices": ["good"]}}]}
    text, found = studio(
        tmp_path,
        none=[],
        cancelled=[{**drawn, "was_cancelled": True}],
        background=[{"result": []}],
        wiped=[drawn, choice, {"result": []}, {"result": [], "was_cancelled": True}],
        several=[drawn, smaller, {**drawn, "was_cancelled": True}],
    )
    assert sorted(found) == ["background", "several", "wiped"], text
    assert not found["background"].any()
    assert np.array_equal(found["wiped"], box_mask(LARGE)) and np.array_equal(found["several"], box_mask(SMALL))
    assert "2 tasks without an annotation, or with only cancelled ones: skipped" in text
    assert "1 task with several annotations: used the last with a region" in text
    assert "1 image without an object: all background" in text


# --- COCO


def put_coco(tmp_path, **files):
    put_images(tmp_path / "source" / "images", "ab")
    (tmp_path / "source" / "annotations").mkdir()
    for name, content in files.items():
        (tmp_path / "source" / "annotations" / f"{name}.json").write_text(json.dumps(content))


def test_runs_that_leave_out_the_last_background(tmp_path):
    content = coco("ab")
    content["annotations"] = [
        {"id": number, "image_id": number, "category_id": 9, "segmentation": {"counts": counts}}
        for number, counts in enumerate(([100, 50], []))
    ]
    put_coco(tmp_path, objects=content)
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    drawn = np.arange(WIDTH * HEIGHT).reshape(WIDTH, HEIGHT).T  # column by column
    found = {Path(name).name: mask for name, mask in masks_of(tmp_path / "output").items()}
    assert np.array_equal(found["a"], (drawn >= 100) & (drawn < 150)) and not found["b"].any()


def test_compressed_runs_are_read_as_by_pycocotools():
    from pycocotools import mask as coco_masks

    random = np.random.default_rng(0)
    for height, width, share in ((1, 1, 0.5), (30, 40, 0.5), (300, 500, 0.01), (2000, 1500, 0.0001), (64, 64, 0.0)):
        drawn = np.asfortranarray(random.random((height, width)) < share, dtype=np.uint8)
        runs = _decode_counts(coco_masks.encode(drawn)["counts"].decode())
        assert runs.sum() == drawn.size
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        assert np.array_equal(flat, drawn.ravel(order="F"))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"counts": [9999]}, "annotation 7 of a.png: its run lengths do not add up to 40x30 pixels"),
        ({"counts": [-100, 1300]}, "annotation 7 of a.png: its run lengths do not add up"),
        ({"counts": "T3T3"}, "annotation 7 of a.png: its run lengths do not add up"),
        ({"counts": [100.5, 99.5]}, "annotation 7 of a.png: its run lengths are not whole numbers"),
        ({"counts": "o"}, "annotation 7 of a.png: its run lengths are not COCO's code"),
        ({"counts": "~é"}, "annotation 7 of a.png: its run lengths are not COCO's code"),
        ({"counts": [100], "size": [9, 9]}, "annotation 7 of a.png: its run lengths do not add up to 9x9"),
        ({"counts": [10, 71], "size": [9, 9]}, r"a\.png: an object's mask has size 9x9, the image 40x30"),
        ([[10, 5, float("nan"), 5, 30, 25]], r"a\.png: an object has a coordinate that is not a number"),
        ([[10, 5, 1e9, 5, 30, 25]], r"a\.png: an object has a coordinate that is not a number"),
    ],
)
def test_objects_that_cannot_be_drawn_are_named(tmp_path, segmentation, message):
    content = coco("ab")
    content["annotations"] = [{"id": 7, "image_id": 0, "category_id": 9, "segmentation": segmentation}]
    put_coco(tmp_path, objects=content)
    with pytest.raises(ValueError, match=message):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


@pytest.mark.parametrize(("name", "expected"), [("a\nb", "a b"), ("", "9"), (None, "9")])
def test_names_of_classes_can_be_read_again(tmp_path, name, expected):
    content = coco("ab")
    content["categories"][0]["name"] = name
    put_coco(tmp_path, objects=content)
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert read_class_table(tmp_path / "output" / "classes.json").names[1] == expected


def test_a_missing_image_is_named_where_only_one_is_left(tmp_path):
    put_coco(tmp_path, objects=coco("az"))
    (tmp_path / "source" / "images" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"there is only 1 image; .*1 annotated image not found, such as z\.png"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


def test_ids_as_text_and_ids_of_no_image(tmp_path):
    content = coco("ab")
    for annotation in content["annotations"]:
        annotation |= {"image_id": str(annotation["image_id"]), "category_id": str(annotation["category_id"])}
    content["annotations"].append({"image_id": 77, "category_id": 9, "segmentation": [flat(LARGE)]})
    put_coco(tmp_path, objects=content)
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "1 object with an image_id that `images` does not list, such as 77 in objects.json: skipped" in text
    found = masks_of(tmp_path / "output")
    assert len(found) == 2 and all(np.array_equal(mask, TRUTH) for mask in found.values())


@pytest.mark.parametrize("place", ["images", "categories", "annotations"])
def test_ids_that_pandas_has_made_floats(tmp_path, place):
    content = coco("ab")
    for entry in content[place]:
        entry |= {key: float(value) for key, value in entry.items() if key in ("id", "image_id", "category_id")}
    put_coco(tmp_path, objects=content)
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    found = masks_of(tmp_path / "output")
    assert len(found) == 2 and all(np.array_equal(mask, TRUTH) for mask in found.values()), text


def test_the_folder_of_the_coco_archive(tmp_path):
    people = coco("a")
    people["categories"] = [{"id": 9, "name": "person"}]
    people["annotations"] = [{"image_id": 0, "category_id": 9, "segmentation": [flat(SMALL)], "keypoints": [1, 1, 2]}]
    captions = {"images": coco("a")["images"], "annotations": [{"image_id": 0, "id": 1, "caption": "a"}]}
    files = {"instances_train2017": coco("a"), "instances_val2017": coco("b")}
    files |= {"person_keypoints_train2017": people, "captions_train2017": captions}
    put_coco(tmp_path, **files)
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "person_keypoints_train2017.json repeats objects of instances_train2017.json: skipped" in text
    found = masks_of(tmp_path / "output")
    assert sorted(found) == ["a", "b"] and all(np.array_equal(mask, TRUTH) for mask in found.values())


def test_two_files_with_objects_of_an_image_are_an_error(tmp_path):
    put_coco(tmp_path, one=coco("ab"), two=coco("ab"))
    with pytest.raises(ValueError, match=r"one\.json and .*two\.json both have objects of .*a\.png"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


def test_an_image_that_is_listed_twice_is_one_example(tmp_path):
    content = coco("ab")
    content["images"].append({**content["images"][0], "id": 5})
    for annotation in content["annotations"]:
        if annotation["image_id"] == 0 and annotation["category_id"] == 12:
            annotation["image_id"] = 5
    put_coco(tmp_path, objects=content)
    text = ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert "1 image listed more than once, such as a.png: used once, with all objects" in text
    found = masks_of(tmp_path / "output")
    assert sorted(found) == ["a", "b"] and all(np.array_equal(mask, TRUTH) for mask in found.values())


def test_two_images_of_one_id_are_an_error(tmp_path):
    content = coco("ab")
    content["images"][1]["id"] = 0
    put_coco(tmp_path, objects=content)
    with pytest.raises(ValueError, match=r"objects\.json: a\.png and b\.png both have the id 0"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


def test_two_images_that_would_share_a_file_are_an_error(tmp_path):
    content = coco("ab")
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "one/a.png", "two/a.png"
    put_coco(tmp_path, objects=content)
    with pytest.raises(ValueError, match=r"one/a\.png of .* and two/a\.png of .* both fit"):
        ddep_hub.prepare(tmp_path / "source", tmp_path / "output")


def test_images_that_differ_in_their_suffix_alone(tmp_path):
    content = coco(["a", "a", "a_2"])
    content["images"][1]["file_name"] = "a.jpg"
    put_coco(tmp_path, objects=content)
    put_images(tmp_path / "source" / "images", ["a_2"])
    put_images(tmp_path / "source" / "images", "a", ".jpg")
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output")
    assert sorted(masks_of(tmp_path / "output")) == ["a", "a_2", "a_2_2"]


@pytest.mark.parametrize("tile", [None, 20])
def test_objects_on_images_of_five_channels(tmp_path, tile):
    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    put_coco(tmp_path, objects=coco("ab", ".tif"))
    for name in "ab":
        (tmp_path / "source" / "images" / f"{name}.png").unlink()
        values = np.random.default_rng(0).integers(0, 65535, (5, HEIGHT, WIDTH), np.uint16)
        tifffile.imwrite(tmp_path / "source" / "images" / f"{name}.tif", values, photometric="minisblack")
    ddep_hub.prepare(tmp_path / "source", tmp_path / "output", tile=tile)
    for name, mask in masks_of(tmp_path / "output").items():
        top, left = map(int, f"{name}_0_0".split("_")[1:3])
        assert np.array_equal(mask, TRUTH[top : top + (tile or 99), left : left + (tile or 99)])
