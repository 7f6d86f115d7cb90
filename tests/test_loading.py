"""from_pretrained on whole folders: fine-tuned, DDeP-pretrained, damaged, in other precisions; Auto and pipeline."""

import functools
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    pipeline,
)

import ddep_hub
from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor, DDePModel
from ddep_hub.encoder_weights import read_encoder
from ddep_hub.encoders import build_encoder
from ddep_hub.image_conversion import to_rgb


NAMES = {0: "road", 1: "sky", 2: "car"}
LOADERS = [DDePForSemanticSegmentation.from_pretrained, AutoModelForSemanticSegmentation.from_pretrained]


@pytest.fixture
def finetuned(tmp_path, hybrid_config):
    """A folder with a fine-tuned model of three classes, and the model."""
    model = DDePForSemanticSegmentation(hybrid_config(id2label=NAMES)).eval()
    model.save_pretrained(tmp_path / "finetuned")
    return tmp_path / "finetuned", model


@pytest.fixture
def denoiser(tmp_path, hybrid_config):
    """A folder with a DDeP-pretrained model, and the model."""
    model = DDePForPreTraining(hybrid_config()).eval()
    model.save_pretrained(tmp_path / "denoiser")
    return tmp_path / "denoiser", model


def same_weights(model, other) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def rewrite_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("load", LOADERS)
def test_a_finetuned_folder(finetuned, caplog, load):
    folder, model = finetuned
    loaded, info = load(folder, output_loading_info=True)
    assert type(loaded) is DDePForSemanticSegmentation and not loaded.training
    assert same_weights(loaded, model) and loaded.config.id2label == NAMES
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same_weights(load(folder, num_labels=3), model)
    assert caplog.text == ""


def test_buffers_that_no_file_holds_are_made_again(tmp_path, hybrid_config):
    swin = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2)}
    config = hybrid_config(encoder_name="swin_tiny_patch4_window7_224", encoder_kwargs=swin)
    model = DDePForSemanticSegmentation(config).eval()
    buffers = dict(model.named_buffers())
    assert buffers.keys() - model.state_dict().keys()
    model.save_pretrained(tmp_path)
    loaded = DDePForSemanticSegmentation.from_pretrained(tmp_path)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in loaded.named_buffers())
    pixel_values = torch.randn(1, 3, 96, 64)
    assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("head", [DDePForPreTraining, DDePModel])
def test_other_heads_round_trip(tmp_path, hybrid_config, head):
    model = head(hybrid_config())
    model.save_pretrained(tmp_path)
    auto = AutoModelForPreTraining if head is DDePForPreTraining else AutoModel
    assert same_weights(head.from_pretrained(tmp_path), model)
    assert same_weights(auto.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("labels", [{"num_labels": 5}, {"id2label": dict(enumerate("abcde"))}])
def test_another_number_of_labels_is_refused_with_both_numbers(finetuned, load, labels):
    folder, model = finetuned
    with pytest.raises(RuntimeError, match=r"for 3 labels, but num_labels is 5.*`ignore_mismatched_sizes=True`"):
        load(folder, **labels)
    renewed = load(folder, ignore_mismatched_sizes=True, **labels)
    assert renewed.config.num_labels == renewed.classifier.out_channels == len(renewed.config.label2id) == 5
    assert same_weights(renewed.ddep, model.ddep)
    assert renewed.classifier.weight.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("labels", [{"num_labels": 19}, {"id2label": dict(enumerate("abcd"))}])
def test_a_pretrained_folder_gets_a_fresh_classifier_and_says_so(denoiser, caplog, load, labels):
    folder, model = denoiser
    loaded = load(folder, **labels)
    number = labels.get("num_labels", 4)
    assert loaded.classifier.out_channels == loaded.config.num_labels == number
    assert loaded.classifier.weight.std() > 0 and torch.isfinite(loaded.classifier.weight).all()
    assert same_weights(loaded.ddep, model.ddep)
    assert f"{folder} has no classifier: it is newly initialised with {number} labels" in caplog.text
    assert f"denoising head of {folder} was dropped" in caplog.text
    assert "Pass `num_labels=`" not in caplog.text


@pytest.mark.parametrize("load", LOADERS)
def test_a_pretrained_folder_without_labels_warns(denoiser, caplog, load):
    assert load(denoiser[0]).config.num_labels == 2
    assert "The default is 2 labels. Pass `num_labels=` or `id2label=`" in caplog.text


def test_a_finetuned_folder_can_be_pretrained_further(finetuned, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    folder, model = finetuned
    loaded = DDePForPreTraining.from_pretrained(folder)
    assert same_weights(loaded.ddep, model.ddep)
    assert "has no noise_head: it is newly initialised" in caplog.text
    assert "LOAD REPORT" not in caplog.text  # transformers' table of the same


def test_a_base_model_takes_the_weights_of_a_head_and_gives_them_back(finetuned, tmp_path):
    folder, model = finetuned
    base = DDePModel.from_pretrained(folder)
    assert same_weights(base, model.ddep)
    base.save_pretrained(tmp_path / "base")
    head = DDePForSemanticSegmentation.from_pretrained(tmp_path / "base", num_labels=3)
    assert same_weights(head.ddep, base)


@pytest.mark.parametrize("key", ["ddep.encoder.pos_embed", "ddep.decoder.blocks.0.conv1.1.running_mean"])
@pytest.mark.parametrize(
    "load", [*LOADERS, DDePModel.from_pretrained, AutoModel.from_pretrained, DDePForPreTraining.from_pretrained]
)
def test_a_missing_weight_raises_unless_the_caller_asks_for_the_list(finetuned, load, key):
    folder, _ = finetuned
    rewrite_weights(folder, lambda weights: weights.pop(key))
    with pytest.raises(RuntimeError, match=f"lacks 1 weights.*{key.removeprefix('ddep.')}"):
        load(folder)
    _, info = load(folder, output_loading_info=True)
    assert key.removeprefix("ddep.") in {name.removeprefix("ddep.") for name in info["missing_keys"]}


def test_paths_that_hold_no_model_are_named(finetuned, tmp_path):
    shutil.copytree(finetuned[0], tmp_path / "run" / "final")
    load = DDePForSemanticSegmentation.from_pretrained
    with pytest.raises(OSError, match=r"run has no config\.json\. Did you mean .*run/final\?"):
        load(tmp_path / "run")
    load(tmp_path / "run", subfolder="final")
    for name in (str(tmp_path / "nope"), "./nope", "some/long/path"):
        with pytest.raises(OSError, match=f"^{name} does not exist. Pass a folder, a shipped model or a Hub id"):
            load(name)
    config = load(tmp_path / "run" / "final").config
    (tmp_path / "run" / "final" / "config.json").unlink()
    with pytest.raises(OSError, match=r"final has no config\.json\. Pass a folder that contains a model"):
        load(tmp_path / "run" / "final")
    load(tmp_path / "run" / "final", config=config)


def test_weights_that_no_layer_has_are_named(finetuned, caplog):
    folder, _ = finetuned
    rewrite_weights(folder, lambda weights: weights.update({"aux.weight": torch.ones(2)}))
    DDePForSemanticSegmentation.from_pretrained(folder)
    assert "1 weights that DDePForSemanticSegmentation does not have, such as aux.weight" in caplog.text


def test_a_configuration_of_ones_own_stays_one(tmp_path, hybrid_config):
    class OwnConfig(DDePConfig):
        model_type = "own-ddep"
        aux_weight: float = 0.4

    class OwnModel(DDePForSemanticSegmentation):
        config_class = OwnConfig

        def __init__(self, config, encoder=None):
            super().__init__(config, encoder)
            self.aux = torch.nn.Linear(2, round(10 * config.aux_weight))
            self.post_init()

    model = OwnModel(OwnConfig(**{"num_labels": 3, **hybrid_config().to_diff_dict(), "model_type": "own-ddep"}))
    model.save_pretrained(tmp_path)
    loaded = OwnModel.from_pretrained(tmp_path)
    assert type(loaded.config) is OwnConfig and same_weights(model, loaded)
    with pytest.raises(RuntimeError, match=r"aux\.bias"):  # the argument is read: the layer has another size
        OwnModel.from_pretrained(tmp_path, aux_weight=0.9)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "own-ddep"


def test_the_encoder_is_float32_whatever_torchs_default(tmp_path, hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config())
    model.save_pretrained(tmp_path, decoder_only=True)
    save_file(model.ddep.encoder.state_dict(), tmp_path / "encoder.safetensors")
    torch.set_default_dtype(torch.bfloat16)
    try:
        loaded = DDePForSemanticSegmentation.from_pretrained(
            tmp_path, encoder_weights=tmp_path / "encoder.safetensors", num_labels=2
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_weights(model.ddep.encoder, loaded.ddep.encoder)


def test_adapted_encoders_are_the_same_whatever_torchs_default(tmp_path):
    rgb, grey = (DDePConfig(encoder_name="resnet10t", num_channels=channels) for channels in (3, 1))
    save_file(build_encoder(rgb).state_dict(), tmp_path / "encoder.safetensors")
    expected = read_encoder(grey, tmp_path / "encoder.safetensors").state_dict()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = read_encoder(grey, tmp_path / "encoder.safetensors").state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_weight_raises_in_a_pipeline(finetuned):
    folder, _ = finetuned
    DDePImageProcessor().save_pretrained(folder)
    rewrite_weights(folder, lambda weights: weights.pop("ddep.encoder.pos_embed"))
    with pytest.raises((RuntimeError, ValueError), match="lacks 1 weights"):  # which of them is transformers' choice
        pipeline("image-segmentation", model=str(folder))


def test_a_pretrained_folder_without_its_denoising_head_raises(denoiser):
    folder, _ = denoiser
    rewrite_weights(folder, lambda weights: weights.pop("noise_head.weight"))
    with pytest.raises(RuntimeError, match=r"noise_head.weight"):
        DDePForPreTraining.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 4, 0.3, 0.95])
def test_a_truncated_file_is_named(finetuned, keep):
    folder, _ = finetuned
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: keep if keep >= 1 else int(len(whole) * keep)])
    with pytest.raises(OSError, match=r"finetuned.* damaged or truncated"):
        DDePForSemanticSegmentation.from_pretrained(folder)


def test_a_corrupt_header_is_named(finetuned):
    folder, _ = finetuned
    whole = bytearray((folder / "model.safetensors").read_bytes())
    whole[9:30] = b"?" * 21
    (folder / "model.safetensors").write_bytes(whole)
    with pytest.raises(OSError, match=r"finetuned.* damaged or truncated"):
        DDePForSemanticSegmentation.from_pretrained(folder)


def test_an_absent_folder_is_named(tmp_path):
    with pytest.raises(OSError, match="absent"):
        DDePForSemanticSegmentation.from_pretrained(tmp_path / "absent")


def test_encoder_weights_are_for_decoder_only_folders(finetuned):
    with pytest.raises(ValueError, match=r"encoder_weights: .*includes its encoder"):
        DDePForSemanticSegmentation.from_pretrained(finetuned[0], encoder_weights="x.safetensors")


def test_fields_can_be_replaced_at_loading(finetuned):
    folder, _ = finetuned
    for load in LOADERS:
        loaded = load(folder, semantic_loss_ignore_index=0, sigma=0.4)
        assert (loaded.config.semantic_loss_ignore_index, loaded.config.sigma) == (0, 0.4)
        with pytest.raises(TypeError, match="my_note"):
            load(folder, my_note="x")
    config = AutoConfig.from_pretrained(folder)
    loaded = DDePForSemanticSegmentation.from_pretrained(folder, config=config, sigma=0.3)
    assert loaded.config.sigma == 0.3 and config.sigma == 0.22
    assert loaded.config.name_or_path == loaded.name_or_path == str(folder)


def test_a_trained_classifier_does_not_come_after_fewer_blocks(tmp_path, hybrid_config):
    sizes = [8] * 5
    DDePForSemanticSegmentation(hybrid_config(id2label=NAMES, decoder_hidden_sizes=sizes)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"decoder weights that the model does not have"):
        DDePForSemanticSegmentation.from_pretrained(tmp_path, decoder_hidden_sizes=sizes[:3])
    sizes[-1] = 4  # the classifier's input
    DDePForSemanticSegmentation(hybrid_config(id2label=NAMES, decoder_hidden_sizes=sizes)).save_pretrained(tmp_path)
    expected = r"classifier\.weight is \(\d, 4, 3, 3\) in .* Set decoder_hidden_sizes=\[8, 8, 8, 8, 4\] as in"
    with pytest.raises(RuntimeError, match=expected):
        DDePForSemanticSegmentation.from_pretrained(tmp_path, decoder_hidden_sizes=sizes[:3])


@pytest.mark.parametrize("stored, norm", [("batch", "group"), ("group", "batch")])
@pytest.mark.parametrize("head", [DDePForPreTraining, DDePForSemanticSegmentation, DDePModel])
def test_a_decoder_does_not_get_another_norm(tmp_path, hybrid_config, stored, norm, head):
    DDePForPreTraining(hybrid_config(decoder_norm=stored)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=rf"weights .*num_batches_tracked.* Set decoder_norm='{stored}' as in"):
        head.from_pretrained(tmp_path, decoder_norm=norm)


def test_a_new_classifier_may_come_after_fewer_blocks_but_not_without_the_bottleneck(tmp_path, hybrid_config):
    config = hybrid_config(decoder_hidden_sizes=[8] * 5, num_labels=3)
    channels = DDePModel(config).decoder.bottleneck[0].in_channels
    config.decoder_bottleneck_size = channels  # so that the first block fits without it
    for head in (DDePForPreTraining, DDePForSemanticSegmentation):
        model = head(config)
        model.save_pretrained(tmp_path)
        options = {"num_labels": 4, "ignore_mismatched_sizes": True}
        load = functools.partial(DDePForSemanticSegmentation.from_pretrained, tmp_path, **options)
        loaded = load(decoder_hidden_sizes=[8] * 2).ddep.decoder
        assert len(loaded.blocks) == 2 and same_weights(loaded.blocks[1], model.ddep.decoder.blocks[1])
        with pytest.raises(RuntimeError, match=rf"bottleneck.* Set decoder_bottleneck_size={channels} as in"):
            load(decoder_bottleneck_size=0)


def test_an_ignored_id_of_a_class_is_told(hybrid_config, caplog):
    DDePForSemanticSegmentation(hybrid_config(num_labels=255))
    assert "semantic_loss_ignore_index" not in caplog.text
    DDePForSemanticSegmentation(hybrid_config(num_labels=300))
    assert "semantic_loss_ignore_index: 255 is the id of a class" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "bfloat16"])
@pytest.mark.parametrize("head", [DDePForSemanticSegmentation, DDePForPreTraining])
def test_half_precision(denoiser, head, dtype):
    folder, model = denoiser
    loaded = head.from_pretrained(folder, dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert loaded.dtype == wanted == loaded.ddep.encoder.pos_embed.dtype
    with torch.no_grad():
        outputs = loaded(torch.randn(2, 3, 40, 64))
    first = outputs.logits if head is DDePForSemanticSegmentation else outputs.prediction
    assert first.shape[-2:] == (40, 64) and torch.isfinite(first).all()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        close, exact = loaded.ddep(pixel_values).last_hidden_state, model.ddep(pixel_values).last_hidden_state
    assert (close.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_devices_and_subfolders(finetuned, tmp_path):
    _, model = finetuned
    loaded = DDePForSemanticSegmentation.from_pretrained(tmp_path, subfolder="finetuned", device_map="cpu")
    assert same_weights(loaded, model)


VIT = {"encoder_name": "vit_tiny_patch16_224", "encoder_kwargs": {"depth": 2}}
# timm reads the weights of a layer without calling it.
EVA = {"encoder_name": "eva02_tiny_patch14_224", "encoder_kwargs": {"depth": 2}}


@pytest.mark.parametrize("encoder", [{}, {"encoder_name": "tf_efficientnet_lite0", "encoder_kwargs": None}, VIT, EVA])
def test_weights_may_be_kept_on_disk(tmp_path, hybrid_config, encoder):
    model = DDePForSemanticSegmentation(hybrid_config(**encoder)).eval()
    model.save_pretrained(tmp_path)
    where = {"ddep.encoder": "disk", "ddep.decoder": "cpu", "classifier": "disk"}
    loaded = DDePForSemanticSegmentation.from_pretrained(tmp_path, device_map=where, offload_folder=tmp_path / "off")
    assert next(loaded.ddep.encoder.parameters()).device.type == "meta"
    pixel_values = torch.randn(1, 3, 40, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)
    picture = Image.effect_noise((64, 40), 90).convert("RGB")
    assert np.array_equal(ddep_hub.predict(loaded, picture), ddep_hub.predict(model, picture))


def test_auto_classes_and_pipeline(finetuned):
    folder, model = finetuned
    DDePImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    assert isinstance(AutoImageProcessor.from_pretrained(folder), DDePImageProcessor)
    image = Image.effect_noise((70, 50), 90).convert("RGB")
    segments = pipeline("image-segmentation", model=str(folder))(image)
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    full = torch.nn.functional.interpolate(logits, size=(50, 70), mode="bilinear", align_corners=False)
    assert {segment["label"] for segment in segments} == {NAMES[i] for i in full.argmax(1).unique().tolist()}
    assert all(segment["mask"].size == (70, 50) for segment in segments)


def test_a_pipeline_sees_16_bit_images_that_were_converted(finetuned):
    folder, _ = finetuned
    DDePImageProcessor(do_resize=False).save_pretrained(folder)
    ramp = Image.fromarray(np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) * 10)
    pipe = pipeline("image-segmentation", model=str(folder))
    seen = next(iter(pipe.preprocess(to_rgb(ramp))["pixel_values"]))
    expected = AutoImageProcessor.from_pretrained(folder)(ramp, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(seen, expected)


def test_a_config_of_a_newer_format_is_refused_by_every_loader(finetuned):
    folder, _ = finetuned
    fields = json.loads((folder / "config.json").read_text()) | {"format_version": 99, "ddep_hub_version": "8.1"}
    (folder / "config.json").write_text(json.dumps(fields))
    for load in (*LOADERS, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=r"99.*8\.1"):
            load(folder)


# A field that changes shapes, what it is changed to, and the weight that no longer fits.
MISFITS = [
    ({"decoder_hidden_sizes": [32, 16, 16, 16, 8]}, r"ddep\.decoder\.blocks\.4", "decoder_hidden_sizes"),
    ({"decoder_width": 0.5}, r"ddep\.decoder\.blocks\.0", "decoder_width"),
    ({"decoder_bottleneck_size": 16}, r"ddep\.decoder\.bottleneck", "decoder_bottleneck_size"),
    ({"encoder_kwargs": {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 64}}, r"ddep\.", "encoder_kwargs"),
    ({"num_channels": 1}, r"ddep\.encoder\.patch_embed\.backbone\.conv\.weight", "num_channels"),
]


@pytest.mark.parametrize("fields, weight, named", MISFITS)
@pytest.mark.parametrize("decoder_only", [False, True])
def test_shapes_that_do_not_fit_are_explained(tmp_path, hybrid_config, fields, weight, named, decoder_only):
    model = DDePForSemanticSegmentation(hybrid_config(num_labels=3))
    model.save_pretrained(tmp_path / "model", decoder_only=decoder_only)
    more = {}
    if decoder_only:
        if fields.keys() & {"num_channels", "encoder_kwargs"}:
            return  # an encoder's file that does not fit is refused before
        more["encoder_weights"] = tmp_path / "encoder.safetensors"
        save_file(model.ddep.encoder.state_dict(), more["encoder_weights"])
    expected = rf"{weight}\S* is \([0-9, ]+\) in the file and \([0-9, ]+\) in the model\. Set {named}="
    for ignored in (False, True):  # a new classifier may have another size, the decoder may not
        with pytest.raises(RuntimeError, match=expected):
            DDePForSemanticSegmentation.from_pretrained(
                tmp_path / "model", **fields, **more, ignore_mismatched_sizes=ignored
            )


def test_a_replaced_classifier_that_will_not_load_is_told_when_it_is_saved(tmp_path, hybrid_config, caplog):
    model = DDePForSemanticSegmentation(hybrid_config(num_labels=3))
    model.classifier = torch.nn.Conv2d(model.classifier.in_channels, 3, 1)
    model.save_pretrained(tmp_path)
    assert "replaced by Conv2d(16, 3, kernel_size=(1, 1)" in caplog.text and "cannot build" in caplog.text


def test_a_denoising_head_that_does_not_fit_is_explained(denoiser):
    with pytest.raises(RuntimeError, match=r"noise_head\.weight is .* in the model\. Set image_skip=False as in"):
        DDePForPreTraining.from_pretrained(denoiser[0], image_skip=True)
