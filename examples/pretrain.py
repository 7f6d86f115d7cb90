"""Pretrain a decoder by denoising (DDeP).

    accelerate launch --config_file examples/configs/accelerate/cpu.yaml examples/pretrain.py
    accelerate launch examples/pretrain.py --images path/to/images --encoder_weights hub \
        --encoder_name vit_base_r50_s16_224.orig_in21k --output_dir runs/ddep

Without arguments it runs on rendered scenes with EfficientNet-Lite0, in a few minutes on a CPU. `--help` lists the
arguments; `--config file.yaml` reads them from a file. The run is `ddep_hub.training.pretraining.pretrain`.
"""

from accelerate import PartialState

from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.pretraining import pretrain
from ddep_hub.utils.arguments import parse_arguments


if __name__ == "__main__":
    pretrain(parse_arguments(PretrainArguments))
    PartialState().destroy_process_group()  # else its threads may outlive the interpreter, which aborts
