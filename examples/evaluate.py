"""Measure a fine-tuned model on labelled images.

    accelerate launch --config_file examples/configs/accelerate/cpu.yaml examples/evaluate.py \
        --model_name_or_path runs/segmentation/final --data path/to/dataset --output_dir runs/evaluation

`--protocol cityscapes` predicts as that data set is scored; `--window`, `--stride`, `--scales` and `--flip` say it one
by one. `--help` lists the arguments; `--config file.yaml` reads them from a file. `ddep-hub evaluate` is the same.
"""

from accelerate import PartialState

from ddep_hub.evaluation.arguments import EvaluateArguments
from ddep_hub.evaluation.evaluate import evaluate
from ddep_hub.utils.arguments import parse_arguments


if __name__ == "__main__":
    evaluate(parse_arguments(EvaluateArguments))
    PartialState().destroy_process_group()  # else its threads may outlive the interpreter, which aborts
