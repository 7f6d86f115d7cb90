"""Measure how many labels a pretrained decoder saves: `ddep-hub compare` as a script.

    python examples/label_efficiency.py --study examples/configs/label-efficiency-scenes.yaml
    python examples/label_efficiency.py --study examples/configs/label-efficiency-camvid.yaml \
        --data path/to/camvid --unlabelled path/to/images --output_dir runs/camvid
    python examples/label_efficiency.py --study ... --methods encoder ddep --fractions 1/30

The study file names methods, label fractions and seeds. Each finished run adds a row to `results.csv`. A run that has
a row is not repeated, and an interrupted run resumes. To use several GPUs or cores, start the command several times
with the same output folder: the processes share the runs. `report.md` and `figure.png` are written from the rows at
the end, and at any time with `--report_only`.
"""

import sys

from ddep_hub.cli import main


if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
