"""Evaluate a fine-tuned model on labelled images: `ddep-hub evaluate` as a script.

    accelerate launch --config_file examples/configs/accelerate/cpu.yaml examples/evaluate.py \
        --model runs/segmentation/final --data path/to/dataset --output_dir runs/evaluation
"""

import sys

from ddep_hub.cli import main


if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
