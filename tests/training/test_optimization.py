"""Optimizer groups and the course of the learning rate."""

import pytest

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.optimization import learning_rate_factor, parameter_groups


def test_norms_and_biases_are_spared_from_decay_and_the_encoder_has_its_rate(conv_config):
    model = DDePForSemanticSegmentation(conv_config())
    groups = parameter_groups(model, PretrainArguments(learning_rate=1.0, weight_decay=0.1), encoder_lr_factor=0.5)
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        rate = 0.5 if ".encoder." in name else 1.0
        assert settings[id(parameter)] == (rate, 0.1 if parameter.ndim > 1 else 0.0), name


def test_a_frozen_encoder_is_left_out(conv_config):
    model = DDePForPreTraining(conv_config())
    chosen = {id(p) for group in parameter_groups(model, PretrainArguments()) for p in group["params"]}
    assert chosen == {id(p) for name, p in model.named_parameters() if ".encoder." not in name}


@pytest.mark.parametrize(("scheduler", "middle"), [("cosine", 0.5), ("polynomial", 0.5**0.9), ("constant", 1.0)])
def test_learning_rate(scheduler, middle):
    args = PretrainArguments(max_steps=110, warmup_steps=10, lr_scheduler=scheduler)
    factors = [learning_rate_factor(step, args) for step in range(111)]
    assert factors[0] == pytest.approx(1 / 11) and factors[10] == 1
    assert factors[60] == pytest.approx(middle)
    assert factors[110] == pytest.approx(1.0 if scheduler == "constant" else 0.0)
