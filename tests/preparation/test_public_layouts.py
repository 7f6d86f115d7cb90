"""`ddep-hub prepare` and `--data` on folders as public data sets have them."""

import json
import logging

import numpy as np
import pytest
from annotated_sources import coco, masks_of, put_images
from PIL import Image

import ddep_hub
from ddep_hub.cli.commands import PrepareArguments
from ddep_hub.data import dataset_registry
from ddep_hub.data.class_files import suggest_classes, write_class_table
from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.data.image_io import BadFileError, decode_channels
from ddep_hub.data.mask_files import load_mask
from ddep_hub.data.name_matching import match_names, separate_masks
from ddep_hub.data.segmentation_datasets import SegmentationFolder, available_splits
from ddep_hub.data.unlabelled import unlabelled_images
from ddep_hub.preparation import mask_folders


SIZE = (8, 6)
OBJECT = np.zeros(SIZE[::-1], np.uint8)
OBJECT[2:4, 3:6] = 1


def put(root, *names, pixels=OBJECT):
    """Writes the same image, or mask, under each name."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / name)
    return root


def put_photos(root, *names):
    return put(root, *names, pixels=Image.new("RGB", SIZE, (10, 120, 40)))


@pytest.fixture
def source(tmp_path):
    """An empty folder, whose parent is empty otherwise."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def output(tmp_path):
    """Where [`prepare`] writes."""
    return tmp_path / "output"


def prepare(source, **options):
    return ddep_hub.prepare(source, source.parent / "output", **options)


def put_classes(root):
    (root / "classes.json").write_text(json.dumps(["background", "object"]))
    return root


def names_of(output):
    return {split: sorted(SegmentationFolder(output, split).sample_ids) for split in available_splits(output)}


# --- Known data sets


def put_cityscapes(root):
    for split in ("train", "val", "test"):
        frame = f"{{}}/{split}/aachen/aachen_00000{len(split)}_000019"
        put_photos(root, frame.format("leftImg8bit") + "_leftImg8bit.png")
        ids = np.where(OBJECT, 26, 7 if split != "test" else 0).astype(np.uint8)
        put(root, frame.format("gtFine") + "_gtFine_labelIds.png", pixels=ids)
        put(root, frame.format("gtFine") + "_gtFine_labelTrainIds.png", pixels=OBJECT)
    return root


def test_cityscapes(source, output):
    """Its ids are mapped to the classes that are scored; nobody has the labels of `test`."""
    text = prepare(put_cityscapes(source))
    assert available_splits(output) == ["train", "val"] and "split test: skipped" in text
    assert SegmentationFolder(output, "train").classes.names == get_dataset_info("cityscapes").classes.names
    for mask in masks_of(output).values():
        assert np.array_equal(mask, np.where(OBJECT, 13, 0))  # car, road


@pytest.mark.parametrize("place", ["source", "beside"])
def test_cityscapes_with_a_file_of_its_own_classes(source, output, tmp_path, place):
    """Which does not make its label ids class ids."""
    put_cityscapes(source)
    path = (source if place == "source" else tmp_path) / "classes.json"
    write_class_table(get_dataset_info("cityscapes").classes, path)
    prepare(source, classes=None if place == "source" else path)
    assert available_splits(output) == ["train", "val"]
    assert all(np.array_equal(mask, np.where(OBJECT, 13, 0)) for mask in masks_of(output).values())


def test_ade20k_and_camvid(tmp_path):
    for official in ("training", "validation"):
        name = f"ADE_{official[:5]}_00000001"
        put_photos(tmp_path / "ade", f"images/{official}/{name}.jpg")
        put(tmp_path / "ade", f"annotations/{official}/{name}.png", pixels=3 * OBJECT)
    ddep_hub.prepare(tmp_path / "ade", tmp_path / "ade-output")
    assert all(np.array_equal(m, np.where(OBJECT, 2, 255)) for m in masks_of(tmp_path / "ade-output").values())
    for split in ("train", "val"):
        put_photos(tmp_path / "camvid", f"{split}/0001TP_0{len(split)}.png")
        put(
            tmp_path / "camvid",
            f"{split}annot/0001TP_0{len(split)}.png",
            pixels=np.where(OBJECT, 11, 1).astype("uint8"),
        )
    ddep_hub.prepare(tmp_path / "camvid", tmp_path / "camvid-output")
    assert all(np.array_equal(m, np.where(OBJECT, 255, 1)) for m in masks_of(tmp_path / "camvid-output").values())


def put_voc(root, names, *, lists=True):
    put_photos(root, *(f"JPEGImages/{name}.jpg" for name in names))
    put(root, *(f"SegmentationClass/{name}.png" for name in names), pixels=np.where(OBJECT, 12, 255).astype("uint8"))
    if lists:
        folder = root / "ImageSets" / "Segmentation"
        folder.mkdir(parents=True)
        for split, listed in {"train": names[:2], "val": names[2:], "trainval": names}.items():
            (folder / f"{split}.txt").write_text("\n".join(listed) + "\n")
    return root


def test_pascal_voc(source, output):
    names = ["2007_000032", "2007_000039", "2007_000063"]
    put_voc(source, names)
    prepare(source)
    assert names_of(output) == {"train": names[:2], "val": names[2:]}
    dataset = SegmentationFolder(output, "val")
    assert dataset.classes.names[12] == "dog" and np.array_equal(dataset.mask(0), np.where(OBJECT, 12, 255))


def test_classes_of_the_user_for_a_known_data_set(source, output, tmp_path):
    put_voc(source, ["2007_000032", "2007_000039", "2007_000063"])
    (source / "ImageSets" / "Segmentation" / "test.txt").touch()  # no list
    classes = [{"id": 0, "name": "other", "mask_values": 0}, {"id": 1, "name": "animal", "mask_values": 12}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes}))
    prepare(source, classes=tmp_path / "classes.json")
    assert names_of(output) == {"train": ["2007_000032", "2007_000039"], "val": ["2007_000063"]}
    assert all(np.array_equal(mask, np.where(OBJECT, 1, 255)) for mask in masks_of(output).values())


def test_folders_like_pascal_voc_keep_their_splits_and_get_no_classes_of_it(source, output):
    put_voc(source, ["leaf 1", "leaf 2", "leaf 3"])
    prepare(source)
    assert names_of(output) == {"train": ["leaf 1", "leaf 2"], "val": ["leaf 3"]}
    assert "dog" not in SegmentationFolder(output, "train").classes.names


@pytest.mark.parametrize("classes", [False, True])
def test_folders_like_pascal_voc_with_numbers_as_names(source, output, classes):
    names = [f"{number:06}" for number in range(4)]
    put_voc(source, names)
    if classes:
        table = [{"id": 0, "name": "leaf", "mask_values": 12}]
        (source / "classes.json").write_text(json.dumps({"classes": table}))
    prepare(source)
    assert names_of(output) == {"train": names[:2], "val": names[2:]}
    assert ("leaf" in SegmentationFolder(output, "train").classes.names) is classes


def test_folders_like_pascal_voc_without_lists_ask_for_classes(source):
    put_voc(source, ["leaf 1"], lists=False)
    with pytest.raises(FileNotFoundError, match=r"if the classes are your own, name them in classes\.json"):
        SegmentationFolder(source, "train")


# --- Which masks are meant


def test_one_mask_file_for_each_class(source, output):
    put_photos(source, "images/case0.png", "images/case1.png", "images/case2.png")
    put(source, *(f"masks/case{number}_liver.png" for number in range(3)))
    put(source, "masks/case0_tumor.png", "masks/case1_tumor.png")
    with pytest.raises(ValueError, match="two masks for case0, case0_liver and case0_tumor"):
        prepare(source)
    assert "mask_suffix" in PrepareArguments.__dataclass_fields__  # which the message names
    prepare(source, mask_suffix="_tumor")
    assert sorted(masks_of(output)) == ["case0", "case1"]


def test_a_second_mask_of_an_image():
    """As in BUSI, for a second lesion."""
    names = ["benign (1)", "benign (2)"]
    assert separate_masks(
        [*(f"{n}.png" for n in names), *(f"{n}_mask.png" for n in names), "benign (2)_mask_1.png"]
    ) == (
        ["benign (1).png", "benign (2).png"],
        ["benign (1)_mask.png", "benign (2)_mask.png", "benign (2)_mask_1.png"],
    )
    with pytest.raises(ValueError, match=r"two masks for benign \(2\), benign \(2\)_mask and benign \(2\)_mask_1"):
        match_names(names, [*(f"{n}_mask" for n in names), "benign (2)_mask_1"])
    # A few among many.
    names = [f"case{number:02}" for number in range(30)]
    with pytest.raises(ValueError, match="two masks for case13, case13_liver and case13_tumor"):
        match_names(names, [*(f"{name}_liver" for name in names), "case13_tumor"])
    # Masks of longer names, which may be in another split, and older copies, are no second masks.
    assert match_names(["a", "c"], ["a_mask", "c_mask", "a_b_mask"]) == {"a": "a_mask", "c": "c_mask"}
    assert match_names(["a", "a_b"], ["a_mask", "a_b_mask"]) == {"a": "a_mask", "a_b": "a_b_mask"}
    assert match_names(["a", "b"], ["a_mask", "b_mask", "a_mask_old", "big_a_mask"]) == {"a": "a_mask", "b": "b_mask"}


def test_what_is_not_read_is_noted(source):
    put_photos(source, "images/a.png", "images/b.png")
    put(source, "masks/a.png", "masks/b.png", "masks/a_color.png")
    assert "1 file among the masks that belong to no image, such as a_color" in prepare(source)


def test_images_without_a_mask_may_be_good_parts(source):
    put_photos(source, "test/good/a.png", "test/dent/a.png", "test/dent/b.png")
    put(source, "ground_truth/dent/a_mask.png", "ground_truth/dent/b_mask.png")
    assert "1 image without a mask: skipped. If they show no object, as good parts do, give them" in prepare(source)


@pytest.mark.parametrize("manual", ["1st_manual", "manual1"])
def test_masks_of_the_field_of_view(source, output, manual):
    """DRIVE and HRF have folders `mask` that do not hold the labels."""
    put_photos(source, "training/images/21_training.tif", "training/images/22_training.tif")
    put(source, *(f"training/{manual}/{number}_manual1.gif" for number in (21, 22)))
    put(source, *(f"training/mask/{number}_training_mask.gif" for number in (21, 22)), pixels=1 - OBJECT)
    with pytest.raises(ValueError, match=f"both .*{manual}.* hold masks. Choose with mask_dir"):
        prepare(source)
    prepare(source, image_dir="training/images", mask_dir=f"training/{manual}")
    assert all(np.array_equal(mask, OBJECT) for mask in masks_of(output).values())


def test_masks_beside_images_that_have_a_suffix_too(source, output):
    """As in Cellpose and DeepGlobe."""
    assert separate_masks(["0_img.png", "0_masks.png"]) == (["0_img.png"], ["0_masks.png"])
    put_photos(source, "7_sat.jpg", "8_sat.jpg")
    put(source, "7_mask.png", "8_mask.png")
    assert unlabelled_images(source) == ["7_sat.jpg", "8_sat.jpg"]
    prepare(source)
    assert all(np.array_equal(mask, OBJECT) for mask in masks_of(output).values())


def test_bilevel_masks_among_those_of_0_and_255(source, output):
    put_photos(source, *(f"images/{n}.png" for n in "abc"))
    masks = put(source, "masks/a.png", "masks/b.png", pixels=255 * OBJECT) / "masks"
    put(source, "masks/c.png", pixels=Image.fromarray(255 * OBJECT).convert("1"))
    prepare(source)
    assert all(np.array_equal(mask, OBJECT) for mask in masks_of(output).values())
    suggested = suggest_classes(sorted(masks.iterdir()))
    (source / "classes.json").write_text(suggested[suggested.index("{") : suggested.rindex("}") + 1])
    dataset = SegmentationFolder(source, "train")
    assert all(np.array_equal(dataset.mask(index), OBJECT) for index in range(3))


def test_ids_that_really_are_0_and_1_with_ignored_pixels(source, output):
    put_photos(source, "images/a.png", "images/b.png")
    put(source, "masks/a.png", "masks/b.png", pixels=np.where(OBJECT, 1, 255).astype("uint8"))
    put(source, "masks/b.png")
    text = prepare(source)
    assert "255 is read as pixels to ignore" in text
    assert np.array_equal(masks_of(output)["a"], np.where(OBJECT, 1, 255))


def test_colour_masks_of_16_bits(source):
    """SYNTHIA's ids lie in the 8 bits that Pillow drops."""
    import tifffile

    ids = np.zeros((*SIZE[::-1], 3), np.uint16)
    ids[..., 0] = OBJECT
    tifffile.imwrite(source / "ids.tif", ids, photometric="rgb")
    with pytest.warns(UserWarning, match="colours of 16 bits, and the 8 bits that are read are all 0"):
        load_mask(source / "ids.tif")
    tifffile.imwrite(source / "colours.tif", ids * 65535, photometric="rgb")
    assert np.asarray(load_mask(source / "colours.tif").image)[..., 0].max() == 255


# --- Folders


def test_an_archive_in_a_folder_of_its_own(source, output):
    """Its classes, pairs and colours count as if the inner folder had been passed."""
    inner = source / "my-data"
    put_photos(inner, "images/0.jpg", "images/4.jpg")
    put(inner, "images/4.png")
    put(inner, "images/0.png", pixels=2 * OBJECT)
    (inner / "classes.json").write_text(json.dumps(["sky", "leaf", "stem"]))
    (inner / "pairs.csv").write_text("image,mask\nimages/0.jpg,images/4.png\nimages/4.jpg,images/0.png\n")
    for root in (source, source.parent, inner):
        dataset = SegmentationFolder(root, "train")
        assert dataset.classes.names == ("sky", "leaf", "stem") and np.array_equal(dataset.mask(0), OBJECT)
        assert available_splits(root) == ["train"]
        assert len(unlabelled_images(root)) == 2
    prepare(source)
    assert SegmentationFolder(output, "val").classes.names == ("sky", "leaf", "stem")
    assert sorted(mask.max() for mask in masks_of(output).values()) == [1, 2]


def test_a_folder_of_training_and_validation_images(source, output):
    """As in SUIM."""
    put_photos(source, "train_val/images/a.png", "train_val/images/b.png", "TEST/images/c.png")
    put(source, "train_val/masks/a.png", "train_val/masks/b.png", "TEST/masks/c.png")
    assert set(available_splits(source)) == {"train", "TEST"}
    text = prepare(source)
    assert names_of(output) == {"test": ["c"], "train": ["a", "b"]}, text


@pytest.mark.parametrize("pattern", ["{}/{}s", "{}_{}s"])
def test_a_folder_of_training_and_validation_images_beside_those_of_each(source, pattern):
    splits = ("train_val", "training", "validation")
    put_photos(source, *(f"{pattern.format(split, 'image')}/{split}.png" for split in splits))
    put(source, *(f"{pattern.format(split, 'mask')}/{split}.png" for split in splits))
    for split in ("train", "val"):
        dataset = SegmentationFolder(put_classes(source), split)
        assert [path.stem for path in dataset.images] == [{"train": "training", "val": "validation"}[split]]


def test_folders_that_are_named_like_no_split(source):
    put_photos(source, "TEST/images/c.png", "more/images/a.png")
    put(source, "TEST/masks/c.png", "more/masks/a.png")
    with pytest.warns(UserWarning, match="more hold images and masks too, but are named like no split"):
        available_splits(source)


def test_splits_below_other_folders(source, output):
    """As in BDD100K."""
    names = [f"10k/{split}/{split}-{number}" for split in ("train", "val") for number in range(3)]
    put_photos(source, *(f"images/{name}.jpg" for name in names))
    put(source, *(f"labels/sem_seg/masks/{name[4:]}.png" for name in names))
    prepare(source)
    found = names_of(output)
    assert all(len(ids) == 3 and all(f"/{split}/" in f"/{name}" for name in ids) for split, ids in found.items())


def test_pairs_that_are_listed_keep_their_groups(source, output):
    """Folders do not override the list."""
    names = [f"raw/{split}/{patient}-{split}" for split in ("train", "val") for patient in ("p1", "p2")]
    put_photos(source, *(f"{name}.jpg" for name in names))
    put(source, *(f"{name}.png" for name in names))
    rows = [f"{name}.jpg,{name}.png,{name.split('/')[2][:2]}" for name in names]
    (source / "pairs.csv").write_text("\n".join(["image,mask,group", *rows]))
    prepare(source)
    groups = [{name.rsplit("/", 1)[-1][:2] for name in ids} for ids in names_of(output).values()]
    assert groups[0].isdisjoint(groups[1])


@pytest.mark.parametrize("pattern", [("{}/{}.tif", "{}/{}_mask.tif"), ("{}/images/{}.png", "{}/masks/{}.png")])
def test_patients_stay_in_one_split(source, output, pattern):
    """As in LGG."""
    names = [(f"TCGA_{patient}", f"slice{number}") for patient in range(5) for number in range(4)]
    put_photos(source, *(pattern[0].format(*name) for name in names))
    put(source, *(pattern[1].format(*name) for name in names))
    assert "20 images, 2 classes" in prepare(source)
    found = names_of(output)
    assert {split: len(ids) for split, ids in found.items()} == {"train": 16, "val": 4}
    assert len({name.split("/")[0] for name in found["val"]}) == 1


def test_folders_that_are_called_manual_hold_photos(source):
    put_photos(source, "auto/a.jpg", "manual/b.jpg")
    assert unlabelled_images(source) == ["auto/a.jpg", "manual/b.jpg"]


def test_masks_with_other_names(source):
    put_photos(source, "images/a.jpg")
    put(source, "masks/b.png")
    (source / "masks" / "Thumbs.db").touch()
    with pytest.raises(ValueError, match="no image has a mask with a matching name"):
        prepare(source)


def test_annotations_of_another_kind(source):
    put_photos(source, "images/a.jpg")
    (source / "labels").mkdir()
    (source / "labels" / "a.txt").write_text("DontCare -1 -1 -10 503.89 169.71 590.61 190.13\n")  # KITTI's boxes
    with pytest.raises(ValueError, match=r"labels holds \.txt files, but no masks"):
        prepare(source)


# --- COCO


def test_panoptic_annotations_beside_those_of_instances(tmp_path, source, output):
    content = coco(["a", "b"], ".jpg")
    put_images(source / "val2017", ["a", "b"], ".jpg")
    segments = [{"image_id": 0, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 9}]}]
    (source / "annotations").mkdir()
    for name, annotations in (("instances", content["annotations"]), ("panoptic", segments)):
        path = source / "annotations" / f"{name}_val2017.json"
        path.write_text(json.dumps({**content, "annotations": annotations}))
    assert "panoptic_val2017.json holds panoptic annotations: skipped" in prepare(source)
    with pytest.raises(ValueError, match="only panoptic annotations"):
        ddep_hub.prepare(path, tmp_path / "panoptic")
    # The file alone: its images lie beside the folder of the annotations.
    ddep_hub.prepare(path.with_name("instances_val2017.json"), tmp_path / "file")
    expected, found = masks_of(output), masks_of(tmp_path / "file")
    assert {*found} == {*expected} and all(np.array_equal(found[name], expected[name]) for name in found)
    put_images(source / "annotations" / "images", ["a", "b"], ".jpg")  # nearer than those of the parent
    ddep_hub.prepare(path.with_name("instances_val2017.json"), tmp_path / "near")


# --- Messages


def test_images_of_many_bands_log_no_error(source, caplog):
    import tifffile

    tifffile.imwrite(source / "a.tif", np.zeros((8, *SIZE[::-1]), np.uint16), planarconfig="separate")
    with caplog.at_level(logging.DEBUG):
        decode_channels(source / "a.tif", 8)
        with pytest.raises(BadFileError):
            load_mask(source / "a.tif")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_folders_are_for_masks_alone(source):
    put_photos(source, "images/a.png")
    with pytest.raises(ValueError, match="The format coco takes no image_dir"):
        prepare(source, format="coco", mask_dir="masks")
    with pytest.raises(ValueError, match="mask_dir has no effect on unlabelled images"):
        prepare(source, format="unlabelled", mask_dir="masks")


@pytest.fixture
def toyset(source, monkeypatch):
    """A folder of a data set that was added to the registry, as docs/extending.md says."""
    put_photos(source, "images/train/a.jpg", "images/val/b.jpg")
    put(source, "annotations/train/a.png", "annotations/val/b.png", pixels=OBJECT)
    entry = {**dataset_registry._load_registry()["camvid"], "classes": [["rest", "#000000"], ["toy", "#ff0000"]]}
    entry["raw_values"] = {"table": [0, 1]}
    del entry["image_names"]
    splits = [{"name": name, "images": f"images/{name}", "masks": f"annotations/{name}"} for name in ("train", "val")]
    entry["layout"] = {"requires": "images/<split>/ and annotations/<split>/", "splits": splits}
    monkeypatch.setitem(dataset_registry._load_registry(), "toyset", entry)
    yield source
    dataset_registry.get_dataset_info.cache_clear()


def test_a_data_set_is_added_in_one_place(toyset, output):
    assert "layout toyset; 2 images, 2 classes" in prepare(toyset)
    assert json.loads((output / "classes.json").read_text())["classes"][1]["name"] == "toy"


def test_an_error_of_ours_is_not_said_to_be_in_the_users_files(toyset, monkeypatch):
    monkeypatch.setattr(mask_folders, "get_dataset_info", lambda layout: {}[layout])
    with pytest.raises(KeyError, match="toyset"):
        prepare(toyset)
