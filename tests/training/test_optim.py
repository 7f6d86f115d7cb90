"""Optimizer groups and the course of the learning rate."""

import math

import pytest
import torch

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.optim import (
    build_optimizer,
    learning_rate_factor,
    learning_rate_factors,
    parameter_groups,
    rate_table,
    set_encoder_mode,
    set_learning_rate,
)


def test_norms_and_biases_are_spared_from_decay_and_encoder_and_head_have_their_rates(conv_config):
    model = DDePForSemanticSegmentation(conv_config())
    args = PretrainArguments(learning_rate=1.0, weight_decay=0.1)
    groups = parameter_groups(model, args, learning_rate_factors(model, encoder=0.5, head=10.0))
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        rate = 0.5 if ".encoder." in name else 10.0 if name.startswith("classifier.") else 1.0
        assert settings[id(parameter)] == (rate, 0.1 if parameter.ndim > 1 else 0.0), name


@pytest.mark.parametrize(
    ("name", "kwargs", "spared"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 16, "depth": 4, "num_heads": 2}, ["cls_token", "pos_embed"]),
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
            [f"layers.{index}.blocks.0.attn.relative_position_bias_table" for index in range(4)],
        ),
    ],
)
def test_what_timm_spares_from_decay_is_spared(name, kwargs, spared):
    model = DDePForSemanticSegmentation(DDePConfig(encoder_name=name, encoder_kwargs=kwargs))
    decayed = {
        id(parameter)
        for group in parameter_groups(model, FinetuneArguments(weight_decay=0.1))
        if group["weight_decay"]
        for parameter in group["params"]
    }
    left = [key for key, value in model.ddep.encoder.named_parameters() if value.ndim > 1 and id(value) not in decayed]
    assert left == spared


def test_what_timm_spares_may_be_a_pattern():
    """As `pos_embed.*` of XCiT in timm 1.0.31."""

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pos_embed, self.block = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        def no_weight_decay(self):
            return {"pos_embed.*"}

    model = torch.nn.ModuleDict({"encoder": Encoder()})
    (group,) = (g for g in parameter_groups(model, FinetuneArguments(weight_decay=0.1)) if g["weight_decay"])
    assert [id(parameter) for parameter in group["params"]] == [id(model["encoder"].block.weight)]


@pytest.mark.parametrize("family", ["conv_config", "hybrid_config"])
def test_layer_decay_falls_towards_the_input(family, request):
    model = DDePForSemanticSegmentation(request.getfixturevalue(family)())
    rates = learning_rate_factors(model, 0.5, 0.8)
    assert rates.keys() == {name for name, _ in model.named_parameters()}
    values = [rate for name, rate in rates.items() if ".encoder." in name]
    assert max(values) == 0.5 and values[0] == min(values) < 0.5 * 0.8
    assert {round(math.log(value / 0.5) / math.log(0.8), 6) % 1 for value in values} == {0.0}


@pytest.mark.parametrize(
    ("name", "kwargs", "layers"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 16, "depth": 6, "num_heads": 2}, 7),
        ("caformer_s18", None, None),  # timm does not group its layers
        ("swinv2_tiny_window8_256", {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}, None),
    ],
)
def test_layer_decay_serves_every_family_and_is_printed(name, kwargs, layers):
    model = DDePForSemanticSegmentation(DDePConfig(encoder_name=name, encoder_kwargs=kwargs))
    args = FinetuneArguments(learning_rate=1e-3)
    factors = learning_rate_factors(model, 0.1, 0.5, head=3.0)
    values = [factor for name, factor in factors.items() if ".encoder." in name]
    assert max(values) == 0.1 and values[0] == min(values) and values[-1] == max(values)
    assert layers is None or len(set(values)) == layers
    lines = rate_table(model, args, factors).splitlines()
    assert len(lines) == 3 + len(set(values)) and [line.split()[0] for line in lines[-2:]] == ["decoder", "head"]
    rates = [float(line.split()[-1]) for line in lines[1:]]
    assert rates == sorted(rates) and rates[-3:] == pytest.approx([1e-4, 1e-3, 3e-3])
    counts = [int(line.split()[-2].replace(",", "")) for line in lines[1:]]
    assert sum(counts) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_and_its_rate_at_a_step(name, kind, conv_config):
    model = DDePForSemanticSegmentation(conv_config())
    args = PretrainArguments(optim=name, learning_rate=0.1, warmup_steps=1, max_steps=3)
    optimizer = build_optimizer(model, args, learning_rate_factors(model, encoder=0.5))
    assert type(optimizer) is kind
    assert [set_learning_rate(optimizer, step, args) for step in range(3)] == pytest.approx([0.05, 0.1, 0.05])
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.025, 0.05])


def test_a_frozen_encoder_is_left_out(conv_config):
    model = DDePForPreTraining(conv_config())
    chosen = {id(p) for group in parameter_groups(model, PretrainArguments()) for p in group["params"]}
    assert chosen == {id(p) for name, p in model.named_parameters() if ".encoder." not in name}


@pytest.mark.parametrize(("scheduler", "middle"), [("cosine", 0.5), ("polynomial", 0.5**0.9), ("constant", 1.0)])
def test_learning_rate(scheduler, middle):
    args = PretrainArguments(max_steps=110, warmup_steps=10, lr_scheduler_type=scheduler)
    factors = [learning_rate_factor(step, args) for step in range(111)]
    assert factors[0] == pytest.approx(1 / 11) and factors[10] == 1
    assert factors[60] == pytest.approx(middle)
    assert factors[110] == pytest.approx(1.0 if scheduler == "constant" else 0.0)


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "regnety_002", "convnext_atto"])
def test_frozen_norms_leave_the_convolutions_to_train(name):
    model = DDePForSemanticSegmentation(DDePConfig(encoder_name=name, decoder_width=0.1, decoder_bottleneck_size=8))
    set_encoder_mode(model, frozen=False, frozen_norms=True)
    frozen = [parameter.ndim for parameter in model.ddep.encoder.parameters() if not parameter.requires_grad]
    assert set(frozen) == {1}
    norms = [module for module in model.ddep.decoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.training and norm.weight.requires_grad for norm in norms)  # the encoder's alone
