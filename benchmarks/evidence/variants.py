"""What is trained: each variant is a recipe and what it changes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cocomix import AttributionConfig
from cocomix.training.config import DistillationConfig, OptimizerConfig, Schedule
from cocomix.training.recipes import ACTIVATION_LABELS, PAPER_LABELS, Draft, find_recipe
from cocomix.training.sizes import SIZES

#: The rate at which nothing stays on the plateau that the page describes.
STEADY_RATE = 0.002
#: Learning rates beside the sizes' own.
OTHER_RATES = (0.001, STEADY_RATE, 0.006)


@dataclass(frozen=True, eq=False)
class Variant:
    """One row of a table.

    Args:
        what: for people.
        recipe: the variant of the size's recipes that it starts from.
        student: changes of the student.
        attribution: how labels are chosen; None: as the recipe says.
        changes: other fields of the training run.
        at_width_of_student: take CoCoMix's width, where the recipe takes the baselines'.
        num_latents: C of the dictionary; None: the size's.
    """

    what: str
    recipe: str
    student: Mapping[str, Any] = field(default_factory=dict)
    attribution: AttributionConfig | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    at_width_of_student: bool = False
    num_latents: int | None = None

    @functools.cache  # noqa: B019 (variants are few, and live as long as the process)
    def draft(self, size: str) -> Draft:
        """The training run at a size, with dataset, labels and teacher open; the width of some takes models to find."""
        recipe = find_recipe(f"gpt2-{size}-{self.recipe}")
        draft = recipe.draft()
        student = dict(self.student)
        if self.at_width_of_student:
            student["hidden_size"] = recipe.size.hidden_size
        changes = dict(self.changes)
        if self.attribution is not None:
            changes["attribution"] = self.attribution
        return replace(draft, student=replace(draft.student, **student), **changes)

    def needs_labels(self, size: str) -> bool:
        draft = self.draft(size)
        return draft.student.mixer == "concept" and draft.concept_loss_weight > 0

    def needs_teacher(self, size: str) -> bool:
        """For labels or along with the training."""
        draft = self.draft(size)
        return bool(self.needs_labels(size) or draft.distillation.weight or draft.hidden_regression.weight)


def _labels(**changes: Any) -> AttributionConfig:
    return replace(ACTIVATION_LABELS, **changes)


def _adding(what: str, attribution: AttributionConfig = ACTIVATION_LABELS, **changes: Any) -> Variant:
    """Concepts added to the hidden state, labels by activation unless said otherwise."""
    student = {name: changes.pop(name) for name in ("insert_layer", "num_active_concepts", "mixing") if name in changes}
    return Variant(what, "add", student=student, attribution=attribution, changes=changes)


def _weight_1(what: str, attribution: AttributionConfig = ACTIVATION_LABELS, **changes: Any) -> Variant:
    """The base of the ablations, with one thing changed."""
    return _adding(what, attribution, concept_loss_weight=1.0, **changes)


def _distilled(weight: float, schedule: Schedule = "constant") -> Variant:
    """Distillation alone."""
    return Variant(
        f"distillation, weight {weight:g}{', down to 0 in a cosine' if schedule == 'cosine' else ''}",
        "kd",
        changes={"distillation": DistillationConfig(weight=weight, schedule=schedule)},
        at_width_of_student=True,
    )


def _with_distillation(variant: Variant, weight: float, schedule: Schedule = "constant") -> Variant:
    changes = {**variant.changes, "distillation": DistillationConfig(weight=weight, schedule=schedule)}
    what = f"{variant.what}, with distillation, weight {weight:g}{'' if schedule == 'constant' else f', {schedule}'}"
    return replace(variant, what=what, changes=changes)


#: What `cocomix as we recommend` is at the moment; the log says how it came about.
RECOMMENDED = Variant("CoCoMix as we recommend", "recommended")

VARIANTS: dict[str, Variant] = {
    # The main table.
    "ntp": Variant("next-token prediction, of CoCoMix's width", "ntp", at_width_of_student=True),
    "ntp-equal-parameters": Variant("next-token prediction, at CoCoMix's active parameters", "ntp"),
    "ntp-equal-flops": Variant(
        "next-token prediction, at published CoCoMix's training FLOPs a token", "ntp-equal-flops"
    ),
    "pause": Variant("a pause vector in place of every concept vector", "pause"),
    "pause-residual": Variant(
        "a pause vector, started from the token's hidden state", "pause", student={"mixing": "interleave_residual"}
    ),
    "published": Variant("CoCoMix as published", "cocomix"),
    "recommended": RECOMMENDED,
    **{f"kd-{weight:g}": _distilled(weight) for weight in (0.3, 1.0, 3.0, 10.0, 30.0)},
    **{f"kd-{weight:g}-cosine": _distilled(weight, "cosine") for weight in (1.0, 3.0)},
    "recommended-loss-only": Variant(
        "as we recommend, but predicted and not mixed",
        "loss-only",
        attribution=ACTIVATION_LABELS,
        changes={"concept_loss_weight": 1.0, "concept_loss_schedule": "cosine"},
    ),
    "recommended-kd": _with_distillation(RECOMMENDED, 1.0, "cosine"),
    **{f"recommended-kd-{weight:g}": _with_distillation(RECOMMENDED, weight) for weight in (3.0, 10.0)},
    # Ablations.
    "add": _adding("weight 0.1"),
    **{
        f"add-lambda-{weight:g}": _adding(
            f"added before block 1, 4 labels by activation, K_mix 32, 1,024 latents, weight {weight:g}"
            if weight == 1
            else f"weight {weight:g}",
            concept_loss_weight=weight,
        )
        for weight in (0.3, 1.0, 3.0)
    },
    "mix-only": Variant("mixed by adding, without labels", "mix-only", student={"mixing": "add"}),
    "loss-only-lambda-1": Variant(
        "concepts predicted with weight 1, nothing mixed",
        "loss-only",
        attribution=ACTIVATION_LABELS,
        changes={"concept_loss_weight": 1.0},
    ),
    "interleave-lambda-1": _weight_1("interleaved", mixing="interleave"),
    "interleave-residual-lambda-1": _weight_1(
        "interleaved, started from the token's hidden state", mixing="interleave_residual"
    ),
    "add-attribution-lambda-1": _weight_1("labels by the paper's attribution", PAPER_LABELS),
    **{
        f"add-attribution-{name}-lambda-1": _weight_1(what, replace(PAPER_LABELS, **changes))
        for name, what, changes in (
            ("lowers", "labels by attribution of the opposite sign", {"sign": "lowers_loss"}),
            ("magnitude", "labels by attribution of either sign", {"sign": "magnitude"}),
            ("next", "labels by attribution to the next token's loss alone", {"loss": "next_token"}),
        )
    },
    **{
        f"add-{control}-lambda-1": _weight_1(f"control: {what}", _labels(control=control))
        for control, what in (
            ("random", "labels of a random dictionary"),
            ("shuffled", "true labels, permuted within each window"),
            ("frequency", "labels drawn from the true ones' histogram"),
        )
    },
    **{
        f"add-{number}-label{'s' * (number > 1)}-lambda-1": _weight_1(
            f"labels a token: {number}", _labels(num_labels=number)
        )
        for number in (1, 16)
    },
    **{
        f"add-mix-{number}-lambda-1": _weight_1(f"concepts in the mixture: {number}", num_active_concepts=number)
        for number in (8, 128)
    },
    **{
        f"add-insert-{block}-lambda-1": _weight_1(f"inserted before block {block}", insert_layer=block)
        for block in (2, 3)
    },
    **{
        f"add-{number}-latents-lambda-1": replace(_weight_1(f"{number} latents"), num_latents=number)
        for number in (256, 4096)
    },
    "recommended-random": Variant(
        "as we recommend, with labels of a random dictionary", "recommended", attribution=_labels(control="random")
    ),
    "add-kd-1-lambda-1": _with_distillation(_weight_1("added, weight 1"), 1.0),
}


def _at_rate(variant: Variant, rate: float) -> Variant:
    optimizer = OptimizerConfig(learning_rate=rate, warmup_fraction=SIZES["small"].warmup_fraction)
    what = f"{variant.what}, learning rate {rate:g}"
    return replace(variant, what=what, changes={**variant.changes, "optimizer": optimizer})


def _of_shape(variant: Variant, width: int, blocks: int) -> Variant:
    """Heads are 32 wide, as everywhere."""
    shape = {"hidden_size": width, "num_layers": blocks, "num_heads": width // 32}
    what = f"{variant.what}, width {width}, {blocks} blocks"
    return replace(variant, what=what, student={**variant.student, **shape}, at_width_of_student=False)


VARIANTS |= {
    f"{name}-{width}x{blocks}": _of_shape(VARIANTS[name], width, blocks)
    for name in ("ntp", "recommended")
    for width, blocks in ((64, 2), (96, 3), (256, 6))
}
VARIANTS |= {
    f"{name}-rate-{rate:g}": _at_rate(variant, rate) for name, variant in VARIANTS.items() for rate in OTHER_RATES
}
