"""Options by the names that they had in version 0.1, which this version still takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

#: Name on the command line and in YAML then and now.
_RENAMED = {
    "concept_loss_weight": "concept_loss.weight",
    "concept_loss_schedule": "concept_loss.schedule",
    "num_concepts": "student.num_concepts",
}
#: The block *before* which the mixer stands, where `layer` is the block after which it does.
_INSERT_LAYER = "student.insert_layer"
#: Approximations that gained nothing; version 0.1 wrote them into every run's file, mostly unset.
_DROPPED = ("student.concept_window", "student.concept_groups")


def renamed(config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration to replace, by today's names, in nested configurations as well."""
    result = dict(fields)
    for old, new in _RENAMED.items():
        if old in result:
            owner, _, name = new.partition(".")
            result[owner] = _with(result.get(owner, getattr(config, owner)), name, result.pop(old))
    return result


def _with(config: Any, name: str, value: Any) -> Any:
    """A configuration with one field replaced, which may be its mixer's."""
    if not hasattr(config, name):
        return replace(config, mixer=config.mixer.changed(**{name: value}))
    return replace(config, **{name: value})


def renamed_arguments(words: Iterable[str]) -> Iterator[str]:
    """The words of a command line with options by today's names, those as `--name=value`."""
    old = ""
    for word in words:
        if old:
            yield _renamed_option(old, word)
            old = ""
            continue
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in (*_RENAMED, _INSERT_LAYER, *_DROPPED):
            yield word
        elif not equals:
            old = name
        elif name not in _DROPPED or value != "None":
            yield _renamed_option(name, value)
    if old:
        yield f"--{old}"


def _renamed_option(name: str, value: str) -> str:
    if name == _INSERT_LAYER and value.isdigit():
        name, value = "student.layer", str(int(value) - 1)
    return f"--{_RENAMED.get(name, name).replace('_', '-')}={value}"
