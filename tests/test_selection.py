"""Choosing the images to label: `ddep-hub select` and `ddep_hub.select_images`."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ddep_hub
from ddep_hub.cli import main
from ddep_hub.data.splits import read_split_file
from ddep_hub.preparation.selection import greedy_medoids, standardized


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


def kinds_of(names):
    return {str(name).split("/")[-1].split("-")[0] for name in names}


def test_the_choice_holds_every_kind_and_begins_like_a_shorter_one(photos):
    chosen = ddep_hub.select_images(photos, 3, image_size=64)
    assert kinds_of(chosen) == set(KINDS)
    assert all(path == photos / f"{name}.png" for name, path in chosen.items())
    longer = ddep_hub.select_images([photos / "*" / "*.png"], 5, image_size=64)
    assert list(longer)[:3] == list(chosen)


def test_labelled_images_stand_for_their_kind_and_are_not_chosen(photos):
    labelled = [photos / "dark" / "dark-0.png", photos / "red"]
    chosen = ddep_hub.select_images(photos, 1, labelled=labelled, image_size=64)
    assert kinds_of(chosen) == {"striped"}
    everything_else = ddep_hub.select_images(photos, 11, labelled=labelled, image_size=64)
    assert kinds_of(everything_else) == {"striped", "dark"} and "dark/dark-0" not in everything_else


def test_the_command_writes_copies_a_list_and_a_picture(photos, tmp_path, capsys):
    output = tmp_path / "to-label"
    assert main(["select", str(photos), "--number", "3", "--image_size", "64", "--output_dir", str(output)]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    listed = (output / "selected.txt").read_text().splitlines()
    assert [photos / name for name in listed] == printed and kinds_of(listed) == set(KINDS)
    for name in listed:
        assert (output / "images" / name).read_bytes() == (photos / name).read_bytes()
    assert read_split_file(output / "selected.txt") == [name.removesuffix(".png") for name in listed]
    assert Image.open(output / "selected.png").width > 3 * 192
    (output / "images" / listed[0]).write_text("mine")
    assert main(["select", str(photos), "--output_dir", str(output)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (output / "images" / listed[0]).read_text() == "mine"


def test_a_damaged_image_is_left_out(photos):
    (photos / "broken.png").write_bytes((photos / "red" / "red-0.png").read_bytes()[:200])
    with pytest.warns(UserWarning, match=r"broken\.png.*left out"):
        chosen = ddep_hub.select_images(photos, 18, image_size=64)
    assert len(chosen) == 18 and "broken" not in chosen
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="number is 19, but there are 18"):
        ddep_hub.select_images(photos, 19, image_size=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0}, "number is 0, but there are 18 images"),
        ({"number": 19}, "take 1..18"),
        ({"number": 1, "image_size": 0}, "image_size must be positive"),
        ({"number": 1, "labelled": ["photos/*"]}, "matches none"),
    ],
)
def test_mistakes_are_told(photos, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        ddep_hub.select_images(photos, **options)


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
    same = torch.zeros(4, 2)
    assert sorted(greedy_medoids(same, 4, range(4))) == [0, 1, 2, 3]


def test_standardized_levels_weigh_the_same_and_constant_channels_nothing():
    generator = torch.Generator().manual_seed(0)
    images = [[torch.rand(3, generator=generator) * 100, torch.cat([torch.rand(6), torch.ones(2)])] for _ in range(9)]
    table = standardized(images)
    assert table.shape == (9, 11) and not table[:, 9:].any()
    variances = table.var(0, correction=0)
    assert variances[:3].sum() == pytest.approx(1) and variances[3:].sum() == pytest.approx(6 / 8)
