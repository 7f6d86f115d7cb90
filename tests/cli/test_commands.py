"""`ddep-hub evaluate` and `ddep-hub predict`, from the command line to the files."""

import errno
import functools
import io
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import ddep_hub
from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.cli import COMMANDS, commands, explain_mistakes, format_error, main
from ddep_hub.data.class_files import write_class_table
from ddep_hub.data.classes import ClassTable, class_colors
from ddep_hub.data.preprocessing import EvalTransform, Normalize
from ddep_hub.data.segmentation_datasets import SegmentationFolder
from ddep_hub.data.synthetic import SCENE_CLASSES, render_scene
from ddep_hub.evaluation import evaluate as evaluation
from ddep_hub.evaluation.arguments import PredictArguments
from ddep_hub.evaluation.counting import count_pixels, evaluate_segmentation
from ddep_hub.evaluation.inference import InferenceOptions
from ddep_hub.evaluation.predict import get_class_table
from ddep_hub.evaluation.prediction_files import find_images
from ddep_hub.pretrained import load_denoiser, load_model
from ddep_hub.training.arguments import FinetuneArguments
from ddep_hub.training.finetuning import finetune
from ddep_hub.utils.processes import build_accelerator


sys.path.insert(0, str(Path(__file__).parent.parent))
from launching import on_processes


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ddep-hub {ddep_hub.__version__}\n"


@pytest.fixture
def data(tmp_path):
    """Three scenes of two sizes, one in a subfolder."""
    root = tmp_path / "data"
    for index, (size, stem) in enumerate([((40, 56), "a"), ((40, 56), "b"), ((48, 40), "more/c")]):
        image, mask = render_scene(0, index, size)
        for folder, pixels in (("images", image), ("annotations", mask)):
            path = root / folder / "val" / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    write_class_table(SCENE_CLASSES, root / "classes.json")
    return root


@pytest.fixture
def model(tmp_path, hybrid_config):
    names = SCENE_CLASSES.names
    config = hybrid_config(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    DDePForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def figures(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_evaluation_under_mixed_precision(data, model, tmp_path, monkeypatch):
    """As `accelerate launch --mixed_precision bf16` sets it: convolutions in bfloat16, what is counted in float32."""
    seen = set()

    def watch(module, inputs, output):
        seen.add((type(module).__name__, getattr(output, "logits", output).dtype))

    def loaded(*args):
        found = load_model(*args)
        found.classifier.register_forward_hook(watch)
        return found

    monkeypatch.setattr(evaluation, "load_model", loaded)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    logits = []
    monkeypatch.setattr(
        evaluation,
        "count_pixels",
        lambda model, *args, **kwargs: (
            logits.append(model(torch.zeros(1, 3, 40, 40)).logits) or count_pixels(model, *args, **kwargs)
        ),
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        results = evaluation.evaluate(model, data)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == {("Conv2d", torch.bfloat16)} and logits[0].dtype == torch.float32
    assert results["mixed_precision"] == "bf16" and 0 <= results["mean_iou"] <= 1


@pytest.mark.parametrize(("launched", "wanted"), [(None, "no"), ("no", "no"), ("bf16", "bf16")])
def test_evaluation_does_not_take_over_the_format_of_a_run(launched, wanted, data, model, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    try:
        build_accelerator("no" if wanted == "bf16" else "bf16")
        assert evaluation.evaluate(model, data)["mixed_precision"] == wanted
    finally:
        AcceleratorState._reset_state()


@pytest.mark.parametrize("name", ["config.json", "results.json", "confusion.png"])
def test_evaluate_replaces_no_files_of_others(name, data, model, tmp_path, monkeypatch, capsys):
    output = Path(model) if name == "config.json" else tmp_path / "out"
    output.mkdir(exist_ok=True)
    (output / (name if name != "config.json" else "results.json")).write_text('{"labelled": 6}')
    before = {path: path.read_bytes() for path in output.iterdir()}
    monkeypatch.setattr(evaluation, "load_model", lambda *args: pytest.fail("refused before the work"))
    assert main(["evaluate", "--model", model, "--data", str(data), "--output_dir", str(output)]) == 1
    said = capsys.readouterr().err
    assert f"output_dir: {output} holds" in said and ("a model" if name == "config.json" else name) in said
    assert {path: path.read_bytes() for path in output.iterdir()} == before


def test_evaluate_writes_figures_and_pictures(data, model, tmp_path, capsys):
    output = tmp_path / "out"
    command = ["evaluate", "--model", model, "--data", str(data), "--output_dir", str(output)]
    assert main([*command, "--predictions", "ids", "overlays", "--batch_size", "2"]) == 0
    results = figures(output)
    rows = SegmentationFolder(data, "val")
    loaded = DDePForSemanticSegmentation.from_pretrained(model)
    transform = EvalTransform(DDePImageProcessor(do_resize=False))
    expected = evaluate_segmentation(loaded, rows, transform, Normalize([0.5] * 3, [0.5] * 3))
    assert {name: results[name] for name in expected} == expected
    assert results["images"] == 3 and list(results["boundary_iou"]) == list(SCENE_CLASSES.names)
    assert f"mIoU: {100 * expected['mean_iou']:.2f}" in capsys.readouterr().out
    lines = (output / "confusion.csv").read_text(encoding="utf-8").splitlines()
    assert sum(int(cell) for line in lines[1:] for cell in line.split(",")[1:]) == 2 * 40 * 56 + 48 * 40
    for name in ("confusion.png", "predictions.png"):
        Image.open(output / name).load()
    assert Image.open(output / "masks" / "ids" / "more" / "c.png").size == (40, 48)
    assert (output / "masks" / "overlays" / "a.png").is_file() and not (output / "masks" / "colors").exists()
    # Of an evaluation of other images and kinds in this folder nothing is left.
    (data / "images" / "val" / "b.png").unlink()
    assert main([*command, "--predictions", "ids"]) == 0
    kept = {path.relative_to(output / "masks").as_posix() for path in (output / "masks").rglob("*.png")}
    assert kept == {"ids/a.png", "ids/more/c.png"}


def test_a_broken_image_is_named_at_once_by_its_worker(data, model, tmp_path, capsys):
    broken = data / "images" / "val" / "b.png"
    broken.write_bytes(broken.read_bytes()[:200])
    command = ["evaluate", "--model", model, "--data", str(data), "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--dataloader_num_workers", "2"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said and str(broken) in said
    assert multiprocessing.active_children() == []


def test_a_split_without_labels_says_what_to_do(data, model, tmp_path, capsys):
    for mask in (data / "annotations" / "val").rglob("*.png"):
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 255)).save(mask)
    command = ["evaluate", "--model", model, "--data", str(data), "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--predictions", "ids"]) == 1
    assert "no pixel of `val` is labelled" in (said := capsys.readouterr().err) and "ddep-hub predict" in said
    assert len(list((tmp_path / "out" / "masks" / "ids").rglob("*.png"))) == 3


def test_a_protocol_stands_for_its_options():
    args = PredictArguments(model="x", protocol="cityscapes", window_batch=2)
    expected = InferenceOptions(window=(1024, 1024), stride=(1024, 1024), flip=True, window_batch=2)
    assert args.options() == expected
    given = PredictArguments(model="x", window=[8, 6], stride=[4], blending="hann", scales=[0.5, 1.0])
    assert given.options() == InferenceOptions((8, 6), (4, 4), "hann", (0.5, 1.0))


def test_evaluate_as_a_script_on_two_processes(data, model, tmp_path):
    command = ["--model", model, "--data", str(data), "--window", "32", "--blending", "hann", "--flip"]
    result = on_processes(2, "evaluate.py", *command, "--output_dir", str(tmp_path / "two"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("mIoU") == 1
    assert main(["evaluate", *command, "--output_dir", str(tmp_path / "one")]) == 0
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert one.pop("arguments") != two.pop("arguments") and one == two
    assert one["inference"]["window"] == [32, 32] and one["inference"]["flip"]


def test_predict_takes_files_folders_patterns_and_urls(data, model, tmp_path, capsys):
    images = data / "images" / "val"
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(images))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        names = {
            "file": [str(images / "a.png")],
            "folder": [str(images)],
            "pattern": [str(images / "**" / "*.png")],
            "url": [f"{url}/a.png?size=1"],
        }
        for kind, given in names.items():
            command = ["predict", *given, "--model", model, "--output_dir", str(tmp_path / kind)]
            assert main(command) == 0
        missing = ["predict", f"{url}/none.png", "--output_dir", str(tmp_path / "missing")]
        assert main([*missing, "--model", model]) == 1
        spaced = ["predict", f"{url}/a b.png", "--output_dir", str(tmp_path / "missing")]
        assert main([*spaced, "--model", model]) == 1
        server.shutdown()
    said = capsys.readouterr()
    assert f"{url}/a b.png could not be downloaded" in said.err
    assert said.out.split() == ["a", "a", "b", "more/c", "a", "b", "more/c", "a"]
    assert f"{url}/none.png could not be downloaded" in said.err
    masks = [np.asarray(Image.open(tmp_path / kind / "ids" / "a.png")) for kind in names]
    assert masks[0].shape == (40, 56) and all(np.array_equal(masks[0], mask) for mask in masks)
    assert Image.open(tmp_path / "pattern" / "overlays" / "more" / "c.png").mode == "RGB"
    assert (tmp_path / "file" / "legend.png").is_file()


def test_no_image_or_mask_of_the_user_is_replaced(data, model, tmp_path, capsys):
    """An output folder that holds images or masks under the names of results; and results among the images."""
    photos = tmp_path / "photos"
    shutil.copytree(data / "images" / "val", photos / "ids")
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    assert main(["predict", str(photos / "ids"), "--model", model, "--output_dir", str(photos)]) == 1
    assert "Choose another folder" in capsys.readouterr().err
    masks = tmp_path / "out" / "masks" / "ids"
    shutil.copytree(data / "annotations" / "val", masks)
    before |= {path: path.read_bytes() for path in masks.rglob("*.png")}
    command = ["evaluate", "--model", model, "--data", str(data), "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--predictions", "ids"]) == 1 and main(command) == 0
    assert {path: path.read_bytes() for path in before} == before
    capsys.readouterr()
    for _ in range(2):
        assert main(["predict", str(photos), "--model", model, "--output_dir", str(photos / "out")]) == 0
        assert capsys.readouterr().out.split() == ["ids/a", "ids/b", "ids/more/c"]


def test_the_size_of_the_image_processor_is_used(data, model, tmp_path):
    DDePImageProcessor(size={"shortest_edge": 32}).save_pretrained(model)
    command = ["evaluate", "--model", model, "--data", str(data), "--output_dir"]
    assert main([*command, str(tmp_path / "a")]) == 0
    assert main([*command, str(tmp_path / "b"), "--image_size", "40"]) == 0
    assert [figures(tmp_path / name)["image_size"] for name in "ab"] == [32, 40]
    with pytest.warns(UserWarning, match="shorter side of 32 pixels, so a window of 1024x1024"):
        assert main([*command, str(tmp_path / "c"), "--protocol", "cityscapes"]) == 0


def test_images_with_one_name_are_refused(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
    with pytest.raises(ValueError, match=r"would both be written as x\.png"):
        find_images([str(tmp_path / "a"), str(tmp_path / "b" / "x.png")])
    assert list(find_images([str(tmp_path / "?" / "x.png")])) == ["a/x", "b/x"]
    with pytest.raises(FileNotFoundError, match="matches none"):
        find_images([str(tmp_path / "*.jpg")])


def test_one_image_by_two_names_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").touch()
    assert find_images(["x.png", str(tmp_path / "x.png")]) == {"x": "x.png"}


def test_brackets_of_a_folder_that_is_there_are_no_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("trip [1]", "trip [1]/deep [2]", "trip 1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    assert find_images(["trip [1]/*.png"]) == {"x": "trip [1]/x.png"}
    assert list(find_images([str(tmp_path / "trip [1]" / "**" / "*.png")])) == ["deep [2]/x", "x"]
    assert find_images(["trip [12]/x.png"]) == {"x": "trip 1/x.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "model is missing"),
        (["evaluate", "--model", "x", "--window", "8", "8", "8"], "window takes one number or two"),
        (["evaluate", "--model", "x", "--stride", "8"], "set window as well"),
        (["evaluate", "--model", "x", "--protocol", "camvid", "--flip"], "flip is part of protocol"),
        (["evaluate", "--model", "x", "--protocol", "camvid", "--blending", "hann"], "blending is part"),
        (["evaluate", "--model", "x", "--protocol", "kamvid"], "choose one of cityscapes"),
        (["evaluate", "--model", "x", "--batch_size", "0"], "batch_size must be positive"),
        (["evaluate", "--model", "x", "--windows", "8"], "Did you mean `window`"),
        (["evaluate", "--model", "x", "--split", "val"], "Did you mean `eval_split`"),
        (["finetune", "--epochs", "3"], "`epochs`. Did you mean `max_steps`"),
        (["finetune", "--num-train-epochs=3"], "Did you mean `max_steps`"),
        (["pretrain", "--num_epochs", "3"], "Did you mean `max_steps`"),
        (["pretrain", "--lr", "1e-3"], "Did you mean `learning_rate`"),
        (["finetune", "--per_device_train_batch_size", "8"], "Did you mean `batch_size`"),
        (["evaluate", "--model", "x", "--lr", "1e-3"], "unknown argument `lr`."),
        (["predict", "--model", "x", "--images", "new"], "`--images`: write the values first, without this flag"),
        (["predict", "a.png"], "model is missing"),
        (["predict", "--model", "x"], "images"),
        (
            ["predict", "--model", "x", "--predictions", "ids", "photos"],
            "predict images ... [arguments], with the images",
        ),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_models_that_do_not_fit(data, model, tmp_path, hybrid_config, capsys):
    DDePForPreTraining(hybrid_config()).save_pretrained(tmp_path / "pretrained")
    assert main(["evaluate", "--model", str(tmp_path / "pretrained"), "--data", str(data)]) == 1
    assert "not a fine-tuned segmentation model" in capsys.readouterr().err
    DDePForSemanticSegmentation(hybrid_config(num_labels=3)).save_pretrained(tmp_path / "other")
    assert main(["evaluate", "--model", str(tmp_path / "other"), "--data", str(data)]) == 1
    assert "was trained for 3 classes" in capsys.readouterr().err
    names = {index: f"own {index}" for index in range(len(SegmentationFolder(data, "val").classes.labels))}
    DDePForSemanticSegmentation(hybrid_config(id2label=names)).save_pretrained(tmp_path / "renamed")
    assert main(["evaluate", "--model", str(tmp_path / "renamed"), "--data", str(data)]) == 1
    error = capsys.readouterr().err
    assert "correct the model's config.id2label" in error and "(0: own 0, 1: own 1, 2: own 2, ...)" in error
    DDePForSemanticSegmentation(hybrid_config(num_labels=len(names))).save_pretrained(tmp_path / "unnamed")
    assert main(["evaluate", "--model", str(tmp_path / "unnamed"), "--data", str(data)]) == 0
    assert "no class names: its classes are assumed to be the data's" in capsys.readouterr().out


def test_a_mistake_is_one_line_and_its_traceback_is_there_to_debug(data, tmp_path, capsys, monkeypatch):
    command = ["finetune", "--data", str(data), "--train_split", "tarin", "--output_dir", str(tmp_path / "run")]
    assert main(command) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("ddep-hub finetune: ") and "tarin" in said[0]
    with pytest.raises(OSError, match="tarin"):
        main([*command, "--debug"])
    monkeypatch.setenv("DDEP_DEBUG", "1")
    with pytest.raises(OSError, match="tarin"):
        main(command)


def test_errors_of_the_system_name_the_file_and_what_to_do():
    full = OSError(errno.ENOSPC, "No space left on device", "masks/a.png")
    assert format_error(full) == "masks/a.png: No space left on device. Free some space."
    moved = OSError(errno.EACCES, "Permission denied", ".tmp", None, "final")
    assert format_error(moved) == "final: Permission denied. Check the path."


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"num_channels": 0}, "num_channels must be positive"),
        ("config.json", {"decoder_norm": "layer"}, "'decoder_norm' expected one of"),
        ("config.json", {"decoder_bottleneck_size": 8}, "Set encoder_name and decoder_bottleneck_size as in"),
        ("config.json", {"id2label": ["sky"]}, "id2label must map ids to names"),
        ("config.json", [], "config.json must contain a JSON object"),
        ("preprocessor_config.json", [], "preprocessor_config.json cannot be used"),
        ("preprocessor_config.json", {"size": {"side": 3}}, "preprocessor_config.json cannot be used"),
        ("preprocessor_config.json", {"image_std": None}, "preprocessor_config.json cannot be used"),
        ("preprocessor_config.json", {"image_std": [1, 1]}, "preprocessor_config.json cannot be used"),
        ("preprocessor_config.json", {"image_std": [1, 0, 1]}, "preprocessor_config.json cannot be used"),
    ],
)
def test_files_of_a_model_that_cannot_be_used(data, model, tmp_path, capsys, file, change, said):
    path = Path(model) / file
    written = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**written, **change} if isinstance(change, dict) else change))
    assert main(["evaluate", "--model", model, "--data", str(data)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Loading weights" not in line]
    assert line.startswith("ddep-hub evaluate: ") and said in line and "validate_architecture" not in line


def test_an_interrupted_command_says_so(capsys, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "list_shipped", interrupted)
    assert main(["list"]) == 130 and capsys.readouterr().err == "ddep-hub list: interrupted\n"
    with pytest.raises(KeyboardInterrupt):
        main(["list", "--debug"])


def test_names_that_the_terminal_cannot_show_end_no_command(monkeypatch):
    monkeypatch.setattr(commands, "list_shipped", lambda argv: print("\N{GRINNING FACE}.png"))
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["list"]) == 0
    terminal.flush()
    assert terminal.buffer.getvalue().split() == [rb"\U0001f600.png"]
    monkeypatch.setattr(sys, "stdout", type("Window", (), {"write": lambda self, text: None})())
    assert main(["list"]) == 0


def test_scripts_end_with_one_line_too(capsys, monkeypatch):
    passed = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: passed.append(error[0]))
    monkeypatch.setattr(sys, "argv", ["script"])
    explain_mistakes("script")
    for error in (ValueError("data is\nwrong"), FileNotFoundError(2, "No such file", "a.txt"), RuntimeError()):
        sys.excepthook(type(error), error, None)
    said = capsys.readouterr().err.splitlines()
    assert said == ["script: data is wrong", "script: a.txt: No such file. Check the path.", "script: RuntimeError"]
    for error in (KeyError("x"), KeyboardInterrupt(), AssertionError()):  # no mistakes of the user
        sys.excepthook(type(error), error, None)
    assert passed == [KeyError, KeyboardInterrupt, AssertionError]
    monkeypatch.setenv("DDEP_DEBUG", "1")
    sys.excepthook(ValueError, ValueError(), None)
    monkeypatch.delenv("DDEP_DEBUG")
    monkeypatch.setattr(sys, "argv", ["script", "--debug", "--data", "x"])
    monkeypatch.setattr(sys, "excepthook", hook := sys.__excepthook__)
    explain_mistakes("script")
    assert sys.excepthook is hook and sys.argv == ["script", "--data", "x"] and passed[-1] is ValueError


def test_every_command_has_help_without_importing_torch():
    code = (
        "import sys\nfrom ddep_hub.cli import COMMANDS, main\n"
        "for command in sorted(COMMANDS, key='compare'.__eq__):\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert all(f"usage: ddep-hub {command}" in said for command in COMMANDS)
    # That of `compare`, the last one, reads label fractions as the data sets do.
    assert said.count("0 False\n") >= len(COMMANDS) - 1
    assert "SUPPRESS" not in said and "(default: None)" not in said and "(default: 0.0)" in said
    assert "--no_" not in said and not re.search(r"--\w+-\w", said)


def test_usage(capsys):
    assert main(["--help"]) == 0 and main([]) == 2 and main(["train"]) == 2
    said = capsys.readouterr()
    assert "usage: ddep-hub COMMAND" in said.out and "unknown command 'train'" in said.err


def test_predict_takes_its_options_from_a_file(data, model, tmp_path):
    options = {"model": model, "output_dir": str(tmp_path / "out"), "predictions": ["ids", "overlays"]}
    (tmp_path / "options.yaml").write_text(json.dumps(options))
    image = data / "images" / "val" / "a.png"
    assert main(["predict", "--config", str(tmp_path / "options.yaml"), str(image), "--predictions", "colors"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["colors"]


def test_models_are_loaded_as_what_they_were_trained_for(model, tmp_path, hybrid_config):
    DDePForPreTraining(hybrid_config()).save_pretrained(tmp_path / "denoiser")
    assert load_denoiser(str(tmp_path / "denoiser"), None).training is False
    with pytest.raises(ValueError, match="model is not a model pretrained by denoising"):
        load_denoiser(model, None)
    with pytest.raises(ValueError, match="denoiser is not a fine-tuned segmentation model"):
        load_model(str(tmp_path / "denoiser"), None)


def test_classes_of_the_scenes_have_their_colours(model):
    assert get_class_table(load_model(model, None).config) == SCENE_CLASSES


def test_predictions_have_the_colours_that_the_model_was_fine_tuned_with(data, tmp_path, capsys):
    names = SCENE_CLASSES.names
    own = ClassTable(names=names, colors=class_colors(len(names))[::-1], ignore_index=255)
    write_class_table(own, data / "classes.json")
    fields = {
        "decoder_hidden_sizes": [8] * 5,
        "decoder_bottleneck_size": 8,
        "crop_size": 32,
        "max_steps": 1,
        "allow_empty_classes": True,
    }
    splits = {"train_split": "val", "eval_split": "train"}
    for folder in ("images", "annotations"):
        shutil.copytree(data / folder / "val", data / folder / "train")
    final = finetune(FinetuneArguments(data=str(data), output_dir=str(tmp_path / "run"), **fields, **splits))["final"]
    assert get_class_table(load_model(final, None).config).colors == own.colors != SCENE_CLASSES.colors
    command = ["predict", str(data / "images" / "val" / "a.png"), "--model", str(final)]
    assert main([*command, "--output_dir", str(tmp_path / "out"), "--predictions", "colors"]) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "colors" / "a.png")).reshape(-1, 3)
    assert {tuple(color) for color in found.tolist()} <= set(own.colors)
