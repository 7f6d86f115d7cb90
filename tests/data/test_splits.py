import os
import random
from fractions import Fraction
from pathlib import Path

import pytest

from ddep_hub.data.splits import (
    choose_labelled,
    choose_validation,
    extract_groups,
    find_copies,
    parse_fraction,
    read_split_file,
    write_split_file,
)


DATA = Path(os.environ.get("DDEP_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
STEMS = [f"city/frame_{number:04d}" for number in range(367)]


def test_copies_are_found_by_their_contents(tmp_path):
    contents = {"a": b"1" * 200_000, "copy": b"1" * 200_000, "longer": b"1" * 200_001, "end": b"1" * 199_999 + b"2"}
    contents["part"] = b"1" * 50_000 + b"2" + b"1" * 149_999  # as an image without compression, of another object
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gone").symlink_to("nowhere")
    others = [tmp_path / name for name in ("longer", "end", "part", "gone", "copy")]
    files = [tmp_path / name for name in ("a", "gone", "longer")]
    assert find_copies(files, others) == [tmp_path / "a", tmp_path / "longer"]
    assert find_copies([tmp_path / "a"], others[:-1]) == []


def test_known_names_that_look_like_comments_or_begin_with_a_space(tmp_path):
    (tmp_path / "list.txt").write_text("# a comment\n#1.png\n lead.PNG\na.png\n")
    assert read_split_file(tmp_path / "list.txt", {"#1", " lead", "a"}) == ["#1", " lead", "a"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1/30", Fraction(1, 30)), ("0.1", Fraction(1, 10)), (0.1, Fraction(1, 10)), (1, 1), (" 1 / 4", Fraction(1, 4))],
)
def test_parse_fraction(value, expected):
    assert parse_fraction(value) == expected


@pytest.mark.parametrize("value", ["0", "2", "-1/4", 1.5, "1/0", "ten", "", "nan", float("inf")])
def test_bad_fractions_are_named(value):
    with pytest.raises(ValueError, match=r"label fraction .* write it like 1/30"):
        parse_fraction(value)


def test_smaller_choices_start_larger_ones():
    whole = choose_labelled(STEMS, fraction=1, seed=3)
    assert sorted(whole) == STEMS
    for fraction, number in [("1/30", 12), ("1/16", 23), ("1/8", 46), ("1/4", 92), ("1/2", 184)]:
        chosen = choose_labelled(STEMS, fraction=fraction, seed=3)
        assert len(chosen) == number
        assert chosen == whole[:number]


def test_choice_depends_on_the_seed_and_not_on_the_order():
    shuffled = random.Random(0).sample(STEMS, len(STEMS))
    assert choose_labelled(shuffled, number=20, seed=0) == choose_labelled(STEMS, number=20, seed=0)
    assert choose_labelled(STEMS, number=20, seed=0) != choose_labelled(STEMS, number=20, seed=1)


def test_choice_is_the_same_everywhere():
    assert choose_labelled([f"{letter}" for letter in "abcdefgh"], number=4, seed=0) == ["h", "f", "g", "d"]


def test_at_least_one_is_chosen():
    assert len(choose_labelled(STEMS, fraction="1/10000", seed=0)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 368}, "is 368, but there are 367"),
        ({"number": 0}, "is 0"),
        ({}, "either fraction or number"),
        ({"number": 3, "fraction": 0.5}, "either fraction or number"),
    ],
)
def test_bad_choices(options, message):
    with pytest.raises(ValueError, match=message):
        choose_labelled(STEMS, seed=0, **options)


def test_repeated_stems_are_named():
    with pytest.raises(ValueError, match="'b' occurs more than once"):
        choose_labelled(["a", "b", "b"], number=1, seed=0)


def test_split_file_lines(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(
        "# labelled\n\n"
        "leftImg8bit/train/jena/jena_000078_000019_leftImg8bit.png gtFine/train/jena/jena_000078_000019_x.png\n"
        "images/training/ADE_train_00001609.jpg annotations/training/ADE_train_00001609.png\n"
        "images/train/sub/my photo.JPG\n"
        "plain/frame.0001\n"
    )
    assert read_split_file(path) == [
        "jena/jena_000078_000019",
        "ADE_train_00001609",
        "sub/my photo",
        "plain/frame.0001",
    ]


def test_split_file_round_trip(tmp_path):
    sample_ids = ["b/c d", "a", "frame.0001"]
    write_split_file(tmp_path / "list.txt", sample_ids)
    assert read_split_file(tmp_path / "list.txt") == sample_ids


def test_names_of_files_need_not_be_utf_8(tmp_path):
    write_split_file(tmp_path / "list.txt", ["\udcfcber"])
    assert (tmp_path / "list.txt").read_bytes() == b"\xfcber\n"
    assert read_split_file(tmp_path / "list.txt") == ["\udcfcber"]


def test_names_that_look_like_something_else_survive_a_round_trip(tmp_path):
    names = ["train0.jpg", "# 1", " a", "b_leftImg8bit", "images/x/c", "d.png e.png"]
    write_split_file(tmp_path / "list.txt", names)
    assert read_split_file(tmp_path / "list.txt", set(names)) == names
    (tmp_path / "list.txt").write_text("\ufeffa.png\r\n# no image\r\n", encoding="utf-8")
    assert read_split_file(tmp_path / "list.txt", {"a"}) == ["a"]


def test_split_file_errors(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.jpg\nb.jpg\nimages/train/a.png\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 3: a is already in line 1"):
        read_split_file(path)
    path.write_text("\n# nothing\n")
    with pytest.raises(ValueError, match=r"list\.txt lists no image"):
        read_split_file(path)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cityscapes/1_30/labeled.txt", 100),
        ("cityscapes/1_16/labeled.txt", 186),
        ("cityscapes/1_8/labeled.txt", 372),
        ("cityscapes/1_4/labeled.txt", 744),
        ("cityscapes/1_2/labeled.txt", 1488),
        ("cityscapes/val.txt", 500),
        ("ade20k/1_64/labeled.txt", 316),
        ("ade20k/1_32/labeled.txt", 631),
        ("ade20k/1_16/labeled.txt", 1263),
        ("ade20k/1_8/labeled.txt", 2526),
        ("ade20k/1_4/labeled.txt", 5052),
        ("ade20k/1_2/labeled.txt", 10105),
        ("ade20k/val.txt", 2000),
    ],
)
def test_published_lists(name, count):
    path = DATA / "splits_published" / name
    if not path.is_file():
        pytest.skip(f"no published lists at {path}; set DDEP_DATA")
    sample_ids = read_split_file(path)
    assert len(sample_ids) == count
    prefix = "ADE_" if name.startswith("ade20k") else sample_ids[0].split("/")[0] + "/"
    assert sample_ids[0].startswith(prefix)
    assert not any(part in sample_id for part in ("leftImg8bit", "images", " ") for sample_id in sample_ids)


def test_validation_is_the_same_for_every_order_and_has_its_share():
    names = [f"image {number}" for number in range(50)]
    chosen = choose_validation(names, "0.2")
    assert len(chosen) == 10 and set(chosen) < set(names)
    assert choose_validation(reversed(names), 0.2) == chosen
    assert len(choose_validation(names, 0.001)) == 1 and len(choose_validation(names, 0.999)) == 49
    with pytest.raises(ValueError, match="val_fraction: there is only 1 image"):
        choose_validation(["a"], 0.5)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_groups_are_kept_whole(fraction):
    names = [f"slide{slide}/tile{tile}" for slide in range(12) for tile in range(slide + 1)]
    groups = extract_groups(names, "(slide[0-9]+)/")
    chosen = set(choose_validation(names, fraction, groups))
    kept, left = {groups[name] for name in chosen}, {groups[name] for name in set(names) - chosen}
    assert kept and left and not kept & left
    assert abs(len(chosen) / len(names) - fraction) < 13 / len(names)
    assert extract_groups(["a_01", "b_02"], "[a-z]_") == {"a_01": "a_", "b_02": "b_"}
    with pytest.raises(ValueError, match=r"does not match 'x'"):
        extract_groups(["x"], "slide")
    with pytest.raises(ValueError, match="is not a regular expression"):
        extract_groups(["x"], "(")
    with pytest.raises(ValueError, match="one group, 'a'"):
        choose_validation(["1", "2"], 0.5, {"1": "a", "2": "a"})


def test_a_group_that_is_too_large_stays_in_training():
    for number in range(30):  # whichever comes first
        sizes = {f"a{number}": 90, f"b{number}": 5, f"c{number}": 5}
        groups = {f"{group}-{index}": group for group, size in sizes.items() for index in range(size)}
        assert 5 <= len(choose_validation(groups, "0.2", groups)) <= 10
    uneven = {f"{group}{index}": group for group, size in (("a", 40), ("b", 60)) for index in range(size)}
    assert len(choose_validation(uneven, "0.2", uneven)) == 40
    assert len(choose_validation(STEMS[:50], 0.001)) == 1 and len(choose_validation(STEMS[:50], 0.999)) == 49


def test_names_that_are_not_utf_8_can_be_chosen_from():
    assert "\udcfcber" in choose_labelled(["\udcfcber", "a"], number=2, seed=0)
    assert len(choose_validation(["\udcfcber", "a", "b"], "1/3")) == 1


def test_images_of_another_split_are_refused(tmp_path):
    """Images of several splits may have one name."""
    path = tmp_path / "list.txt"
    path.write_text("images/train/a.jpg\nimages/val/b.jpg\n")
    assert read_split_file(path, {"a", "b"}) == ["a", "b"]
    with pytest.raises(ValueError, match=r"line 2: images/val/b\.jpg is not an image of the split 'train'"):
        read_split_file(path, {"a", "b"}, "train")
    path.write_text("images/training/a.jpg\nJPEGImages/b.jpg\nb/c.jpg\n")
    assert read_split_file(path, {"a", "b", "b/c"}, "train") == ["a", "b", "b/c"]
    assert read_split_file(path, {"a", "b", "b/c"}, "fold 1") == ["a", "b", "b/c"]


def test_lines_may_be_the_paths_of_pairs_csv_or_of_voc(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("images/train/x1.png\n")
    assert read_split_file(path, {"images/train/x1"}) == ["images/train/x1"]
    path.write_text("JPEGImages/2007_32.jpg SegmentationClass/2007_32.png\n/VOC2012/JPEGImages/2007_33.jpg\n")
    assert read_split_file(path) == ["2007_32", "2007_33"]
