"""Numbers of a whole model's concepts, and their figures."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.base.drawing import MUTED, RULE, SERIES, Drawing, panel, save
from cocomix.tools.inspect.card_making import Findings

# Shapes: C concepts.

#: Below it the paper calls a row of the compression ignored (5.8 % of its concepts).
SMALL_NORM = 1e-2
BINS_PER_DECADE = 4


def model_wide(findings: Findings) -> dict[str, Any]:
    """What `summary.json` says of all concepts together; see `docs/inspecting.md`."""
    occurrences = findings.occurrences
    counts = {name: found.counts for name, found in occurrences.strongest.items()}
    if findings.num_labels is not None:
        counts["label"] = findings.num_labels
    quality = occurrences.quality
    return {
        "num_concepts": len(counts["prediction"]),
        "num_windows": occurrences.num_windows,
        "num_tokens": occurrences.num_tokens,
        "num_labelled_tokens": findings.num_labelled_tokens or None,
        "sources": list(occurrences.strongest),
        "usage": {name: usage(count) for name, count in counts.items()},
        "prediction": None if quality is None else quality.summary(),
        "compress_norm": norm_histogram(findings.compress_norms),
        "num_measured": 0 if findings.measured is None else len(findings.measured.concepts),
    }


def usage(counts: Int64[Tensor, " C"]) -> dict[str, Any]:
    """How evenly concepts are used.

    Args:
        counts: occurrences of each.

    Returns:
        `entropy_bits` of the distribution of occurrences, `max_entropy_bits` that of an even one, `effective_concepts`
        2 to the entropy, and `num_dead`, how many never occur.
    """
    share = counts[counts > 0].double() / max(int(counts.sum()), 1)
    entropy = float(-(share * share.log2()).sum()) + 0.0  # no minus zero
    return {
        "entropy_bits": entropy,
        "max_entropy_bits": math.log2(len(counts)),
        "effective_concepts": 2**entropy if len(share) else 0.0,
        "num_dead": int((counts == 0).sum()),
    }


def norm_histogram(norms: Float[Tensor, " C"]) -> dict[str, Any]:
    """Rows of the compression by the log10 of their length.

    Returns:
        `log10_edges`, one more than there are bins; `num_concepts` of each bin; `num_zero`, which have no logarithm; the
        `median`; and `num_small`, those below `SMALL_NORM`.
    """
    logs = norms[norms > 0].double().log10()
    # The decades around the threshold are always shown.
    low, high = math.floor(math.log10(SMALL_NORM)), 0
    if len(logs):
        low, high = min(low, math.floor(float(logs.min()))), max(high, math.ceil(float(logs.max())))
    num_bins = (high - low) * BINS_PER_DECADE
    bins = ((logs - low) * BINS_PER_DECADE).long().clamp(0, num_bins - 1)
    return {
        "log10_edges": [low + i / BINS_PER_DECADE for i in range(num_bins + 1)],
        "num_concepts": torch.bincount(bins, minlength=num_bins).tolist(),
        "num_zero": int((norms == 0).sum()),
        "median": float(norms.median()),
        "num_small": int((norms < SMALL_NORM).sum()),
    }


def norm_figure(histogram: dict[str, Any]) -> Drawing:
    """Concepts by the length of their row of the compression."""
    edges, numbers = histogram["log10_edges"], histogram["num_concepts"]
    figure, axes = panel(5.6, 2.3, left=0.45, right=0.25, bottom=0.47, top=0.28)
    axes.bar(
        edges[:-1], numbers, width=1 / BINS_PER_DECADE, align="edge", color=SERIES[0], edgecolor=RULE, linewidth=0.4
    )
    axes.set_xlim(edges[0], edges[-1])
    decades = range(round(edges[0]), round(edges[-1]) + 1)
    axes.set_xticks(decades, [f"{10.0**exponent:g}" for exponent in decades])
    axes.set_xlabel("Length of a concept’s row of the compression (logarithmic)", loc="left")
    axes.set_title("Concepts", loc="left", fontsize=8.5, color=MUTED, pad=7)
    alt = (
        f"Concepts by the length of their row of the compression: the median is {histogram['median']:.3g}, "
        f"{histogram['num_small']:,} are shorter than {SMALL_NORM:g}."
    )
    return save(figure, "norms", alt)
