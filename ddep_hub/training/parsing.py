"""From a YAML file and the command line to arguments, and back to a file."""

import dataclasses
import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

import yaml
from transformers import HfArgumentParser

from .arguments import RunArguments
from .run_folder import write_whole


class Dataclass(Protocol):
    """Any dataclass; those of arguments check themselves."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Arguments = TypeVar("Arguments", bound=Dataclass)


def parse_arguments(cls: type[Arguments], argv: list[str] | None = None) -> Arguments:
    """Arguments from `--config file.yaml` and the command line, which has the last word.

    Args:
        cls: a dataclass of arguments, such as [`PretrainArguments`].
        argv: command line; `sys.argv[1:]` by default.

    Raises:
        SystemExit: an unknown argument, on the command line or in the file (the nearest one is named), or a value
            of the wrong type or out of range.
    """
    return parse_command(cls, argv)[0]


def parse_command(
    cls: type[Arguments],
    argv: list[str] | None = None,
    *,
    command: str | None = None,
    positionals: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> tuple[Arguments, dict[str, Any]]:
    """As [`parse_arguments`], for a command that also takes arguments without a name.

    Args:
        cls: a dataclass of arguments.
        argv: command line; `sys.argv[1:]` by default.
        command: what the help calls the program, such as `ddep-hub predict`.
        positionals: the arguments without a name, and what `argparse.ArgumentParser.add_argument` takes for each.

    Returns:
        The arguments, and the values of `positionals`.

    Raises:
        SystemExit: as in [`parse_arguments`].
    """
    parser = HfArgumentParser(
        cls,
        prog=command,
        allow_abbrev=False,
        description=f"{cls.__doc__} They can also be given in a file, see --config.",
    )
    for name, options in positionals.items():
        parser.add_argument(name, **options)
    parser.add_argument("--config", help="YAML file with any of the arguments; the command line overrides it.")
    names = [field.name for field in dataclasses.fields(cls)]
    argv = sys.argv[1:] if argv is None else argv
    known, _ = parser.parse_known_args(argv)
    if known.config:
        try:
            # In front of the command line, so that one parser checks the types of both. --config once more, so that
            # a list at the end of the file does not take in the command's arguments without a name.
            argv = [*as_flags(read_yaml(known.config, names)), "--config", known.config, *argv]
        except (OSError, ValueError) as error:
            parser.error(str(error))
    namespace, unknown = parser.parse_known_args(argv)
    for flag in unknown:
        if flag.startswith("--"):
            parser.error(f"unknown argument {unknown_name(flag.lstrip('-').split('=')[0], names)}")
    if unknown:
        parser.error(f"values without an argument: {' '.join(unknown)}")
    try:
        arguments = cls(**{name: getattr(namespace, name) for name in names})
    except ValueError as error:
        raise parser.error(str(error)) from error
    return arguments, {name: getattr(namespace, name) for name in positionals}


def unknown_name(name: str, names: list[str]) -> str:
    """Says that there is no argument of that name, and which one comes near."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"`{name}`. Did you mean `{close[0]}`?" if close else f"`{name}`. See --help."


def as_flags(values: dict[str, Any]) -> list[str]:
    """Arguments of a file as a command line; what is null keeps its default."""
    flags: list[str] = []
    for name, value in values.items():
        if value is not None and value != []:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def read_yaml(path: str | Path, names: list[str]) -> dict[str, Any]:
    """Reads a file of arguments.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no mapping, or holds an unknown argument.
    """
    with open(path, encoding="utf-8") as file:
        try:
            values = yaml.safe_load(file) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `argument: value` lines, got a {type(values).__name__}.")
    for name in values:
        if name not in names:
            raise ValueError(f"{path} has an unknown argument {unknown_name(str(name), names)}")
    return values


def write_yaml(arguments: RunArguments, path: str | Path) -> None:
    """Writes all resolved arguments, so that `--config` repeats the run."""
    write_whole(Path(path), yaml.safe_dump(dataclasses.asdict(arguments), sort_keys=False))


def tracked(arguments: RunArguments) -> dict[str, int | float | str | bool]:
    """All resolved arguments as trackers take them: lists and `None` as text."""
    values = dataclasses.asdict(arguments)
    return {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in values.items()}
