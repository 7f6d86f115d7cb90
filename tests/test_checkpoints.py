"""Encoder weights from files in timm's and Google's naming, hashes, decoder-only weights."""

import json
import pickle
import shutil

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from ddep_hub import DDePConfig, DDePForSemanticSegmentation, encoder_weights
from ddep_hub.checkpoints import decoder_state_dict, hash_weights, read_decoder_weights
from ddep_hub.encoder_weights import encoder_weights_file, load_encoder, read_encoder
from ddep_hub.encoders import build_encoder, unwrap_model


# Encoders with ImageNet-21k weights, made small: name, arguments, arguments that only the file's model has, classes.
IN21K = [
    (
        "vit_tiny_r_s16_p8_224.augreg_in21k",
        {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64},
        {"img_size": 128},
        21843,
    ),
    ("vit_tiny_r_s16_p8_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}, {"img_size": 384}, 1000),
    ("resnetv2_50x1_bit.goog_in21k", {"channels": (128, 128, 128, 128)}, {}, 21843),
    ("convnext_tiny.fb_in22k", {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}, {}, 21841),
    ("tf_efficientnetv2_s.in21k", {"channel_multiplier": 0.25, "depth_multiplier": 0.1}, {}, 21843),
    (
        "swin_tiny_patch4_window7_224.ms_in22k",
        {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)},
        {},
        21841,
    ),
]
IDS = [name for name, *_ in IN21K]


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """The model with all weights and statistics random, also those that start at 0 or 1."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return model


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("name, kwargs, other, classes", IN21K, ids=IDS)
def test_a_file_with_the_keys_of_an_imagenet_21k_checkpoint(tmp_path, name, kwargs, other, classes, form):
    source = randomised(timm.create_model(name, num_classes=classes, **{**kwargs, **other})).state_dict()
    path = tmp_path / f"encoder.{form}"
    save_file(source, path) if form == "safetensors" else torch.save({"state_dict": source}, path)
    config = DDePConfig(encoder_name=name, encoder_kwargs=kwargs)
    weights = read_encoder(config, path).state_dict()
    encoder = build_encoder(config)
    encoder.load_state_dict(weights, strict=True)
    resampled = {key for key in weights if not torch.equal(weights[key], source[key])}
    assert resampled == ({"pos_embed"} if other else set())
    if other:
        # The class token's position is taken over as it is, the others keep their range.
        assert torch.equal(weights["pos_embed"][:, 0], source["pos_embed"][:, 0])
        assert 0 < weights["pos_embed"].min() and weights["pos_embed"].max() < 1.3


def google_names(vit: torch.nn.Module) -> dict[str, np.ndarray]:
    """Weights of a ResNet-ViT hybrid under the names and axis orders of Google's .npz files."""
    state = {key: tensor.numpy() for key, tensor in vit.state_dict().items()}
    heads = vit.blocks[0].attn.num_heads
    out = {}

    def conv(name: str, key: str) -> None:
        out[f"{name}/kernel"] = state[f"{key}.weight"].transpose(2, 3, 1, 0)

    def norm(name: str, key: str, spread: bool = False) -> None:
        shape = (1, 1, 1, -1) if spread else (-1,)
        out[f"{name}/scale"] = state[f"{key}.weight"].reshape(shape)
        out[f"{name}/bias"] = state[f"{key}.bias"].reshape(shape)

    root = "patch_embed.backbone" + ("" if "patch_embed.backbone.conv.weight" in state else ".stem")
    conv("conv_root", f"{root}.conv")
    norm("gn_root", f"{root}.norm", spread=True)
    for stage, layers in enumerate(getattr(vit.patch_embed.backbone, "stages", ())):
        for unit, block in enumerate(layers.blocks):
            old = f"patch_embed.backbone.stages.{stage}.blocks.{unit}"
            for number in (1, 2, 3):
                conv(f"block{stage + 1}/unit{unit + 1}/conv{number}", f"{old}.conv{number}")
                norm(f"block{stage + 1}/unit{unit + 1}/gn{number}", f"{old}.norm{number}", spread=True)
            if block.downsample is not None:
                conv(f"block{stage + 1}/unit{unit + 1}/conv_proj", f"{old}.downsample.conv")
                norm(f"block{stage + 1}/unit{unit + 1}/gn_proj", f"{old}.downsample.norm", spread=True)
    conv("embedding", "patch_embed.proj")
    out["embedding/bias"] = state["patch_embed.proj.bias"]
    out["cls"] = state["cls_token"]
    out["Transformer/posembed_input/pos_embedding"] = state["pos_embed"]
    norm("Transformer/encoder_norm", "norm")
    for number in range(len(vit.blocks)):
        old, new = f"blocks.{number}", f"Transformer/encoderblock_{number}"
        norm(f"{new}/LayerNorm_0", f"{old}.norm1")
        norm(f"{new}/LayerNorm_2", f"{old}.norm2")
        attention = f"{new}/MultiHeadDotProductAttention_1"
        kernels, biases = state[f"{old}.attn.qkv.weight"], state[f"{old}.attn.qkv.bias"]
        dim = kernels.shape[1]
        for name, kernel, bias in zip(
            ("query", "key", "value"), np.split(kernels, 3), np.split(biases, 3), strict=True
        ):
            out[f"{attention}/{name}/kernel"] = kernel.T.reshape(dim, heads, -1)
            out[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        out[f"{attention}/out/kernel"] = state[f"{old}.attn.proj.weight"].T.reshape(heads, -1, dim)
        out[f"{attention}/out/bias"] = state[f"{old}.attn.proj.bias"]
        for layer in (0, 1):
            out[f"{new}/MlpBlock_3/Dense_{layer}/kernel"] = state[f"{old}.mlp.fc{layer + 1}.weight"].T
            out[f"{new}/MlpBlock_3/Dense_{layer}/bias"] = state[f"{old}.mlp.fc{layer + 1}.bias"]
    out["head/kernel"] = np.zeros((vit.embed_dim, 21843), np.float32)
    out["head/bias"] = np.zeros(21843, np.float32)
    return out


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("vit_tiny_r_s16_p8_224", {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}),
        ("vit_small_r26_s32_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}),
    ],
)
def test_googles_npz_naming(tmp_path, name, kwargs):
    config = DDePConfig(encoder_name=name, encoder_kwargs=kwargs)
    encoder = randomised(build_encoder(config))
    np.savez(tmp_path / "R26.npz", **google_names(encoder))
    weights = read_encoder(config, tmp_path / "R26.npz").state_dict()
    expected = encoder.state_dict()
    assert set(weights) == set(expected)
    assert [key for key in expected if not torch.equal(weights[key], expected[key])] == []


def test_grey_images_sum_the_colours_filters(tmp_path, hybrid_config):
    kwargs = hybrid_config().encoder_kwargs
    source = randomised(timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0, **kwargs)).state_dict()
    save_file(source, tmp_path / "encoder.safetensors")
    weights = read_encoder(hybrid_config(num_channels=1), tmp_path / "encoder.safetensors").state_dict()
    stem = "patch_embed.backbone.conv.weight"
    torch.testing.assert_close(weights[stem], source[stem].sum(dim=1, keepdim=True))


def test_half_precision_files_load_as_float32(tmp_path, conv_config):
    # Written from one of our encoders, so without the layers behind the last feature.
    source = {key: tensor.half() for key, tensor in build_encoder(conv_config()).state_dict().items()}
    save_file(source, tmp_path / "encoder.safetensors")
    weights = read_encoder(conv_config(), tmp_path / "encoder.safetensors").state_dict()
    assert {tensor.dtype for key, tensor in weights.items() if "num_batches" not in key} == {torch.float32}


@pytest.mark.parametrize("form", ["safetensors", "pth", "npz"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_damaged_file_is_named(tmp_path, hybrid_config, form, keep):
    config, path = hybrid_config(), tmp_path / f"encoder.{form}"
    encoder = build_encoder(config)
    if form == "npz":
        np.savez(path, **google_names(encoder))
    else:
        save_file(encoder.state_dict(), path) if form == "safetensors" else torch.save(encoder.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(OSError, match=rf"encoder\.{form}"):
        read_encoder(config, path)


class Trap:
    """A pickle that creates a file when it is read."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_is_not_executed(tmp_path, hybrid_config, save):
    save({"state_dict": Trap(str(tmp_path / "proof"))}, tmp_path / "encoder.pth")
    with pytest.raises(OSError, match=r"encoder\.pth"):
        read_encoder(hybrid_config(), tmp_path / "encoder.pth")
    assert not (tmp_path / "proof").exists()


def test_weights_of_another_model_are_refused(tmp_path, hybrid_config, conv_config):
    path = tmp_path / "encoder.safetensors"
    weights = build_encoder(conv_config()).state_dict()
    save_file(weights, path)
    with pytest.raises(RuntimeError, match=r"encoder\.safetensors.*vit_tiny_r_s16_p8_224"):
        read_encoder(hybrid_config(), path)
    save_file({key: tensor for key, tensor in weights.items() if key != "conv_stem.weight"}, path)
    with pytest.raises(
        RuntimeError, match=r"incomplete or of .*missing names: conv_stem\.weight; unexpected ones: none"
    ):
        read_encoder(conv_config(), path)
    save_file({}, path)
    with pytest.raises(OSError, match="holds no named tensors"):
        read_encoder(conv_config(), path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(OSError, match=r"list\.pth holds no named tensors"):
        read_encoder(conv_config(), tmp_path / "list.pth")
    with pytest.raises(OSError, match=r"absent\.pth does not exist"):
        read_encoder(conv_config(), tmp_path / "absent.pth")


def test_hash():
    weights = {"a": torch.randn(3, 4), "b.num_batches_tracked": torch.tensor(3)}
    found = hash_weights(weights)
    assert found == hash_weights({"b.num_batches_tracked": torch.tensor(9), "a": weights["a"].clone()})
    assert found == hash_weights({"a": weights["a"].T.contiguous().T})
    changed = weights["a"].clone()
    changed[2, 3] += 1e-6
    for other in ({"a": changed}, {"c": weights["a"]}, {"a": weights["a"].reshape(4, 3)}):
        assert hash_weights(other) != found


def test_the_hub_is_asked_for_timms_repository_and_the_recorded_revision(tmp_path, monkeypatch, hybrid_config):
    config = hybrid_config(encoder_name="vit_tiny_r_s16_p8_224.augreg_in21k", encoder_revision="abc")
    file = tmp_path / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(build_encoder(config).state_dict(), file)
    asked = {}

    def download(repo_id, filename, **kwargs):
        asked.update(repo_id=repo_id, filename=filename, **kwargs)
        return str(file)

    monkeypatch.setattr(encoder_weights, "hf_hub_download", download)
    encoder, origin = load_encoder(config, token="t", cache_dir="c", local_files_only=True, subfolder="no")
    assert asked == {
        "repo_id": "timm/vit_tiny_r_s16_p8_224.augreg_in21k",
        "filename": "model.safetensors",
        "token": "t",
        "cache_dir": "c",
        "local_files_only": True,
        "revision": "abc",
    }
    assert config.encoder_revision == "abc" and "abc" in origin
    weights = encoder.state_dict()
    assert hash_weights(weights) == hash_weights(build_encoder(config).state_dict() | weights)


def test_weights_that_cannot_be_had_are_an_error_that_names_the_encoder(hybrid_config):
    with pytest.raises(OSError, match=r"vit_tiny_r_s16_p8_224.*encoder_weights="):
        encoder_weights_file(hybrid_config())
    with pytest.raises(OSError, match=r"publishes no weights for encoder `vit_base_r26_s32_224`"):
        encoder_weights_file(DDePConfig(encoder_name="vit_base_r26_s32_224"))


def test_decoder_state_dict():
    state = {
        "ddep.encoder.x": torch.ones(2, 2),
        "ddep.decoder.weight": torch.full((2, 2), 0.1),
        "ddep.decoder.bias": torch.ones(2),
        "ddep.decoder.big": torch.full((2, 2), 1e6),
    }
    half = decoder_state_dict(state, "ddep.encoder.", half_precision=True)
    assert {name: tensor.dtype for name, tensor in half.items()} == {
        "ddep.decoder.weight": torch.float16,
        "ddep.decoder.bias": torch.float32,
        "ddep.decoder.big": torch.float32,
    }
    whole = decoder_state_dict(state, "ddep.encoder.", half_precision=False)
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32}


def compile_encoder(model):
    model.ddep.encoder = torch.compile(model.ddep.encoder)
    return model.state_dict()


def compile_layers(model):
    model.ddep.encoder.stages = torch.compile(model.ddep.encoder.stages)
    model.ddep.decoder.blocks[0] = torch.compile(model.ddep.decoder.blocks[0])
    return model.state_dict()


def parallel_parts(model):
    model.ddep = torch.nn.DataParallel(torch.compile(model.ddep))
    return model.state_dict()


WRAPPINGS = [
    compile_encoder,
    compile_layers,
    parallel_parts,
    lambda model: torch.compile(model).state_dict(),
    lambda model: torch.nn.DataParallel(model).state_dict(),
    lambda model: torch.compile(torch.nn.DataParallel(model)).state_dict(),
]


@pytest.mark.skipif(not timm.is_model("iformer_t"), reason="this release of timm has no iFormer")
@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
@pytest.mark.parametrize("wrap", WRAPPINGS, ids=range(len(WRAPPINGS)))
def test_wrapped_models_are_saved_under_plain_names(tmp_path, conv_config, wrap, given):
    # The blocks of iFormer have a layer called `module` of their own.
    config = conv_config(encoder_name="iformer_t", encoder_kwargs={"dims": (8, 8, 16, 16)})
    model = DDePForSemanticSegmentation(config)
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoder = {key.removeprefix("ddep.encoder."): plain[key] for key in plain if key.startswith("ddep.encoder.")}
    state_dict = wrap(model)
    for decoder_only in (False, True):
        folder = tmp_path / str(decoder_only)
        options = {"state_dict": state_dict} if given else {}
        model.save_pretrained(folder, decoder_only=decoder_only, half_precision=False, **options)
        saved = load_file(folder / "model.safetensors")
        expected = {key for key in plain if not (decoder_only and key.startswith("ddep.encoder."))}
        assert saved.keys() == expected and all(torch.equal(saved[key], plain[key]) for key in expected)
    recorded = json.loads((folder / "config.json").read_text())["encoder_weights_hash"]
    assert recorded == hash_weights(encoder)
    # What was saved loads again, as Trainer does at the end.
    changed = {key: tensor + 1 for key, tensor in plain.items()}
    model.load_state_dict(changed)
    assert all(
        torch.equal(tensor, other) for tensor, other in zip(model.state_dict().values(), changed.values(), strict=True)
    )


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
@pytest.mark.parametrize("config", ["conv_config", "hybrid_config"])
def test_a_wrapped_encoder_is_the_same_encoder(request, config, wrap):
    model = DDePForSemanticSegmentation(request.getfixturevalue(config)()).eval()
    before, pixel_values = hash_weights(model.ddep.encoder.state_dict()), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = model(pixel_values).logits
        model.ddep.encoder = wrap(model.ddep.encoder)
        torch.testing.assert_close(model(pixel_values).logits, expected)
    assert hash_weights(unwrap_model(model.ddep.encoder).state_dict()) == before


@pytest.mark.parametrize("decoder_only", [False, True])
def test_weights_of_another_model_are_not_saved(tmp_path, conv_config, decoder_only):
    model = DDePForSemanticSegmentation(conv_config())
    for wrong in (
        {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        model.ddep.state_dict(),
        torch.optim.swa_utils.AveragedModel(model).state_dict(),
        model.state_dict() | {f"module.{name}": tensor for name, tensor in model.state_dict().items()},
    ):
        with pytest.raises(ValueError, match="state_dict: "):
            model.save_pretrained(tmp_path, decoder_only=decoder_only, state_dict=wrong)
    assert not list(tmp_path.iterdir())


def test_a_damaged_decoder_file_is_named(tmp_path):
    save_file({"x": torch.randn(100)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(OSError, match=r"model\.safetensors is damaged"):
        read_decoder_weights(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(OSError):
        read_decoder_weights(tmp_path)
