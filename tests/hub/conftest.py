"""A small fine-tuned model to publish."""

import pytest

from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor


CARD = "---\nlicense: mit\n---\nfrom_pretrained('path/to/this/folder')\n"


@pytest.fixture
def folder(tmp_path, hybrid_config):
    """A fine-tuned model with its image processor and card."""
    place = tmp_path / "final"
    DDePForSemanticSegmentation(hybrid_config(id2label={0: "road", 1: "sky"})).save_pretrained(place)
    DDePImageProcessor(size={"height": 64, "width": 64}).save_pretrained(place)
    (place / "README.md").write_text(CARD)
    return place
