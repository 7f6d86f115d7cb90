"""Validates argument values from Python code against their fields' types, and converts them to plain objects."""

import argparse
import difflib
import functools
import os
import typing
from collections.abc import Iterable, Mapping, Set
from numbers import Real
from typing import Any, ClassVar, Protocol

from transformers.hf_argparser import string_to_bool


# Names of types in errors, singular and plural.
TYPE_NAMES = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
}
MAX_VALUE_LENGTH = 60  # maximum characters of a value shown in an error


class Dataclass(Protocol):
    """Any dataclass; argument dataclasses validate themselves in `__post_init__`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def convert_fields(arguments: Dataclass) -> None:
    """Converts every field of a dataclass in place, see [`convert`]; called at the start of its `__post_init__`.

    In paths, `~` becomes the home folder, as in a shell.
    """
    for name, hint in get_type_hints(type(arguments)).items():
        value = convert(name, getattr(arguments, name), hint)
        if arguments.__dataclass_fields__[name].metadata.get("path") and value is not None:
            value = [*map(os.path.expanduser, value)] if isinstance(value, list) else os.path.expanduser(value)
        setattr(arguments, name, value)


def convert(name: str, value: Any, hint: Any) -> Any:
    """Converts a value to the plain Python object of a type hint; `name` is its name in errors.

    Only plain objects can be written to YAML and JSON: NumPy scalars, arrays and tensors become numbers and lists, and
    paths become strings. Strings are parsed as on the command line, floats without a fraction become integers if the
    hint is `int`, numbers become strings if it is `str`, and a single value becomes a list if it is a list. `hint` is
    `bool`, `int`, `float`, `str`, a `Literal` of strings, a `list` of one of these, or any of these with `| None`.
    Raises a ValueError that says what is allowed.
    """
    try:
        return _convert_value(value, hint)
    except (TypeError, ValueError, OverflowError, argparse.ArgumentTypeError):
        choices = [choice for kind in (hint, *typing.get_args(hint)) for choice in _get_choices(kind)]
        received = did_you_mean(value, choices) if choices and isinstance(value, str) else f"{_format_value(value)}."
        raise ValueError(f"{name} must be {_describe_hint(hint)}, got {received}") from None


@functools.cache
def get_type_hints(cls: type[Dataclass]) -> dict[str, Any]:
    """Types of a dataclass's fields by name, as objects."""
    return typing.get_type_hints(cls)


# What other libraries call arguments, and their names here.
_USUAL_NAMES = {
    "lr": "learning_rate",
    "per_device_train_batch_size": "batch_size",
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "num_train_epochs"), "max_steps"),
}


def did_you_mean(name: str, names: list[str]) -> str:
    """The name in quotes, with a suggestion.

    That is our name for another library's, such as `learning_rate` for `lr`; `eval_split` for `split`; else the most
    similar name.
    """
    usual_matches = [other for other in names if other == _USUAL_NAMES.get(name.replace("-", "_"))]
    suffix_matches = [other for other in names if other.endswith(f"_{name}")]
    matches = usual_matches or suffix_matches or difflib.get_close_matches(name, names, n=1)
    return f"`{name}`. Did you mean `{matches[0]}`?" if matches else f"`{name}`."


def _convert_value(value: Any, hint: Any) -> Any:
    if isinstance(value, str):
        value = str.__str__(value)  # for NumPy strings and enums
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if value is None and type(None) in typing.get_args(hint):
        return None
    hint = _strip_none(hint)
    if typing.get_origin(hint) is list:
        if isinstance(value, Mapping | Set | bytes | bytearray):  # unordered, or not text
            raise TypeError
        values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
        return [_convert_value(item, typing.get_args(hint)[0]) for item in values]
    if choices := _get_choices(hint):
        if value not in choices:
            raise ValueError
        return value
    if hint is bool:
        return value if isinstance(value, bool) else string_to_bool(str(value))
    is_fraction = isinstance(value, float) and not value.is_integer()
    is_text = isinstance(value, str | Real)
    if isinstance(value, bool) or (hint is int and is_fraction) or (hint is str and not is_text):
        raise TypeError
    return hint(value)


def _strip_none(hint: Any) -> Any:
    kinds = typing.get_args(hint)
    return next(kind for kind in kinds if kind is not type(None)) if type(None) in kinds else hint


def _get_choices(hint: Any) -> tuple[str, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def _describe_hint(hint: Any) -> str:
    kind, suffix = _strip_none(hint), " or None" if type(None) in typing.get_args(hint) else ""
    if choices := _get_choices(kind):
        *others, last = (f"`{choice}`" for choice in choices)
        return (f"{', '.join(others)} or {last}" if others else last) + suffix
    if typing.get_origin(kind) is list:
        return f"a list of {TYPE_NAMES[typing.get_args(kind)[0]][1]}{suffix}"
    return TYPE_NAMES[kind][0] + suffix


def _format_value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH and "\n" not in text else f"a {type(value).__name__}"
