"""Evaluation of a whole split."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.class_files import write_class_table
from ddep_hub.data.preprocessing import EvalTransform
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.synthetic import SCENE_CLASSES, render_scene
from ddep_hub.evaluation.counting import evaluate_segmentation
from ddep_hub.evaluation.metrics import ConfusionMatrix
from ddep_hub.evaluation.visualization import (
    GAP,
    MAX_PANEL_HEIGHT,
    PANEL_SIZE,
    TITLE_HEIGHT,
    draw_panels,
    segmentation_picture,
)


@pytest.fixture
def rows(tmp_path):
    """Five scenes of three sizes."""
    for folder in ("images", "annotations"):
        (tmp_path / folder / "val").mkdir(parents=True)
    write_class_table(SCENE_CLASSES, tmp_path / "classes.json")
    for index, size in enumerate([(40, 56), (40, 56), (64, 48), (33, 35), (33, 35)]):
        image, mask = render_scene(0, index, size)
        Image.fromarray(image).save(tmp_path / "images" / "val" / f"{index}.png")
        Image.fromarray(mask).save(tmp_path / "annotations" / "val" / f"{index}.png")
    return SegmentationFolder(tmp_path, "val")


def normalize(images):
    return images.float() / 127.5 - 1


@pytest.mark.parametrize("options", [{"do_resize": False}, {"size": {"shortest_edge": 32}}])
def test_batches_do_not_change_the_metrics_and_pixels_are_those_of_the_masks(rows, options, hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config(num_labels=8))
    transform = EvalTransform(DDePImageProcessor(**options))
    one, many = (evaluate_segmentation(model, rows, transform, normalize, batch_size=size) for size in (1, 4))
    assert one == many
    assert one == evaluate_segmentation(model, rows, transform, normalize, batch_size=4, num_workers=2)
    matrix = ConfusionMatrix(8)
    model.eval()
    for row in rows:
        example = transform(row)
        with torch.no_grad():
            logits = model(normalize(example["pixel_values"][None])).logits
        logits = torch.nn.functional.interpolate(logits, size=row["annotation"].shape, mode="bilinear")
        matrix.update(logits.argmax(1)[0], torch.from_numpy(row["annotation"]).long())
    assert matrix.counts.sum() == sum(row["annotation"].size for row in rows)
    assert one["mean_iou"] == pytest.approx(matrix.compute()["mean_iou"])


def test_picture(rows, hybrid_config):
    model = DDePForSemanticSegmentation(hybrid_config(num_labels=8))
    transform = EvalTransform(DDePImageProcessor(do_resize=False))
    picture = segmentation_picture({"a": model, "b": model}, rows, transform, normalize, number=2)
    assert picture.width > 4 * 190 and len(np.unique(np.asarray(picture))) > 20


def test_a_panel_of_a_very_narrow_image():
    narrow = np.zeros((500, 1, 3), np.uint8)
    sheet = draw_panels([[narrow], [narrow]], ["image"])
    assert sheet.width == PANEL_SIZE + 2 * GAP and sheet.height == TITLE_HEIGHT + 2 * (MAX_PANEL_HEIGHT + GAP)


def test_panels_of_wide_images_take_a_row_each():
    image, labels = np.zeros((512, 4096, 3), np.uint8), np.zeros((512, 4096, 3), np.uint8)
    labels[200:212, 3000:3012] = 255, 0, 0
    sheet = np.asarray(draw_panels([[image, labels]], ["image", "labels"])).astype(int)
    assert sheet.shape[1] > 4 * PANEL_SIZE and 2 * (TITLE_HEIGHT + 90) < sheet.shape[0] < 2 * (TITLE_HEIGHT + 110)
    assert (sheet[..., 0] - sheet[..., 1]).max() > 200, "a small object is seen"
    flat = np.zeros((1, 5000, 3), np.uint8)
    assert draw_panels([[flat]], ["image"]).height == TITLE_HEIGHT + 1 + GAP


def test_long_titles_are_broken_into_lines():
    square = np.zeros((20, 20, 3), np.uint8)
    sheet = draw_panels([[square] * 2], ["features of your images, from ddep-photos-lite0", "image"])
    assert sheet.height == 2 * TITLE_HEIGHT + PANEL_SIZE + GAP


def test_panels_of_small_wide_images_stay_a_table():
    small = np.zeros((16, 64, 3), np.uint8)
    sheet = draw_panels([[small] * 3] * 2, ["image", "labels", "model"])
    assert sheet.size == (3 * (PANEL_SIZE + GAP) + GAP, TITLE_HEIGHT + 2 * (PANEL_SIZE // 4 + GAP))
