"""Dataclasses of arguments: from keywords, presets, YAML files and the command line, and back to a file."""

import argparse
import dataclasses
import difflib
import sys
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

import yaml
from transformers import HfArgumentParser

from .files import atomic_write


PRESETS = Path(__file__).parent.parent / "presets"
# The order of the groups in `--help`; arguments without a group come under the last one.
GROUPS = ("data", "model", "optimisation", "evaluation", "checkpoints", "logging", "Hub", "other")


def arg(
    default: Any,
    description: str,
    *,
    group: str = "other",
    common: bool = False,
    resumable: bool = False,
    path: bool = False,
    renamed_from: str | None = None,
) -> Any:
    """A field of a dataclass of arguments.

    Args:
        default: its default; a list is copied for each instance.
        description: what `--help` says.
        group: group of `--help`, one of `GROUPS`.
        common: whether most users need it, so that `--help` shows it first.
        resumable: whether a resumed run may have another value: its final weights do not depend on it, except for
            rounding and BatchNorm's view of a micro-batch.
        path: whether it may hold a path of this machine, of which a model card publishes the last part only.
        renamed_from: its earlier name, which still works with a warning.
    """
    metadata = {
        "help": description,
        "group": group,
        "common": common,
        "resumable": resumable,
        "path": path,
        "renamed_from": renamed_from,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Dataclass(Protocol):
    """Any dataclass; those of arguments validate themselves in `__post_init__`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Arguments = TypeVar("Arguments", bound=Dataclass)


def names_with(cls: type[Dataclass], key: str) -> list[str]:
    """Names of the fields whose metadata has a true value under `key`, such as `"resumable"`."""
    return [field.name for field in dataclasses.fields(cls) if field.metadata.get(key)]


def list_presets(kind: str) -> list[str]:
    """Names of the presets that are shipped with the package.

    Args:
        kind: `"pretrain"` or `"finetune"`.
    """
    return sorted(path.stem for path in (PRESETS / kind).glob("*.yaml"))


def preset_file(kind: str, name: str) -> Path:
    """The file of a preset.

    Raises:
        ValueError: there is none of that name; names the nearest one.
    """
    path = PRESETS / kind / f"{name}.yaml"
    if name not in list_presets(kind):
        raise ValueError(f"preset: there is no {did_you_mean(name, list_presets(kind))} `ddep-hub list` lists them.")
    return path


def build_arguments(cls: type[Arguments], values: Mapping[str, Any]) -> Arguments:
    """Arguments from keywords, as the Python functions take them.

    A `preset` among them is read first; a single value stands for a list of one, and a path for its text.

    Args:
        cls: a dataclass of arguments, such as [`PretrainArguments`].
        values: fields by name, and `preset`.

    Raises:
        TypeError: there is no such field; names the nearest one.
        ValueError: a value is out of range, or there is no such preset.
    """
    given = dict(values)
    names = [field.name for field in dataclasses.fields(cls)]
    preset = given.pop("preset", None)
    if preset is not None:
        given = {**read_yaml(preset_file(_kind(cls), preset), cls), **given}
    renamed = _renamed(cls)
    result: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for name, value in given.items():
        if name in renamed:
            _warn_renamed(name, renamed[name])
            name = renamed[name]
        if name not in names:
            raise TypeError(f"{cls.__name__} has no argument {did_you_mean(name, names)}")
        if isinstance(value, Path):
            value = str(value)
        is_list = "list" in str(hints[name])
        if is_list and value is not None and not isinstance(value, (list, tuple)):
            value = [value]
        if is_list and value is not None:
            value = [str(item) if isinstance(item, Path) else item for item in value]
        result[name] = value
    return cls(**result)


def parse_arguments(cls: type[Arguments], argv: list[str] | None = None) -> Arguments:
    """As [`parse_command`], for a script without further arguments."""
    return parse_command(cls, argv)[0]


def parse_command(
    cls: type[Arguments],
    argv: list[str] | None = None,
    *,
    command: str | None = None,
    positionals: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> tuple[Arguments, dict[str, Any]]:
    """Arguments from `--preset name`, `--config file.yaml` and the command line, each overriding the one before.

    Args:
        cls: a dataclass of arguments, such as [`PretrainArguments`].
        argv: command line; `sys.argv[1:]` by default.
        command: what the help calls the program, such as `ddep-hub predict`.
        positionals: arguments without a flag, and what `argparse.ArgumentParser.add_argument` takes for each.

    Returns:
        The arguments, and the values of `positionals`.

    Raises:
        SystemExit: an unknown argument, on the command line or in a file (the nearest one is named), or a value of
            the wrong type or out of range.
    """
    parser = _Parser(cls, prog=command, allow_abbrev=False, description=cls.__doc__)
    for name, options in positionals.items():
        parser.add_argument(name, **options)
    presets = list_presets(_kind(cls))
    if presets:
        parser.add_argument("--preset", help=f"Settings shipped with the package: {', '.join(presets)}.")
    parser.add_argument("--config", help="YAML file with any of these arguments; the command line overrides it.")
    names = [field.name for field in dataclasses.fields(cls)]
    argv = _with_new_names(cls, sys.argv[1:] if argv is None else list(argv))
    known, _ = parser.parse_known_args(argv)
    try:
        flags: list[str] = []
        if presets and known.preset:
            flags += [*as_flags(read_yaml(preset_file(_kind(cls), known.preset), cls)), "--preset", known.preset]
        if known.config:
            flags += [*as_flags(read_yaml(known.config, cls)), "--config", known.config]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    # In front of the command line, so that one parser checks the types of all. `--preset` and `--config` once more,
    # so that a list at the end of a file does not take in arguments without a flag.
    namespace, unknown = parser.parse_known_args([*flags, *argv])
    for flag in unknown:
        if flag.startswith("--"):
            parser.error(f"unknown argument {did_you_mean(flag.lstrip('-').split('=')[0], names)}")
    if unknown:
        parser.error(f"values without an argument: {' '.join(unknown)}")
    try:
        arguments = cls(**{name: getattr(namespace, name) for name in names})
    except ValueError as error:
        raise parser.error(str(error)) from error
    return arguments, {name: getattr(namespace, name) for name in positionals}


class _Parser(HfArgumentParser):
    """transformers' parser of dataclasses, whose help shows the common arguments first and the others in groups."""

    def __init__(self, cls: type[Dataclass], **kwargs: Any) -> None:
        self.fields = {field.name: field.metadata for field in dataclasses.fields(cls)}
        hints = typing.get_type_hints(cls)
        # transformers hands all metadata to argparse, which knows `help` alone.
        plain = [
            (
                field.name,
                hints[field.name],
                dataclasses.field(
                    default=field.default,
                    default_factory=field.default_factory,
                    metadata={"help": field.metadata["help"]},
                ),
            )
            for field in dataclasses.fields(cls)
        ]
        super().__init__(dataclasses.make_dataclass(cls.__name__, plain, kw_only=True), **kwargs)

    def format_help(self) -> str:
        fields = self.fields
        sections: dict[str, list[argparse.Action]] = {"arguments": [], "most used": []}
        sections |= {name: [] for name in GROUPS}
        for action in self._actions:
            if not action.option_strings:
                sections["arguments"].append(action)
            elif action.dest not in fields or fields[action.dest].get("common"):
                # `--no_x` is what transformers adds for a flag that is on by default.
                is_help = action.dest == "help"
                sections["other" if is_help else "most used"].append(action)
            else:
                sections[fields[action.dest].get("group", "other")].append(action)
        formatter = self._get_formatter()
        formatter.add_usage("%(prog)s [arguments]", [], [])
        formatter.add_text(self.description)
        for title, actions in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()


def read_yaml(path: str | Path, cls: type[Dataclass]) -> dict[str, Any]:
    """Reads a file of arguments.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a mapping, or holds an unknown argument.
    """
    with open(path, encoding="utf-8") as file:
        try:
            values = yaml.safe_load(file) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `argument: value` lines, got a {type(values).__name__}.")
    names, renamed = [field.name for field in dataclasses.fields(cls)], _renamed(cls)
    result: dict[str, Any] = {}
    for name, value in values.items():
        if name in renamed:
            _warn_renamed(name, renamed[name])
        elif name not in names:
            raise ValueError(f"{path} has an unknown argument {did_you_mean(str(name), names)}")
        result[str(renamed.get(name, name))] = value
    return result


def write_yaml(arguments: Any, path: str | Path) -> None:
    """Writes all resolved arguments, so that `--config` repeats the run."""
    atomic_write(Path(path), yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))


def tracked(arguments: Any) -> dict[str, int | float | str | bool]:
    """All resolved arguments as trackers take them: lists and `None` as text."""
    values = dataclasses.asdict(arguments)
    return {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in values.items()}


def pair(name: str, values: list[int]) -> tuple[int, int] | None:
    """One number twice, or two numbers; `None` for none.

    Raises:
        ValueError: there are more; names the argument.
    """
    if len(values) > 2:
        raise ValueError(f"{name} takes one number or two, got {values}.")
    return (values[0], values[-1]) if values else None


def _kind(cls: type[Dataclass]) -> str:
    return cls.__name__.removesuffix("Arguments").lower()


def did_you_mean(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"`{name}`. Did you mean `{close[0]}`?" if close else f"`{name}`."


def _renamed(cls: type[Dataclass]) -> dict[str, str]:
    """Names by their earlier ones."""
    fields = [(field.metadata.get("renamed_from"), field.name) for field in dataclasses.fields(cls)]
    return {str(old): new for old, new in fields if old}


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(f"`{old}` is now called `{new}`.", FutureWarning, stacklevel=3)


def _with_new_names(cls: type[Dataclass], argv: list[str]) -> list[str]:
    """The command line with the earlier names of arguments replaced."""
    renamed, result = _renamed(cls), []
    for word in argv:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name.removeprefix("no_") in renamed:
            old = name.removeprefix("no_")
            _warn_renamed(old, renamed[old])
            word = "--" + ("no_" if name != old else "") + renamed[old] + equals + value
        result.append(word)
    return result


def as_flags(values: dict[str, Any]) -> list[str]:
    """Arguments of a file as a command line; what is null keeps its default."""
    flags: list[str] = []
    for name, value in values.items():
        if value is not None and value != []:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags
