"""How many labels a pretrained decoder saves: many runs of both scripts, compared.

    python examples/label_efficiency.py --study examples/configs/label-efficiency-scenes.yaml
    python examples/label_efficiency.py --study examples/configs/label-efficiency-camvid.yaml \
        --data path/to/camvid --images path/to/images --output_dir runs/camvid
    python examples/label_efficiency.py --study ... --arms encoder ddep --fractions 1/30 --vary pretraining.sigma 0.1 1

The study file names arms, label fractions and seeds. Each run that ends adds a row to `results.csv`; what has a row is
not run again, and an interrupted run goes on. To use several GPUs, or cores, start the command several times on one
folder: the processes share the runs. `report.md` and `figure.png` are written from the rows at the end, and by
`--report_only` at any time.
"""

import sys

from ddep_hub.cli import main


if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
