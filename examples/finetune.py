"""Fine-tune a segmentation model on a few labelled images: `ddep-hub finetune` as a script.

    accelerate launch --config_file examples/configs/accelerate/cpu.yaml examples/finetune.py
    accelerate launch examples/finetune.py --preset few-labels --data path/to/dataset \
        --pretrained ddep-photos-lite0 --output_dir runs/segmentation

Without arguments it trains a random decoder on rendered scenes, in a few minutes on a CPU.
"""

import sys

from ddep_hub.cli import main


if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
