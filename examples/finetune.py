"""Fine-tune a segmentation model on few labels.

    accelerate launch --config_file examples/configs/accelerate/cpu.yaml examples/finetune.py
    accelerate launch examples/finetune.py --data path/to/dataset --pretrained runs/ddep/final \
        --label_fraction 1/30 --output_dir runs/segmentation

Without arguments it trains a random decoder on rendered scenes, in a few minutes on a CPU. `--help` lists the
arguments; `--config file.yaml` reads them from a file. The run is `ddep_hub.training.finetuning.finetune`.
"""

from accelerate import PartialState

from ddep_hub.training.arguments import FinetuneArguments
from ddep_hub.training.finetuning import finetune
from ddep_hub.utils.arguments import parse_arguments


if __name__ == "__main__":
    finetune(parse_arguments(FinetuneArguments))
    PartialState().destroy_process_group()  # else its threads may outlive the interpreter, which aborts
