"""Loss against parameters and tokens: one curve through the runs of three shapes and three lengths.

    L(N, T) = E + A / N^a + B / T^b        N parameters of the plain decoder, T tokens (Hoffmann et al., arXiv 2203.15556)

E, A and a, what a size can do with endless tokens, are shared by NTP and the recommended variant: a small frozen teacher does
not change them. Each has a B and b of its own. N is the plain decoder's in both, so that the loss shows what concepts cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.tables import BASE, LONGER, SCALING_RATES, SCALING_SHAPES, SCALING_TOKENS, SIZE, rated, scaled

#: Reference point, so that A and B are losses of about one.
N_0, T_0 = 1e6, 1e6
FITTED = ("ntp", "recommended")
#: Runs beyond those that are fitted: variant, suffix of the shape, tokens.
HELD_OUT = (("ntp", "", LONGER), ("ntp", "-256x6", "1M"), ("recommended", "-256x6", "1M"))


@dataclass(frozen=True)
class Point:
    """One run."""

    shape: str
    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Curve:
    """The best fit."""

    parameters: tuple[float, ...]
    """E, A, a, B, b."""
    residual: float
    """Root mean square, nats."""

    def loss(self, N: Any, T: Any) -> Any:
        """L(N, T), nats; of numbers or arrays."""
        return predicted(self.parameters, N, T)


def predicted(parameters: Sequence[float], N: Any, T: Any) -> Any:
    E, A, a, B, b = parameters
    return E + A * (N / N_0) ** -a + B * (T / T_0) ** -b


def points(variant: str) -> list[Point]:
    """The better of a variant's rates, where all rates of it and of NTP have run."""
    found = []
    for shape in SCALING_SHAPES:
        for tokens in SCALING_TOKENS:
            ntp, runs = (_at_all_rates(scaled(name, shape), tokens) for name in ("ntp", variant))
            if len(ntp) == len(runs) == len(SCALING_RATES):
                run = min(runs, key=lambda result: result["validation_loss"])
                found.append(Point(shape, ntp[0]["num_parameters"], run["train_tokens"], run["validation_loss"]))
    return found


def _at_all_rates(variant: str, tokens: str) -> list[dict[str, Any]]:
    cells = (Cell(*BASE, SIZE, rated(variant, rate), tokens, 0) for rate in SCALING_RATES)
    return [result for cell in cells if (result := cell.result()) is not None]


@cache
def fits() -> dict[str, Curve] | None:
    """Least squares over both, all parameters at least zero; None unless all runs are there."""
    runs = {name: points(name) for name in FITTED}
    if any(len(some) < len(SCALING_SHAPES) * len(SCALING_TOKENS) for some in runs.values()):
        return None
    N, T, losses = (
        np.array([[getattr(run, name) for run in some] for some in runs.values()])
        for name in ("parameters", "tokens", "loss")
    )

    def each(p: np.ndarray) -> list[tuple[float, ...]]:
        """E, A, a, B, b of each from E, A, a and the pairs B, b."""
        return [(*p[:3], *pair) for pair in p[3:].reshape(-1, 2)]

    def errors(p: np.ndarray) -> np.ndarray:
        return np.array([predicted(q, *sizes) for q, *sizes in zip(each(p), N, T, strict=True)]) - losses

    start, upper = (2.0, 0.5, 0.3, *[1.5, 0.5] * len(runs)), [np.inf, np.inf, 2, *[np.inf, 2] * len(runs)]
    best = least_squares(lambda p: errors(p).ravel(), start, bounds=([0] * len(upper), upper)).x
    residuals = np.sqrt(np.mean(errors(best) ** 2, axis=1))
    return {name: Curve(p, float(r)) for name, p, r in zip(runs, each(best), residuals, strict=True)}


def held_out() -> list[tuple[str, float, float]]:
    """Runs of other sizes, which the fit has not seen: what each is, the fit's loss, the measured one."""
    found, curves = [], fits()
    if curves is None:
        return []
    for variant, shape, tokens in HELD_OUT:
        ntp, runs = (_at_all_rates(name + shape, tokens) for name in ("ntp", variant))
        if ntp and runs:
            run = min(runs, key=lambda result: result["validation_loss"])
            loss = float(curves[variant].loss(ntp[0]["num_parameters"], run["train_tokens"]))
            found.append((f"`{variant}{shape}`, {tokens} tokens", loss, run["validation_loss"]))
    return found
