"""Defaults for the options of a training run: a recipe, and the settings of the chosen mixer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError, nearest
from cocomix.mixers.config import MIXERS, RECOMMENDED_MIXING, ConceptConfig, MixerConfig
from cocomix.objectives.config import OBJECTIVES
from cocomix.training.config import NOT_NEEDED, StudentConfig, TrainConfig
from cocomix.training.recipes import RECOMMENDED_LOSS, Recipe, find_recipe
from cocomix.training.renamed import renamed_arguments

_MIXER, _PRETRAINED, _SAE = "--student.mixer", "--student.pretrained", "--student.start-from-sae"
_LABELS = ("--labels", "--sae")


def start(config_class: type[Any], name: str | None) -> tuple[Recipe | None, Any]:
    """The recipe called `name`, if any, and the configuration that options then change.

    Args:
        config_class: `TrainConfig`, or a class that holds a run in its field `run` and the recipe's name in `recipe`.
        name: name of the recipe; None: the defaults.
    """
    recipe = None if name is None else find_recipe(name)
    run = TrainConfig() if recipe is None else recipe.config()
    if config_class is TrainConfig:
        return recipe, run
    # A plan is not a run yet: it needs neither data nor output.
    return recipe, config_class(run=dataclasses.replace(run, data=NOT_NEEDED, output=NOT_NEEDED), recipe=name)


def check(recipe: Recipe | None, config: Any) -> None:
    """Refuse a run without data or output, or whose labels don't match its recipe."""
    if isinstance(config, TrainConfig):
        config.require_whole()
        if recipe is not None:
            recipe.check(config)


def registered() -> list[str]:
    """Lines of the help text that name the mixers and objectives."""
    return ["", f"Mixers: {', '.join(MIXERS)}.", f"Objectives: {', '.join(OBJECTIVES)}."]


def with_mixer(
    recipe: Recipe | None, default: Any, from_file: Sequence[str], argv: Sequence[str]
) -> tuple[Any, list[str], list[str]]:
    """The configuration with the settings of the chosen mixer, and the options by their current names.

    Without a recipe, a run with labels is CoCoMix as recommended, unless another mixer is named.

    Args:
        recipe: that the configuration is of, if any.
        default: configuration from `start`.
        from_file: options from a YAML file.
        argv: options from the command line.

    Returns:
        the configuration, the options from the file and those from the command line.

    Raises:
        CocomixError: the mixer is unknown.
    """
    run = default if isinstance(default, TrainConfig) else default.run
    from_file, argv = (list(renamed_arguments(part, is_run=run is default)) for part in (from_file, argv))
    if run is not default:  # a plan writes no output
        from_file = [argument for argument in from_file if not argument.startswith("--output=")]
    typed = [*from_file, *argv]
    name, pretrained, sae = (_last_value(typed, option) for option in (_MIXER, _PRETRAINED, _SAE))
    mixer = _own_mixer(pretrained) or run.student.mixer
    if name is None and recipe is None and any(_last_value(typed, option) for option in _LABELS):
        name = mixer.mixer if mixer.has_concepts else ConceptConfig.mixer
    if name is not None and name != mixer.mixer:
        if name not in MIXERS:
            raise CocomixError(f"there is no mixer {name!r}{nearest(name, MIXERS)}")
        mixer = _as_other(mixer, MIXERS[name])
        if getattr(mixer, "mixing", None) == "interleave" and sae is None:  # a mixer with another default keeps it
            if mixer.has_concepts and (recipe is None or pretrained is not None):
                mixer = mixer.changed(mixing=RECOMMENDED_MIXING)
            elif pretrained is not None:
                mixer = mixer.changed(mixing="interleave_residual")  # as `from_backbone`: close to the decoder's logits
    if recipe is None and mixer.has_concepts and mixer is not run.student.mixer:
        # Ending early was measured on decoders from scratch.
        loss = RECOMMENDED_LOSS if pretrained is None else dataclasses.replace(RECOMMENDED_LOSS, end=1.0)
        run = dataclasses.replace(run, concept_loss=loss)
    # Sizes that are left out are not a scratch decoder's, nor a recipe's, where a decoder is given.
    given = None if pretrained is None else StudentConfig(pretrained=Path(pretrained), mixer=mixer)
    run = dataclasses.replace(run, student=given or dataclasses.replace(run.student, mixer=mixer))
    default = run if isinstance(default, TrainConfig) else dataclasses.replace(default, run=run)
    others = _options_of_other_mixers(run.student.mixer)
    for argument in argv:
        if (option := argument.partition("=")[0].replace("_", "-")) in others:
            raise CocomixError(
                f"{option} is no setting of the mixer {run.student.mixer.mixer!r}; give labels, or another --student.mixer"
            )
    # Version 0.1 wrote every mixer's settings into config.yaml.
    from_file = [argument for argument in from_file if argument.partition("=")[0] not in others]
    return default, from_file, argv


def _own_mixer(pretrained: str | None) -> MixerConfig | None:
    """The mixer of the model that a student continues from, if it has one."""
    file = None if pretrained is None else Path(pretrained, "config.json")
    if file is None or not file.is_file() or b'"cocomix"' not in file.read_bytes():
        return None
    from cocomix.modeling.loading import load_config  # loads torch, which such a student needs in any case

    return getattr(load_config(file.parent), "mixer", None)


def _as_other(mixer: MixerConfig, other: type[MixerConfig]) -> MixerConfig:
    """Settings of another mixer that keep the values of shared fields."""
    shared = set(other.setting_names()) & set(mixer.setting_names()) - {"mixer"}
    return other(**{name: getattr(mixer, name) for name in shared})


def _options_of_other_mixers(mixer: MixerConfig) -> set[str]:
    own = {*mixer.setting_names(), *(field.name for field in dataclasses.fields(StudentConfig))}
    other = {name for config in MIXERS.values() for name in config.setting_names()} - own
    return {f"--student.{name}".replace("_", "-") for name in other}


def _last_value(argv: Sequence[str], option: str) -> str | None:
    """The value that an option is given last; None also for an option of a file that is not set."""
    value = None
    for index, argument in enumerate(argv):
        if argument == option:
            value = argv[index + 1] if index + 1 < len(argv) else None
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
    return None if value == "None" else value
