"""Seconds that `import ddep_hub` and its first use take, beside `import timm`.

    python benchmarks/import_time.py

Medians over fresh processes, in turns. `import ddep_hub` imports neither torch nor timm nor transformers; the model's
classes do when they are first used. For what each module costs, run `python -X importtime -c "import ddep_hub"`.
"""

import argparse
import statistics
import subprocess
import sys


STATEMENTS = [
    "import timm",
    "import ddep_hub",
    "from ddep_hub import DDePForSemanticSegmentation",
    "from ddep_hub import DDePForSemanticSegmentation, DDePImageProcessor",
    "from ddep_hub import finetune",
]


def seconds(statement: str) -> float:
    """Time of a statement in a new process, without the interpreter's start."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Prints a table of medians and their differences to timm's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    times = [[seconds(statement) for statement in STATEMENTS] for _ in range(runs + 1)][1:]  # the first warms the disk
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    print("| statement | seconds | to timm | ratio |\n|---|---|---|---|")
    for statement, median in zip(STATEMENTS, medians, strict=True):
        print(f"| `{statement}` | {median:.2f} | {median - medians[0]:+.2f} | {median / medians[0]:.2f} |")


if __name__ == "__main__":
    main()
