"""The recommendation after a comparison on the user's own data."""

import dataclasses

from ddep_hub.label_efficiency.own_data import CONSISTENCY_METHOD, DDEP_METHOD, RANDOM_DECODER
from ddep_hub.label_efficiency.recommendation import recommend
from ddep_hub.label_efficiency.report import Row


def rows(steps=600, **scores):
    names = {"random": RANDOM_DECODER, "target": DDEP_METHOD, "consistency": CONSISTENCY_METHOD}
    return [
        Row(names.get(name, name), "1/4", seed, 2, score, 50.0, 50.0, None, 0, steps, 1.0, "x")
        for name, by_seed in scores.items()
        for seed, score in enumerate(by_seed)
    ]


def test_advice():
    settings = {"preset": "few-labels", "max_steps": 9, "decoder_hidden_sizes": [8, 4]}
    sure = recommend(rows(random=[50, 52, 51], target=[54, 56.1, 55], other=[50, 53, 51]), settings)
    assert sure == (
        "Use DDeP on your images (`--preset few-labels --unlabelled ... --pretraining_corruption scaled "
        "--decoder_hidden_sizes 8 4`): +4.0 points of mIoU over a random decoder with 2 labels (95% interval +3.9 to "
        "+4.2), after 600 steps of fine-tuning. It is the best of 2, so part of the gain may be chance."
    )
    assert recommend(rows(random=[50, 52, 51], target=[54, 56.1, 55])).endswith("fine-tuning.")
    own = {"encoder_name": "resnet18", "num_channels": 1, "image_mean": [0.1], "image_size": 80, "classes": "a.json"}
    other = recommend(rows(random=[50, 52, 51], target=[54, 56.1, 55]), {**settings, **own})
    assert "--num_channels 1 --image_size 80 --unlabelled" in other and "--encoder_name resnet18" in other
    assert "image_mean" not in other and "a.json" not in other
    assert recommend(rows(random=[50, 52, 51], consistency=[54, 56.1, 55]), settings).startswith(
        "Use consistency on your images (`--preset few-labels --unlabelled ... --pretraining_steps 0 "
        "--consistency_weight 1.0 --decoder_hidden_sizes 8 4`): +4.0 points"
    )
    shipped = recommend(rows(random=[50, 52, 51], other=[54, 56.1, 55]), {**settings, **own})
    assert "--image_size 80 --pretrained other`" in shipped and "resnet18" not in shipped
    assert recommend(rows(random=[50, 52, 51], other=[44, 46, 45]), settings).startswith(
        "Use a random decoder (`--preset few-labels --decoder_hidden_sizes 8 4`): with 2"
    )
    unfinished = recommend(rows(random=[50, 52, 51], other=[50, 53, 50.5], target=[60, 62]))
    assert "(other), but DDeP on your images have too few seeds" in unfinished
    assert recommend(rows(random=[50, 52, 51], other=[52, 53, 52])).startswith("Use a random")  # 2, 1, 1: by chance
    assert "(`--pretrained other`): +2.0" in recommend(
        rows(random=[50, 52, 51], target=[51, 53, 52], other=[52, 54, 53])
    )
    assert "random decoder: with 2 labels" in recommend(rows(random=[50, 52, 51], target=[44, 46, 45]))
    assert "at least 3" in recommend(rows(random=[50, 52], target=[60, 62]))
    assert recommend(rows(random=[50], target=[60])).startswith("1 seed cannot")
    assert "to compare with yet" in recommend(rows(target=[60, 62, 61]))
    for other in ({"target": [60, 62]}, {}):  # with fewer seeds, or nothing, there is no comparison
        assert recommend(rows(random=[50, 52, 51], **other)).startswith("No other method has 3 seeds with 2 labels")


def with_labels(labelled, made):
    return [dataclasses.replace(row, fraction=f"1/{24 // labelled}", labelled=labelled) for row in made]


def test_advice_averages_over_numbers_of_labels():
    three = with_labels(3, rows(random=[50, 52, 51], target=[54, 56.1, 55], other=[50, 53, 51]))
    six = with_labels(6, rows(random=[60, 61, 62], target=[60, 62, 62.1], other=[60, 61, 60]))
    advice = recommend([*six, *three])
    assert (
        "+2.2 points of mIoU over a random decoder with 3 and 6 labels, on average (95% interval +1.4 to +3.0)"
        in advice
    )
    assert "With 3 labels: +4.0 (+3.9 to +4.2). With 6 labels: +0.4 (-1.0 to +1.7). It is the best of 2" in advice
    behind = with_labels(6, rows(random=[60, 61, 62], target=[57, 56, 58], other=[60, 61, 60]))
    assert "with 3 and 6 labels, no other method" in recommend(three + behind)
    unfinished = recommend([*three, *(row for row in behind if row.method != "other")])
    assert "(DDeP on your images), but other have too few seeds" in unfinished


def test_what_is_no_advice():
    assert recommend(rows(steps=40, random=[50, 52, 51], target=[54, 56.1, 55])).startswith(
        "No recommendation: 40 steps of fine-tuning are too few"
    )
    same = rows(random=[50, 52, 51], other=[50.01, 52.01, 51.01])  # +0.0 (+0.0 to +0.0) is no gain
    assert recommend(same).startswith("Use a random decoder")


def test_advice_names_a_licence_that_restricts_it():
    gain = {"random": [50, 52, 51], "ddep-street-lite0-nc": [54, 56.1, 55]}
    assert recommend(rows(**gain)).endswith("Its licence, cc-by-nc-4.0, restricts the use of models trained from it.")
    assert "licence" not in recommend(rows(random=[50, 52, 51], **{"ddep-photos-lite0": [54, 56.1, 55]}))
