"""The demo: its functions on tiny models, and the page in a real browser."""

import http.client
import importlib
import io
import os
import re
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from launching import Fork
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.data.classes import colorize
from ddep_hub.data.synthetic import SCENE_CLASSES, render_scene
from ddep_hub.evaluation.arguments import PredictArguments
from ddep_hub.evaluation.predict import predict_images


ROOT = Path(__file__).parent.parent.parent
SPACE = ROOT / "examples" / "space"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture
def gr():
    """Gradio, imported where a test needs it: most processes that collect these tests run none of them."""
    return pytest.importorskip("gradio", reason="extra `demo` is not installed")


@pytest.fixture
def app(monkeypatch, gr):
    """The app's modules as they are when it is started: its folder first on the path."""
    monkeypatch.syspath_prepend(str(SPACE))
    yield importlib.import_module("app")
    for name in ("app", "models"):  # names so plain that another test may mean others
        sys.modules.pop(name, None)


@pytest.fixture
def models(app):
    return sys.modules["models"]


@pytest.fixture
def segmenter(tmp_path, hybrid_config):
    names = SCENE_CLASSES.names
    config = hybrid_config(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    model = DDePForSemanticSegmentation(config)
    torch.nn.init.normal_(model.classifier.weight)  # so that more than one class is found
    model.save_pretrained(tmp_path / "segmenter")
    DDePImageProcessor(size={"shortest_edge": 48}).save_pretrained(tmp_path / "segmenter")
    return str(tmp_path / "segmenter")


@pytest.fixture
def denoiser(tmp_path, hybrid_config):
    DDePForPreTraining(hybrid_config(corruption="scaled", sigma=0.22)).save_pretrained(tmp_path / "denoiser")
    return str(tmp_path / "denoiser")


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(render_scene(0, 21, (72, 100))[0]).save(path)
    return str(path)


def test_segmentation_is_that_of_the_command(models, segmenter, scene, tmp_path):
    found = models.segment(models.read_upload(scene), segmenter)
    predict_images([scene], PredictArguments(model=segmenter, output_dir=str(tmp_path / "out")))
    ids = np.asarray(Image.open(tmp_path / "out" / "ids" / "scene.png"))
    assert np.array_equal(np.asarray(found.overlay), np.asarray(Image.open(tmp_path / "out/overlays/scene.png")))
    assert found.shares == {i: (ids == i).mean() for i in found.shares} and set(found.shares) == set(np.unique(ids))
    assert list(found.shares.values()) == sorted(found.shares.values(), reverse=True) and len(found.shares) > 1
    assert found.confidence.shape == ids.shape
    assert found.confidence.min() >= 1 / 8 - 1e-6 and found.confidence.max() <= 1 + 1e-6
    assert found.classes is SCENE_CLASSES


def test_large_images_are_resized_and_seen_in_windows(models, segmenter, monkeypatch, app, scene):
    whole = models.segment(models.read_upload(scene), segmenter)
    monkeypatch.setattr(models, "WINDOW", 40)
    assert not np.allclose(models.segment(models.read_upload(scene), segmenter).confidence, whole.confidence)
    monkeypatch.setattr(models, "MAX_PROBABILITIES", 8 * 2000)
    picture, _, confidence, _, line = app.on_segment(scene, segmenter)
    assert picture.size == confidence.size == (52, 37)
    assert line.startswith("The image of 100 x 72 pixels was resized to the limit for 8 classes: 52 x 37 pixels")


def test_the_legend_escapes_names_and_leaves_out_what_is_not_there(app, models):
    classes = models.ClassTable(names=("<b>", "c & d", "none"), colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    confidence = np.array([[1 / 3, 1.0]], dtype=np.float32)
    found = models.Segmentation(Image.new("RGB", (2, 1)), confidence, {1: 0.9999, 0: 0.0001}, classes)
    html = app.legend(found)
    assert "&lt;b&gt;" in html and "c &amp; d" in html and "none" not in html and "<b>" not in html
    assert "100.0%" in html and "&lt; 0.1%" in html and html.index("c &amp;") < html.index("&lt;b")
    assert np.array_equal(np.asarray(app.confidence_map(found)), [[app.SCALE[0], app.SCALE[-1]]])
    assert "33.3%, a guess among 3" in app.confidence_scale(found)


def test_one_class_is_certain(app, models):
    classes = models.ClassTable(names=("all",), colors=((1, 2, 3),))
    found = models.Segmentation(Image.new("RGB", (2, 1)), np.ones((1, 2), dtype=np.float32), {0: 1.0}, classes)
    assert np.array_equal(np.asarray(app.confidence_map(found)), [[app.SCALE[-1], app.SCALE[-1]]])


@pytest.mark.parametrize("order", [None, [1, 2, 0]])
@pytest.mark.parametrize("corruption", ["scaled", "simple"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_perfect_noise_gives_the_image_back(
    corruption, prediction_type, order, models, hybrid_config, scene, monkeypatch
):
    """In the order of channels that the model sees."""
    model = DDePForPreTraining(hybrid_config(corruption=corruption, prediction_type=prediction_type)).eval()
    forward = model.forward

    def oracle(**arguments):
        output = forward(**arguments)
        output.prediction = output.target
        return output

    monkeypatch.setattr(model, "forward", oracle)
    processor = DDePImageProcessor(image_mean=[0.5, 0.4, 0.6], image_std=[0.5] * 3, channel_order=order)
    monkeypatch.setattr(models, "_denoiser", lambda name: (model, processor))
    image = models.read_upload(scene)
    found = models.denoise_image(image, "it", 0.3, 1)
    assert found.error < 1e-8 and found.predicting_zero == pytest.approx(1, abs=0.05)
    image = np.asarray(image)[..., order or [0, 1, 2]]
    assert np.abs(np.asarray(found.denoised, dtype=int) - image).max() <= 1
    # The encoder's std is 0.5, and what leaves 0..255 is cut off.
    difference = (np.asarray(found.noisy, dtype=int) - image) / 255
    assert 0.1 < difference.std() < 0.15
    assert abs(np.asarray(found.predicted_noise).mean() - 127.5) < 2


def test_denoising_depends_on_the_seed_and_says_what_is_compared(app, gr, models, denoiser, scene):
    image = models.read_upload(scene)
    one, again, other = (models.denoise_image(image, denoiser, 0.22, seed) for seed in (0, 0, 1))
    assert one == again and one.noisy != other.noisy
    noisy, _, denoised, line = app.on_denoise(scene, denoiser, 0.22, None)
    assert noisy.size == denoised.size == (100, 72) and noisy == one.noisy
    assert re.search(r"predicted noise: \*\*\d\.\d{3}\*\*; predicting none: 1\.0\d\d\. Trained at sigma 0\.22\.", line)
    with pytest.raises(gr.Error, match=r"sigma is 0\. Set a noise level above 0"):
        app.on_denoise(scene, denoiser, 0, 0)


def test_errors_of_images_and_models_are_shown(app, gr, segmenter, denoiser, scene, tmp_path):
    def refused(text, run, *arguments):
        with pytest.raises(gr.Error) as error:
            run(*arguments)
        assert text in error.value.message

    refused("No image yet", app.on_segment, None, segmenter)
    refused("No image yet", app.on_denoise, None, denoiser, 0.22, 0)
    refused("is not a fine-tuned segmentation model", app.on_segment, scene, denoiser)
    refused("is not a model pretrained by denoising", app.on_denoise, scene, segmenter, 0.22, 0)
    refused("nowhere", app.on_segment, scene, str(tmp_path / "nowhere"))
    (Path(segmenter) / "model.safetensors").write_bytes(b"cut off")
    refused("segmenter", app.on_segment, scene, segmenter)
    for name, size, text in (("small", (31, 90), "at least 32"), ("thin", (40, 321), "Crop it")):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
        refused(text, app.on_segment, str(tmp_path / f"{name}.png"), segmenter)
    (tmp_path / "text.png").write_text("no image")
    refused("not an image", app.on_segment, str(tmp_path / "text.png"), segmenter)


def test_models_are_loaded_once(models, segmenter, scene):
    image = models.read_upload(scene)
    for _ in range(2):
        models.segment(image, segmenter)
    info = models._segmenter.cache_info()
    assert (info.misses, info.hits, info.maxsize) == (1, 1, 2)


def test_a_page_without_models_says_how_to_get_one(app, monkeypatch):
    texts = str(app.build([], []).config)
    assert "make quickstart PRETRAINED=1" in texts and "DDEP_DENOISERS" in texts
    monkeypatch.setenv("DDEP_MODELS", "runs/a/final, org/name,")
    assert app._named("DDEP_MODELS", ["b"]) == ["runs/a/final", "org/name"]
    assert app._named("DDEP_DENOISERS", ["b"]) == ["b"]


def test_the_card_of_the_space_fits_its_files(gr):
    card = SpaceCard.load(SPACE / "README.md")
    assert card.data.sdk == "gradio" and (SPACE / card.data.app_file).is_file()
    assert len(card.data.to_dict()["short_description"]) <= 60
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needed = {entry.name: entry for entry in map(Requirement, (x for x in lines if not x.startswith("#")))}
    assert set(needed) == {"ddep-hub", "gradio"}
    assert all(spec.operator == ">=" for entry in needed.values() for spec in entry.specifier)
    assert Version(card.data.sdk_version) in needed["gradio"].specifier
    assert Version(gr.__version__) in needed["gradio"].specifier


def answers(port):
    """Whether the app serves its page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture
def address(gr, segmenter, denoiser, tmp_path):
    """The app on a free port; it is killed whatever happens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "app.log"
    log.touch()
    process = Fork(*(SPACE / "app.py", "--models", segmenter, "--denoisers", denoiser, "--port", str(port)), log=log)
    try:
        until = time.monotonic() + 60
        while not answers(port):
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail("the app did not start:\n" + log.read_text())
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_in_a_browser(request, scene, tmp_path):
    if CHROMIUM is None:
        missing = "no Chromium: install chromium, chromium-browser or google-chrome"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    address = request.getfixturevalue("address")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=OPTIONS)
        try:
            page = browser.new_page()
            page.set_default_timeout(30_000)
            asked: set[str] = set()
            page.on("request", lambda request: asked.add(request.url))
            page.goto(address)

            def picture(name: str) -> Image.Image:
                shown = page.locator(f"#{name} img")
                shown.wait_for()
                return Image.open(io.BytesIO(page.request.get(shown.get_attribute("src")).body())).convert("RGB")

            page.locator("#segment-run").click()  # no image yet
            page.get_by_text("No image yet").first.wait_for()

            upload = Image.open(scene)
            page.locator("#segment-upload input[type=file]").set_input_files(scene)
            page.locator("#segment-upload img").wait_for()
            page.locator("#segment-run").click()
            overlay, confidence = picture("overlay"), picture("confidence")
            assert overlay.size == confidence.size == upload.size
            difference = np.abs(np.asarray(overlay, dtype=int) - np.asarray(upload))
            assert (difference.max(-1) > 10).mean() > 0.5
            page.locator("#legend td.share").first.wait_for()
            shares = [float(text.strip("< %")) for text in page.locator("#legend td.share").all_inner_texts()]
            names = page.locator("#legend td.name").all_inner_texts()
            assert sum(shares) == pytest.approx(100, abs=0.5) and set(names) <= set(SCENE_CLASSES.names)
            # The colours of the largest class lie over the image where the overlay says so.
            largest = colorize(np.full((1, 1), SCENE_CLASSES.names.index(names[0])), SCENE_CLASSES)[0, 0]
            matches = np.abs(np.asarray(overlay) - (np.asarray(upload) / 2 + largest / 2)).max(-1) <= 1
            assert 100 * matches.mean() == pytest.approx(shares[0], abs=2)
            assert "100 x 72 pixels" in page.locator("#segment-line").inner_text()

            page.get_by_role("tab", name="Denoise").click()
            page.locator("#denoise-examples button").first.click()
            page.locator("#denoise-upload img").wait_for()
            page.locator("#denoise-run").click()
            noisy, denoised, noise = (picture(name) for name in ("noisy", "denoised", "predicted-noise"))
            assert noisy.size == denoised.size == noise.size == (480, 320) and noisy != denoised
            page.get_by_text("predicting none: 1.0").wait_for()

            outside = {url for url in asked if not url.startswith((address, "data:", "blob:"))}
            assert not outside
        finally:
            browser.close()
