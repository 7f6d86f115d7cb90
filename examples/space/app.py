"""DDeP in the browser: one tab segments an image, the other adds noise to it and removes it again.

    python examples/space/app.py --models runs/quickstart/ddep-0/final

`make demo` starts it with the models of the quickstart. On a Space, which has no command line, the variables
DDEP_MODELS and DDEP_DENOISERS name the checkpoints.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape

import gradio as gr
import numpy as np
from models import Segmentation, denoise_image, read_upload, segment
from PIL import Image

from ddep_hub.cli import explain_mistakes
from ddep_hub.data.preprocessing import AnyImage
from ddep_hub.data.synthetic import render_scene


TITLE = "Segmentation from few labels"
ABOUT = """# Segmentation from few labels
Models whose decoder was pretrained by predicting the noise in unlabelled images
(DDeP, [arXiv 2205.11423](https://arxiv.org/abs/2205.11423)), then fine-tuned on few labelled images."""
NO_MODEL = """**No fine-tuned model yet.** Train one, and start the app with it:

```
make quickstart PRETRAINED=1
python examples/space/app.py --models runs/quickstart/ddep-0/final
```

On a Space, set the variable `DDEP_MODELS` to ids of models on the Hub, separated by commas."""
NO_DENOISER = """**No denoising model yet.** Pass the `final` folder of a pretraining run, or its Hub id, to
`--denoisers`. On a Space, set the variable `DDEP_DENOISERS`; several ids are separated by commas."""
SHIPPED = "ddep-efficientnet-lite0"
# Indices of rendered scenes that show most classes. Their seed is not used in any split of the data set.
EXAMPLES = (21, 2, 35)
# From dark to light, so that it is also readable in greyscale.
SCALE = ((45, 20, 90), (30, 105, 140), (85, 185, 110), (250, 230, 70))
Components = Sequence[gr.components.Component]
# Fonts that come with Gradio, so that nothing is downloaded; its semi-bold ones lack most letters.
FONTS = (gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif")
CSS = """
.ddep table { border-collapse: collapse; width: 100%; }
.ddep table, .ddep tr, .ddep td { border: none !important; }
.ddep td { padding: 2px 0; color: var(--body-text-color); }
.ddep td:first-child { width: 30px; }
.ddep td.share { text-align: right; font-variant-numeric: tabular-nums; }
.ddep .swatch { display: inline-block; width: 20px; height: 14px; border: 1px solid var(--border-color-primary); }
.ddep .bar { height: 12px; border: 1px solid var(--border-color-primary); margin-top: 4px; }
.ddep .ends { display: flex; justify-content: space-between; }
.ddep p, .ddep .ends { color: var(--body-text-color); margin: 4px 0; }
"""


def scenes() -> list[Image.Image]:
    """The example images, rendered."""
    return [Image.fromarray(render_scene(0, index, (320, 480))[0]) for index in EXAMPLES]


def legend(result: Segmentation) -> str:
    """HTML table of the predicted classes: colour, name, share of the pixels."""
    rows = []
    for index, share in result.shares.items():
        color = "rgb({}, {}, {})".format(*result.classes.colors[index])
        percent = f"{100 * share:.1f}" if share >= 0.0005 else "&lt; 0.1"
        rows.append(
            f'<tr><td><span class="swatch" style="background: {color}"></span></td>'
            f'<td class="name">{escape(result.classes.names[index])}</td><td class="share">{percent}%</td></tr>'
        )
    return f'<div class="ddep"><p>Share of the pixels by class</p><table>{"".join(rows)}</table></div>'


def confidence_map(result: Segmentation) -> Image.Image:
    """The confidence in the colours of `SCALE`, from a guess to certainty, as an RGB image."""
    lowest = 1 / result.classes.num_classes
    # With one class, everything is certain.
    position = (result.confidence - lowest) / (1 - lowest) if lowest < 1 else np.ones_like(result.confidence)
    stops = np.linspace(0, 1, len(SCALE))
    channels = [np.interp(position, stops, [color[channel] for color in SCALE]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def confidence_scale(result: Segmentation) -> str:
    """HTML colour bar of the map, and the mean over the image."""
    number = result.classes.num_classes
    colors = ", ".join("rgb({}, {}, {})".format(*color) for color in SCALE)
    return (
        f'<div class="ddep"><div class="bar" style="background: linear-gradient(to right, {colors})"></div>'
        f'<div class="ends"><span>{100 / number:.1f}%, a guess among {number}</span><span>100%</span></div>'
        f"<p>Probability of the predicted class; {100 * result.confidence.mean():.0f}% on average.</p></div>"
    )


@contextmanager
def shown_errors() -> Iterator[None]:
    """Shows errors of images and checkpoints in the browser."""
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise gr.Error(escape(str(error)), duration=None, print_exception=False) from error


def on_segment(path: str | None, name: str) -> tuple[Image.Image, str, Image.Image, str, str]:
    """Overlay, legend, confidence map, its scale, and a line on size and time."""
    image = _given(path)
    started = time.perf_counter()
    with shown_errors():
        upload = read_upload(image, name)
        result = segment(upload, name)
    line = _line(upload, result.overlay, f"the limit for {result.classes.num_classes} classes", started)
    return result.overlay, legend(result), confidence_map(result), confidence_scale(result), line


def on_denoise(
    path: str | None, name: str, sigma: float, seed: float | None
) -> tuple[Image.Image, Image.Image, Image.Image, str]:
    """Noisy image, predicted noise, denoised image, and a line on the error."""
    image = _given(path)
    started = time.perf_counter()
    with shown_errors():
        upload = read_upload(image, name)
        result = denoise_image(upload, name, sigma, int(seed or 0))
    low, high = result.trained_sigma
    trained = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    line = (
        f"Mean squared error of the predicted noise: **{result.error:.3f}**; predicting none: "
        f"{result.predicting_zero:.3f}. Trained at sigma {trained}. "
        f"{_line(upload, result.noisy, 'the limit', started)}"
    )
    return result.noisy, result.predicted_noise, result.denoised, line


def build(models: Sequence[str], denoisers: Sequence[str]) -> gr.Blocks:
    """The app.

    Args:
        models: Fine-tuned models to choose from, folders or Hub ids; without any, the page explains how to get one.
        denoisers: Models pretrained by denoising.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as app:
        gr.Markdown(ABOUT)
        with gr.Tab("Segment"):
            if models:
                _segment_tab(models)
            else:
                gr.Markdown(NO_MODEL)
        with gr.Tab("Denoise"):
            if denoisers:
                _denoise_tab(denoisers)
            else:
                gr.Markdown(NO_DENOISER)
    return app


def _segment_tab(models: Sequence[str]) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            upload = _upload("segment")
            model = gr.Dropdown(list(models), value=models[0], label="Checkpoint")
            button = gr.Button("Segment", variant="primary", elem_id="segment-run")
        with gr.Column(scale=3, min_width=320):
            result = _result("Overlay", "overlay")
            line = gr.Markdown(elem_id="segment-line")
        with gr.Column(scale=2, min_width=240):
            table = gr.HTML(elem_id="legend")
            confidence = _result("Confidence", "confidence")
            scale = gr.HTML(elem_id="confidence-scale")
    _on_click(button, on_segment, [upload, model], [result, table, confidence, scale, line])


def _denoise_tab(denoisers: Sequence[str]) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            upload = _upload("denoise")
            model = gr.Dropdown(list(denoisers), value=denoisers[0], label="Checkpoint")
            sigma = gr.Slider(
                # Not 0, because the prediction is divided by it.
                minimum=0.01,
                maximum=1,
                value=0.22,
                step=0.01,
                label="Sigma",
                info="Standard deviation of the noise in units of normalised pixels.",
            )
            seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0)
            button = gr.Button("Denoise", variant="primary", elem_id="denoise-run")
        with gr.Column(scale=5, min_width=320):
            with gr.Row():
                noisy = _result("Noisy image", "noisy")
                denoised = _result("Denoised image", "denoised")
            with gr.Row():
                predicted_noise = _result("Predicted noise (grey: none)", "predicted-noise")
                line = gr.Markdown(elem_id="denoise-line")
    _on_click(button, on_denoise, [upload, model, sigma, seed], [noisy, predicted_noise, denoised, line])


def _upload(name: str) -> gr.Image:
    # A path, so that ddep_hub reads the file: upright, and of any depth. Gradio opens it with Pillow first, so files
    # that Pillow does not know are refused.
    upload = gr.Image(
        type="filepath",
        image_mode=None,
        label="Image",
        sources=["upload", "clipboard"],
        height=280,
        elem_id=f"{name}-upload",
    )
    gr.Examples([[scene] for scene in scenes()], upload, label="Rendered scenes", elem_id=f"{name}-examples")
    return upload


def _result(label: str, name: str) -> gr.Image:
    # PNG, as JPEG would change the colours of the legend.
    return gr.Image(label=label, format="png", interactive=False, buttons=["download", "fullscreen"], elem_id=name)


def _on_click(button: gr.Button, run: Callable[..., object], inputs: Components, outputs: Components) -> None:
    # One image at a time over both tabs, to bound the memory.
    button.click(run, inputs, outputs, concurrency_id="model", concurrency_limit=1)


def _given(path: str | None) -> str:
    if not path:
        raise gr.Error("No image yet. Upload one, or choose a rendered scene.", print_exception=False)
    return path


def _line(upload: AnyImage, used: Image.Image, why: str, started: float) -> str:
    seconds = f"{used.width} x {used.height} pixels, {time.perf_counter() - started:.1f} s."
    if upload.size == used.size:
        return seconds
    return f"The image of {upload.width} x {upload.height} pixels was resized to {why}: {seconds}"


def _named(variable: str, default: Sequence[str] = ()) -> list[str]:
    """Checkpoints in an environment variable, separated by commas."""
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()] or list(default)


def main() -> None:
    """Starts the app."""
    explain_mistakes("app")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="*",
        default=_named("DDEP_MODELS"),
        help="fine-tuned folders or Hub ids; default: DDEP_MODELS",
    )
    parser.add_argument(
        "--denoisers",
        nargs="*",
        default=_named("DDEP_DENOISERS", [SHIPPED]),
        help="folders or Hub ids of models pretrained by denoising; default: DDEP_DENOISERS, or the shipped decoder",
    )
    parser.add_argument("--host", help="address to listen on; default: GRADIO_SERVER_NAME, or this machine alone")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or the first free one from 7860 on")
    options = parser.parse_args()
    build(options.models, options.denoisers).queue(max_size=20).launch(
        server_name=options.host,
        server_port=options.port,
        theme=gr.themes.Default(font=FONTS),
        css=CSS,
        ssr_mode=False,
        show_error=True,
        max_file_size="50mb",
    )


if __name__ == "__main__":
    main()
