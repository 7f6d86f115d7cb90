"""benchmarks/pretexts.py: corruptions in closed form, and runs that fine-tuning can start from."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ddep_hub import DDePForSemanticSegmentation
from ddep_hub.data.synthetic import write_scenes


sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import pretexts
from launching import ROOT, TINY, run_fork


def test_poisson_gaussian_noise_has_the_variance_of_its_closed_form():
    levels = torch.tensor([-1.0, -0.2, 0.3, 1.0])
    clean = levels.repeat_interleave(50_000).reshape(1, 1, 4, -1).expand(2, -1, -1, -1)
    sigma = torch.tensor([0.2, 0.7])
    generator = torch.Generator().manual_seed(0)
    noise = pretexts.poisson_gaussian_noise(clean, torch.randn(clean.shape, generator=generator), sigma, generator)
    signal = levels + 1
    expected = 0.8 * signal / signal.mean() + 0.2
    assert noise.mean(3).abs().max() < 0.02  # of every level: unbiased
    torch.testing.assert_close(noise.var(3)[:, 0], expected.expand(2, -1), rtol=0.03, atol=0)
    assert noise.var((1, 2, 3)) == pytest.approx([1, 1], rel=0.02)


def test_blind_spots_are_neighbours_and_nothing_else_changes():
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(64.0 * 64).reshape(1, 1, 64, 64)
    masked, mask = pretexts.blind_spots(clean, torch.randn(1, 2, 64, 64, generator=generator))
    assert 0.02 < mask.mean() < 0.045
    torch.testing.assert_close(masked[mask == 0], clean[mask == 0])
    rows, columns = (mask[0, 0] > 0).nonzero().T
    source = masked[0, 0, rows, columns].long()
    away = torch.stack([(source // 64 - rows + 2) % 64, (source % 64 - columns + 2) % 64])
    assert away.min() == 0 and away.max() == 4 and not (away == 2).all(0).any()


@pytest.mark.parametrize("pretext", ["poisson_gaussian", "blind_spot"])
def test_each_pretext_trains_a_decoder(pretext, tmp_path):
    scenes = write_scenes(tmp_path / "scenes", splits={}, unlabelled=12, size=(64, 64))
    arguments = {"images": scenes / "unlabelled", "output_dir": tmp_path / "run", "encoder_weights": "none"}
    arguments |= {"max_steps": 30, "learning_rate": 1e-2, "num_val_images": 2, "eval_steps": 2}
    flags = [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
    result = run_fork(str(ROOT / "benchmarks" / "pretexts.py"), pretext, *TINY, *flags)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    errors = [row["pretext_error"] for row in rows if "pretext_error" in row]
    assert errors[-1] < 0.95 * errors[0]
    DDePForSemanticSegmentation.from_pretrained(tmp_path / "run" / "final", num_labels=2)
