"""The presets, and the configurations in examples/: they load, and resolve to runs."""

import csv
import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.label_efficiency.config import StudyArguments
from ddep_hub.label_efficiency.runner import build_study
from ddep_hub.training.arguments import FinetuneArguments, PretrainArguments
from ddep_hub.training.models import pretraining_model
from ddep_hub.utils.arguments import build_arguments, list_presets, parse_arguments, preset_file


ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
CONFIGS = EXAMPLES / "configs"
PAGE = (EXAMPLES / "README.md").read_text(encoding="utf-8")
ACCELERATE = sorted((CONFIGS / "accelerate").glob("*.yaml"))
PRETRAIN, FINETUNE = list_presets("pretrain"), list_presets("finetune")
DATASETS = [name for name in FINETUNE if not name.startswith("few-labels")]
STUDIES = sorted(CONFIGS.glob("label-efficiency-*.yaml"))
# The paper's level, in units of inputs with this deviation.
SIGMA, STD = 0.22, 0.5


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def load_pretrain(name: str, *more: str) -> PretrainArguments:
    return parse_arguments(PretrainArguments, ["--preset", name, *more])


def load_finetune(name: str, *more: str) -> FinetuneArguments:
    return parse_arguments(FinetuneArguments, ["--preset", name, *more])


def test_all_files_are_known():
    assert [path.stem for path in ACCELERATE] == ["8-gpus", "cpu", "fsdp2", "gpu", "two-nodes"]
    assert sorted(CONFIGS.glob("*.yaml")) == STUDIES
    assert len(PRETRAIN) == 8 and len(FINETUNE) == 7


@named(ACCELERATE)
def test_accelerate_loads_its_configuration(path):
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    on_cpu = path.stem == "cpu"
    assert config.use_cpu is on_cpu
    assert config.mixed_precision == ("no" if on_cpu else "bf16")
    assert config.num_processes % config.num_machines == 0
    text = path.read_text(encoding="utf-8")
    assert f"accelerate launch --config_file examples/configs/accelerate/{path.name}" in text
    assert ("not been run" in text) is not on_cpu


@pytest.mark.parametrize(
    ("name", "flags", "seen"),
    [
        ("cpu", [], {"num_processes": 1, "use_cpu": True, "multi_gpu": False}),
        ("gpu", [], {"num_processes": 1, "use_cpu": False, "multi_gpu": False}),
        ("8-gpus", [], {"num_processes": 8, "multi_gpu": True, "use_fsdp": False}),
        ("8-gpus", ["--num_processes", "4"], {"num_processes": 4, "multi_gpu": True}),
        (
            "two-nodes",
            ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"],
            {"num_processes": 16, "num_machines": 2, "machine_rank": 1, "main_process_port": 29500},
        ),
        ("fsdp2", [], {"use_fsdp": True, "fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": False}),
        (
            "fsdp2",
            ["--fsdp_transformer_layer_cls_to_wrap", "DDePDecoderBlock"],
            {"use_fsdp": True, "fsdp_version": 2, "fsdp_transformer_layer_cls_to_wrap": "DDePDecoderBlock"},
        ),
    ],
)
def test_accelerate_launch_takes_over_the_values(name, flags, seen):
    """What `accelerate launch` makes of a file and of the flags that the comments name."""
    parser = launch_command_parser()
    command = ["--config_file", str(CONFIGS / "accelerate" / f"{name}.yaml"), *flags, "pretrain.py"]
    args, _, _ = _validate_launch_command(parser.parse_args(command))
    assert {key: getattr(args, key) for key in seen} == seen


def test_accelerate_has_no_key_for_threads(tmp_path):
    """As cpu.yaml says: the number of threads is an option of the command alone."""
    text = (CONFIGS / "accelerate" / "cpu.yaml").read_text(encoding="utf-8")
    (tmp_path / "cpu.yaml").write_text(f"{text}num_cpu_threads_per_process: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="num_cpu_threads_per_process"):
        load_config_from_file(str(tmp_path / "cpu.yaml"))
    assert "--num_cpu_threads_per_process" in launch_command_parser().format_help()


@pytest.mark.parametrize(
    ("encoder_name", "names"),
    [("vit_tiny_r_s16_p8_224", None), ("convnext_atto", "DDePDecoderBlock,ConvNeXtStage")],
)
@pytest.mark.parametrize("cls", [DDePForPreTraining, DDePForSemanticSegmentation])
def test_fsdp2_finds_the_blocks_to_wrap(cls, encoder_name, names):
    """The hybrids' blocks with the file as it is, another encoder's with the flag that its comments show."""
    text = (CONFIGS / "accelerate" / "fsdp2.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)["fsdp_config"]
    assert names is None or f"--fsdp_transformer_layer_cls_to_wrap {names}" in text
    wanted = (names or config["fsdp_transformer_layer_cls_to_wrap"]).split(",")
    with torch.device("meta"):
        model = cls(DDePConfig(encoder_name=encoder_name))
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config["fsdp_version"],
        reshard_after_forward=config["fsdp_reshard_after_forward"],
        auto_wrap_policy=config["fsdp_auto_wrap_policy"],
        state_dict_type=config["fsdp_state_dict_type"],
        transformer_cls_names_to_wrap=wanted,
    )
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert {type(module).__name__ for module in model.modules() if policy(module)} == set(wanted)


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_presets(name):
    args = load_pretrain(name)
    assert not args.images  # given on the command line
    assert args.output_dir == f"runs/pretrain-{name}"
    cfg = timm.get_pretrained_cfg(args.encoder_name)
    assert cfg is not None and cfg.tag, args.encoder_name
    if "." in args.encoder_name:
        assert cfg.tag == args.encoder_name.split(".")[1] and cfg.hf_hub_id
    assert args.sigma == pytest.approx([SIGMA * STD / (sum(cfg.std) / len(cfg.std))], rel=0.05)
    if name != "few-labels":
        assert (args.batch_size, args.crop_size, args.optim, args.lr_scheduler_type) == (512, 224, "adam", "cosine")
    with torch.device("meta"):
        DDePForPreTraining(DDePConfig(encoder_name=args.encoder_name, decoder_width=args.decoder_width))


def test_the_few_labels_presets_pretrain_alike():
    """`pretrain --preset few-labels`, and the first stage of `finetune --preset few-labels --unlabelled`."""
    alone = load_pretrain("few-labels", "--pretrained", "ddep-photos-lite0")
    first = load_finetune("few-labels", "--pretrained", "ddep-photos-lite0", "--data", "x", "--unlabelled", "y")
    both = [
        (args.corruption, args.batch_size, args.max_steps, args.crop_size, args.image_size, args.scale)
        for args in (alone, first_stage(first))
    ]
    assert both[0] == both[1] and alone.decoder_only and not alone.decoder_hidden_sizes


def first_stage(args: FinetuneArguments) -> SimpleNamespace:
    prefix = "pretraining_"
    values = vars(args) | {name.removeprefix(prefix): value for name, value in vars(args).items() if prefix in name}
    return SimpleNamespace(**values | {"max_steps": args.pretraining_steps})


def test_transunet_presets_differ_in_width_and_learning_rate():
    runs = [load_pretrain(f"transunet-{width}x") for width in (1, 2, 3)]
    assert [run.decoder_width for run in runs] == [1, 2, 3]
    assert [run.learning_rate for run in runs] == [6e-5, 1e-4, 6e-5]
    same = [
        dataclasses.asdict(run) | {"decoder_width": 0, "learning_rate": 0, "output_dir": "", "encoder_weights": ""}
        for run in runs
    ]
    assert same[0] == same[1] == same[2]


@pytest.mark.parametrize("name", DATASETS)
def test_finetuning_presets(name):
    args = load_finetune(name, "--data", "somewhere", "--label_fraction", "1/30", "--pretrained", "run/final")
    assert args.crop_size == {"cityscapes": 1024, "camvid": 352}.get(name, 512)
    assert {args.train_split, args.eval_split} <= {"train", "val"}
    assert 1e-5 <= args.learning_rate <= 3e-4 and 1e-5 <= args.weight_decay <= 3e-4
    assert args.sync_bn and args.save_steps and args.eval_steps
    # Without a pretrained decoder, as the comments say.
    assert load_finetune(name, "--encoder_name", "vit_base_r50_s16_224.orig_in21k", "--encoder_weights", "hub")
    assert load_finetune(name).data is None
    assert build_arguments(FinetuneArguments, {"preset": name}) == load_finetune(name)


def test_few_labels_are_fine_tuned_as_was_measured():
    """The values of the study, and both starts that the comments name; the random decoder has the shipped size."""
    text = preset_file("finetune", "few-labels").read_text(encoding="utf-8")
    shipped = ROOT / "model_cards" / "ddep-photos-lite0"
    assert "--pretrained ddep-photos-lite0" in text
    args = load_finetune("few-labels", "--pretrained", "ddep-photos-lite0")
    study = yaml.safe_load((CONFIGS / "label-efficiency-camvid-dice.yaml").read_text(encoding="utf-8"))["finetuning"]
    own = yaml.safe_load(text)
    assert own.pop("output_dir") == args.output_dir
    assert own.pop("head_lr_factor") == 10  # for short runs, see head_learning_rate.csv
    assert own.pop("pretraining_corruption") == "downsampled"  # see features.csv
    assert own.pop("pretraining_batch_size") == 4  # crops have four times the pixels
    left_out = ("eval_split", "save_steps", "mixed_precision")
    # The study had half the size and three times the steps, see image_size.csv.
    assert [own.pop(name) for name in ("image_size", "crop_size", "max_steps")] == [360, 256, 600]
    assert [study.pop(name) for name in ("image_size", "crop_size", "max_steps")] == [180, 128, 1800]
    assert own == {name: value for name, value in study.items() if name not in left_out}
    flags = re.search(r"`(--decoder_hidden_sizes .*)` in place", text)[1]
    random = load_finetune("few-labels", *flags.split())
    config = DDePConfig.from_pretrained(shipped)
    assert random.decoder_hidden_sizes == config.decoder_hidden_sizes
    assert random.decoder_bottleneck_size == config.decoder_bottleneck_size


def test_few_labels_of_microscopes_differ_from_few_labels_in_what_was_measured():
    """Three runs of the table had these arguments, but for those on the size of the images and on the decoder."""
    own, other = load_finetune("few-labels-microscopy"), load_finetune("few-labels")
    different = {name for name, value in vars(own).items() if value != getattr(other, name)}
    measured = {"augmentation", "model_ema_decay", "encoder_lr_factor", "pretraining_corruption"}
    assert different == {"output_dir", "image_size", "crop_size", "max_steps", "pretraining_batch_size", *measured}
    assert own.head_lr_factor == 10  # for short runs; the rows below have 1
    with (ROOT / "benchmarks" / "results" / "microscopy_learning_rates.csv").open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["data"] == "em" and row["decoder"] == "random" and row["step"] == str(own.max_steps)
        ]
    scores = {}
    for row in rows:
        rates = float(row["encoder_lr_factor"]), float(row["learning_rate"])
        scores.setdefault(rates, {})[row["seed"]] = float(row["mean_iou"])
    chosen, before = (scores[args.encoder_lr_factor, args.learning_rate] for args in (own, other))
    assert len(chosen) >= 3 and all(score > before[seed] for seed, score in chosen.items())


def test_a_preset_with_an_image_skip_masks_images_too():
    args = load_pretrain("efficientnet-lite0", "--corruption", "masked", "--encoder_weights", "none")
    assert args.image_skip and args.prediction_type == "epsilon"  # of denoising
    config = pretraining_model(args, "none", {}).config
    assert (config.corruption, config.prediction_type, config.image_skip) == ("masked", "sample", False)


@pytest.mark.parametrize("kind, name", [("pretrain", n) for n in PRETRAIN] + [("finetune", n) for n in FINETUNE])
def test_every_value_of_a_preset_has_its_mark(kind, name):
    """Recalled values are never given as the paper's."""
    text = preset_file(kind, name).read_text(encoding="utf-8")
    for line in text.splitlines():
        if re.match(r"(batch_size|max_steps|optim|learning_rate|weight_decay|lr_scheduler_type|crop_size):", line):
            assert re.search(r"\((believed|read|computed|choice)\)", line), line
    assert f"--preset {name}" in text and f"ddep_hub {kind} " in text.replace("ddep-hub", "ddep_hub")
    assert max(map(len, text.splitlines())) <= 119


def test_the_page_lists_every_file():
    assert [path.name for path in [*STUDIES, *ACCELERATE] if path.name not in PAGE] == []


@named([*STUDIES, *ACCELERATE])
def test_lines_are_short(path):
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 119


@named(STUDIES)
def test_studies_resolve_every_run(path, tmp_path):
    study = build_study(StudyArguments(study=str(path), data=str(tmp_path), unlabelled=[str(tmp_path)]))
    methods = {method.name: method for method in study.methods}
    assert {"encoder", "ddep", "dep", "random"} <= set(methods)
    assert methods["encoder"].baseline and methods["random"].baseline
    assert not methods["ddep"].baseline and not methods["dep"].baseline
    assert len({study.settings(method) for method in study.methods}) == len(methods)
    encoders = set()
    for name, method in methods.items():
        fraction = next(iter(study.seeds))
        decoder = "decoder" if method.pretraining is not None else None
        args = study.finetune_arguments(method, fraction, 0, tmp_path, decoder)
        assert args.label_fraction == fraction
        assert (args.encoder_weights == "none") is (name == "random")
        study.evaluate_arguments(args)
        if method.pretraining is None and args.pretrained is None:
            encoders.add((args.encoder_name, tuple(args.decoder_hidden_sizes or ()), args.decoder_bottleneck_size))
        elif method.pretraining is not None:
            pre = study.pretrain_arguments(method, tmp_path)
            assert pre.freeze_encoder is pre.decoder_only is (name != "dep")
            if pre.pretrained is None:
                encoders.add((pre.encoder_name, tuple(pre.decoder_hidden_sizes or ()), pre.decoder_bottleneck_size))
    assert len(encoders) == 1  # every method is the same network
