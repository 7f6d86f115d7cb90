import json

import numpy as np
import pytest

from ddep_hub.data import synthetic
from ddep_hub.data.image_datasets import ImageFolder
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.synthetic import SCENE_CLASSES, render_scene, write_scenes


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(0, index, (96, 96)) for index in range(40)]


def test_scenes_are_deterministic_and_differ():
    image, mask = render_scene(3, 5, (64, 80))
    again, mask_again = render_scene(3, 5, (64, 80))
    assert image.shape == (64, 80, 3)
    assert mask.shape == (64, 80)
    assert image.dtype == mask.dtype == np.uint8
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    for seed, index in [(3, 6), (4, 5)]:
        assert not np.array_equal(render_scene(seed, index, (64, 80))[0], image)


def test_global_random_numbers_are_left_alone():
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    render_scene(0, 0, (32, 32))
    assert np.random.rand() == expected


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (50, 23)])
def test_odd_sizes(size):
    for index in range(10):
        image, mask = render_scene(1, index, size)
        assert image.shape[:2] == mask.shape == size


def test_too_small_is_named():
    with pytest.raises(ValueError, match="8x200"):
        render_scene(0, 0, (8, 200))


def test_every_class_has_a_fair_share(scenes):
    pixels = sum(np.bincount(mask.ravel(), minlength=SCENE_CLASSES.num_classes) for _, mask in scenes)
    assert len(pixels) == SCENE_CLASSES.num_classes == 8
    share = pixels / pixels.sum()
    assert share.min() > 0.01
    assert share.max() < 0.4


def test_exposure_is_sensible(scenes):
    for image, _ in scenes:
        assert 40 < image.mean() < 225
        assert image.std() > 15


def test_colour_alone_does_not_tell_the_class(scenes):
    """A classifier by the nearest mean colour, fitted on half of the scenes, is wrong on much of the other half."""

    def pixels(chosen):
        colors = np.concatenate([image.reshape(-1, 3) for image, _ in chosen]).astype(np.float32)
        return colors, np.concatenate([mask.ravel() for _, mask in chosen])

    colors, ids = pixels(scenes[:20])
    means = np.stack([colors[ids == index].mean(0) for index in range(8)])
    colors, ids = pixels(scenes[20:])
    nearest = ((colors[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == ids).mean() < 0.5


def test_written_scenes_load(tmp_path):
    root = write_scenes(tmp_path / "scenes", splits={"train": 3, "val": 2}, unlabelled=2, size=(32, 48), seed=4)
    rows = SegmentationFolder(root, "train")
    assert len(rows) == 3
    assert rows.classes == SCENE_CLASSES
    assert rows[0]["image"].size == (48, 32)
    assert len(SegmentationFolder(root, "val")) == 2
    assert len(ImageFolder(root / "unlabelled")) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["scenes"]
    masks = [rows[index]["annotation"].tobytes() for index in range(3)]
    masks += [row["annotation"].tobytes() for row in (SegmentationFolder(root, "val")[index] for index in range(2))]
    assert len(set(masks)) == 5


def test_a_larger_split_starts_with_the_same_scenes(tmp_path):
    small = write_scenes(tmp_path / "small", splits={"train": 2}, size=(24, 24))
    large = write_scenes(tmp_path / "large", splits={"val": 1, "train": 3}, size=(24, 24))
    name = "images/train/00001.jpg"
    assert (small / name).read_bytes() == (large / name).read_bytes()


def test_written_scenes_are_used_again_only_with_the_same_arguments(tmp_path):
    root = write_scenes(tmp_path / "scenes", splits={"train": 1}, size=(24, 24), seed=0)
    before = (root / "scenes.json").stat().st_mtime_ns
    assert write_scenes(root, splits={"train": 1}, size=(24, 24), seed=0) == root
    assert (root / "scenes.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="scenes holds scenes with a different splits, seed"):
        write_scenes(root, splits={"train": 2}, size=(24, 24), seed=1)
    record = json.loads((root / "scenes.json").read_text())
    assert record["splits"] == {"train": 1}


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match=r"mine is not empty, but holds no scenes\.json"):
        write_scenes(tmp_path / "mine", splits={"train": 1}, size=(24, 24))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddep_hub.data.synthetic.write_class_table", stop)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", splits={"train": 1}, size=(24, 24))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"splits": {"train": -1}}, "'train' is -1"), ({"splits": {"../x": 1}}, "not a valid name for a split")],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_scenes(tmp_path / "scenes", **options)


def test_two_processes_may_write_the_same_scenes_at_once(tmp_path, monkeypatch):
    root, arguments = tmp_path / "scenes", {"splits": {"train": 1}, "size": (32, 48)}
    write_table = synthetic.write_class_table

    def write_meanwhile(*args):
        monkeypatch.setattr(synthetic, "write_class_table", write_table)
        write_scenes(root, **arguments)
        (root / "first").touch()
        write_table(*args)

    monkeypatch.setattr(synthetic, "write_class_table", write_meanwhile)
    assert write_scenes(root, **arguments) == root and (root / "first").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]
