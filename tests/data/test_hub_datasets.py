import io

import numpy as np
import pytest
from launching import run
from PIL import Image

from ddep_hub.data.arguments import LabelledDataArguments
from ddep_hub.data.class_files import write_class_table
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.hf_datasets import stream_shards, stream_split
from ddep_hub.data.image_datasets import HubImages, ShardedImages
from ddep_hub.data.image_io import BadFileError, decode_image
from ddep_hub.data.labelled_data import open_split
from ddep_hub.data.segmentation_datasets import HubSegmentation


CLASSES = ClassTable(names=("sky", "road", "car"), colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)))
IDS = np.array([[0, 1, 2, 255]] * 3, dtype=np.uint8)


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def save(data, folder, how):
    """Saves a data set in one of the ways that are read; gives its name."""
    import datasets

    if how == "save_to_disk":
        data.save_to_disk(str(folder / "saved"))
        return str(folder / "saved")
    if how == "save_to_disk with splits":
        datasets.DatasetDict(train=data).save_to_disk(str(folder / "splits"))
        return str(folder / "splits")
    (folder / "set").mkdir()
    path = folder / "set" / "train-0.parquet"
    data.to_parquet(str(path))
    return str(path) if how == "parquet file" else str(folder / "set")


WAYS = ["save_to_disk", "save_to_disk with splits", "parquet folder", "parquet file"]


@pytest.mark.parametrize("how", WAYS)
def test_images_come_undecoded(tmp_path, image_dataset, jpeg, how):
    name = save(image_dataset(3, label=[1, 2, 3]), tmp_path, how)
    rows = HubImages(name, "train")
    assert len(rows) == 3
    assert rows[1]["image"]["bytes"] == jpeg(1)
    assert rows[1]["path"] == rows[1]["image"]["path"] == f"{name}/train, sample 1"
    streamed = ShardedImages(stream_split(name, "train"), name, [])
    shards = [list(streamed.samples(shard)) for shard in range(streamed.num_shards)]
    assert [row["image"]["bytes"] for shard in shards for row in shard] == [jpeg(number) for number in range(3)]
    assert shards[0][0]["path"] == f"{name}, shard 0, sample 0"


def test_a_folder_of_images_gives_their_paths(tmp_path, jpeg):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(jpeg(0))
    row = HubImages(str(tmp_path), "train")[0]
    assert row["path"] == str(tmp_path / "train" / "a.jpg")
    assert decode_image(row["image"]).size == (40, 32)


def test_missing_splits_and_columns_are_named(tmp_path, image_dataset):
    name = save(image_dataset(2, label=[1, 2]), tmp_path, "save_to_disk with splits")
    with pytest.raises(ValueError, match=r"has no split 'test'; it has \['train'\]"):
        HubImages(name, "test")
    for column in ("photo", "label"):
        with pytest.raises(ValueError, match=rf"no image column '{column}'; its image columns are \['image'\]"):
            HubImages(name, "train", column=column)
    renamed = save(image_dataset(2).rename_column("image", "photo"), tmp_path, "save_to_disk")
    assert len(HubImages(renamed, "train")) and HubImages(renamed, "train").column == "photo"  # the only one
    (tmp_path / "a.csv").write_text("image\n1\n")
    with pytest.raises(ValueError, match=r"a\.csv is a file that cannot be read"):
        HubImages(str(tmp_path / "a.csv"), "train")


def test_empty_and_broken_images_are_named(tmp_path, image_dataset):
    import datasets

    data = datasets.Dataset.from_dict({"image": [None, {"bytes": b"text", "path": "b.jpg"}]})
    name = save(data.cast_column("image", datasets.Image()), tmp_path, "save_to_disk")
    rows = HubImages(name, "train")
    with pytest.raises(BadFileError, match="sample 0 holds no image"):
        rows[0]
    with pytest.raises(BadFileError, match=r"sample 1 \(b\.jpg\) is not an image"):
        decode_image(rows[1]["image"])


def test_images_behind_urls_are_fetched(tmp_path, jpeg):
    import datasets

    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    data = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": f"file://{tmp_path / 'a.jpg'}"}]})
    data = data.cast_column("image", datasets.Image(decode=False)).to_iterable_dataset()
    row = next(ShardedImages(data, "set", []).samples(0))
    assert row["image"] == {"path": f"file://{tmp_path / 'a.jpg'}", "bytes": jpeg(0)}


def segmentation(tmp_path, image_dataset, masks, classes=CLASSES, sizes=(4, 3), labels=None, **options):
    import datasets

    pixels = np.zeros((sizes[1], sizes[0], 3), dtype=np.uint8)
    more = {} if labels is None else {"classes": [labels] * len(masks)}
    data = datasets.Dataset.from_dict({"image": [png(pixels)] * len(masks), "mask": masks, **more})
    for column in ("image", "mask"):
        data = data.cast_column(column, datasets.Image())
    if labels is not None:
        feature = datasets.ClassLabel(names=["sky", "road", "car"])
        data = data.cast_column("classes", feature if isinstance(labels, int) else datasets.List(feature))
    name = save(data, tmp_path, "parquet folder")
    return HubSegmentation(name, "train", classes, mask_column="mask", **options)


def test_segmentation_rows(tmp_path, image_dataset):
    data = segmentation(tmp_path, image_dataset, [png(IDS), png(IDS[::-1, ::-1])])
    assert len(data) == 2
    assert data.sample_ids == ["00000000", "00000001"]
    assert data.classes is CLASSES
    row = data[1]
    assert set(row) == {"image", "annotation", "path", "annotation_path"}
    assert row["image"].mode == "RGB" and row["image"].size == (4, 3)
    assert row["annotation"].dtype == np.uint8
    assert np.array_equal(row["annotation"], IDS[::-1, ::-1])
    assert row["path"].endswith("train, sample 1, image")
    assert row["annotation_path"].endswith("train, sample 1, mask")
    assert np.array_equal(data.mask(1), row["annotation"])
    assert np.array_equal(data.select(["00000001"])[0]["annotation"], row["annotation"])
    with pytest.raises(ValueError, match=r"1 of 1 sample ids are not in .*: 7; sample ids there look like '00000000'"):
        data.select(["7"])


def test_bad_masks_are_named(tmp_path, image_dataset):
    masks = [
        png(np.full((3, 4), 9, np.uint8)),
        png(np.full((3, 4, 3), (9, 0, 0), np.uint8)),
        png(np.zeros((4, 4), np.uint8)),
    ]
    data = segmentation(tmp_path, image_dataset, masks)
    for index, message in enumerate(
        ["sample 0, mask holds the ids 9", "sample 1, mask has colour mode RGB", "is 4x4 pixels"]
    ):
        for read in (data.__getitem__, data.mask):
            with pytest.raises(BadFileError, match=message):
                read(index)


def test_classes_come_from_a_list_of_labels_or_the_caller(tmp_path, image_dataset):
    data = segmentation(tmp_path / "", image_dataset, [png(IDS)], classes=None, labels=[0, 2])
    assert data.classes.names == ("sky", "road", "car")
    assert len(set(data.classes.colors)) == 3
    for number, labels in enumerate([None, 1]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ValueError, match=r"does not name the classes .*classes=.*classes\.json"):
            segmentation(folder, image_dataset, [png(IDS)], classes=None, labels=labels)


def test_shards_are_disjoint_and_can_be_entered_anywhere(tmp_path, image_dataset, write_shards):
    import datasets

    for number, count in enumerate((3, 1, 4)):
        image_dataset(count, first=10 * number).to_parquet(str(tmp_path / f"train-{number}.parquet"))
    tars = write_shards(tmp_path / "tars", [3, 1, 4])
    parquet = ShardedImages(stream_split(str(tmp_path), "train"), "set", [])
    shards = datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True)
    for source in (parquet, ShardedImages(shards, "tars", [])):
        assert source.num_shards == 3
        rows = [list(source.samples(shard)) for shard in range(3)]
        assert [len(part) for part in rows] == [3, 1, 4]
        assert len({row["image"]["bytes"] for part in rows for row in part}) == 8
        for start in range(5):
            assert list(source.samples(2, start)) == rows[2][start:]


def test_reading_errors_name_the_shard(tmp_path, write_shards):
    import datasets

    write_shards(tmp_path / "tars", [3, 3])
    paths = sorted(str(path) for path in (tmp_path / "tars").glob("*.tar"))
    source = ShardedImages(
        datasets.load_dataset("webdataset", data_files=paths, split="train", streaming=True), "tars", []
    )
    with open(paths[1], "r+b") as file:
        file.truncate(700)
    with pytest.raises(ValueError, match=r"shard 1 of tars is damaged \(.*\); replace or remove it"):
        list(source.samples(1))
    with open(paths[0], "r+b") as file:
        file.truncate(700)
    with pytest.raises(ValueError, match=r"one of the shards .*tar is damaged"):
        stream_shards(paths)


def test_datasets_is_imported_late():
    code = "import sys, ddep_hub.data.image_datasets, ddep_hub.data.streaming; assert 'datasets' not in sys.modules"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_table_of_classes_may_lie_in_the_folder_of_the_data(tmp_path, image_dataset):
    segmentation(tmp_path, image_dataset, [png(IDS)])
    (folder,) = {path.parent for path in tmp_path.rglob("*.parquet")}
    args = LabelledDataArguments(data=str(folder), mask_column="mask")
    with pytest.raises(ValueError, match="does not name the classes"):
        open_split(args, "train")
    write_class_table(CLASSES, folder / "classes.json")
    assert open_split(args, "train").classes == CLASSES


def test_common_names_of_splits_can_be_streamed_too(tmp_path, image_dataset):
    image_dataset(2).to_parquet(str(tmp_path / "validation-0.parquet"))
    for name in ("val", "valid", "validation", "dev"):
        assert len(list(stream_split(str(tmp_path), name))) == 2
    with pytest.raises(ValueError, match=r"has no split 'test'; it has \['validation'\]"):
        stream_split(str(tmp_path), "test")


def test_a_tiff_without_a_name_is_a_tiff(tmp_path):
    import datasets

    tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
    pages = np.random.default_rng(0).integers(0, 256, (4, 3, 4), dtype=np.uint8)
    stream = io.BytesIO()
    tifffile.imwrite(stream, pages, photometric="minisblack", metadata=None)
    for number, path in enumerate([None, "a.tif"]):
        data = datasets.Dataset.from_dict({"image": [{"bytes": stream.getvalue(), "path": path}], "mask": [png(IDS)]})
        for column in ("image", "mask"):
            data = data.cast_column(column, datasets.Image(decode=False))
        data.to_parquet(str(tmp_path / f"{number}.parquet"))
        options = {"classes": CLASSES, "mask_column": "mask"}
        rows = HubSegmentation(str(tmp_path / f"{number}.parquet"), "train", num_channels=4, **options)
        assert np.array_equal(rows[0]["image"].pixels, pages)
        with pytest.raises(BadFileError, match="has 4 channels"):
            HubSegmentation(str(tmp_path / f"{number}.parquet"), "train", **options)[0]
