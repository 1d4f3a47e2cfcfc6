"""A configuration put together from several places: a recipe, a YAML file, the command line, each over the one before.

    recipe < YAML < command line

Nothing is checked before it is whole: half of a configuration can be wrong in ways that the other half mends.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from cocomix.base.artifacts import CONFIG_NAME
from cocomix.base.errors import CocomixError, reason_of
from cocomix.training.numbers import parse_count

Config = TypeVar("Config")


def fields_of(config: Any) -> dict[str, Any]:
    """A dataclass's fields by name, nested configurations as they are."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or in the `config.yaml` of a run's folder.

    Raises:
        CocomixError: there is none, it can't be read, or a key is there twice.
    """
    file = path / CONFIG_NAME if path.is_dir() else path
    try:
        value = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise CocomixError(f"{file} does not exist; --config takes a YAML file, or the folder of a run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CocomixError(f"{file} can't be read: {reason_of(error)}") from error
    except yaml.YAMLError as error:
        raise CocomixError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CocomixError(f"{file} holds a {type(value).__name__}; expected options as `name: value`")
    return value


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"the key {key!r} in line {key_node.start_mark.line + 1} is no name")
            if key in mapping:
                raise yaml.YAMLError(f"the key {key!r} is there twice, again in line {key_node.start_mark.line + 1}")
            mapping[key] = None
        return dict(super().construct_mapping(node, deep))


def apply_yaml(
    fields: Mapping[str, Any], config_class: type[Any], values: Mapping[Any, Any], source: Path, prefix: str = ""
) -> dict[str, Any]:
    """Fields of a configuration with the values of a YAML mapping over them.

    Args:
        fields: by name; a field may be missing.
        config_class: the dataclass they belong to.
        values: nested like the dataclass.
        source: file that the values come from, for messages.
        prefix: key path of the mapping in the file, with a dot at its end.

    Raises:
        CocomixError: a key is unknown, or a value has another type than its field.
    """
    hints = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]
    merged = dict(fields)
    for key, value in values.items():
        if key not in names:
            raise CocomixError(f"{source}: there is no option {prefix}{key}{nearest(str(key), names, prefix)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            if not isinstance(value, dict):
                raise CocomixError(f"{source}: {prefix}{key} is {value!r}; expected options as `name: value` below it")
            default = merged[key] if key in merged else hint()
            merged[key] = hint(**apply_yaml(fields_of(default), hint, value, source, f"{prefix}{key}."))
        else:
            value = _counted(value, hint) if key.endswith("tokens") else value
            merged[key] = _converted(value, hint, f"{source}: {prefix}{key}")
    return merged


def nearest(name: str, names: Collection[str], prefix: str = "") -> str:
    """The end of a sentence about an unknown name: the nearest ones, or all where none is near and they are few."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    if close:
        return f"; perhaps {' or '.join(prefix + match for match in close)}"
    return f"; there are {', '.join(prefix + name for name in names)}"


_MISFIT = object()


def _converted(value: Any, hint: Any, place: str) -> Any:
    found = _fit(value, hint)
    if found is _MISFIT:
        raise CocomixError(f"{place} is {value!r}; expected {_describe(hint)}")
    return found


def _counted(value: Any, hint: Any) -> Any:
    """A number of tokens, of which people write 2M and 1e6, as its field has it; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    if hint is str or str in typing.get_args(hint):
        return str(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    try:
        return parse_count(value, "") if isinstance(value, str) else value
    except CocomixError:
        return value


def _fit(value: Any, hint: Any) -> Any:
    """The value as the type asks for it, or `_MISFIT`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        fits = (_fit(value, argument) for argument in arguments)
        return next((fit for fit in fits if fit is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if value in arguments else _MISFIT
    if origin is tuple:
        if not isinstance(value, list):
            return _MISFIT
        items = [_fit(item, arguments[0]) for item in value]
        return _MISFIT if any(item is _MISFIT for item in items) else tuple(items)
    if hint is type(None):
        return None if value is None else _MISFIT
    if hint is Path:
        return Path(value) if isinstance(value, str) else _MISFIT
    if hint is float:
        return _number(value)
    if hint is int and isinstance(value, bool):
        return _MISFIT
    return value if isinstance(value, hint) else _MISFIT


def _number(value: Any) -> Any:
    """YAML takes 3e-4, without a dot, for a string."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _MISFIT
    try:
        return float(value)
    except ValueError:
        return _MISFIT


def _describe(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a list of which each is {_describe(arguments[0])}"
    words = {type(None): "null", Path: "a path", float: "a number", int: "a whole number", bool: "true or false"}
    return words.get(hint, "a text")
