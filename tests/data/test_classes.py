import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import ddep_hub.data.classes as classes_module
from ddep_hub.data.class_files import read_class_table, write_class_table
from ddep_hub.data.classes import ClassTable, class_colors, colorize


def write(folder, content):
    path = folder / "classes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the key '1' occurs twice"):
        read_class_table(write(tmp_path, '{"0": "a", "1": "b", "1": "c"}'))


def test_new_colours_are_far_from_those_that_are_given():
    given = [(255, 0, 0), (90, 120, 190), (100, 140, 40)]
    for color in class_colors(20, avoid=given):
        assert all(max(abs(a - b) for a, b in zip(color, other, strict=True)) >= 48 for other in given)
    assert len(set(class_colors(300, avoid=class_colors(300)))) == 300


def test_the_fingerprint_tells_what_the_values_mean():
    plain = ClassTable(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert plain.fingerprint == (("a", "b"), 255)
    changed = [
        ClassTable(("a", "b"), plain.colors, mask_values=((0,), (255,))),
        ClassTable(("a", "b"), plain.colors, mask_values=((255,), (0,))),
        ClassTable(("a", "b"), plain.colors, other_values="ignore"),
    ]
    assert len({table.fingerprint for table in (plain, *changed)}) == 4


def test_table_gives_the_label_map():
    table = ClassTable(names=("sky", "road"), colors=((1, 2, 3), (4, 5, 6)))
    assert table.num_classes == 2
    assert table.id2label == {0: "sky", 1: "road"}
    assert table.ignore_index == 255


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"classes": [{"id": 1, "name": "road"}, {"id": 0, "name": "sky"}], "num_classes": 2}, ("sky", "road")),
        (["sky", "road", "tree"], ("sky", "road", "tree")),
        ({"0": "sky", "1": "road"}, ("sky", "road")),
        ({"sky": 0, "road": 1}, ("sky", "road")),
        ([{"id": 1, "name": "road"}, {"id": 0, "name": "sky"}], ("sky", "road")),
    ],
)
def test_accepted_shapes(tmp_path, content, names):
    table = read_class_table(write(tmp_path, content))
    assert table.names == names
    assert len(set(table.colors)) == len(names)


def test_given_colours_and_ignore_index_are_kept_and_others_differ(tmp_path):
    classes = [{"id": 0, "name": "a", "color": [242, 36, 36]}, *({"id": i, "name": f"c{i}"} for i in range(1, 200))]
    table = read_class_table(write(tmp_path, {"classes": classes, "ignore_index": 250}))
    assert table.colors[0] == (242, 36, 36)
    assert table.ignore_index == 250
    assert len(set(table.colors)) == 200


def test_round_trip(tmp_path):
    table = ClassTable(names=("ciel", "forêt"), colors=((1, 2, 3), (4, 5, 6)), ignore_index=254)
    write_class_table(table, tmp_path / "classes.json")
    assert read_class_table(tmp_path / "classes.json") == table


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"classes": [{"id": 0, "name": "a"}, {"id": 2, "name": "b"}]},
            ["'id'", "missing [1]", '{"id": 1, "mask_values": 2, '],
        ),
        ({"classes": [{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]}, ["classes[1].id", "repeat"]),
        ({"classes": [{"id": 0}]}, ["classes[0]", "'name'"]),
        ({"classes": [{"id": "0", "name": "a"}]}, ["classes[0].id", "'0'"]),
        ({"classes": [{"id": 0, "name": "a", "color": [0, 0]}]}, ["classes[0].color"]),
        ({"classes": [{"id": 0, "name": "a", "color": [0, 0, 256]}]}, ["color of 'a'", "256"]),
        ({"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "a"}]}, ["['a'] more than once"]),
        ({"classes": [{"id": 0, "name": "a"}], "ignore_index": 0}, ["ignore_index 0", "'a'"]),
        ({"classes": [{"id": 0, "name": "a"}], "ignore_index": "x"}, ["ignore_index", "'x'"]),
        ({"classes": {"0": "a"}}, ["'classes'", "an object"]),
        ({"classes": [{"id": 0, "name": "a\nb"}]}, ["classes[0].name", "line breaks"]),
        ({"labels": "a"}, ["'labels'"]),
        ({"classes": []}, ["no classes"]),
        ("3", ["the value 3"]),
        ("{", ["not valid JSON"]),
    ],
)
def test_bad_tables_name_file_and_key(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(ValueError) as caught:
        read_class_table(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"classes\.json is missing"):
        read_class_table(tmp_path / "classes.json")


def test_colorize():
    table = ClassTable(names=("a", "b"), colors=((10, 20, 30), (40, 50, 60)))
    painted = colorize(np.array([[0, 1, 255]], dtype=np.uint8), table)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[10, 20, 30], [40, 50, 60], [0, 0, 0]]]
    with pytest.raises(ValueError, match=r"\[2, 7\].*0\.\.1"):
        colorize(np.array([[2, 7]]), table)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        colorize(np.zeros((1, 1, 3), dtype=np.uint8), table)


def test_the_package_imports_no_training_library():
    # Those of the second line are imported inside the functions that need them.
    allowed = {"torch", "torchvision", "numpy", "PIL"} | sys.stdlib_module_names
    allowed |= {"datasets", "fsspec", "pyarrow", "scipy", "tqdm"}
    for file in Path(classes_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{file.name} imports from outside ddep_hub.data"
                modules_beside = ("image_conversion", "orientation", "tiff")
                own = ("ddep_hub.data.", "ddep_hub.utils.", *(f"ddep_hub.{name}" for name in modules_beside))
                is_own = node.level or node.module.startswith(own)
                modules = [] if is_own else [node.module]
            else:
                continue
            for module in modules:
                assert module.split(".")[0] in allowed, f"{file.name} imports {module}"


def test_a_background_without_a_colour_is_grey(tmp_path):
    path = tmp_path / "classes.json"
    entries = [{"id": 0, "name": "Background"}, {"id": 1, "name": "nucleus"}]
    path.write_text(json.dumps({"classes": entries}))
    grey, other = read_class_table(path).colors
    assert grey == (64, 64, 64) and max(other) > 200
    entries[1]["color"] = [64, 64, 64]
    path.write_text(json.dumps({"classes": entries}))
    assert read_class_table(path).colors[0] != (64, 64, 64)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"classes": ["x"], "ignore": 0}, "ignore is not a known key; did you mean ignore_index"),
        ({"classes": [{"id": 0, "name": "x", "mask_value": 3}]}, r"classes\[0\].mask_value is not a known key"),
        ({"classes": [{"id": 0, "name": "x", "colour": [1, 2, 3]}]}, r"classes\[0\].colour is not a known key"),
    ],
)
def test_misspelt_keys_are_refused(tmp_path, content, said):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        read_class_table(tmp_path / "classes.json")
    entry = {"id": 0, "name": "x", "supercategory": "thing", "uid": 7}
    (tmp_path / "classes.json").write_text(json.dumps({"classes": [entry], "description": "of another program"}))
    assert read_class_table(tmp_path / "classes.json").labels == ("x",)


def test_a_byte_order_mark_is_none_of_the_content(tmp_path):
    """Editors on Windows write one."""
    (tmp_path / "classes.json").write_text('["sky", "road"]', encoding="utf-8-sig")
    assert read_class_table(tmp_path / "classes.json").names == ("sky", "road")
