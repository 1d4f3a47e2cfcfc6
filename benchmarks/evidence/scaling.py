"""Loss against parameters and tokens: fitted curves, how sure they are, and what they say of other sizes.

    L(N, T) = E + A / N^a + B / T^b        N parameters of the plain decoder, T tokens (Hoffmann et al., arXiv 2203.15556)

E, A and a, what a size can do with endless tokens, are one for NTP and the variant: a small frozen teacher does not change
them. B and b, how fast that is approached, are each one's own. Parameters are the plain decoder's in both, so that what
concepts cost and bring shows in the loss, at equal N and T.
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
    BASE,
    LONGER,
    SCALING_RATES,
    SCALING_SHAPES,
    SCALING_TOKENS,
    SIZE,
    rated,
    scaled,
)

NUM_RESAMPLES = 200
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
    """Where all rates of it and of NTP have run, the better one's loss; parameters are those of NTP of the same shape."""
    found = []
    for shape in SCALING_SHAPES:
        for tokens in SCALING_TOKENS:
            plain, some = (_at_all_rates(scaled(name, shape), tokens) for name in ("ntp", variant))
            if len(plain) == len(some) == len(SCALING_RATES):
                run = min(some, key=lambda result: result["validation_loss"])
                found.append(Point(shape, plain[0]["num_parameters"], run["train_tokens"], run["validation_loss"]))
    return found


def _at_all_rates(variant: str, tokens: str) -> list[dict[str, Any]]:
    cells = (Cell(*BASE, SIZE, rated(variant, rate), tokens, 0) for rate in SCALING_RATES)
    return [result for cell in cells if (result := cell.result()) is not None]


def predicted(parameters: Sequence[float], N: float | np.ndarray, T: float | np.ndarray) -> float | np.ndarray:
    """L(N, T), nats."""
    E, A, a, B, b = parameters
    return E + A * (N / N_0) ** -a + B * (T / T_0) ** -b


#: Runs beyond those that are fitted: variant, suffix of the shape, tokens.
HELD_OUT = (("ntp", "", LONGER), ("ntp", "-256x6", "1M"), ("recommended", "-256x6", "1M"))
#: What is fitted together.
FITTED = ("ntp", "recommended")


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

    def each(p: np.ndarray) -> list[np.ndarray]:
        """E, A, a, B, b of each from E, A, a and the pairs B, b."""
        return [np.concatenate((p[:3], pair)) for pair in p[3:].reshape(-1, 2)]

    def fitted(p: np.ndarray) -> np.ndarray:
        return np.array([predicted(q, *sizes) for q, *sizes in zip(each(p), N, T, strict=True)])

    def solve(target: np.ndarray, start: Sequence[float]) -> np.ndarray:
        upper = [np.inf, np.inf, 2, *[np.inf, 2] * len(runs)]
        found = least_squares(lambda p: (fitted(p) - target).ravel(), start, bounds=([0] * len(upper), upper))
        return np.asarray(found.x)

    best = solve(losses, (2.0, 0.5, 0.3, *[1.5, 0.5] * len(runs)))
    # The parameters leave the residuals small: they are scaled up to what an unfitted run would have. Each of the two has
    # its own, about their mean: NTP's are the larger.
    residuals = (losses - fitted(best)) * np.sqrt(losses.size / (losses.size - len(best)))
    residuals -= residuals.mean(axis=1, keepdims=True)
    generator = np.random.default_rng(0)
    resampled = [
        each(solve(fitted(best) + np.stack([generator.choice(some, some.size) for some in residuals]), best))
        for _ in range(NUM_RESAMPLES)
    ]
    errors = np.sqrt(np.mean((losses - fitted(best)) ** 2, axis=1))
    return {
        name: Curve(tuple(each(best)[i]), tuple(tuple(some[i]) for some in resampled), float(errors[i]))
        for i, name in enumerate(runs)
    }


def gain(N: float, T: float, variant: str) -> tuple[float, float, float]:
    """Loss of the variant less NTP's, nats, by the best fits, and its 90 % interval over the resampled ones."""
    base, other = _both(variant)
    values = [
        float(predicted(q, N, T) - predicted(p, N, T)) for p, q in zip(base.resampled, other.resampled, strict=True)
    ]
    low, high = np.percentile(values, INTERVAL)
    return float(predicted(other.best, N, T) - predicted(base.best, N, T)), float(low), float(high)


def token_share(N: float, T: float, variant: str) -> tuple[float, float, float]:
    """Tokens that the variant needs for NTP's loss, as a share of NTP's, and its 90 % interval; 0 or infinite beyond e^6."""
    base, other = _both(variant)
    values = [_token_share(p, q, N, T) for p, q in zip(base.resampled, other.resampled, strict=True)]
    low, high = np.percentile(values, INTERVAL, method="nearest")
    return _token_share(base.best, other.best, N, T), float(low), float(high)


def _token_share(base: Sequence[float], other: Sequence[float], N: float, T: float) -> float:
    target = float(predicted(base, N, T))

    def above(log: float) -> float:
        return float(predicted(other, N, T * np.exp(log))) - target

    if above(-LARGEST_LOG) < 0:
        return 0.0
    return float("inf") if above(LARGEST_LOG) > 0 else float(np.exp(brentq(above, -LARGEST_LOG, LARGEST_LOG)))


def held_out() -> list[tuple[str, float, float]]:
    """Runs that the fit has not seen, of other sizes: what each is, the fit's loss, the measured one."""
    found, curves = [], fits()
    if curves is None:
        return []
    for variant, shape, tokens in HELD_OUT:
        plain, *runs = (_at_all_rates(name + shape, tokens) for name in ("ntp", variant))
        if plain and runs[0]:
            run = min(runs[0], key=lambda result: result["validation_loss"])
            loss = float(predicted(curves[variant].best, plain[0]["num_parameters"], run["train_tokens"]))
            found.append((f"`{variant}{shape}`, {tokens} tokens", loss, run["validation_loss"]))
    return found


def _both(variant: str) -> tuple[Curve, Curve]:
    found = fits()
    assert found is not None
    return found["ntp"], found[variant]
