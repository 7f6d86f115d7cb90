import shutil

import pytest

from ddep_hub.data import hf_datasets
from ddep_hub.data import image_datasets as image_sources
from ddep_hub.data.image_datasets import (
    HubImages,
    ImageFolder,
    ShardedImages,
    expand_shards,
    images_fingerprint,
    open_images,
)


@pytest.fixture
def places(tmp_path, jpeg, image_dataset, write_shards):
    """One source of each kind, by name."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number, name in enumerate(["b.jpg", "deep/a.jpg"]):
        (tmp_path / "photos" / name).write_bytes(jpeg(number))
    image_dataset(3).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    image_dataset(2).to_parquet(str(tmp_path / "parquet" / "data" / "train-0.parquet"))
    write_shards(tmp_path / "tars", [2, 1])
    return tmp_path


def test_map_style_sources(places):
    names = [str(places / name) for name in ("photos", "saved", "parquet")]
    sources = open_images(names)
    assert [type(source) for source in sources] == [ImageFolder, HubImages, HubImages]
    assert [len(source) for source in sources] == [2, 3, 2]
    for source in sources:
        row = source[0]
        assert set(row) == {"image", "path"}
        assert set(row["image"]) == {"path", "bytes"}


def test_streams(places):
    tars = places / "tars"
    names = [f"{tars}/*.tar", f"{tars}/train-{{000..001}}.tar", f"{tars}/train-000.tar"]
    names += [str(places / "saved"), str(places / "parquet")]
    sources = open_images(names, streaming=True)
    assert all(isinstance(source, ShardedImages) for source in sources)
    assert [source.num_shards for source in sources] == [2, 2, 1, 3, 1]
    assert next(sources[1].samples(1))["path"] == f"{tars}/train-001.tar/0002.jpg"
    assert isinstance(open_images(names[:1])[0], ShardedImages)


def test_the_column_of_shards_is_found(tmp_path, write_shards):
    (source,) = open_images([write_shards(tmp_path / "a", [2], suffix="jpeg")])
    assert source.columns == ["jpeg"]
    assert next(source.samples(0))["path"].endswith("0000.jpeg")
    name = write_shards(tmp_path / "b", [2], suffix="tiff")
    with pytest.raises(ValueError, match=r"no image column 'image'; its image columns are \['tiff'\]"):
        open_images([name])
    assert open_images([name], column="tiff")[0].columns == ["tiff"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf://datasets/org/name", ("org/name", "train", None)),
        ("hf://datasets/org/name@v1.0", ("org/name", "train", "v1.0")),
        ("hf://datasets/org/name/test", ("org/name", "test", None)),
        ("hf://datasets/org/na.me-2@refs%2Fconvert%2Fparquet/val", ("org/na.me-2", "val", "refs/convert/parquet")),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_names_of_the_hub(monkeypatch, image_dataset, name, expected, streaming):
    asked = []
    data = image_dataset(2)

    def whole(repository, split, *, column, revision=None):
        asked.append((repository, split, revision))
        return "rows"

    def stream(repository, split, *, revision=None):
        asked.append((repository, split, revision))
        return data.to_iterable_dataset()

    monkeypatch.setattr(image_sources, "HubImages", whole)
    monkeypatch.setattr(image_sources, "stream_split", stream)
    open_images([name], streaming=streaming)
    assert asked == [expected]


@pytest.mark.parametrize(
    "name", ["hf://datasets/name", "hf://datasets/a/b/c/d", "hf://datasets/a/b@", "hf://datasets/"]
)
def test_wrong_names_of_the_hub(name):
    with pytest.raises(ValueError, match="is not the name of a data set on the Hub; write hf://datasets/org/name"):
        open_images([name])


def test_what_cannot_be_opened_is_told(places):
    photos, tars = str(places / "photos"), f"{places / 'tars'}/*.tar"
    with pytest.raises(ValueError, match=r"tar'\] are streams, but .*photos'\] are not; the two cannot be mixed"):
        open_images([photos, tars])
    with pytest.raises(ValueError, match="is a folder of images, which cannot be streamed"):
        open_images([photos], streaming=True)
    with pytest.raises(ValueError, match="no images are given"):
        open_images([])
    with pytest.raises(ValueError, match="neither hf://datasets/org/name nor the URL"):
        open_images(["https://example.com/images"])
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        open_images([str(places / "none")])
    with pytest.raises(FileNotFoundError, match=r"train-002\.tar matches no file"):
        open_images([f"{places / 'tars'}/train-{{000..002}}.tar"])


def test_urls_need_a_package(monkeypatch):
    monkeypatch.setattr(hf_datasets, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install aiohttp"):
        open_images(["https://example.com/train-{0..3}.tar"])


def test_ranges_of_shards():
    assert expand_shards("https://a.org/x-{8..11}.tar") == [
        f"https://a.org/x-{number}.tar" for number in (8, 9, 10, 11)
    ]
    assert expand_shards("s3://a/{0..1}/x-{098..100}.tar")[2:4] == ["s3://a/0/x-100.tar", "s3://a/1/x-098.tar"]
    with pytest.raises(ValueError, match=r"runs backwards; write \{1\.\.3\}"):
        expand_shards("https://a.org/x-{3..1}.tar")


def test_identity_tells_contents_but_not_places_apart(places, tmp_path_factory, jpeg):
    other = tmp_path_factory.mktemp("other") / "moved"
    shutil.copytree(places, other)
    kinds = ["photos", "saved", "parquet", "tars/*.tar"]
    before = [images_fingerprint(open_images([str(places / kind)])) for kind in kinds]
    assert len(set(before)) == 4
    assert [images_fingerprint(open_images([str(other / kind)])) for kind in kinds] == before
    photos = open_images([str(other / "photos")])
    assert images_fingerprint(photos + photos) != images_fingerprint(photos)
    (other / "photos" / "c.jpg").write_bytes(jpeg(3))
    (other / "tars" / "train-001.tar").unlink()
    assert images_fingerprint(open_images([str(other / "photos")])) != before[0]
    assert images_fingerprint(open_images([str(other / "tars/*.tar")])) != before[3]


def test_metadata_beside_photos_do_not_take_their_place(tmp_path, jpeg):
    import datasets

    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    datasets.Dataset.from_dict({"file_name": ["0.jpg"]}).to_parquet(str(tmp_path / "metadata.parquet"))
    (tmp_path / "state.json").write_text("{}")  # of a program of the user's
    assert not hf_datasets.is_saved(str(tmp_path))
    (source,) = open_images([str(tmp_path)])
    assert isinstance(source, ImageFolder) and len(source) == 3
    (tmp_path / "empty.parquet").touch()
    (source,) = open_images([str(tmp_path)])
    assert isinstance(source, ImageFolder) and len(source) == 3


def test_pictures_for_the_readme_do_not_hide_a_data_set(tmp_path, jpeg, image_dataset):
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "data").mkdir()
    image_dataset(2).to_parquet(str(tmp_path / "data" / "train-0.parquet"))
    (source,) = open_images([str(tmp_path)])
    assert isinstance(source, HubImages) and len(source) == 2
