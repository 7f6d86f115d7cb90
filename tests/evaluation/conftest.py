"""What the tests of evaluation share: tiny models."""

import pytest
import torch

from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.synthetic import SCENE_CLASSES


@pytest.fixture(scope="module")
def model_of(hybrid_config):
    """An untrained model of any number of channels."""

    def build(channels):
        torch.manual_seed(0)
        return DDePForSemanticSegmentation(hybrid_config(num_channels=channels, num_labels=3)).eval()

    return build


@pytest.fixture(scope="module")
def folder(tmp_path_factory, hybrid_config):
    names = SCENE_CLASSES.names
    torch.manual_seed(0)
    config = hybrid_config(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    path = tmp_path_factory.mktemp("model")
    DDePForSemanticSegmentation(config).save_pretrained(path)
    DDePImageProcessor(do_resize=False, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(path)
    return path
