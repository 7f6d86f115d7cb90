"""Tries every architecture of timm as an encoder, and writes what works to a table and to docs/encoders.md.

    python benchmarks/encoders.py shapes          # all architectures, without computing: benchmarks/encoders.csv
    python benchmarks/encoders.py run             # the smallest of each family, computing: benchmarks/encoders_run.csv
    python benchmarks/encoders.py document        # docs/encoders.md from both

`shapes` builds encoder and decoder on torch's meta device and takes images of three sizes through them, the last one
in training, forward and backward. `run` also compares the features with timm's, saves and loads the model, and exports
it. Both go on where they were interrupted.
"""

import argparse
import csv
import re
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ddep_hub import DDePConfig, DDePForSemanticSegmentation
from ddep_hub.decoder import DDePDecoder
from ddep_hub.encoders import build_encoder, extract_features, feature_maps, is_hybrid


HERE = Path(__file__).parent
SHAPES, RUN = HERE / "encoders.csv", HERE / "encoders_run.csv"
DOCUMENT = HERE.parent / "docs" / "encoders.md"
SIZES = ((224, 224), (160, 288), (197, 131))  # square, not square, no multiple of any stride
# What is asked of `shapes` is the encoder.
SMALL_DECODER: dict[str, Any] = {"decoder_width": 0.1, "decoder_bottleneck_size": 16}
LARGEST = 30e6  # parameters of a model that is run
# Parts of the tags of weights that were trained on more than ImageNet-1k.
LARGE_DATA = re.compile(
    "21k|22k|12k|dino|laion|openai|dfn|datacomp|webli|lvd|sat493m|clip|merged|m38m|mae|sam|radio|metaclip|sapiens"
    "|fb_ig|swsl|siglip|aimv2|pe_|eva|gemma|qwen|deepseek|lingbot|yfcc|openclip|tipsv2|beit3|franca"
)
STATISTICS = {
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)): "0.5, 0.5",
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "ImageNet",
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)): "CLIP",
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)): "0, 1",
}


def family_of(architecture: str) -> str:
    """The timm module that an architecture is defined in."""
    return timm.models.model_entrypoint(architecture).__module__.rsplit(".", 1)[-1]


class Network(nn.Module):
    """Encoder and decoder, without the initialisation of a whole model."""

    def __init__(self, config: DDePConfig) -> None:
        super().__init__()
        self.encoder = build_encoder(config)
        self.decoder = DDePDecoder(config, feature_maps(self.encoder))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features, covered = extract_features(self.encoder, pixel_values)
        result: torch.Tensor = self.decoder(features, pixel_values, covered)[-1]
        return result


def shapes(architecture: str, device: str = "meta", sizes: Sequence[tuple[int, int]] = SIZES) -> dict[str, Any]:
    """Builds an architecture, takes images of some sizes through it, the last in training; raises what goes wrong."""
    with torch.device(device):
        network = Network(DDePConfig(encoder_name=architecture, **SMALL_DECODER))
        maps, deepest = feature_maps(network.encoder), network.decoder.strides[-1]
        one_size = "any" if maps.image_size is None else "resampled to {}x{}".format(*maps.image_size)
        for height, width in sizes:
            is_last = (height, width) == sizes[-1]
            with torch.set_grad_enabled(is_last):
                result = network.train(is_last)(torch.zeros(2, 3, height, width))
            wanted = tuple(-(-side // deepest) * deepest for side in (height, width))
            if result.shape[-2:] != wanted:
                raise ValueError(f"{height}x{width} comes out as {tuple(result.shape[-2:])}, not {wanted}")
        result.sum().backward()
        idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        if idle:
            raise ValueError(f"{len(idle)} parameters without a gradient: {', '.join(idle[:3])}")
    return {
        "parameters": sum(parameter.numel() for parameter in network.encoder.parameters()),
        "strides": " ".join(map(str, dict.fromkeys(maps.strides))),
        "levels": " ".join(map(str, network.decoder.strides)),
        "sizes": one_size,
    }


def run(architecture: str) -> dict[str, Any]:
    """Computes with an architecture's smallest member; raises what goes wrong."""
    torch.manual_seed(0)
    model = DDePForSemanticSegmentation(DDePConfig(encoder_name=architecture, num_labels=3))
    images = torch.randn(2, 3, *SIZES[-1])
    loss = model.train()(images, labels=torch.randint(0, 3, (2, *SIZES[-1]))).loss
    loss.backward()
    if not all(parameter.grad.isfinite().all() for parameter in model.parameters()):
        raise ValueError("a gradient is not finite")
    model.zero_grad()
    model.eval()
    maps = feature_maps(model.ddep.encoder)
    native = torch.randn(2, 3, *(maps.image_size or (4 * maps.multiple, 5 * maps.multiple)))
    with torch.no_grad():
        logits = model(images).logits
        features, _ = extract_features(model.ddep.encoder, native)
        same = "True"  # the tests compare the hybrids
        if not is_hybrid(model.ddep.encoder):
            wanted = model.ddep.encoder.forward_intermediates(
                native, indices=list(maps.indices), norm=maps.norm, intermediates_only=True
            )
            same = str(all(torch.equal(one, other) for one, other in zip(features, wanted, strict=True)))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = DDePForSemanticSegmentation.from_pretrained(folder)
            equal = torch.equal(loaded(images).logits, logits)
        program = torch.export.export(model, (images,))
        exported = torch.allclose(program.module()(images).logits, logits, rtol=1e-3, atol=1e-4)
    return {"loss": round(float(loss), 4), "timms_features": same, "loads_equal": equal, "exports": exported}


def table(file: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, none if it does not exist."""
    if not file.is_file():
        return []
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def fill(file: Path, names: list[str], columns: list[str], measure: Callable[[str], dict[str, Any]]) -> None:
    """Measures what a file does not hold yet, a row at a time."""
    done = {row["architecture"] for row in table(file)}
    with open(file, "a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, ["architecture", "family", *columns, "error", "timm", "torch"])
        if not done:
            writer.writeheader()
        for name in names:
            if name in done:
                continue
            row: dict[str, Any] = {"architecture": name, "family": family_of(name)}
            row |= {"timm": timm.__version__, "torch": torch.__version__}
            try:
                row |= measure(name)
            except Exception as error:  # whatever an architecture does not stand is its row
                row["error"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
            print(name, row.get("error", "works"), flush=True)
            writer.writerow(row)
            lines.flush()


def without_computing(architecture: str) -> dict[str, Any]:
    """[`shapes`] on the meta device, or on the CPU where an architecture looks into its tensors."""
    try:
        return shapes(architecture)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
    return shapes(architecture, device="cpu")


def smallest(rows: list[dict[str, str]]) -> Iterator[str]:
    """The smallest working architecture of each family and kind of features, where it is small enough."""
    best: dict[tuple[str, str, str], tuple[int, str]] = {}
    for row in rows:
        if not row["error"]:
            found = (int(row["parameters"]), row["architecture"])
            key = (row["family"], row["strides"], row["sizes"])
            best[key] = min(best.get(key, found), found)
    return (name for parameters, name in sorted(best.values()) if parameters <= LARGEST)


def document() -> str:
    """The page on encoders: a row for each family, and what is refused."""
    shapes_rows, run_rows = table(SHAPES), table(RUN)
    working = [row for row in shapes_rows if not row["error"]]
    versions = {(row["timm"], row["torch"]) for row in shapes_rows}
    (version, torch_version) = max(versions)
    ran = [row for row in run_rows if not row["error"]]
    share = "All" if len(working) == len(shapes_rows) else f"{len(working)} of the"
    paragraphs = [
        f"{share} {len(shapes_rows)} architectures of timm {version} work as encoders; pass a name as "
        "`encoder_name`. [Concepts](concepts.md#encoder) explains how the decoder gets its pyramid.",
        "**Sizes**: *any* means that images are padded by less than a stride or a patch, *one* that they are "
        "resampled to the encoder's own size and its features back, which loses detail and changes the aspect ratio; "
        '`encoder_kwargs={"img_size": 512}` or `--encoder_img_size 512` sets the size where timm allows it.',
        "**Weights**: the smallest and the largest of the family among those trained on ImageNet-21k or more, "
        "otherwise on ImageNet-1k, with their licence according to timm.",
        "**Tests**: each architecture was built without weights and ran forward on images of "
        f"{', '.join('x'.join(map(str, size)) for size in SIZES)} pixels, and backward on the last, with a gradient "
        f"for every parameter (torch {torch_version}, [encoders.csv](../benchmarks/encoders.csv)). For each kind of "
        f"features, the smallest model of at most {LARGEST / 1e6:.0f} M parameters was also trained for a step, "
        f"saved, loaded and exported: {len(ran)} of {len(run_rows)} passed "
        "([encoders_run.csv](../benchmarks/encoders_run.csv)).",
    ]
    lines = ["# Encoders", "", "<!-- written by benchmarks/encoders.py -->", ""]
    for paragraph in paragraphs:
        lines += [*textwrap.wrap(paragraph, 119, break_long_words=False, break_on_hyphens=False), ""]
    lines += [
        "| family | works | strides | sizes | smallest weights | largest weights | mean, std |",
        "|---|---|---|---|---|---|---|",
    ]
    by_family: dict[str, list[dict[str, str]]] = {}
    for row in shapes_rows:
        by_family.setdefault(row["family"], []).append(row)
    for family, rows in sorted(by_family.items()):
        fine = [row for row in rows if not row["error"]]
        strides = sorted({row["strides"].replace(" ", ", ") for row in fine}, key=lambda text: (len(text), text))
        sizes = sorted({"any" if row["sizes"] == "any" else "one" for row in fine})
        small, large, statistics = _weights(fine)
        lines.append(
            f"| `{family}` | {len(fine)} of {len(rows)} | {' / '.join(strides)} | {', '.join(sizes)} | {small} | "
            f"{large} | {statistics} |"
        )
    refused = [row for row in shapes_rows if row["error"]]
    if refused:
        lines += ["", "## What does not work", "", "| architecture | why |", "|---|---|"]
        lines += [f"| `{row['architecture']}` | {row['error']} |" for row in refused]
    problems = [row for row in run_rows if row["error"]]
    if problems:
        lines += ["", "## What failed when it was run", "", "| architecture | why |", "|---|---|"]
        lines += [f"| `{row['architecture']}` | {row['error']} |" for row in problems]
    return "\n".join(lines) + "\n"


def _weights(rows: list[dict[str, str]]) -> tuple[str, str, str]:
    """Smallest and largest pretrained weights of a family with their licences, and the mean and std of the family."""
    found = []
    for row in rows:
        for name in timm.list_pretrained(f"{row['architecture']}.*"):
            cfg = timm.get_pretrained_cfg(name)
            large = bool(LARGE_DATA.search(name.split(".", 1)[1]))
            found.append((not large, int(row["parameters"]), name, cfg.license or "no licence named", cfg))
    if not found:
        return "none", "none", "-"
    kept = [each for each in found if each[0] == min(found, key=lambda each: each[0])[0]]
    kinds = {STATISTICS.get((tuple(cfg.mean), tuple(cfg.std)), "other") for *_, cfg in kept}
    (small, large) = (
        f"`{name}`, {parameters / 1e6:.1f} M, {licence}"
        for _, parameters, name, licence, _ in (
            min(kept, key=lambda each: each[1:3]),
            max(kept, key=lambda each: each[1:3]),
        )
    )
    return small, large, " / ".join(sorted(kinds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["shapes", "run", "document"])
    parser.add_argument("architectures", nargs="*", help="names or patterns; all by default")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.command == "document":
        DOCUMENT.write_text(document(), encoding="utf-8")
    elif args.command == "shapes":
        names = [name for pattern in args.architectures or ["*"] for name in timm.list_models(pattern)]
        fill(SHAPES, names, ["parameters", "strides", "levels", "sizes"], without_computing)
    else:
        names = args.architectures or list(smallest(table(SHAPES)))
        fill(RUN, names, ["loss", "timms_features", "loads_equal", "exports"], run)


if __name__ == "__main__":
    main()
