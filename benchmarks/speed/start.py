"""What a program pays before its first image: `from_pretrained`, and imports.

    python benchmarks/speed/start.py

`from_pretrained` loads the paper's TransUNet (105 million parameters, random). Beside it, the constructor makes the
model and `load_state_dict` copies the file's tensors into it; and the tensors are read and copied without a model.
Imports are timed in new interpreters, in turns.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable

import torch
from measuring import Round, Row, compare, peak_memory, rounds_of, set_up, value_of, write_rows
from safetensors.torch import load_file

from ddep_hub import DDePConfig, DDePForPreTraining


def save(folder: str) -> Callable[[], float]:
    DDePForPreTraining(DDePConfig(encoder_name="vit_base_r50_s16_224")).save_pretrained(folder)
    return lambda: 0.0


@set_up
def ours(folder: str) -> Round:
    return lambda: DDePForPreTraining.from_pretrained(folder)


@set_up
def reading(folder: str) -> Round:
    def run() -> None:
        for tensor in load_file(f"{folder}/model.safetensors").values():
            torch.empty_like(tensor).copy_(tensor)

    return run


@set_up
def constructor(folder: str) -> Round:
    def run() -> None:
        model = DDePForPreTraining(DDePConfig(encoder_name="vit_base_r50_s16_224"))
        model.load_state_dict(load_file(f"{folder}/model.safetensors"))

    return run


def import_seconds(statement: str) -> float:
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def imports(rounds: int) -> list[Row]:
    statements = ["import timm", "import ddep_hub", "from ddep_hub import DDePForSemanticSegmentation"]
    times = [[import_seconds(statement) for statement in statements] for _ in range(rounds + 1)][1:]
    timm, *others = (list(column) for column in zip(*times, strict=True))
    rows = []
    # The goal is for the package alone, timm's time and 0.3 s; the model's classes need transformers as well.
    goals = 1 / (1 + 0.3 / min(timm)), None
    for statement, found, goal in zip(statements[1:], others, goals, strict=True):
        rows += compare(f"`{statement}`", "new interpreter", found, {"`import timm`": (timm, goal)}, "s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        value_of(lambda: save(folder))
        ways = {"ours": ours(folder), "constructor": constructor(folder), "reading": reading(folder)}
        times = rounds_of(ways, rounds, warm_up=1)
        peers = {
            "the constructor and load_state_dict": (times["constructor"], 1 / 1.1),
            "load_file and a copy, no model": (times["reading"], 1 / 1.1),
        }
        rows = compare("`from_pretrained`", "TransUNet, 105 M parameters", times["ours"], peers, "s")
        memory = peak_memory(ours(folder), calls=1), peak_memory(constructor(folder), calls=1)
        peer = {"the constructor and load_state_dict": (memory[1], 1 / 1.1)}
        rows += compare("memory of `from_pretrained`", "TransUNet, 105 M parameters", memory[0], peer, "MiB")
    write_rows("start", rows + imports(rounds))


if __name__ == "__main__":
    main()
