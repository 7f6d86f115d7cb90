"""Choosing the images to label: `ddep-hub select` and `ddep_hub.select_images`."""

import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddep_hub
from ddep_hub.cli import main
from ddep_hub.data.splits import read_split_file
from ddep_hub.preparation.selection import greedy_medoids, image_features, select, select_images, standardize
from ddep_hub.shipped import resolve_name


KINDS = ("dark", "striped", "red")


@pytest.fixture
def photos(tmp_path):
    """Six images of each of three kinds, in a folder for each kind."""
    rng = np.random.default_rng(0)
    for kind, index in itertools.product(KINDS, range(6)):
        pixels = rng.integers(0, 40, (48, 64, 3))
        if kind == "striped":
            pixels[:, ::4] += 200
        if kind == "red":
            pixels[..., 0] += 180
        path = tmp_path / "photos" / kind / f"{kind}-{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "photos"


def kinds_of(paths):
    return {Path(path).name.split("-")[0] for path in paths}


def test_the_choice_holds_every_kind_and_begins_like_a_shorter_one(photos):
    chosen = ddep_hub.select_images(photos, 3, image_size=64)
    assert kinds_of(chosen) == set(KINDS) and all(path.is_relative_to(photos) for path in chosen)
    assert ddep_hub.select_images(str(photos), "5", labelled=None, image_size=64.0)[:3] == chosen


def test_labelled_images_count_as_chosen_and_so_do_their_copies(photos, tmp_path):
    copies = tmp_path / "labelled"
    copies.mkdir()
    for index in range(6):
        shutil.copyfile(photos / "red" / f"red-{index}.png", copies / f"{index}.png")
    labelled = [photos / "dark" / "dark-0.png", copies]
    assert kinds_of(ddep_hub.select_images(photos, 1, labelled=labelled, image_size=64)) == {"striped"}
    (tmp_path / "selected.txt").write_text("dark/dark-0.png\n")
    with pytest.raises(ValueError, match=r"selected\.txt is a text file. Pass the images, or the folder"):
        ddep_hub.select_images(photos, 1, labelled=tmp_path / "selected.txt", image_size=64)
    others = ddep_hub.select_images(photos, 11, labelled=labelled, image_size=64)
    assert kinds_of(others) == {"striped", "dark"} and photos / "dark" / "dark-0.png" not in others
    assert "red" not in kinds_of(ddep_hub.select_images(photos, 12, labelled=str(copies), image_size=64))
    with pytest.raises(ValueError, match="number is 12, but there are 11 images to choose from"):
        ddep_hub.select_images(photos, 12, labelled=labelled, image_size=64)


def test_few_candidates_of_many_images(photos, tmp_path, monkeypatch):
    """The others are represented, and the choice does not depend on where the folder lies."""
    monkeypatch.setattr("ddep_hub.preparation.selection.MAX_CANDIDATES", 9)
    chosen = ddep_hub.select_images(photos, 3, image_size=64)
    shutil.copytree(photos, tmp_path / "elsewhere")
    again = ddep_hub.select_images(tmp_path / "elsewhere", 3, image_size=64)
    assert [path.name for path in again] == [path.name for path in chosen] and kinds_of(chosen) == set(KINDS)


def test_the_command_writes_copies_a_list_and_a_picture(photos, tmp_path, capsys):
    output = tmp_path / "to-label"
    (photos / "red" / "red-0.png").rename(photos / "#1.png")
    assert main(["select", str(photos), "--number", "18", "--image_size", "64", "--output_dir", str(output)]) == 0
    captured = capsys.readouterr()
    assert "drawn in selected.png" in captured.err
    printed = [Path(line).relative_to(photos).as_posix() for line in captured.out.splitlines()]
    assert len(printed) == 18 and kinds_of(name for name in printed if name[0] != "#") == set(KINDS)
    assert read_split_file(output / "selected.txt") == [name.removesuffix(".png") for name in printed]
    for name in printed:
        assert (output / "images" / name).read_bytes() == (photos / name).read_bytes()
    assert Image.open(output / "selected.png").width > 4 * 192
    (output / "images" / "red" / "red-1.png").write_text("mine")
    assert main(["select", str(photos), "--output_dir", str(output)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (output / "images" / "red" / "red-1.png").read_text() == "mine"


def test_what_appears_in_the_output_folder_meanwhile_stays(photos, tmp_path, monkeypatch):
    def late(*args, **kwargs):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        return [photos / "red" / "red-0.png"]

    monkeypatch.setattr("ddep_hub.preparation.selection.select_images", late)
    with pytest.raises(FileExistsError, match="not empty"):
        select(photos, 1, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert not list(tmp_path.glob(".out*"))


def test_the_unlabelled_images_of_a_labelled_data_set_have_no_labels(photos, tmp_path):
    for folder in ("images/train", "annotations/train", "unlabelled"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    names = sorted(photos.rglob("*.png"))[:6]
    for path in names[:2]:
        shutil.copy(path, tmp_path / "data" / "images" / "train")
        Image.new("L", Image.open(path).size).save(tmp_path / "data" / "annotations" / "train" / f"{path.stem}.png")
    for path in names[2:]:
        shutil.copy(path, tmp_path / "data" / "unlabelled")
    chosen = select_images(tmp_path / "data" / "unlabelled", 2, labelled=[tmp_path / "data"], image_size=64)
    assert len(chosen) == 2


def test_a_damaged_image_is_left_out(photos):
    (photos / "broken.png").write_bytes((photos / "red" / "red-0.png").read_bytes()[:200])
    with pytest.warns(UserWarning, match=r"broken\.png.*skipping it"):
        chosen = ddep_hub.select_images(photos, 18, image_size=64)
    assert len(chosen) == 18 and photos / "broken.png" not in chosen
    (photos / "broken.png").unlink()
    (photos / "broken.png").symlink_to(photos / "gone.png")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="number is 19, but there are 18"):
        ddep_hub.select_images(photos, 19, image_size=64)


def test_mistakes_are_told(photos, tmp_path):
    for number in (0, 19):
        with pytest.raises(ValueError, match=f"number is {number}, but there are 18 images"):
            ddep_hub.select_images(photos, number)
    with pytest.raises(ValueError, match="image_size must be positive"):
        ddep_hub.select_images(photos, 1, image_size=0)
    with pytest.raises(ValueError, match=r"number must be a whole number, got 2\.5"):
        ddep_hub.select_images(photos, 2.5)
    with pytest.raises(TypeError, match="images must be a folder, got a list"):
        ddep_hub.select_images([photos], 1)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        ddep_hub.select_images(photos, 1, labelled=[tmp_path / "nowhere"])


def test_masks_and_earlier_choices_are_not_chosen(photos, caplog):
    """Masks are left out by the name of their folder, and copies by the list beside them."""
    chosen = select(photos, 3, photos / "chosen", image_size=64)
    (photos / "red").rename(photos / "annotations")
    for path in (photos / "dark").iterdir():
        Image.new("L", (64, 48), 1).save(path.with_name(f"{path.stem}_mask.png"))
    with pytest.raises(ValueError, match="number is 13, but there are 12 images"):
        ddep_hub.select_images(photos, 13, image_size=64)
    again = ddep_hub.select_images(photos, 12, image_size=64)
    assert {path.parent for path in again} == {photos / "dark", photos / "striped"}
    assert not any("mask" in path.name for path in again) and len(chosen) == 3
    assert "written by ddep-hub:" in caplog.text and "named like masks" in caplog.text


def test_features_are_the_means_of_what_the_encoder_gives(tmp_path):
    """Of the image as the processor normalises it; of very long ones at a bounded size."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.new("RGB", (3000, 4)).save(tmp_path / "long.png")
    found = image_features([tmp_path / "a.png", tmp_path / "long.png"], "ddep-efficientnet-lite0", None, 64)
    model = ddep_hub.DDePForPreTraining.from_pretrained("ddep-efficientnet-lite0").eval()
    processor = ddep_hub.DDePImageProcessor.from_pretrained(resolve_name("ddep-efficientnet-lite0"))
    with torch.no_grad():
        levels = model.ddep(**processor(pixels, do_resize=False, return_tensors="pt"), output_hidden_states=True)
    for mean, level in zip(found[tmp_path / "a.png"], levels.hidden_states, strict=False):
        torch.testing.assert_close(mean, level[0].mean((1, 2)), rtol=1e-4, atol=1e-4)
    assert len(found[tmp_path / "a.png"]) == 5


def test_images_of_other_channels_are_seen_by_their_first_three(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(4):
        values = generator.integers(0, 4000, (64, 64, 4)).astype(np.uint16)
        np.save(tmp_path / f"{index}.npy", values)
    chosen = select_images(tmp_path, 2, num_channels=4)
    assert len(set(chosen)) == 2


def test_greedy_medoids_against_all_choices():
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [30.0]])
    squares = (points - points.T).square()

    def cost(chosen):
        return float(squares[:, chosen].amin(1).sum())

    chosen = greedy_medoids(points, 3, range(6))
    assert cost(chosen[:1]) == min(cost([index]) for index in range(6))
    assert cost(chosen[:2]) == min(cost([chosen[0], index]) for index in range(6))
    assert chosen == [3, 5, 1] and greedy_medoids(points, 6, range(6))[:3] == chosen
    assert greedy_medoids(points, 2, [0, 4, 5], [1]) == [5, 4]
    generator = torch.Generator().manual_seed(0)
    clusters = torch.randn(9, 5, generator=generator, dtype=torch.double)
    many = clusters[torch.randint(9, (200,), generator=generator)]
    many = many + torch.randn(200, 5, generator=generator, dtype=torch.double) / 2
    squares = torch.cdist(many, many).square()
    expected: list[int] = []
    for _ in range(12):
        costs = [cost([*expected, index]) if index not in expected else math.inf for index in range(200)]
        expected.append(costs.index(min(costs)))
    assert greedy_medoids(many, 12, range(200)) == expected
    same = torch.zeros(4, 2)
    assert sorted(greedy_medoids(same, 4, range(4))) == [0, 1, 2, 3]


def test_standardized_levels_weigh_the_same_and_constant_channels_nothing():
    generator = torch.Generator().manual_seed(0)
    images = [[torch.rand(3, generator=generator) * 100, torch.cat([torch.rand(6), torch.ones(2)])] for _ in range(9)]
    table = standardize(images)
    assert table.shape == (9, 11) and not table[:, 9:].any()
    variances = table.var(0, correction=0)
    assert variances[:3].sum() == pytest.approx(1) and variances[3:].sum() == pytest.approx(6 / 8)
