"""What is trained: each variant is a recipe and what it changes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cocomix import AttributionConfig
from cocomix.objectives.config import ConceptLossConfig, DistillationConfig, Schedule
from cocomix.training.config import OptimizerConfig, TrainConfig
from cocomix.training.recipes import ACTIVATION_LABELS, PAPER_LABELS, find_recipe
from cocomix.training.sizes import SIZES

#: The rate at which no run falls behind early and stays there.
STEADY_RATE = 0.002
#: Learning rates beside the sizes' own.
OTHER_RATES = (0.001, STEADY_RATE, 0.006)
#: Of version 0.1, which made the stored runs: `--again` compares weights to the bit.
RESCALE_EPSILON = 1e-5


@dataclass(frozen=True, eq=False)
class Variant:
    """One row of a table.

    Args:
        what: as the pages name it.
        recipe: the variant of the size's recipes that it starts from.
        mixer: changes of the mixer.
        student: changes of the decoder.
        changes: other fields of the training run.
        at_width_of_cocomix: take CoCoMix's width, where the recipe takes the baselines'.
        num_latents: C of the dictionary; None: the size's.
    """

    what: str
    recipe: str
    mixer: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    at_width_of_cocomix: bool = False
    num_latents: int | None = None

    @functools.cache  # noqa: B019 (variants are few, and live as long as the process)
    def config(self, size: str) -> TrainConfig:
        """The training run at a size, with data, output, labels and teacher open; the width of some takes models to find."""
        recipe = find_recipe(f"gpt2-{size}-{self.recipe}")
        config = recipe.config()
        mixer = config.student.mixer.changed(**self.mixer)
        if mixer.has_concepts:
            mixer = mixer.changed(rescale_epsilon=RESCALE_EPSILON)
        width = {"hidden_size": recipe.size.hidden_size} if self.at_width_of_cocomix else {}
        student = replace(config.student, mixer=mixer, **(width | dict(self.student)))
        return replace(config, student=student, **self.changes)

    def needs_labels(self, size: str) -> bool:
        config = self.config(size)
        return config.concept_loss.is_on(config)

    def needs_teacher(self, size: str) -> bool:
        """For labels or along with the training."""
        config = self.config(size)
        return self.needs_labels(size) or any(objective.uses_teacher(config) for objective in config.objectives)


def _concepts(
    what: str,
    recipe: str = "add",
    *,
    weight: float = 1.0,
    schedule: Schedule = "constant",
    labels: AttributionConfig = ACTIVATION_LABELS,
    **mixer: Any,
) -> Variant:
    """Concepts learned with a weight; with the defaults the base of the ablations: added, labels by activation."""
    concept_loss = ConceptLossConfig(weight=weight, schedule=schedule)
    return Variant(what, recipe, mixer=mixer, changes={"attribution": labels, "concept_loss": concept_loss})


def _labels(**changes: Any) -> AttributionConfig:
    return replace(ACTIVATION_LABELS, **changes)


def _distilled(weight: float, schedule: Schedule = "constant") -> Variant:
    """Distillation alone."""
    return Variant(
        f"distillation, weight {weight:g}{', down to 0 in a cosine' if schedule == 'cosine' else ''}",
        "kd",
        changes={"distillation": DistillationConfig(weight=weight, schedule=schedule)},
        at_width_of_cocomix=True,
    )


def _with_distillation(variant: Variant, weight: float, schedule: Schedule = "constant") -> Variant:
    changes = {**variant.changes, "distillation": DistillationConfig(weight=weight, schedule=schedule)}
    what = f"{variant.what}, with distillation, weight {weight:g}{'' if schedule == 'constant' else f', {schedule}'}"
    return replace(variant, what=what, changes=changes)


RECOMMENDED = Variant("CoCoMix as we recommend", "recommended")

VARIANTS: dict[str, Variant] = {
    # The main table.
    "ntp": Variant("next-token prediction, of CoCoMix's width", "ntp", at_width_of_cocomix=True),
    "ntp-equal-parameters": Variant("next-token prediction, at CoCoMix's active parameters", "ntp"),
    "ntp-equal-flops": Variant(
        "next-token prediction, at published CoCoMix's training FLOPs a token", "ntp-equal-flops"
    ),
    "pause": Variant("a pause vector in place of every concept vector", "pause"),
    "pause-residual": Variant(
        "a pause vector, started from the token's hidden state", "pause", mixer={"mixing": "interleave_residual"}
    ),
    "published": Variant("CoCoMix as published", "cocomix"),
    "recommended": RECOMMENDED,
    **{f"kd-{weight:g}": _distilled(weight) for weight in (0.3, 1.0, 3.0, 10.0, 30.0)},
    **{f"kd-{weight:g}-cosine": _distilled(weight, "cosine") for weight in (1.0, 3.0)},
    "recommended-loss-only": _concepts("as we recommend, but predicted and not mixed", "loss-only", schedule="cosine"),
    "recommended-kd": _with_distillation(RECOMMENDED, 1.0, "cosine"),
    **{f"recommended-kd-{weight:g}": _with_distillation(RECOMMENDED, weight) for weight in (3.0, 10.0)},
    # Ablations.
    "add": _concepts("weight 0.1", weight=0.1),
    **{
        f"add-lambda-{weight:g}": _concepts(
            f"added before block 1, 4 labels by activation, K_mix 32, 1,024 latents, weight {weight:g}"
            if weight == 1
            else f"weight {weight:g}",
            weight=weight,
        )
        for weight in (0.3, 1.0, 3.0)
    },
    "mix-only": Variant("mixed by adding, without labels", "mix-only", mixer={"mixing": "add"}),
    "loss-only-lambda-1": _concepts("concepts predicted with weight 1, nothing mixed", "loss-only"),
    "interleave-lambda-1": _concepts("interleaved", mixing="interleave"),
    "interleave-residual-lambda-1": _concepts(
        "interleaved, started from the token's hidden state", mixing="interleave_residual"
    ),
    "add-attribution-lambda-1": _concepts("labels by the paper's attribution", labels=PAPER_LABELS),
    **{
        f"add-attribution-{name}-lambda-1": _concepts(what, labels=replace(PAPER_LABELS, **changes))
        for name, what, changes in (
            ("lowers", "labels by attribution of the opposite sign", {"sign": "lowers_loss"}),
            ("magnitude", "labels by attribution of either sign", {"sign": "magnitude"}),
            ("next", "labels by attribution to the next token's loss alone", {"loss": "next_token"}),
        )
    },
    **{
        f"add-{control}-lambda-1": _concepts(f"control: {what}", labels=_labels(control=control))
        for control, what in (
            ("random", "labels of a random dictionary"),
            ("shuffled", "true labels, permuted within each window"),
            ("frequency", "labels drawn from the true ones' histogram"),
        )
    },
    **{
        f"add-{number}-label{'s' * (number > 1)}-lambda-1": _concepts(
            f"labels a token: {number}", labels=_labels(num_labels=number)
        )
        for number in (1, 16)
    },
    **{
        f"add-mix-{number}-lambda-1": _concepts(f"concepts in the mixture: {number}", num_active_concepts=number)
        for number in (8, 128)
    },
    **{
        f"add-insert-{block}-lambda-1": _concepts(f"inserted before block {block}", layer=block - 1) for block in (2, 3)
    },
    **{
        f"add-{number}-latents-lambda-1": replace(_concepts(f"{number} latents"), num_latents=number)
        for number in (256, 4096)
    },
    "recommended-random": Variant(
        "as we recommend, with labels of a random dictionary",
        "recommended",
        changes={"attribution": _labels(control="random")},
    ),
    "add-kd-1-lambda-1": _with_distillation(_concepts("added, weight 1"), 1.0),
}


def _at_rate(variant: Variant, rate: float) -> Variant:
    optimizer = OptimizerConfig(learning_rate=rate, warmup_fraction=SIZES["small"].warmup_fraction)
    what = f"{variant.what}, learning rate {rate:g}"
    return replace(variant, what=what, changes={**variant.changes, "optimizer": optimizer})


def _of_shape(variant: Variant, width: int, blocks: int) -> Variant:
    """Heads are 32 wide, as everywhere."""
    shape = {"hidden_size": width, "num_layers": blocks, "num_heads": width // 32}
    what = f"{variant.what}, width {width}, {blocks} blocks"
    return replace(variant, what=what, student={**variant.student, **shape}, at_width_of_cocomix=False)


VARIANTS |= {
    f"{name}-{width}x{blocks}": _of_shape(VARIANTS[name], width, blocks)
    for name in ("ntp", "recommended")
    for width, blocks in ((64, 2), (96, 3), (256, 6))
}
VARIANTS |= {
    f"{name}-rate-{rate:g}": _at_rate(variant, rate) for name, variant in VARIANTS.items() for rate in OTHER_RATES
}
