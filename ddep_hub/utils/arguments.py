"""Argument dataclasses: read from keywords, presets, YAML files and the command line, and written to a file."""

import argparse
import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from .files import atomic_write
from .values import Dataclass, convert, did_you_mean, get_type_hints


PRESETS = Path(__file__).parent.parent / "presets"
# The order of the groups in `--help`; arguments without a group come under the last one.
GROUPS = ("data", "model", "optimisation", "evaluation", "checkpoints", "logging", "Hub", "other")
_METADATA_KEYS = ("group", "common", "resumable", "path", "architecture")


def arg(
    default: Any,
    description: str,
    *,
    group: str = "other",
    common: bool = False,
    resumable: bool = False,
    path: bool = False,
    architecture: bool = False,
) -> Any:
    """A field of a dataclass of arguments.

    Args:
        default: Its default; a list is copied for each instance.
        description: What `--help` says.
        group: Group of `--help`, one of `GROUPS`.
        common: Whether `--help` shows it first, because most users need it.
        resumable: Whether a resumed run may have another value: its final weights do not depend on it, except for
            rounding and BatchNorm's view of a micro-batch.
        path: Whether it may hold a local path, of which a model card publishes the last part only.
        architecture: Whether a model that `pretrained` names sets it.
    """
    values = (group, common, resumable, path, architecture)
    metadata = {"help": description, **dict(zip(_METADATA_KEYS, values, strict=True))}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# `arg` for groups of `--help` with many arguments.
data_arg = functools.partial(arg, group="data")
model_arg = functools.partial(arg, group="model")
optim_arg = functools.partial(arg, group="optimisation")
eval_arg = functools.partial(arg, group="evaluation")


Arguments = TypeVar("Arguments", bound=Dataclass)


def list_field_names(cls: type[Dataclass], key: str) -> list[str]:
    """Names of the fields whose metadata has a true value under `key`, such as `"resumable"`."""
    return [field.name for field in dataclasses.fields(cls) if field.metadata.get(key)]


def field_default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, a new list for each call."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def list_presets(kind: str) -> list[str]:
    """Names of the presets that ship with the package, of `kind` `"pretrain"` or `"finetune"`."""
    return sorted(path.stem for path in (PRESETS / kind).glob("*.yaml"))


def preset_file(kind: str, name: str) -> Path:
    """The file of a preset; raises a ValueError that names the closest one if there is none."""
    if name not in list_presets(kind):
        raise ValueError(f"preset: there is no {did_you_mean(name, list_presets(kind))} `ddep-hub list` lists them.")
    return PRESETS / kind / f"{name}.yaml"


def build_arguments(cls: type[Arguments], values: Mapping[str, Any], arguments: Arguments | None = None) -> Arguments:
    """Builds the arguments of a Python function from its keywords, `values`; a `preset` among them is read first.

    `arguments` are overridden by the keywords, in a copy. Raises a TypeError if an argument does not exist (names the
    closest one), or if `arguments` is not a `cls` or comes with a preset; a ValueError if a value has the wrong type
    or is out of range, or there is no such preset.
    """
    if arguments is not None:
        if not isinstance(arguments, cls):
            raise TypeError(
                f"arguments must be {cls.__name__}, got a {type(arguments).__name__}. Pass individual arguments as "
                "keywords, such as output_dir=..."
            )
        if values.get("preset") is not None:
            raise TypeError(f"preset cannot be combined with {cls.__name__}. Pass only keywords.")
        values = {**vars(arguments), **values}
    names = [field.name for field in dataclasses.fields(cls)]
    fields = {name: value for name, value in values.items() if name != "preset"}
    for name in fields:
        if name not in names:
            raise TypeError(f"{cls.__name__} has no argument {did_you_mean(name, names)}")
    if values.get("preset") is not None:
        preset = read_yaml(preset_file(_command_name(cls), values["preset"]), cls)
        if fields.get("pretrained") is not None:  # its model sets the architecture
            for name in (*list_field_names(cls, "architecture"), "encoder_weights"):
                preset.pop(name, None)
        fields = {**preset, **fields}
    return cls(**fields)


def parse_arguments(cls: type[Arguments], argv: list[str] | None = None) -> Arguments:
    """Runs [`parse_command`] without positional arguments."""
    return parse_command(cls, argv)[0]


def parse_command(
    cls: type[Arguments],
    argv: list[str] | None = None,
    *,
    command: str | None = None,
    **positionals: Mapping[str, Any],
) -> tuple[Arguments, dict[str, Any]]:
    """Arguments from `--preset name`, `--config file.yaml` and the command line, each overriding the one before.

    Args:
        cls: A dataclass of arguments, such as [`PretrainArguments`]; its docstring is the description in the help.
        argv: The command line; `sys.argv[1:]` by default.
        command: What the help calls the program, such as `ddep-hub predict`.
        **positionals: Positional arguments, with what `argparse.ArgumentParser.add_argument` takes for each.

    Returns:
        The arguments, and the values of `positionals`.

    Raises:
        SystemExit: An argument, on the command line or in a file, is unknown (names the closest one), has the wrong
            type or is out of range.
    """
    parser = _Parser(cls, prog=command, allow_abbrev=False, description=cls.__doc__)
    for name, options in positionals.items():
        parser.add_argument(name, **options)
    if presets := list_presets(_command_name(cls)):
        parser.add_argument("--preset", metavar="NAME", help=f"Shipped settings: {', '.join(presets)}.")
    parser.add_argument("--config", metavar="FILE", help="YAML file of arguments; the command line overrides it.")
    namespace, unknown = parser.parse_known_args(argv)
    for flag in unknown:
        if flag.startswith("--"):
            if flag[2:] in positionals:
                parser.error(f"`{flag}`: write the values first, without this flag")
            names = [field.name for field in dataclasses.fields(cls)]
            parser.error(f"unknown argument {did_you_mean(flag.lstrip('-').split('=')[0], names)}")
    if unknown:
        parser.error(f"unexpected values: {' '.join(unknown)}; every argument is written as --name value")
    values = vars(namespace)
    positional_values = {name: values.pop(name) for name in positionals}
    try:
        # Empty ones come from a shell's variable that is not set.
        config, preset = values.pop("config", None), values.pop("preset", None) or None
        values = {**(read_yaml(config, cls) if config else {}), **values, "preset": preset}
        return build_arguments(cls, values), positional_values
    except (OSError, ValueError) as error:
        parser.error(str(error))


class _Parser(HfArgumentParser):
    """transformers' parser of dataclasses, whose help shows the common arguments first and the others in groups.

    It returns only what is on the command line: the defaults are those of the dataclass.
    """

    def __init__(self, cls: type[Dataclass], **kwargs: Any) -> None:
        self.fields = {field.name: field.metadata for field in dataclasses.fields(cls)}
        formatter = functools.partial(argparse.HelpFormatter, max_help_position=30, width=110)
        super().__init__(cls, formatter_class=formatter, argument_default=argparse.SUPPRESS, **kwargs)
        # argparse takes -3e-06 for a flag.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Adds an argument; transformers calls this with all metadata of a field."""
        default = options.pop("default", None)
        if default not in (None, argparse.SUPPRESS, []) and default is not False:
            text = " ".join(map(str, default)) if isinstance(default, list) else default
            options["help"] = f"{options['help']} (default: {text})"
        if options.get("nargs") == "?":
            options["metavar"] = "true|false"
        elif names[0].startswith("-") and "type" in options and "choices" not in options:
            options.setdefault("metavar", "VALUE")
        if names[0].startswith("--no_"):
            options["help"] = argparse.SUPPRESS
        action = super().add_argument(*names, **{k: v for k, v in options.items() if k not in _METADATA_KEYS})
        # transformers adds `--foo-bar` to `--foo_bar`; it works without being shown.
        action.option_strings = [option for option in action.option_strings if "-" not in option[2:]]
        return action

    def sections(self) -> dict[str, list[argparse.Action]]:
        """The arguments by the titles under which `--help` lists them."""
        sections: dict[str, list[argparse.Action]] = {name: [] for name in ("arguments", "most used", *GROUPS)}

        def metadata(action: argparse.Action) -> Mapping[str, Any]:
            return self.fields.get(action.dest, {"common": action.dest != "help", "group": "other"})

        for action in sorted(self._actions, key=lambda action: GROUPS.index(metadata(action)["group"])):
            common = "most used" if action.option_strings else "arguments"
            sections[common if metadata(action)["common"] else metadata(action)["group"]].append(action)
        return sections

    def format_help(self) -> str:
        formatter = self._get_formatter()
        positionals = [f"{a.dest}{' ...' * (a.nargs == '+')} " for a in self._actions if not a.option_strings]
        formatter.add_usage(f"%(prog)s {''.join(positionals)}[arguments]", [], [])
        formatter.add_text(self.description)
        for title, actions in self.sections().items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:  # type: ignore[misc]  # exit() does not return
        end = "" if message[-1] in ".?!" else "."
        self.exit(2, f"{self.prog}: {message}{end} `--help` lists the arguments.\n")


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that occurs twice is an error: it would silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set[Any]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key)  # 0.5 and 0.50 are one
            if value in seen:
                raise yaml.MarkedYAMLError(problem=f"`{key.value}` is set twice", problem_mark=key.start_mark)
            seen.add(value)
        return node


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)  # dates are text


def load_yaml(path: str | Path) -> Any:
    """The content of a YAML file; raises a ValueError that names the line if it is not valid or sets a key twice."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeyLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}. Save it as UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: {error.problem}. Correct the YAML.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error


def read_yaml(path: str | Path, cls: type[Dataclass]) -> dict[str, Any]:
    """Reads a YAML file of arguments of `cls`, see [`convert_yaml_values`]; raises a ValueError for unknown ones."""
    values = load_yaml(path) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `argument: value` lines, got a {type(values).__name__}.")
    values = {str(name): value for name, value in values.items()}
    names = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name in ("preset", "config"):
            raise ValueError(f"{path}: `{name}` cannot be set in a file. Pass `--{name}` on the command line.")
        if name not in names:
            raise ValueError(f"{path} has an unknown argument {did_you_mean(name, names)}")
    return convert_yaml_values(cls, values, str(path))


def convert_yaml_values(cls: type[Dataclass], values: Mapping[str, Any], context: str) -> dict[str, Any]:
    """Values that YAML makes of arguments of `cls`, as the types of their fields; null and `[]` are the default.

    `context` says where they are from. Raises a ValueError for values of other types, among them text without quotes
    that YAML reads as true or false.
    """
    fields, hints, converted = {field.name: field for field in dataclasses.fields(cls)}, get_type_hints(cls), {}
    for name, value in values.items():
        is_list = "list" in str(hints[name])
        items = value if is_list and isinstance(value, list) else [value]
        if value is None or (is_list and value == []):
            converted[name] = field_default(fields[name])
        elif any(isinstance(item, list | dict) for item in items):
            raise ValueError(
                f"{context}: `{name}` takes {'a list of values' if is_list else 'one value'}, not {value}."
            )
        elif name == "mixed_precision" and value is False:  # what YAML makes of a bare `no`
            converted[name] = "no"
        elif "bool" not in str(hints[name]) and any(isinstance(item, bool) for item in items):
            raise ValueError(
                f"{context}: `{name}` is {str(value).lower()}, which YAML makes of yes, no, on and off. Put text in "
                "quotes."
            )
        else:
            converted[name] = convert(f"{context}: {name}", value, hints[name])
    return converted


def write_yaml(arguments: Any, path: str | Path) -> None:
    """Writes all resolved arguments, so that `--config` repeats the run."""
    atomic_write(Path(path), yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))


def to_pair(name: str, values: list[int]) -> tuple[int, int] | None:
    """One number twice, or two numbers; `None` for none. Raises a ValueError for more."""
    if len(values) > 2:
        raise ValueError(f"{name} takes one number or two, got {values}.")
    return (values[0], values[-1]) if values else None


def _command_name(cls: type[Dataclass]) -> str:
    return cls.__name__.removesuffix("Arguments").lower()
