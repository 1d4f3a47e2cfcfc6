"""How labels are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from cocomix.base.errors import CocomixError, require_at_least

AttributionPoint = Literal["original", "reconstruction"]
AttributionLoss = Literal["all_future", "next_token"]
AttributionValue = Literal["activation", "pre_activation"]
AttributionSign = Literal["raises_loss", "lowers_loss", "magnitude"]
LabelCriterion = Literal["attribution", "activation_value"]

Control = Literal["none", "random", "shuffled", "frequency"]
#: Controls that are made from finished labels, without a teacher.
DERIVED_CONTROLS: tuple[Control, ...] = ("shuffled", "frequency")

_NAMES = {
    "criterion": LabelCriterion,
    "point": AttributionPoint,
    "loss": AttributionLoss,
    "value": AttributionValue,
    "sign": AttributionSign,
    "control": Control,
}


@dataclass(frozen=True)
class AttributionConfig:
    """How labels are chosen. The paper's released code: attribution, original, all_future, activation, raises_loss."""

    criterion: LabelCriterion = "activation_value"
    """Largest score of a = c * d(loss)/dc (the paper's), or largest c (its ablation), for which the next four are unused."""
    point: AttributionPoint = "original"
    """Gradient at h_t (the released code), or at Dec(c_t) in place of h_t alone (the paper's text; needs loss
    `next_token`)."""
    loss: AttributionLoss = "all_future"
    """Gradient of the sum of -log p(x_s) over all s > t (the released code), or of s = t + 1 only (the paper's text)."""
    value: AttributionValue = "activation"
    """a_i = c_i * d(loss)/dc_i of the active latents (the released code), or z_i * d(loss)/dc_i of all C latents with the
    encoder's output z before its activation (the paper's first version)."""
    sign: AttributionSign = "raises_loss"
    """Top of +a (paper and released code: their presence makes the true token less likely), of -a, or of |a|."""
    num_labels: Annotated[int, tyro.conf.arg(aliases=("--num-labels",))] = 4
    """A, the most labels a token can have (the paper's K_attr); only latents with a positive score are labels."""
    control: Control = "none"
    """Labels to compare the true ones with. random: the same labels of a fixed random dictionary. shuffled: true labels,
    permuted over the labelled positions of each window. frequency: concepts drawn from the histogram of the true labels."""
    seed: int = 0
    """Seed of the control."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_labels")
        require_at_least(0, self, "seed")
        for name, allowed in _NAMES.items():
            if getattr(self, name) not in get_args(allowed):
                raise CocomixError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(allowed))}"
                )
        if self.criterion == "attribution" and (self.point, self.loss) == ("reconstruction", "all_future"):
            raise CocomixError(
                "point 'reconstruction' with loss 'all_future' would need a backward pass for every position; use loss "
                "'next_token' (with this point the paper's text), or point 'original' (with this loss its released code)"
            )

    @property
    def names_that_matter(self) -> tuple[str, ...]:
        """Settings that determine which labels come out."""
        names: tuple[str, ...] = ("criterion", "num_labels", "control")
        if self.criterion == "attribution":
            names += ("point", "loss", "value", "sign")
        return names if self.control == "none" else (*names, "seed")


def require_labels(path: Path, stored: Mapping[str, Any], asked: AttributionConfig) -> None:
    """Refuse labels that were chosen another way than a run asks for.

    Args:
        path: concept dataset.
        stored: its attribution settings, which an earlier version may have accepted.
        asked: the attribution settings of a run or its recipe.
    """
    for name in asked.names_that_matter:
        actual, expected = stored.get(name, getattr(AttributionConfig, name)), getattr(asked, name)
        if actual != expected:
            raise CocomixError(
                f"the labels in {path} have {name} {actual!r}, but the run asks for {expected!r}: extract labels with "
                f"--attribution.{name} {expected}, or train with --attribution.{name} {actual} to use these"
            )
