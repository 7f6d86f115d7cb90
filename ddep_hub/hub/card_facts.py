"""What a card is filled from: the files of a model's folder."""

import dataclasses
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import accelerate
import timm
import torch
import transformers
from accelerate import PartialState

from ddep_hub import DDePConfig, __version__
from ddep_hub.utils.arguments import names_with


# Written by a run, by `ddep-hub card --baseline` and by `--evaluation`, beside the model.
RUN, RESULTS, BASELINE, EVALUATION = "run.json", "results.json", "baseline.json", "evaluation.json"
# Pictures beside the model that its card shows. The last is of an evaluation.
PREDICTIONS, LOSS, CONFUSION = "predictions.png", "loss.png", "confusion.png"
_EVALUATED = "output_dir data classes split_file model_name_or_path encoder_weights".split()
Kind = Literal["pretraining", "finetuning"]


@dataclass(frozen=True)
class Facts:
    """What is known of a model.

    Attributes:
        config: the model's configuration.
        remote_code: whether the folder holds the model's code.
        run: what `run.json` holds, see [`run_facts`].
        results: what the run measured.
        baseline: the same of a run from a random decoder; empty where there is none.
        evaluation: what `ddep-hub evaluate` measured; empty where there is none.
        pictures: names of the pictures that are there.
    """

    config: DDePConfig
    remote_code: bool
    run: Mapping[str, Any]
    results: Mapping[str, Any]
    baseline: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    pictures: tuple[str, ...]


def run_facts(kind: Kind, arguments: Any, **facts: Any) -> dict[str, Any]:
    """What `run.json` holds: how the model was made, without paths of this machine.

    Args:
        kind: what the run was.
        arguments: its arguments, a dataclass.
        facts: `encoder_source`, where the encoder's weights came from; `images` in pretraining, how many there were,
            in words; `evaluated` in fine-tuning, the number of images it was measured on.
    """
    versions = {"ddep_hub": __version__, "torch": torch.__version__, "timm": timm.__version__}
    versions |= {"transformers": transformers.__version__, "accelerate": accelerate.__version__}
    paths = names_with(type(arguments), "path")
    shared = {
        name: _shareable(value) if name in paths else value for name, value in dataclasses.asdict(arguments).items()
    }
    return {
        "kind": kind,
        "arguments": shared,
        **{name: _shareable(value) if name == "encoder_source" else value for name, value in facts.items()},
        "hardware": _hardware(),
        "versions": versions,
    }


def read_facts(folder: Path) -> Facts | None:
    """The facts of a folder; `None` where no run wrote down what it was.

    Raises:
        ValueError: a file is damaged; names it.
        OSError: a file cannot be read.
    """
    if not all((folder / name).is_file() for name in ("config.json", RUN, RESULTS)):
        return None
    stored = _read(folder / "config.json")
    pictures = [name for name in (PREDICTIONS, LOSS, CONFUSION) if (folder / name).is_file()]
    return Facts(
        config=DDePConfig.from_pretrained(folder),
        remote_code="auto_map" in stored,
        run=_read(folder / RUN),
        results=_read(folder / RESULTS),
        baseline=_read(folder / BASELINE) if (folder / BASELINE).is_file() else {},
        evaluation=_read(folder / EVALUATION) if (folder / EVALUATION).is_file() else {},
        pictures=tuple(pictures),
    )


def baseline_of(folder: Path, other: Path) -> dict[str, Any]:
    """What `baseline.json` holds: the figures of a run from a random decoder that is otherwise comparable.

    Args:
        folder: the model's folder.
        other: that run's folder `final`.

    Raises:
        ValueError: the two cannot be compared; says why.
    """
    ours, theirs = read_facts(folder), read_facts(other)
    if ours is None or theirs is None:
        raise ValueError(f"baseline: {folder if ours is None else other} lacks {RUN} or {RESULTS} of a run.")
    if not ours.run["kind"] == theirs.run["kind"] == "finetuning":
        raise ValueError("baseline: both models must be fine-tuned ones.")
    if theirs.run["arguments"]["pretrained"] is not None:
        raise ValueError(f"baseline: {other} did not start from a random decoder. Name a run without a start.")
    if ours.run["arguments"]["pretrained"] is None:
        raise ValueError(f"baseline: {folder} itself started from a random decoder, and needs no baseline.")
    for name in ("data", "train_split", "eval_split", "image_size", "labelled", "split_seed"):
        one, two = ({**facts.run["arguments"], **facts.results}[name] for facts in (ours, theirs))
        if one != two:
            raise ValueError(
                f"baseline: {name} differs: {two} in {other}, {one} in {folder}. Compare what was trained and "
                "measured on the same images."
            )
    if list(ours.results["iou"]) != list(theirs.results["iou"]):
        raise ValueError(f"baseline: {other} has other classes.")
    if ours.evaluation.get("inference") != theirs.evaluation.get("inference"):
        raise ValueError(
            f"baseline: {folder} and {other} were not measured alike. Run `ddep-hub card {other} --evaluation` first, "
            "with an evaluation of the same options."
        )
    return {**(theirs.evaluation or theirs.results), "run": dict(theirs.run)}


def evaluation_of(folder: Path, other: Path) -> dict[str, Any]:
    """What `evaluation.json` holds: the figures of an evaluation of this model, without paths of this machine.

    Args:
        folder: the model's folder.
        other: the evaluation's folder.

    Raises:
        OSError: it holds no results.
        ValueError: they are of another model, or damaged.
    """
    found = _read(other / RESULTS)
    measured = found.get("arguments", {}).get("model_name_or_path")
    if measured is None or "inference" not in found:
        raise ValueError(f"evaluation: {other / RESULTS} is none of `ddep-hub evaluate`.")
    if Path(measured).resolve() != folder.resolve():
        raise ValueError(f"evaluation: {other} measured {measured}, not {folder}. Evaluate this model.")
    arguments = {
        name: _shareable(value) if name in _EVALUATED else value for name, value in found["arguments"].items()
    }
    return {**found, "arguments": arguments}


def _shareable(value: Any) -> Any:
    """The last part of each path; names of repositories, data sets of the Hub and words stay as they are."""
    if isinstance(value, list):
        return [_shareable(item) for item in value]
    if isinstance(value, str) and "://" not in value:
        # `org/name` is a repository, unless there is such a folder.
        local = Path(value).exists() or Path(value).is_absolute() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value)
        return _last(Path(value)) if local else value
    return value


def _last(path: Path) -> str:
    """Name of a folder or file; of a run's `final/` and `best/`, the run's name."""
    return (path.parent.name if path.name in ("final", "best") else path.name) or str(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return found


def _hardware() -> str:
    """What this process and its like run on."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{torch.get_num_threads()} thread(s) of {_processor()}"
    return f"{PartialState().num_processes} process(es), each on {device}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return name.group(1).strip() if name else platform.processor() or platform.machine()
