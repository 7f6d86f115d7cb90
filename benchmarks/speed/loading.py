"""Loading images: a random crop of a JPEG, and a 16-bit PNG, against Pillow + torchvision, OpenCV and torchvision.io.

    python benchmarks/speed/loading.py

Each way reads a file and gives a uint8 tensor (3, 224, 224): of the JPEG a random part of 20 to 100% of its area, of
the PNG the whole, both scaled with antialiasing (OpenCV: INTER_AREA). One thread, as in a worker of a DataLoader.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import Round, compare, rounds_of, set_up, write_rows
from photographs import photograph, write_photographs
from PIL import Image
from torchvision import io
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ddep_hub.data.image_datasets import ImageFolder
from ddep_hub.data.image_io import decode_image
from ddep_hub.data.preprocessing import resize, to_tensor
from ddep_hub.data.unlabelled_transforms import PretrainTransform


CROP, IMAGES = 224, 16
SCALE = (0.2, 1.0)
GOALS = {(500, 375): 2.0, (2048, 1024): 4.0}


@set_up
def each_file(folder: str, load: Callable[[str], torch.Tensor]) -> Round:
    """A round reads all files of a folder."""
    torch.set_num_threads(1)
    files = [str(path) for path in sorted(Path(folder).iterdir())]

    def run() -> None:
        for file in files:
            assert load(file).shape == (3, CROP, CROP)

    return run


@set_up
def ours(folder: str) -> Round:
    torch.set_num_threads(1)
    dataset, transform = ImageFolder(folder), PretrainTransform(crop_size=CROP, scale=SCALE)

    def run() -> None:
        for index in range(len(dataset)):
            transform(dataset[index])

    return run


random_crop = v2.RandomResizedCrop(CROP, SCALE, antialias=True)


def pillow(file: str) -> torch.Tensor:
    pixels: torch.Tensor = functional.pil_to_tensor(random_crop(Image.open(file).convert("RGB")))
    return pixels


def torchvision_io(file: str) -> torch.Tensor:
    pixels: torch.Tensor = random_crop(io.decode_image(file, io.ImageReadMode.RGB))
    return pixels


def opencv(file: str) -> torch.Tensor:
    import cv2

    cv2.setNumThreads(1)
    image = cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB)
    blank = torch.empty(3, *image.shape[:2], dtype=torch.uint8)
    top, left, height, width = v2.RandomResizedCrop.make_params(random_crop, [blank]).values()
    part = cv2.resize(image[top : top + height, left : left + width], (CROP, CROP), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(part).permute(2, 0, 1).contiguous()


def ours_png(file: str) -> torch.Tensor:
    return resize(to_tensor(decode_image(file)), (CROP, CROP))


def pillow_png(file: str) -> torch.Tensor:
    values = np.asarray(Image.open(file)) // 257
    image = Image.fromarray(values.astype(np.uint8)).convert("RGB").resize((CROP, CROP), Image.Resampling.BILINEAR)
    pixels: torch.Tensor = functional.pil_to_tensor(image)
    return pixels


def opencv_png(file: str) -> torch.Tensor:
    import cv2

    cv2.setNumThreads(1)
    values = cv2.resize(cv2.imread(file, cv2.IMREAD_UNCHANGED), (CROP, CROP), interpolation=cv2.INTER_AREA)
    return torch.from_numpy((values // 257).astype(np.uint8)).expand(3, -1, -1).contiguous()


def torchvision_png(file: str) -> torch.Tensor:
    values = io.decode_image(file).float().mul_(1 / 257).expand(3, -1, -1)
    return functional.resize(values, [CROP, CROP], antialias=True).to(torch.uint8)


def write_16_bit(folder: Path) -> str:
    folder.mkdir()
    for index in range(IMAGES):
        values = np.asarray(photograph(640, 480, index).convert("L")).astype(np.uint16) * 257
        Image.fromarray(values).save(folder / f"{index}.png")
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    peers = {"Pillow + torchvision": pillow, "OpenCV": opencv, "torchvision.io": torchvision_io}
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for (width, height), goal in GOALS.items():
            folder = str(write_photographs(Path(root) / str(width), IMAGES, width, height))
            ways = {name: each_file(folder, load) for name, load in peers.items()}
            times = rounds_of({"ours": ours(folder), **ways}, rounds)
            goals = itertools.chain([goal], itertools.repeat(1.0))
            found = {name: (times[name], aim) for name, aim in zip(peers, goals, strict=False)}
            rows += compare("loading", f"{IMAGES} crops of JPEGs of {width}x{height}", times["ours"], found, "s")
        folder = write_16_bit(Path(root) / "png")
        loads = {"ours": ours_png, **dict(zip(peers, (pillow_png, opencv_png, torchvision_png), strict=True))}
        times = rounds_of({name: each_file(folder, load) for name, load in loads.items()}, rounds)
        found = {name: (times[name], 1.0) for name in peers}
        rows += compare("loading", f"{IMAGES} 16-bit PNGs of 640x480", times["ours"], found, "s")
    write_rows("loading", rows)


if __name__ == "__main__":
    main()
