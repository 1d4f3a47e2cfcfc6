"""What the finished folders that a run names say about it: text, labels and distillation targets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import CONCEPT_DATASET, DISTILLATION_TARGETS, TOKEN_DATASET
from cocomix.labels.distillation_targets import DistillTargetsConfig
from cocomix.training.config import NOT_NEEDED, OPEN, TrainConfig
from cocomix.training.recipes import find_recipe


@dataclass(frozen=True)
class PlannedText:
    """Shape of the text, as models take it."""

    vocab_size: int
    context_length: int
    eos_token_id: int = 0


@dataclass(frozen=True)
class Inputs:
    """Facts of folders, and of a recipe where there are none."""

    text: PlannedText
    num_windows: int | None
    """Training windows that have all that the run asks for; None: not known."""
    num_concepts: int | None
    """C; None: the run has no concepts."""
    num_labels: int
    """A, labels a token."""
    labels_flops: float | None
    """FLOPs of the teacher a token, as the labels' folder says; None: no folder."""
    num_draws: int
    """K, stored draws a token."""
    draws_flops: float | None
    """FLOPs of the teacher a token, as the targets' folder says; None: no folder."""

    def stored_tokens(self, num_tokens: int) -> int:
        """Tokens that labels and draws are computed for in a run of `num_tokens`: once a window, however often it is seen."""
        return num_tokens if self.num_windows is None else min(num_tokens, self.num_windows * self.text.context_length)


def read_inputs(config: TrainConfig, recipe: str | None, vocab_size: int | None, context_length: int | None) -> Inputs:
    """Read what there is; targets may still have to be drawn.

    Args:
        config: of the run.
        recipe: name of its recipe, for the text's shape where no dataset is given.
        vocab_size: V, over all others.
        context_length: T, likewise.

    Raises:
        CocomixError: a folder is damaged or of another kind, or something is known of nowhere.
    """
    data = artifacts.read(config.data, TOKEN_DATASET) if config.data not in (OPEN, NOT_NEEDED) else None
    labels = None if config.labels is None else artifacts.read(config.labels, CONCEPT_DATASET)
    folder = config.distillation.targets
    targets = artifacts.read(folder, DISTILLATION_TARGETS) if folder is not None and folder.exists() else None
    counts = [config.num_windows, None if data is None else data.facts["splits"]["train"]["num_windows"]]
    counts += [None if found is None else found.settings["num_windows"] for found in (labels, targets)]
    draws = DistillTargetsConfig.num_samples if targets is None else targets.settings["num_samples"]
    attribution = config.attribution.num_labels if labels is None else labels.settings["attribution"]["num_labels"]
    return Inputs(
        text=_text(data, recipe, vocab_size, context_length),
        num_windows=min((int(count) for count in counts if count is not None), default=None),
        num_concepts=_num_concepts(config, labels),
        num_labels=int(attribution),
        labels_flops=None if labels is None else float(labels.facts["flops_per_token"]),
        num_draws=int(draws),
        draws_flops=None if targets is None else float(targets.facts["flops_per_token"]),
    )


def _text(
    data: artifacts.Manifest | None, recipe: str | None, vocab_size: int | None, context_length: int | None
) -> PlannedText:
    """Vocabulary and context: as given, of the dataset, or the recipe's."""
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
    """C: of the labels, or as given."""
    mixer = config.student.mixer
    if not mixer.has_concepts:
        return None
    if labels is not None:
        return int(labels.facts["num_concepts"])
    num_concepts: int | None = getattr(mixer, "num_concepts", None)
    if num_concepts is None:
        raise CocomixError("the number of concepts is not known: give --student.num-concepts, or --labels")
    return num_concepts
