"""Recipes: training configurations by name, `gpt2-{tiny,small,69m,386m,1b}-{VARIANT}`.

A variant is a function from a size to a configuration, mostly derived from another variant. A recipe leaves open what it
can't know, the dataset and the output; the user also adds the paths of labels and teacher.

The paper's settings are those of Tack et al., arXiv 2502.08524, section 4 and appendix; where text and released code differ,
labels follow the code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, nearest
from cocomix.base.kinds import CONCEPT_DATASET, TOKEN_DATASET
from cocomix.base.progress import say
from cocomix.labels.config import AttributionConfig, require_labels
from cocomix.mixers.config import RECOMMENDED_MIXING, ConceptConfig, PauseConfig
from cocomix.objectives.config import ConceptLossConfig, DistillationConfig, HiddenRegressionConfig
from cocomix.training.config import OptimizerConfig, StudentConfig, TrainConfig
from cocomix.training.renamed import renamed
from cocomix.training.sizes import SIZES, Size

#: The paper's labels, as its released code chooses them.
PAPER_LABELS = AttributionConfig(criterion="attribution", point="original", loss="all_future", sign="raises_loss")
#: The labels of the paper's ablation.
ACTIVATION_LABELS = AttributionConfig(criterion="activation_value")
#: What `recommended` and, on the command line, a run with concepts but no recipe take.
RECOMMENDED_LOSS = ConceptLossConfig(weight=1.0, schedule="cosine", end=0.5)


def ntp(size: Size) -> TrainConfig:
    """Next-token prediction, at CoCoMix's active parameters."""
    return TrainConfig(
        student=StudentConfig(
            family=size.family,
            hidden_size=size.baseline_width,
            num_layers=size.num_layers,
            num_heads=size.num_heads,
        ),
        optimizer=OptimizerConfig(learning_rate=size.learning_rate, warmup_fraction=size.warmup_fraction),
        num_tokens=size.num_tokens,
        batch_size=size.batch_size,
        micro_batch_size=size.micro_batch_size,
        max_validation_windows=size.max_validation_windows,
        checkpoint_every_steps=size.checkpoint_every_steps,
        parallel=size.parallel,
    )


def ntp_equal_flops(size: Size) -> TrainConfig:
    """Next-token prediction, at CoCoMix's training FLOPs a token."""
    from cocomix.training.widths import equal_flops_width  # imported here because it loads torch

    return _student(ntp(size), hidden_size=equal_flops_width(cocomix(size), size).hidden_size)


def kd(size: Size) -> TrainConfig:
    """Distillation from the teacher's next-token distributions, at CoCoMix's active parameters."""
    return replace(ntp(size), distillation=DistillationConfig(weight=0.1))


def hidden_regression(size: Size) -> TrainConfig:
    """Regression onto the teacher's hidden states, at CoCoMix's active parameters."""
    return replace(ntp(size), hidden_regression=HiddenRegressionConfig(weight=0.1, layer=size.layer))


def cocomix(size: Size) -> TrainConfig:
    """CoCoMix as published: labels by attribution, concepts interleaved."""
    mixer = ConceptConfig(
        mixing="interleave",
        layer=size.layer,
        num_concepts=size.num_concepts,
        num_active_concepts=size.num_active_concepts,
    )
    return replace(_student(ntp(size), hidden_size=size.hidden_size, mixer=mixer), attribution=PAPER_LABELS)


def activation_labels(size: Size) -> TrainConfig:
    """CoCoMix with labels by activation value."""
    return replace(cocomix(size), attribution=ACTIVATION_LABELS)


def add(size: Size) -> TrainConfig:
    """CoCoMix that adds the concept vector to the hidden state, without extra positions."""
    return _mixing(cocomix(size), "add")


def recommended(size: Size) -> TrainConfig:
    """CoCoMix as we recommend: labels by activation value, concepts added, weight 1 that falls to 0 by half of the run."""
    config = _mixing(cocomix(size), RECOMMENDED_MIXING)
    return replace(config, attribution=ACTIVATION_LABELS, concept_loss=RECOMMENDED_LOSS)


def loss_only(size: Size) -> TrainConfig:
    """CoCoMix that predicts concepts and mixes nothing."""
    return _mixing(cocomix(size), "none")


def mix_only(size: Size) -> TrainConfig:
    """CoCoMix without the concept loss: no labels, no teacher."""
    return replace(cocomix(size), attribution=AttributionConfig(), concept_loss=ConceptLossConfig(weight=0.0))


def pause(size: Size) -> TrainConfig:
    """One learned vector in place of every concept vector: no labels, no teacher."""
    return _student(ntp(size), hidden_size=size.hidden_size, mixer=PauseConfig(layer=size.layer))


def _student(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, student=replace(config.student, **changes))


def _mixing(config: TrainConfig, mixing: str) -> TrainConfig:
    return _student(config, mixer=config.student.mixer.changed(mixing=mixing))


VARIANTS: dict[str, Callable[[Size], TrainConfig]] = {
    "ntp": ntp,
    "ntp-equal-flops": ntp_equal_flops,
    "kd": kd,
    "cocomix": cocomix,
    "pause": pause,
    "add": add,
    "recommended": recommended,
    "loss-only": loss_only,
    "mix-only": mix_only,
    "activation-labels": activation_labels,
    "hidden-regression": hidden_regression,
}


@dataclass(frozen=True)
class Recipe:
    """A named training configuration."""

    name: str
    size: Size
    build: Callable[[Size], TrainConfig]

    @property
    def summary(self) -> str:
        """One line about the variant."""
        return (self.build.__doc__ or "").splitlines()[0].rstrip(".")

    def config(self) -> TrainConfig:
        """The configuration, with dataset and output open."""
        return self.build(self.size)

    def check(self, config: TrainConfig) -> None:
        """Refuse labels that were not chosen as the configuration says, and warn about data of another shape.

        Args:
            config: the recipe's configuration, with the user's changes.

        Raises:
            CocomixError: the labels were chosen in another way.
        """
        stored = None if config.labels is None else _manifest(config.labels, CONCEPT_DATASET)
        if stored is not None and config.labels is not None and config.concept_loss.is_on(config):
            require_labels(config.labels, stored.settings["attribution"], config.attribution)
        data = _manifest(config.data, TOKEN_DATASET)
        facts = (data.facts if data else {}) | (stored.facts if stored else {})
        others = [
            f"{facts[name]:,} {noun}, not {getattr(self.size, name):,}"
            for name, noun in _SHAPE.items()
            if name in facts and facts[name] != getattr(self.size, name)
        ]
        if others:
            say(f"warning: {self.name} is meant for another shape; the data has {' and '.join(others)}")


_SHAPE = {
    "context_length": "tokens in a window",
    "vocab_size": "tokens in the vocabulary",
    "num_concepts": "concepts",
}


RECIPES = {
    f"gpt2-{size.name}-{variant}": Recipe(f"gpt2-{size.name}-{variant}", size, build)
    for size in SIZES.values()
    for variant, build in VARIANTS.items()
}


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        CocomixError: there is no such recipe; the message names the closest.
    """
    if name not in RECIPES:
        close = nearest(name, RECIPES)
        hint = close if close.startswith("; perhaps") else "; `cocomix recipes` lists them"
        raise CocomixError(f"there is no recipe {name!r}{hint}")
    return RECIPES[name]


def recipe(name: str, *, data: Path | str, output: Path | str, **overrides: Any) -> TrainConfig:
    """The complete, checked configuration of a recipe.

    Args:
        name: name such as `gpt2-small-cocomix`; `cocomix recipes` lists them.
        data: token dataset.
        output: folder of the run.
        overrides: any other fields of `TrainConfig`, such as `labels`, `teacher`, `sae`, `student` or `num_tokens`.

    Raises:
        CocomixError: there is no such recipe or field, something is missing, or `labels` were not chosen in the recipe's
            way.
    """
    chosen = find_recipe(name)
    base = chosen.config()
    overrides = renamed(base, overrides)
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    for key in overrides:
        if key not in names:
            raise CocomixError(f"recipe {name}: TrainConfig has no field {key!r}{nearest(key, names)}")
    paths = {key: Path(value) for key, value in overrides.items() if key in _PATHS and value is not None}
    config = replace(base, data=Path(data), output=Path(output), **(overrides | paths))
    chosen.check(config)
    return config


_PATHS = ("labels", "teacher", "sae")


def _manifest(path: Path, kind: str) -> artifacts.Manifest | None:
    """The manifest of a folder whose files are checked later; None if it is missing or of another kind."""
    manifest = artifacts.check(path, files=()) if (path / artifacts.MANIFEST_NAME).exists() else None
    return manifest if manifest is not None and manifest.kind == kind else None
