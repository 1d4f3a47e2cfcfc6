"""Other names of options: those of version 0.1, which this version still accepts, and what all commands call alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

#: Other and current names on the command line and in YAML.
_RENAMED = {
    "concept_loss_weight": "concept_loss.weight",
    "concept_loss_schedule": "concept_loss.schedule",
    "num_concepts": "student.num_concepts",
    "precision": "parallel.precision",
}
#: The same of a run alone: a plan's `device` is the kind of accelerator that it plans for.
_RENAMED_IN_RUNS = {"device": "parallel.device"}
#: The block *before* which the mixer is inserted; `layer` is the block after which it is.
_INSERT_LAYER = "student.insert_layer"
#: Approximations that gained nothing. Version 0.1 wrote them into every run's config.yaml, mostly unset.
_DROPPED = ("student.concept_window", "student.concept_groups")


def renamed(config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of a configuration's fields, by their current names, which may be fields of nested configurations."""
    result = dict(fields)
    for old, new in _RENAMED.items():
        if old in result:
            owner, _, name = new.partition(".")
            result[owner] = _with(result.get(owner, getattr(config, owner)), name, result.pop(old))
    return result


def _with(config: Any, name: str, value: Any) -> Any:
    """The configuration with one of its own or its mixer's fields replaced."""
    if not hasattr(config, name):
        return replace(config, mixer=config.mixer.changed(**{name: value}))
    return replace(config, **{name: value})


def renamed_arguments(argv: Iterable[str], *, is_run: bool = True) -> Iterator[str]:
    """Command-line arguments of a run or a plan, with other option names replaced by `--name=value` with the current ones."""
    names = _RENAMED | _RENAMED_IN_RUNS if is_run else _RENAMED
    old = ""
    for argument in argv:
        if old:
            yield _renamed_option(names, old, argument)
            old = ""
            continue
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in (*names, _INSERT_LAYER, *_DROPPED):
            yield argument
        elif not equals:
            old = name
        elif name not in _DROPPED or value != "None":
            yield _renamed_option(names, name, value)
    if old:
        yield f"--{old}"


def _renamed_option(names: Mapping[str, str], name: str, value: str) -> str:
    if name == _INSERT_LAYER and value.isdigit():
        name, value = "student.layer", str(int(value) - 1)
    return f"--{names.get(name, name).replace('_', '-')}={value}"
