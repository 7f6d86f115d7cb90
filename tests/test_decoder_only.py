"""Decoder-only folders: saved, loaded from files and from the Hub's cache, compared by hash, pushed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSemanticSegmentation, pipeline

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor, DDePModel
from ddep_hub.checkpoints import hash_weights
from ddep_hub.encoder_weights import PYPI_HASH
from ddep_hub.modeling_base_ddep import DDePPreTrainedModel


HYBRID = {"encoder_kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}}
REPO = "timm/vit_tiny_r_s16_p8_224.augreg_in21k"
TAGGED = "vit_tiny_r_s16_p8_224.augreg_in21k"


def put_into_cache(cache, repo_id, revision, folder):
    """Lays a folder out as the Hub's cache would after a download."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    shutil.copytree(folder, repo / "snapshots" / revision)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(revision)


def same_weights(model, other) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def saved(tmp_path, hybrid_config):
    """A decoder-only folder, the encoder's file in timm's naming, and the whole model."""

    def save(head=DDePForPreTraining, **fields):
        model = head(hybrid_config(encoder_name=TAGGED, **fields)).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):  # values that float16 holds exactly
                module.weight.data = module.weight.data.half().float()
        model.save_pretrained(tmp_path / "decoder", decoder_only=True)
        (tmp_path / "timm").mkdir()
        save_file(model.ddep.encoder.state_dict(), tmp_path / "timm" / "model.safetensors")
        return tmp_path / "decoder", tmp_path / "timm" / "model.safetensors", model

    return save


def test_what_the_folder_holds(saved):
    folder, _, model = saved()
    fields = json.loads((folder / "config.json").read_text())
    assert fields["decoder_only"] and fields["dtype"] == "float32" and fields["encoder_name"] == TAGGED
    assert fields["encoder_weights_hash"] == hash_weights(model.ddep.encoder.state_dict())
    weights = load_file(folder / "model.safetensors")
    assert not any("encoder" in name for name in weights)
    assert set(weights) == {name for name in model.state_dict() if "encoder" not in name}
    assert {tensor.dtype for tensor in weights.values() if tensor.ndim > 1} == {torch.float16}
    assert not model.config.decoder_only and model.config.encoder_weights_hash is None


def test_half_precision_is_half_the_size(tmp_path, hybrid_config):
    model = DDePModel(hybrid_config(decoder_bottleneck_size=256, decoder_hidden_sizes=[128, 64]))
    for half in (True, False):
        model.save_pretrained(tmp_path / str(half), decoder_only=True, half_precision=half)
    small, large = ((tmp_path / str(half) / "model.safetensors").stat().st_size for half in (True, False))
    assert 1.9 < large / small < 2.05
    with torch.device("meta"):
        papers = DDePModel(DDePConfig()).decoder
    assert sum(2 * p.numel() for p in papers.parameters()) == pytest.approx(15e6, rel=0.02)


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize(
    "load", [DDePForPreTraining.from_pretrained, DDePModel.from_pretrained, AutoModel.from_pretrained]
)
def test_with_a_local_encoder(saved, caplog, load, form):
    folder, encoder, model = saved()
    if form == "pth":
        torch.save(load_file(encoder), encoder.with_suffix(".pth"))
        encoder = encoder.with_suffix(".pth")
    loaded, info = load(folder, encoder_weights=encoder, output_loading_info=True)
    base = loaded.base_model
    assert same_weights(base, model.ddep)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32} and not loaded.training
    assert not info["missing_keys"]
    assert loaded.config.decoder_only is False and loaded.config.name_or_path == str(folder)
    assert "with weights" not in caplog.text


@pytest.mark.parametrize(
    "load", [DDePForSemanticSegmentation.from_pretrained, AutoModelForSemanticSegmentation.from_pretrained]
)
def test_a_fresh_classifier_on_it(saved, caplog, load):
    folder, encoder, model = saved()
    loaded = load(folder, encoder_weights=str(encoder), num_labels=7)
    assert same_weights(loaded.ddep, model.ddep) and loaded.classifier.out_channels == 7
    assert "has no classifier: it is newly initialised with 7 labels" in caplog.text
    assert "denoising head" in caplog.text


def test_a_head_of_ones_own_on_it(saved):
    class Depth(DDePPreTrainedModel):
        def __init__(self, config):  # as in transformers
            super().__init__(config)
            self.ddep = DDePModel(config)
            self.head = torch.nn.Conv2d(self.ddep.decoder.out_channels, 1, 1)
            self.post_init()

    folder, encoder, model = saved()
    loaded = Depth.from_pretrained(folder, encoder_weights=encoder)
    assert same_weights(loaded.ddep, model.ddep)


def test_a_finetuned_one(saved):
    folder, encoder, model = saved(DDePForSemanticSegmentation, id2label={0: "a", 1: "b", 2: "c"})
    load = DDePForSemanticSegmentation.from_pretrained
    assert same_weights(load(folder, encoder_weights=encoder), model)
    with pytest.raises(RuntimeError, match=r"for 3 labels, but num_labels is 4.*ignore_mismatched_sizes"):
        load(folder, encoder_weights=encoder, num_labels=4)
    renewed = load(folder, encoder_weights=encoder, num_labels=4, ignore_mismatched_sizes=True)
    assert renewed.classifier.out_channels == 4
    DDePImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    segment = pipeline("image-segmentation", model=str(folder), model_kwargs={"encoder_weights": str(encoder)})
    assert same_weights(segment.model, model)


def test_from_the_hub_with_every_argument(saved, tmp_path):
    folder, encoder, model = saved()
    cache = tmp_path / "cache"
    (tmp_path / "repo").mkdir()
    shutil.copytree(folder, tmp_path / "repo" / "inner")
    put_into_cache(cache, "org/decoder", "a" * 40, tmp_path / "repo")
    put_into_cache(cache, REPO, "b" * 40, encoder.parent)
    hub = {"cache_dir": cache, "local_files_only": True, "revision": "a" * 40, "token": False, "subfolder": "inner"}
    loaded, info = DDePForPreTraining.from_pretrained(
        "org/decoder", **hub, dtype=torch.bfloat16, device_map="cpu", output_loading_info=True
    )
    assert loaded.dtype == torch.bfloat16 and not info["missing_keys"]
    assert same_weights(loaded, model.to(torch.bfloat16))
    assert loaded.config.encoder_revision == "b" * 40
    whole = DDePForPreTraining.from_pretrained("org/decoder", **hub)
    assert whole.dtype == torch.float32
    # Saved again, it asks for the revision it was put on, not for the newest.
    whole.save_pretrained(tmp_path / "again", decoder_only=True)
    put_into_cache(tmp_path / "newer", REPO, "c" * 40, encoder.parent)
    with pytest.raises(OSError, match=f"{TAGGED}.*revision {'b' * 40}"):
        DDePForPreTraining.from_pretrained(tmp_path / "again", cache_dir=tmp_path / "newer")
    assert DDePForPreTraining.from_pretrained(tmp_path / "again", cache_dir=cache)


def test_without_its_encoder_it_is_an_error_that_names_it(saved):
    folder, _, _ = saved()
    for load in (DDePForPreTraining.from_pretrained, AutoModelForSemanticSegmentation.from_pretrained):
        with pytest.raises(OSError, match=rf"encoder `{TAGGED}`.*encoder_weights="):
            load(folder)
    with pytest.raises(OSError, match="does not exist"):
        DDePForPreTraining.from_pretrained(folder, encoder_weights="absent.pth")


def test_other_encoder_weights_warn_with_both_hashes(saved, caplog):
    folder, encoder, model = saved()
    trained_on = hash_weights(model.ddep.encoder.state_dict())
    weights = load_file(encoder)
    weights["pos_embed"] += 1
    save_file(weights, encoder)
    loaded = DDePForPreTraining.from_pretrained(folder, encoder_weights=encoder)
    put_on = hash_weights(loaded.ddep.encoder.state_dict())
    assert trained_on != put_on
    for part in (trained_on[:12], put_on[:12], TAGGED, str(encoder)):
        assert part in caplog.text


def test_a_configuration_made_by_hand_keeps_what_the_folder_knows_of_its_encoder(saved, caplog):
    folder, encoder, model = saved()
    weights = load_file(encoder)
    weights["pos_embed"] += 1
    save_file(weights, encoder)
    config = DDePConfig.from_dict({**model.config.to_dict(), "encoder_weights_hash": None})
    DDePForPreTraining.from_pretrained(folder, config=config, encoder_weights=encoder)
    assert "was trained on" in caplog.text and config.encoder_weights_hash is None


def test_a_decoder_for_other_channels_knows_its_encoder(saved, tmp_path, caplog):
    folder, encoder, _ = saved()
    options = {"num_channels": 1, "ignore_mismatched_sizes": True, "encoder_weights": encoder}
    loaded = DDePForPreTraining.from_pretrained(folder, **options)
    assert loaded.config.encoder_weights_hash == hash_weights(loaded.ddep.encoder.state_dict())
    loaded.save_pretrained(tmp_path / "grey", decoder_only=True)
    assert "has changed since" not in caplog.text


def test_an_encoder_of_other_shape_is_refused_with_both_shapes(saved, tmp_path):
    folder, _, _ = saved()
    other = {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 64}
    save_file(
        DDePModel(DDePConfig(encoder_name=TAGGED, encoder_kwargs=other)).encoder.state_dict(),
        tmp_path / "o.safetensors",
    )
    for load in (DDePForPreTraining.from_pretrained, DDePModel.from_pretrained):
        shapes = r"\(32, 32, 3, 3\) in the file and \(32, 48, 3, 3\)"
        with pytest.raises(
            RuntimeError, match=rf"does not fit .*bottleneck\.0\.weight is {shapes}.*Set encoder_kwargs="
        ):
            load(folder, encoder_weights=tmp_path / "o.safetensors", encoder_kwargs=other)


def test_a_missing_decoder_weight_raises(saved):
    folder, encoder, _ = saved()
    weights = load_file(folder / "model.safetensors")
    del weights["ddep.decoder.bottleneck.0.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"lacks 1 weights.*bottleneck\.0\.weight"):
        DDePForPreTraining.from_pretrained(folder, encoder_weights=encoder)


def test_a_base_model_saved_alone(tmp_path, hybrid_config):
    base = DDePModel(hybrid_config()).eval()
    base.save_pretrained(tmp_path, decoder_only=True, half_precision=False)
    save_file(base.encoder.state_dict(), tmp_path / "encoder.safetensors")
    assert same_weights(DDePModel.from_pretrained(tmp_path, encoder_weights=tmp_path / "encoder.safetensors"), base)
    head = DDePForSemanticSegmentation.from_pretrained(tmp_path, encoder_weights=tmp_path / "encoder.safetensors")
    assert same_weights(head.ddep, base)


def test_from_pretrained_encoder(saved, tmp_path):
    _, encoder, model = saved()
    fields = {name: getattr(model.config, name) for name in ("encoder_kwargs", "decoder_hidden_sizes")}
    local = DDePForSemanticSegmentation.from_pretrained_encoder(
        TAGGED, encoder_weights=encoder, num_labels=19, **fields
    )
    assert local.training and local.classifier.out_channels == 19
    assert same_weights(local.ddep.encoder, model.ddep.encoder)
    assert not torch.equal(local.ddep.decoder.blocks[1].conv1[0].weight, model.ddep.decoder.blocks[1].conv1[0].weight)
    assert local.config.encoder_weights_hash == hash_weights(model.ddep.encoder.state_dict())
    put_into_cache(tmp_path / "cache", REPO, "d" * 40, encoder.parent)
    hub = DDePForPreTraining.from_pretrained_encoder(TAGGED, cache_dir=tmp_path / "cache", revision="d" * 40, **fields)
    assert same_weights(hub.ddep.encoder, model.ddep.encoder) and hub.config.encoder_revision == "d" * 40
    assert not any(parameter.requires_grad for parameter in hub.ddep.encoder.parameters())
    with pytest.raises(OSError, match=TAGGED):
        DDePForPreTraining.from_pretrained_encoder(TAGGED, **fields)
    with pytest.raises(ValueError, match="Did you mean `num_labels`"):
        DDePForPreTraining.from_pretrained_encoder(TAGGED, encoder_weights=encoder, num_label=3)
    with pytest.raises(ValueError, match="device_map is an argument of from_pretrained, not of"):
        DDePForPreTraining.from_pretrained_encoder(TAGGED, encoder_weights=encoder, device_map="cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_from_pretrained_encoder_in_another_precision(saved, dtype):
    _, encoder, model = saved()
    fields = {name: getattr(model.config, name) for name in ("encoder_kwargs", "decoder_hidden_sizes")}
    loaded = DDePForPreTraining.from_pretrained_encoder(TAGGED, encoder_weights=encoder, dtype=dtype, **fields)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16} == {loaded.config.dtype}
    assert loaded.config.encoder_weights_hash == hash_weights(model.ddep.encoder.state_dict())


def test_the_precision_of_the_file_under_either_name(saved):
    _, encoder, _ = saved()
    for name in ("dtype", "torch_dtype"):
        options = {"encoder_kwargs": HYBRID["encoder_kwargs"], "encoder_weights": encoder, name: "auto"}
        assert DDePForSemanticSegmentation.from_pretrained_encoder(TAGGED, **options).dtype == torch.float32


def test_a_variant(saved, tmp_path):
    _, encoder, model = saved()
    model.save_pretrained(tmp_path / "half", decoder_only=True, variant="fp16")
    assert (tmp_path / "half" / "model.fp16.safetensors").is_file()
    loaded = DDePForPreTraining.from_pretrained(tmp_path / "half", variant="fp16", encoder_weights=encoder)
    assert same_weights(loaded, model)
    with pytest.raises(OSError, match=r"model\.bf16\.safetensors"):
        DDePForPreTraining.from_pretrained(tmp_path / "half", variant="bf16", encoder_weights=encoder)


@pytest.mark.parametrize("name, value", [("state_dict", {}), ("use_safetensors", False)])
def test_what_a_decoder_has_no_use_for_is_refused(saved, name, value):
    folder, encoder, _ = saved()
    with pytest.raises(ValueError, match=f"^{name}: .*only a decoder.*Leave `{name}` out"):
        DDePForPreTraining.from_pretrained(folder, encoder_weights=encoder, **{name: value})
    assert DDePForPreTraining.from_pretrained(folder, encoder_weights=encoder, use_safetensors=True)


def test_nothing_is_loaded_on_the_meta_device(saved, recwarn):
    folder, encoder, model = saved()
    with torch.device("meta"):
        with pytest.raises(RuntimeError, match=r'cannot be loaded under torch.device\("meta"\)'):
            DDePForPreTraining.from_pretrained(folder, encoder_weights=encoder)
        with pytest.raises(RuntimeError, match=r'cannot be loaded under torch.device\("meta"\)'):
            DDePForPreTraining.from_pretrained_encoder(TAGGED, encoder_weights=encoder)
        assert type(model)(model.config).device.type == "meta"
    assert not [warning for warning in recwarn if "meta" in str(warning.message)]


def test_a_finetuned_encoder_is_not_left_out_silently(saved, tmp_path, caplog):
    folder, encoder, _ = saved()
    model = DDePForSemanticSegmentation.from_pretrained(folder, encoder_weights=encoder, num_labels=2)
    caplog.clear()
    model.save_pretrained(tmp_path / "same", decoder_only=True)
    assert "has changed since" not in caplog.text
    model.ddep.encoder.cls_token.data += 1
    model.save_pretrained(tmp_path / "moved", decoder_only=True)
    assert f"has changed since {TAGGED}" in caplog.text and "pypi" not in caplog.text
    assert str(tmp_path) not in caplog.text  # a run saves to a temporary folder
    model.config.encoder_weights_hash = PYPI_HASH
    model.save_pretrained(tmp_path / "moved", decoder_only=True)
    assert 'loads the original with `encoder_weights="pypi"`' in caplog.text


def test_a_whole_model_saved_later_is_whole(saved, tmp_path):
    folder, _, _ = saved()
    model = DDePForPreTraining(DDePConfig.from_pretrained(folder))
    model.save_pretrained(tmp_path / "whole")
    assert same_weights(DDePForPreTraining.from_pretrained(tmp_path / "whole"), model)


def test_an_encoder_of_unknown_origin_is_not_left_out_silently(tmp_path, hybrid_config, caplog):
    DDePForPreTraining(hybrid_config()).save_pretrained(tmp_path, decoder_only=True)
    assert "nothing records where its weights are from" in caplog.text
