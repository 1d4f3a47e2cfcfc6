"""Loss against parameters and tokens: a fitted curve, how sure it is, and what it says of other sizes.

    L(N, T) = E + A / N^a + B / T^b        N parameters of the plain decoder, T tokens (Hoffmann et al., arXiv 2203.15556)

Parameters are the plain decoder's in both fits, so that what concepts cost and bring shows in the loss, at equal N and T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import brentq, least_squares

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.tables import (
    SCALING_COMPARISON,
    SCALING_RATES,
    SCALING_SHAPES,
    SCALING_TOKENS,
    SIZE,
    rated,
    scaled,
)

NUM_RESAMPLES = 100
#: Of a share of tokens: far beyond what a fit can say.
LARGEST_LOG = 6.0
INTERVAL = (5, 95)
#: Reference point, so that A and B are losses of about one.
N_0, T_0 = 1e6, 1e6
#: Parameters of plain decoders of its CoCoMix models' widths and depths, tokens, and its OpenWebText perplexities of NTP (of
#: equal active parameters, so wider) and CoCoMix (arXiv 2502.08524, table 1).
PAPER = {
    "69M": (51_475_968, 20e9, 25.3, 24.7),
    "386M": (354_823_168, 20e9, 16.3, 15.9),
    "1.38B": (1_313_626_112, 20e9, 14.3, 13.9),
}


@dataclass(frozen=True)
class Point:
    """One run."""

    shape: str
    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Curve:
    """E, A, a, B, b of the best fit and of fits to resampled residuals."""

    best: tuple[float, ...]
    resampled: tuple[tuple[float, ...], ...]
    residual: float
    """Root mean square, nats."""


def points(variant: str) -> list[Point]:
    """What has been run of a variant, the better of its rates; parameters are those of NTP of the same shape."""
    found = []
    for shape in SCALING_SHAPES:
        for tokens in SCALING_TOKENS:
            plain, some = (_at_all_rates(scaled(name, shape), tokens) for name in ("ntp", variant))
            if plain and some:
                run = min(some, key=lambda result: result["validation_loss"])
                found.append(Point(shape, plain[0]["num_parameters"], run["train_tokens"], run["validation_loss"]))
    return found


def _at_all_rates(variant: str, tokens: str) -> list[dict[str, Any]]:
    cells = (Cell(*SCALING_COMPARISON, SIZE, rated(variant, rate), tokens, 0) for rate in SCALING_RATES)
    return [result for cell in cells if (result := cell.result()) is not None]


def predicted(parameters: Sequence[float], N: float | np.ndarray, T: float | np.ndarray) -> float | np.ndarray:
    """L(N, T), nats."""
    E, A, a, B, b = parameters
    return E + A * (N / N_0) ** -a + B * (T / T_0) ** -b


@cache
def fit(variant: str) -> Curve | None:
    """Least squares with all five at least zero; None unless all runs are there."""
    runs = points(variant)
    if len(runs) < len(SCALING_SHAPES) * len(SCALING_TOKENS):
        return None
    N, T, losses = (np.array([getattr(run, name) for run in runs]) for name in ("parameters", "tokens", "loss"))

    def solve(target: np.ndarray, start: Sequence[float]) -> np.ndarray:
        found = least_squares(
            lambda p: predicted(p, N, T) - target, start, bounds=([0] * 5, [np.inf, np.inf, 2, np.inf, 2])
        )
        return np.asarray(found.x)

    best = solve(losses, (2.0, 0.5, 0.3, 1.5, 0.5))
    fitted = np.asarray(predicted(best, N, T))
    # Five parameters of nine points leave the residuals small: they are scaled up to what an unfitted run would have.
    residuals = (losses - fitted) * np.sqrt(len(runs) / (len(runs) - len(best)))
    generator = np.random.default_rng(0)
    resampled = [solve(fitted + generator.choice(residuals, len(runs)), best) for _ in range(NUM_RESAMPLES)]
    return Curve(tuple(best), tuple(map(tuple, resampled)), float(np.sqrt(np.mean((losses - fitted) ** 2))))


def gain(N: float, T: float, variant: str) -> tuple[float, float, float] | None:
    """Loss of the variant less NTP's, nats, by the best fits, and its 90 % interval over the resampled ones."""
    base, other = fit("ntp"), fit(variant)
    if base is None or other is None:
        return None
    values = [
        float(predicted(q, N, T) - predicted(p, N, T)) for p, q in zip(base.resampled, other.resampled, strict=True)
    ]
    low, high = np.percentile(values, INTERVAL)
    return float(predicted(other.best, N, T) - predicted(base.best, N, T)), float(low), float(high)


def token_share(N: float, T: float, variant: str) -> float:
    """Tokens that the variant needs for NTP's loss, as a share of NTP's, by the best fits; 0 or infinite beyond e^6."""
    base, other = fit("ntp"), fit(variant)
    assert base is not None
    assert other is not None
    target = float(predicted(base.best, N, T))

    def above(log: float) -> float:
        return float(predicted(other.best, N, T * np.exp(log))) - target

    if above(-LARGEST_LOG) < 0:
        return 0.0
    return float("inf") if above(LARGEST_LOG) > 0 else float(np.exp(brentq(above, -LARGEST_LOG, LARGEST_LOG)))
