"""Pretrain a decoder by denoising (DDeP): `ddep-hub pretrain` as a script.

    accelerate launch --config_file examples/configs/accelerate/cpu.yaml examples/pretrain.py
    accelerate launch examples/pretrain.py --preset transunet-1x --images path/to/images --output_dir runs/ddep

Without arguments it runs on rendered scenes with EfficientNet-Lite0, in a few minutes on a CPU.
"""

import sys

from ddep_hub.cli import main


if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
