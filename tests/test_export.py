"""Exported models do what the model does, and nothing half-made keeps a name."""

import json
import resource
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from ddep_hub import DDePConfig, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub import export as exporting
from ddep_hub.cli import main
from ddep_hub.data.synthetic import render_scene


onnxruntime = pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
pytest.importorskip("onnxscript", reason="extra `export` is not installed")

# Tracing takes seconds, and longer with each block of the decoder.
SMALL = {"decoder_hidden_sizes": [8, 8], "decoder_bottleneck_size": 8}
HALF = DDePImageProcessor(image_mean=(0.5,) * 3, image_std=(0.5,) * 3, do_resize=False)


def untrained(config):
    model = DDePForSemanticSegmentation(config).eval()
    torch.nn.init.normal_(model.classifier.weight)  # a fine-tuned one has logits that differ
    return model


@pytest.fixture
def model(hybrid_config):
    """What is traced in half of the time of a hybrid."""
    return untrained(hybrid_config(encoder_name="test_efficientnet", encoder_kwargs=None, num_labels=3, **SMALL))


def test_the_command_writes_files_that_others_can_run(hybrid_config, tmp_path, capsys):
    model = untrained(hybrid_config(num_labels=3, **SMALL))
    model.save_pretrained(tmp_path / "model")
    output = tmp_path / "out"
    # Neither side is a multiple of the stride, 32.
    command = ["export", "--model", str(tmp_path / "model"), "--size", "40", "56"]
    assert main([*command, "--output_dir", str(output)]) == 0
    assert {path.name for path in output.iterdir()} == {"model.onnx", "model.pt2", "export.json"}
    assert capsys.readouterr().out.count("of the pixels in the same class") == 2

    (output / "serve.py").write_text("mine")
    assert main([*command, "--output_dir", str(output)]) == 1  # at once: nothing is traced
    assert "holds files that were added or edited since it was written: serve.py" in capsys.readouterr().err
    assert (output / "serve.py").read_text() == "mine"

    # As a caller without this package would: the file and the constants beside it.
    described = json.loads((output / "export.json").read_text())
    assert described["classes"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    image = Image.fromarray(render_scene(7, 0, (40, 56))[0])
    pixels = np.asarray(image, dtype=np.float32) * np.float32(described["rescale_factor"])
    pixels = ((pixels - described["image_mean"]) / described["image_std"]).astype(np.float32).transpose(2, 0, 1)
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))
    found = session.run(["logits"], {"pixel_values": np.stack([pixels] * 5)})[0]
    with torch.no_grad():
        expected = model(**HALF(image, return_tensors="pt")).logits.numpy()
    assert found.shape == (5, 3, 40, 56) and np.ptp(expected) > 0.1
    np.testing.assert_allclose(found[:1], expected, atol=1e-4 * np.abs(expected).max())
    program = torch.export.load(output / "model.pt2").module()
    close = {"rtol": 0, "atol": 1e-4 * float(np.abs(expected).max())}  # as the command checks
    torch.testing.assert_close(program(torch.from_numpy(pixels)[None]), torch.from_numpy(expected), **close)


def test_without_a_size_the_files_take_any(tmp_path):
    model = untrained(DDePConfig(encoder_name="resnet18", encoder_kwargs={"layers": (1, 1, 1, 1)}, **SMALL))
    formats = ["onnx", "torch"]
    exporting.export(model, tmp_path, size=None, processor=HALF, formats=formats)
    described = json.loads((tmp_path / "export.json").read_text())
    assert described["inputs"] == {"pixel_values": ["batch", 3, "height", "width"]}
    assert described["sides"] == {"min": 33, "max": 8192}
    program = torch.export.load(tmp_path / "model.pt2").module()
    for size in ((4, 3, 33, 130), (1, 3, 64, 75)):  # none of them was compared before
        images = torch.randn(size)
        with torch.no_grad():
            expected = model(pixel_values=images).logits
        close = {"rtol": 0, "atol": 1e-4 * float(expected.abs().max())}
        torch.testing.assert_close(program(images), expected, **close)
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
        found = session.run(["logits"], {"pixel_values": images.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), expected, **close)


def test_a_processor_that_fixes_the_size_fixes_that_of_the_file(model, tmp_path):
    size = {"height": 40, "width": 56}
    processor = DDePImageProcessor(image_mean=(0.4,) * 3, image_std=(0.2,) * 3, size=size, channel_order=[2, 1, 0])
    exporting.export(model, tmp_path, processor=processor, formats=["torch"])
    described = json.loads((tmp_path / "export.json").read_text())
    assert described["inputs"] == {"pixel_values": ["batch", 3, 40, 56]} and described["resize"] == size
    assert described["channel_order"] == [2, 1, 0]
    assert described["image_mean"] == [0.4] * 3 and described["image_std"] == [0.2] * 3


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        ({"shortest_edge": 32}, (64, 96), "32 48"),
        ({"shortest_edge": 32}, [100, 33], "96 32"),
        ({"height": 40, "width": 56}, (56, 40), "40 56"),
    ],
)
def test_a_size_that_the_processor_never_gives_is_refused(model, tmp_path, monkeypatch, resize, size, expected):
    processor = DDePImageProcessor(image_mean=(0.4,) * 3, image_std=(0.2,) * 3, size=resize)
    with pytest.raises(ValueError, match=rf"^size: .* Pass {expected}, or smaller windows\."):
        exporting.export(model, tmp_path / "out", size=size, processor=processor, formats=["torch"])
    monkeypatch.setattr(exporting, "render_images", lambda size, *_: 1 / 0)
    for fitting in (list(map(int, expected.split())), (24, 24)):
        with pytest.raises(ZeroDivisionError):  # after the check
            exporting.export(model, tmp_path / "out", size=fitting, processor=processor, formats=["torch"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("swin_tiny_patch4_window7_224", "SwinTransformer"), ("tf_efficientnet_lite0", "EfficientNet")],
)
def test_an_encoder_that_pads_by_the_size_needs_one(name, kind, tmp_path):
    model = DDePForSemanticSegmentation(DDePConfig(encoder_name=name))
    with pytest.raises(ValueError, match=rf"{kind} cannot be exported for images of any size.*--size"):
        exporting.export(model, tmp_path / "out", size=None, processor=HALF, formats=["torch"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_the_model_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        exporting, "_write_torch", lambda program, file: lambda images: program.module()(images) + 1e-2
    )
    with pytest.raises(ValueError, match=r"model\.pt2 does not match the model"):
        exporting.export(model, tmp_path / "out", size=(32, 32), processor=HALF, formats=["torch"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_a_full_disk_is_an_error_and_leaves_nothing(model, tmp_path, name):
    """torch itself would end the interpreter."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    try:
        with pytest.raises(OSError, match=r"output_dir: .*out could not be written: File too large\. Free some space"):
            exporting.export(model, tmp_path / "out", size=(32, 32), processor=HALF, formats=[name])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "photo.png").write_text("x")
    with pytest.raises(FileExistsError, match=r"is not empty, but holds no export\.json"):
        exporting.export(model, tmp_path, size=(32, 32), processor=HALF)
    for arguments in (["--size", "0"], ["--formats", "tflite"], ["--size", "1", "2", "3"]):
        with pytest.raises(SystemExit):
            main(["export", "--model", "x", *arguments])
        assert f"{arguments[0][2:]} takes" in capsys.readouterr().err
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install .ddep-hub\[export\]"):
        exporting.export(model, tmp_path / "out", size=(32, 32), processor=HALF)


@pytest.mark.parametrize("values", ["the other", "one pixel", "both"])
def test_outputs_that_are_not_finite_are_no_match(values):
    logits = torch.tensor([2.0, 1.0])[:, None, None].expand(1, 2, 200, 200).clone()
    other = logits.clone() if values == "one pixel" else torch.full_like(logits, torch.nan)
    other[..., 0, 0] = torch.nan
    expected = other if values == "both" else logits
    with pytest.raises(ValueError, match="outputs differ by inf"):
        exporting.compare_outputs(lambda images: expected, lambda images: other, [logits])


def test_outputs_of_zero_are_equal():
    zeros = torch.zeros(1, 2, 4, 4)
    assert exporting.compare_outputs(lambda images: zeros, lambda images: zeros, [zeros])["difference"] == 0
    with pytest.raises(ValueError, match="outputs differ by inf"):
        exporting.compare_outputs(lambda images: zeros, lambda images: zeros + 1, [zeros])


def test_the_constants_are_what_the_processor_does(model, tmp_path):
    processor = DDePImageProcessor(do_resize=False, do_rescale=False, image_mean=0.5, image_std=0.25)
    exporting.export(model, tmp_path, size=(40, 56), processor=processor, formats=["torch"])
    described = json.loads((tmp_path / "export.json").read_text())
    assert (described["rescale_factor"], described["image_mean"], described["image_std"]) == (1.0, [0.5], [0.25])


@pytest.mark.parametrize("formats", ["torch", ["tflite"], []])
def test_unknown_formats_are_refused_at_once(formats, model, tmp_path):
    with pytest.raises(ValueError, match=r"formats: got .*onnx or torch"):
        exporting.export(model, tmp_path / "out", formats=formats)
    assert not (tmp_path / "out").exists()


def test_a_name_is_no_model(tmp_path):
    with pytest.raises(TypeError, match=r"model: got str.*from_pretrained"):
        exporting.export("org/name", tmp_path)
