"""What the options of a training run start from: a recipe, and the settings of the mixer that is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cocomix.base.errors import CocomixError, nearest
from cocomix.mixers.config import MIXERS, MixerConfig
from cocomix.objectives.config import OBJECTIVES
from cocomix.training.config import NOT_NEEDED, StudentConfig, TrainConfig
from cocomix.training.recipes import Recipe, find_recipe
from cocomix.training.renamed import renamed_arguments

_MIXER = "--student.mixer"


def start(config_class: type[Any], name: str | None) -> tuple[Recipe | None, Any]:
    """A recipe by name, and the configuration that options change.

    Args:
        config_class: `TrainConfig`, or one that holds a run in its field `run` and the recipe's name in `recipe`.
        name: of the recipe; None: the defaults.
    """
    recipe = None if name is None else find_recipe(name)
    run = TrainConfig() if recipe is None else recipe.config()
    if config_class is TrainConfig:
        return recipe, run
    # Such a configuration is no run yet: it needs neither data nor output.
    return recipe, config_class(run=dataclasses.replace(run, data=NOT_NEEDED, output=NOT_NEEDED), recipe=name)


def check(recipe: Recipe | None, config: Any) -> None:
    """Refuse a run that lacks something, or whose labels are not the recipe's."""
    if isinstance(config, TrainConfig):
        config.require_whole()
        if recipe is not None:
            recipe.check(config)


def registered() -> list[str]:
    """Mixers and objectives by name, for the help."""
    return [f"  mixers: {', '.join(MIXERS)}", f"  objectives: {', '.join(OBJECTIVES)}"]


def with_mixer(default: Any, from_file: Sequence[str], words: Sequence[str]) -> tuple[Any, list[str], list[str]]:
    """The configuration with the settings of the mixer that options name, and the options by today's names.

    Args:
        default: from `start`.
        from_file: options of a YAML file.
        words: options of the command line.
    """
    from_file, words = list(renamed_arguments(from_file)), list(renamed_arguments(words))
    run = default if isinstance(default, TrainConfig) else default.run
    if run is not default:  # what is no run writes nothing, and is not held against what a run must not contradict
        from_file = [word for word in from_file if not word.startswith("--output=")]
    name = _last_value([*from_file, *words], _MIXER)
    if name is not None and name != run.student.mixer.mixer:
        if name not in MIXERS:
            raise CocomixError(f"there is no mixer {name!r}{nearest(name, MIXERS)}")
        student = dataclasses.replace(run.student, mixer=_as_other(run.student.mixer, MIXERS[name]))
        run = dataclasses.replace(run, student=student)
        default = run if isinstance(default, TrainConfig) else dataclasses.replace(default, run=run)
    return default, _without_other_mixers(from_file, run.student.mixer), words


def _as_other(mixer: MixerConfig, other: type[MixerConfig]) -> MixerConfig:
    """Settings of another mixer, with what both have."""
    shared = {field.name for field in dataclasses.fields(other)} - {"mixer"}
    values = {field.name: getattr(mixer, field.name) for field in dataclasses.fields(mixer) if field.name in shared}
    return other(**values)


def _without_other_mixers(words: Sequence[str], mixer: MixerConfig) -> list[str]:
    """Version 0.1 wrote the settings of all mixers into a run's file: those of others than the run's are passed over."""
    own = {field.name for part in (StudentConfig, type(mixer)) for field in dataclasses.fields(part)}
    other = {field.name for config in MIXERS.values() for field in dataclasses.fields(config)} - own
    options = tuple(f"--student.{name.replace('_', '-')}=" for name in other)
    return [word for word in words if not word.startswith(options)]


def _last_value(words: Sequence[str], option: str) -> str | None:
    value = None
    for index, word in enumerate(words):
        if word == option:
            value = words[index + 1] if index + 1 < len(words) else None
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value
