"""Recipes: whole training configurations by name, `gpt2-{tiny,small,69m,386m,1b}-{VARIANT}`.

A variant is a function of a scale that returns a configuration, most derived from another's. What a recipe can't know, the
dataset, the output and where labels and teacher are, is left open; `recipe` fills it in and checks the whole.

The paper's settings are those of Tack et al., arXiv 2502.08524, section 4 and appendix; where its text and its released code
differ, labels are the released code's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.progress import say
from cocomix.data import concept_dataset, token_dataset
from cocomix.labels.attribution import AttributionConfig
from cocomix.training.config import (
    DistillationConfig,
    HiddenRegressionConfig,
    OptimizerConfig,
    StudentConfig,
    TrainConfig,
)
from cocomix.training.drafts import fields_of, nearest
from cocomix.training.sizes import SIZES, Size

#: As the paper's released code chooses labels.
PAPER_LABELS = AttributionConfig(criterion="attribution", point="original", loss="all_future", sign="raises_loss")
#: The paper's ablation.
ACTIVATION_LABELS = AttributionConfig(criterion="activation_value")


@dataclass(frozen=True)
class Draft(TrainConfig):
    """A training run of which something is still open: it is checked when it is whole."""

    data: Any = tyro.MISSING
    output: Any = tyro.MISSING

    def __post_init__(self) -> None:
        pass


def ntp(size: Size) -> Draft:
    """Next-token prediction, at CoCoMix's active parameters."""
    return Draft(
        student=StudentConfig(
            family="gpt2",
            hidden_size=size.baseline_width,
            num_layers=size.num_layers,
            num_heads=size.num_heads,
            insert_layer=size.insert_layer,
            num_active_concepts=size.num_active_concepts,
        ),
        optimizer=OptimizerConfig(learning_rate=size.learning_rate, warmup_fraction=size.warmup_fraction),
        num_tokens=size.num_tokens,
        batch_size=size.batch_size,
        micro_batch_size=size.micro_batch_size,
        max_validation_windows=size.max_validation_windows,
        checkpoint_every_steps=size.checkpoint_every_steps,
        parallel=size.parallel,
    )


def ntp_equal_flops(size: Size) -> Draft:
    """Next-token prediction, at CoCoMix's training FLOPs a token."""
    from cocomix.training.widths import equal_flops_width  # builds models: not before it is asked for

    return _student(ntp(size), hidden_size=equal_flops_width(cocomix(size), size).hidden_size)


def kd(size: Size) -> Draft:
    """Distillation from the teacher's next-token distributions, at CoCoMix's active parameters."""
    return replace(ntp(size), distillation=DistillationConfig(weight=0.1))


def hidden_regression(size: Size) -> Draft:
    """Regression onto the teacher's hidden states, at CoCoMix's active parameters."""
    return replace(ntp(size), hidden_regression=HiddenRegressionConfig(weight=0.1))


def cocomix(size: Size) -> Draft:
    """CoCoMix as published: labels by attribution, concepts interleaved."""
    draft = replace(ntp(size), attribution=PAPER_LABELS, num_concepts=size.num_concepts)
    return _student(draft, hidden_size=size.hidden_size, mixer="concept", mixing="interleave")


def activation_labels(size: Size) -> Draft:
    """CoCoMix with labels by activation value."""
    return replace(cocomix(size), attribution=ACTIVATION_LABELS)


def add(size: Size) -> Draft:
    """CoCoMix that adds the concept vector to the hidden state, without extra positions."""
    return _student(cocomix(size), mixing="add")


def recommended(size: Size) -> Draft:
    """CoCoMix as we recommend: labels by activation value, concepts added, weight 1 that falls to 0 in a cosine."""
    draft = replace(add(size), attribution=ACTIVATION_LABELS)
    return replace(draft, concept_loss_weight=1.0, concept_loss_schedule="cosine")


def loss_only(size: Size) -> Draft:
    """CoCoMix that predicts concepts and mixes nothing."""
    return _student(cocomix(size), mixing="none")


def mix_only(size: Size) -> Draft:
    """CoCoMix without the concept loss: no labels, no teacher."""
    return replace(cocomix(size), attribution=AttributionConfig(), concept_loss_weight=0.0)


def pause(size: Size) -> Draft:
    """One learned vector in place of every concept vector: no labels, no teacher."""
    draft = replace(cocomix(size), attribution=AttributionConfig(), num_concepts=None)
    return _student(draft, mixer="pause")


VARIANTS: dict[str, Callable[[Size], Draft]] = {
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
    """A name, and what it stands for."""

    name: str
    size: Size
    build: Callable[[Size], Draft]

    @property
    def what(self) -> str:
        """One line about the variant."""
        return (self.build.__doc__ or "").splitlines()[0].rstrip(".")

    def draft(self) -> Draft:
        """The configuration, with dataset, output, labels and teacher open."""
        return self.build(self.size)


RECIPES = {
    f"gpt2-{size.name}-{variant}": Recipe(f"gpt2-{size.name}-{variant}", size, build)
    for size in SIZES.values()
    for variant, build in VARIANTS.items()
}


def find_recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        CocomixError: there is none; the message names the nearest.
    """
    if name not in RECIPES:
        close = nearest(name, RECIPES)
        hint = close if close.startswith("; perhaps") else "; `cocomix recipes` lists them"
        raise CocomixError(f"there is no recipe {name!r}{hint}")
    return RECIPES[name]


def recipe(name: str, *, data: Path | str, output: Path | str, **overrides: Any) -> TrainConfig:
    """The configuration of a recipe, whole and checked.

    Args:
        name: such as `gpt2-small-cocomix`; `cocomix recipes` lists them.
        data: token dataset.
        output: folder of the run.
        overrides: any other field of `TrainConfig`, such as `labels`, `teacher`, `sae`, `student` or `num_tokens`.

    Raises:
        CocomixError: there is no such recipe or field, something it needs is missing, or `labels` were chosen another way
            than the recipe's.
    """
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    for key in overrides:
        if key not in names:
            raise CocomixError(f"recipe {name}: TrainConfig has no field {key!r}{nearest(key, names)}")
    paths = {key: Path(value) for key, value in overrides.items() if key in _PATHS and value is not None}
    found = find_recipe(name)
    draft = replace(found.draft(), data=Path(data), output=Path(output), **(overrides | paths))
    return finish_draft(fields_of(draft), found)


_PATHS = ("labels", "teacher", "sae")


def finish_draft(fields: Mapping[str, Any], recipe: Recipe | None) -> TrainConfig:
    """A checked configuration from the fields of a draft, and a warning where its dataset is not what the recipe is for.

    A recipe says how labels are chosen. Where they are computed on the fly, they are; where they come from a concept
    dataset, it must say the same.

    Raises:
        CocomixError: the configuration contradicts itself, or the labels the recipe.
    """
    if recipe is not None:
        is_concept = fields["student"].mixer == "concept"
        if is_concept and fields["sae"] is None and fields["labels"] is not None and fields["concept_loss_weight"]:
            _check_labels(fields["labels"], fields["attribution"], recipe)
        if fields["sae"] is None and (is_concept or fields["attribution"] == recipe.draft().attribution):
            fields = {**fields, "attribution": AttributionConfig()}  # the concept dataset's, or of no use
        if not is_concept:
            fields = {**fields, "num_concepts": None}
        _warn_about_shapes(fields, recipe)
        if fields["labels"] is not None or fields["sae"] is not None:
            fields = {**fields, "num_concepts": None}  # labels say it
    return TrainConfig(**fields)


def _check_labels(labels: Path, wanted: AttributionConfig, recipe: Recipe) -> None:
    """Refuse labels chosen another way than the recipe says; what is no concept dataset is left to training to refuse."""
    manifest = _manifest(labels, concept_dataset.KIND)
    if manifest is None:
        return
    found = AttributionConfig(**manifest["settings"]["attribution"])
    for name in _names_that_matter(wanted):
        theirs, ours = getattr(found, name), getattr(wanted, name)
        if theirs != ours:
            raise CocomixError(
                f"the labels in {labels} have {name} {theirs!r}, the recipe {recipe.name} says {ours!r}: extract labels with "
                f"--attribution.{name} {ours}, or train with --attribution.{name} {theirs} if other labels are what you want"
            )


def _names_that_matter(attribution: AttributionConfig) -> list[str]:
    """Settings that have a say in which labels come out."""
    names = ["criterion", "num_labels", "control"]
    if attribution.criterion == "attribution":
        names += ["point", "loss", "value", "sign"]
    return names + (["seed"] if attribution.control != "none" else [])


def _warn_about_shapes(fields: Mapping[str, Any], recipe: Recipe) -> None:
    """Say where dataset or labels have another shape than the recipe: the run is possible, and another."""
    facts: dict[str, Any] = {}
    for path, kind in ((fields["data"], token_dataset.KIND), (fields["labels"], concept_dataset.KIND)):
        manifest = None if path is None else _manifest(path, kind)
        facts |= manifest["facts"] if manifest is not None else {}
    names = {
        "context_length": "tokens in a window",
        "vocab_size": "tokens in the vocabulary",
        "num_concepts": "concepts",
    }
    others = [
        f"{facts[name]:,} {words}, not {getattr(recipe.size, name):,}"
        for name, words in names.items()
        if name in facts and facts[name] != getattr(recipe.size, name)
    ]
    if others:
        say(f"warning: {recipe.name} is meant for another shape; here are {' and '.join(others)}")


def _manifest(path: Path, kind: str) -> dict[str, Any] | None:
    """What is written about a folder, unchecked; None where it is missing or of another kind."""
    file = path / artifacts.MANIFEST_NAME
    if not file.is_file():
        return None
    found = artifacts.read_json(file)
    return found if isinstance(found, dict) and found.get("kind") == kind else None


def _student(draft: Draft, **changes: Any) -> Draft:
    return replace(draft, student=replace(draft.student, **changes))
