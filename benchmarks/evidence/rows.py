"""What is trained: each row of the tables is a recipe and what it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

from cocomix.objectives.config import (
    ConceptLossConfig,
    DistillationConfig,
    HiddenRegressionConfig,
    MultiTokenConfig,
    Schedule,
)
from cocomix.training import recipes
from cocomix.training.config import TrainConfig
from cocomix.training.sizes import Size
from cocomix.training.widths import equal_parameters_width

#: Share of the steps after which layer alignment and multi-token prediction have ended.
ALIGNMENT_END, MULTI_TOKEN_END = 0.5, 2 / 3


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        what: as the pages name it.
        build: function from a size and a setting to a run, with data, output, labels and teacher open.
        settings: weights, each with schedule and end if they are not the row's own, such as `1-cosine-0.5`; the first is the
            default.
        settings_ahead: in their place with a teacher that no student overtakes; empty: the same.
        follows: rows whose settings this one has, joined by `+`, and the first of which gives its rate.
        variant: changes a single thing of the row that it follows, and has no place in the main table.
        latents: of its dictionary, as a share of the size's concepts.
    """

    what: str
    build: Callable[[Size, str], TrainConfig]
    settings: tuple[str, ...] = ("",)
    settings_ahead: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    variant: bool = False
    latents: float = 1.0

    @property
    def default(self) -> str:
        return joined(ROWS[name].default for name in self.follows) if self.follows else self.settings[0]


def joined(settings: Iterable[str]) -> str:
    """The setting of a row that follows others; those without weights leave no mark."""
    return "+".join(filter(None, settings))


def _weight(setting: str) -> dict[str, Any]:
    """Weight, schedule and end from their short form."""
    weight, *more = setting.split("-")
    schedule, end = (*more, *("constant", "1")[len(more) :])
    return {"weight": float(weight), "schedule": cast(Schedule, schedule), "end": float(end)}


def _student(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, student=replace(config.student, **changes))


def _wider(config: TrainConfig, size: Size) -> TrainConfig:
    """The width nearest to the recommended variant's active parameters. Where its loss ends early, this takes more FLOPs."""
    return _student(config, hidden_size=equal_parameters_width(recipes.recommended(size), size).hidden_size)


def _pause(size: Size, _: str) -> TrainConfig:
    config = recipes.pause(size)
    return _student(config, mixer=config.student.mixer.changed(mixing="interleave_residual"))


def _multi_token(size: Size, setting: str) -> TrainConfig:
    objective = MultiTokenConfig(weight=float(setting), schedule="linear", end=MULTI_TOKEN_END)
    return replace(recipes.ntp(size), multi_token=objective)


def _distilled(size: Size, setting: str) -> TrainConfig:
    return replace(recipes.ntp(size), distillation=DistillationConfig(**_weight(setting)))


def _aligned(size: Size, setting: str) -> TrainConfig:
    objective = HiddenRegressionConfig(
        weight=float(setting), schedule="linear", end=ALIGNMENT_END, loss="cosine", layer=size.layer
    )
    return replace(recipes.ntp(size), hidden_regression=objective)


def _recommended(size: Size, setting: str) -> TrainConfig:
    return replace(recipes.recommended(size), concept_loss=ConceptLossConfig(**_weight(setting)))


def _to_end(size: Size, setting: str) -> TrainConfig:
    config = _recommended(size, setting)
    return replace(config, concept_loss=replace(config.concept_loss, end=1.0))


def _predicted(size: Size, setting: str) -> TrainConfig:
    config = _recommended(size, setting)
    return _student(config, mixer=config.student.mixer.changed(mixing="none"))


def _random(size: Size, setting: str) -> TrainConfig:
    config = _recommended(size, setting)
    return replace(config, attribution=replace(config.attribution, control="random"))


def _next_tokens(size: Size, setting: str) -> TrainConfig:
    return replace(_recommended(size, setting), multi_token=_multi_token(size, ROWS["multi-token"].default).multi_token)


def _concepts_aligned(size: Size, setting: str) -> TrainConfig:
    """With the weight that was the best of layer alignment's own."""
    return replace(_recommended(size, setting), hidden_regression=_aligned(size, "1").hidden_regression)


def _both(size: Size, setting: str) -> TrainConfig:
    concepts, distillation = setting.split("+")
    return replace(_recommended(size, concepts), distillation=DistillationConfig(**_weight(distillation)))


#: Of distillation and of concepts, which are searched alike.
FALLING = ("1-cosine", "0.3-cosine", "3-cosine", "1-cosine-0.5")

ROWS: dict[str, Row] = {
    "ntp": Row("NTP", lambda size, _: recipes.ntp(size)),
    "ntp-wider": Row("NTP with equal active parameters", lambda size, _: _wider(recipes.ntp(size), size)),
    "pause": Row("pause vectors with a residual start", _pause),
    "multi-token": Row("multi-token prediction (one head), falling to 0", _multi_token, ("0.5", "0.25", "1")),
    "kd": Row("distillation", _distilled, FALLING, ("1", "3", "10", "3-cosine")),
    "kd-wider": Row(
        "distillation with equal active parameters",
        lambda size, setting: _wider(_distilled(size, setting), size),
        follows=("ntp-wider", "kd"),
    ),
    "alignment": Row("layer alignment (LET), falling to 0", _aligned, ("0.1", "0.3", "1", "3")),
    "alignment-wider": Row(
        "layer alignment with equal active parameters",
        lambda size, setting: _wider(_aligned(size, setting), size),
        follows=("alignment",),
    ),
    "published": Row("CoCoMix (paper)", lambda size, _: recipes.cocomix(size)),
    "recommended": Row("CoCoMix (ours)", _recommended, FALLING, ("1-cosine", "1", "3", "1-cosine-0.5")),
    "predicted": Row("CoCoMix (ours) without mixing", _predicted, follows=("recommended",)),
    "both": Row("CoCoMix (ours) with distillation", _both, follows=("recommended", "kd")),
    "random": Row("labels of a random dictionary", _random, follows=("recommended",), variant=True),
    "to-end": Row("a concept loss to the end", _to_end, follows=("recommended",), variant=True),
    "fewer": Row("a quarter of the latents", _recommended, follows=("recommended",), variant=True, latents=0.25),
    "next-tokens": Row("multi-token prediction too", _next_tokens, follows=("recommended",), variant=True),
    "aligned": Row("layer alignment too", _concepts_aligned, follows=("recommended",), variant=True),
}
#: Rows of the main table.
COMPARED = tuple(name for name, row in ROWS.items() if not row.variant)


def needs_labels(config: TrainConfig) -> bool:
    return config.concept_loss.is_on(config)


@cache
def needs_teacher(row: str, size: Size) -> bool:
    """For labels, or along with the training."""
    config = ROWS[row].build(size, ROWS[row].default)
    return needs_labels(config) or any(objective.uses_teacher(config) for objective in config.objectives)
