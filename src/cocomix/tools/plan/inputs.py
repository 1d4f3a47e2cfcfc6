"""Facts for a plan from the finished folders that a run names: text, labels and distillation targets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cocomix.base import artifacts
from cocomix.base.compute import Precision
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import CONCEPT_DATASET, DISTILLATION_TARGETS, TOKEN_DATASET
from cocomix.labels.config import DistillTargetsConfig
from cocomix.training.config import NOT_NEEDED, OPEN, TrainConfig
from cocomix.training.recipes import find_recipe


@dataclass(frozen=True)
class PlannedText:
    """Shape of the text: vocabulary and window."""

    vocab_size: int
    context_length: int
    eos_token_id: int = 0


@dataclass(frozen=True)
class Inputs:
    """Facts from the folders, or from the recipe if there are none."""

    text: PlannedText
    num_windows: int | None
    """Number of training windows that have all the data the run reads; None: unknown."""
    num_concepts: int | None
    """C; None: the run has no concepts."""
    num_labels: int
    """A, labels per token."""
    labels_flops: float | None
    """Teacher FLOPs per token recorded with the labels; None: there are none."""
    labels_precision: Precision | None
    """Of the teacher that made the labels; None: there are none."""
    num_draws: int
    """K, stored draws per token."""
    draws_flops: float | None
    """Teacher FLOPs per token recorded with the targets; None: there are none."""
    draws_precision: Precision | None
    """Of the teacher that made the targets; None: there are none."""

    def stored_tokens(self, num_tokens: int) -> int:
        """Number of tokens with labels and draws in a run of `num_tokens`: each window counts once, even if seen again."""
        return num_tokens if self.num_windows is None else min(num_tokens, self.num_windows * self.text.context_length)


def read_inputs(config: TrainConfig, recipe: str | None, vocab_size: int | None, context_length: int | None) -> Inputs:
    """Read the folders that a run names; distillation targets may not exist yet.

    Args:
        config: configuration of the run.
        recipe: name of the recipe, which gives the text's shape if there is no dataset.
        vocab_size: V, which takes precedence.
        context_length: T, which takes precedence.

    Raises:
        CocomixError: a folder is damaged or of another kind, or a number is given nowhere.
    """
    data = artifacts.read(config.data, TOKEN_DATASET) if config.data not in (OPEN, NOT_NEEDED) else None
    labels = None if config.labels is None else artifacts.read(config.labels, CONCEPT_DATASET)
    folder = config.distillation.targets
    targets = artifacts.read(folder, DISTILLATION_TARGETS) if folder is not None and folder.exists() else None
    counts = [config.num_windows, None if data is None else data.facts["splits"]["train"]["num_windows"]]
    counts += [None if manifest is None else manifest.settings["num_windows"] for manifest in (labels, targets)]
    draws = DistillTargetsConfig.num_samples if targets is None else targets.settings["num_samples"]
    attribution = config.attribution.num_labels if labels is None else labels.settings["attribution"]["num_labels"]
    return Inputs(
        text=_text(data, recipe, vocab_size, context_length),
        num_windows=min((int(count) for count in counts if count is not None), default=None),
        num_concepts=_num_concepts(config, labels),
        num_labels=int(attribution),
        labels_flops=None if labels is None else float(labels.facts["flops_per_token"]),
        labels_precision=_precision(labels),
        num_draws=int(draws),
        draws_flops=None if targets is None else float(targets.facts["flops_per_token"]),
        draws_precision=_precision(targets),
    )


def _precision(manifest: artifacts.Manifest | None) -> Precision | None:
    return None if manifest is None else manifest.settings.get("precision", "float32")


def _text(
    data: artifacts.Manifest | None, recipe: str | None, vocab_size: int | None, context_length: int | None
) -> PlannedText:
    """Vocabulary and context: given, from the dataset, or from the recipe."""
    facts: dict[str, Any] = {}
    if data is not None:
        facts = data.facts
    elif recipe is not None:
        facts = dataclasses.asdict(find_recipe(recipe).size)
    values = {}
    for name, given in (("vocab_size", vocab_size), ("context_length", context_length)):
        value = given or facts.get(name)
        if value is None:
            raise CocomixError(f"a plan without a recipe needs --data, or --{name.replace('_', '-')}")
        values[name] = int(value)
    return PlannedText(**values)


def _num_concepts(config: TrainConfig, labels: artifacts.Manifest | None) -> int | None:
    """C, from the labels or the settings."""
    mixer = config.student.mixer
    if not mixer.has_concepts:
        return None
    if labels is not None:
        return int(labels.facts["num_concepts"])
    num_concepts: int | None = getattr(mixer, "num_concepts", None)
    if num_concepts is None:
        raise CocomixError("the number of concepts is not known: give --student.num-concepts, or --labels")
    return num_concepts
