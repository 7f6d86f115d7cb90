"""Tries every architecture of timm as an encoder, and writes what works to a table and to docs/encoders.md.

    python benchmarks/encoders.py shapes          # all architectures, without computing: benchmarks/encoders.csv
    python benchmarks/encoders.py run             # the smallest of each family, computing: benchmarks/encoders_run.csv
    python benchmarks/encoders.py document        # docs/encoders.md from both

`shapes` builds encoder and decoder on torch's meta device and takes images of three sizes through them, forward, and
backward at the last one. `run` also compares the features with timm's, saves and loads the model, and exports it. Both
go on where they were interrupted. Encoders whose pretrained configuration names no weights of ImageNet-21k or larger
are listed with their best other ones.
"""

import argparse
import csv
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ddep_hub import DDePConfig, DDePForSemanticSegmentation
from ddep_hub.decoder import DDePDecoder
from ddep_hub.encoders import build_encoder, extract_features, feature_maps


HERE = Path(__file__).parent
SHAPES, RUN = HERE / "encoders.csv", HERE / "encoders_run.csv"
DOCUMENT = HERE.parent / "docs" / "encoders.md"
SIZES = ((224, 224), (160, 288), (197, 131))  # square, not square, no multiple of any stride
LARGEST = 30e6  # parameters of a model that is run
# Parts of the tags of weights that were trained on more than ImageNet-1k.
LARGE_DATA = (
    "21k", "22k", "12k", "dino", "laion", "openai", "dfn", "datacomp", "webli", "lvd", "clip", "mim", "mae", "m30m",
    "sam", "dfndr", "radio", "metaclip", "sapiens", "fb_ig", "swsl", "gluon_in", "noisy",
)  # fmt: skip


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


def shapes(architecture: str, device: str = "meta") -> dict[str, Any]:
    """Builds an architecture and takes images through it; raises what goes wrong."""
    with torch.device(device):
        network = Network(DDePConfig(encoder_name=architecture))
        maps, deepest = feature_maps(network.encoder), network.decoder.strides[-1]
        sizes = "any" if maps.image_size is None else "resampled to {}x{}".format(*maps.image_size)
        network.eval()
        with torch.no_grad():
            for height, width in SIZES:
                result = network(torch.zeros(2, network_channels(network), height, width))
                wanted = tuple(-(-side // deepest) * deepest for side in (height, width))
                if result.shape[-2:] != wanted:
                    raise ValueError(f"{height}x{width} comes out as {tuple(result.shape[-2:])}, not {wanted}")
        network.train()
        network(torch.zeros(2, 3, *SIZES[-1])).sum().backward()
        idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        if idle:
            raise ValueError(f"{len(idle)} parameters without a gradient: {', '.join(idle[:3])}")
    return {
        "parameters": sum(parameter.numel() for parameter in network.encoder.parameters()),
        "strides": " ".join(map(str, dict.fromkeys(maps.strides))),
        "levels": " ".join(map(str, network.decoder.strides)),
        "sizes": sizes,
    }


def network_channels(network: nn.Module) -> int:
    """Channels of the images."""
    return 3


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
    native = torch.randn(2, 3, *(maps.image_size or (2 * maps.multiple, 3 * maps.multiple)))
    with torch.no_grad():
        logits = model(images).logits
        features, _ = extract_features(model.ddep.encoder, native)
        same = "hybrid"
        if not hasattr(model.ddep.encoder, "_ddep_hybrid"):
            wanted = model.ddep.encoder.forward_intermediates(
                native, indices=list(maps.indices), norm=not maps.is_pyramid, intermediates_only=True
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["shapes", "run", "document"])
    parser.add_argument("architectures", nargs="*", help="names or patterns; all by default")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.command == "document":
        from encoders_document import document

        DOCUMENT.write_text(document(table(SHAPES), table(RUN)), encoding="utf-8")
    elif args.command == "shapes":
        names = [name for pattern in args.architectures or ["*"] for name in timm.list_models(pattern)]
        fill(SHAPES, names, ["parameters", "strides", "levels", "sizes"], without_computing)
    else:
        names = args.architectures or list(smallest(table(SHAPES)))
        fill(RUN, names, ["loss", "timms_features", "loads_equal", "exports"], run)


if __name__ == "__main__":
    main()
