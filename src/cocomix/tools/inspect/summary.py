"""Numbers of all concepts of a model together: the content of `summary.json`."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.tools.inspect.card_making import InspectionResults

# Shapes: C concepts.

#: The paper calls a concept ignored if its row of the compression is shorter (5.8 % of its concepts).
SMALL_NORM = 1e-2
BINS_PER_DECADE = 4


def summarize(results: InspectionResults) -> dict[str, Any]:
    """The numbers that follow from the results; see `docs/inspecting.md`."""
    occurrences = results.occurrences
    counts = {name: kept.counts for name, kept in occurrences.strongest.items()}
    if results.num_labels is not None:
        counts["label"] = results.num_labels
    quality = occurrences.quality
    return {
        "num_concepts": len(next(iter(counts.values()))),
        "num_windows": occurrences.num_windows,
        "num_tokens": occurrences.num_tokens,
        "num_labelled_tokens": results.num_labelled_tokens or None,
        "sources": list(occurrences.strongest),
        "usage": {name: usage(count) for name, count in counts.items()},
        "prediction": None if quality is None else quality.summary(),
        "compress_norm": None if results.compress_norms is None else norm_histogram(results.compress_norms),
        "num_measured": 0 if results.measured is None else len(results.measured.concepts),
    }


def usage(counts: Int64[Tensor, " C"]) -> dict[str, Any]:
    """How evenly concepts are used.

    Args:
        counts: occurrences of each.

    Returns:
        `entropy_bits` of the distribution of occurrences, `max_entropy_bits` of an even one, `effective_concepts` (2 to the
        entropy), and `num_dead`, the number of concepts that never occur.
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
    """Histogram of the rows of the compression by the log10 of their length.

    Returns:
        `log10_edges`, one more than there are bins; `num_concepts` of each bin; `num_zero`, rows of zeros, which have no
        logarithm; the `median`; and `num_small`, rows shorter than `SMALL_NORM`.
    """
    logs = norms[norms > 0].double().log10()
    # Always include the decades around the threshold.
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
