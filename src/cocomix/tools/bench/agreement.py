"""The check that a fast path computes the same as its reference, without which nothing is reported."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cocomix.base.errors import CocomixError


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference of any element, relative to the largest expected element."""
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def require_agreement(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> float:
    """Compare a fast path's results with its reference's, tensor by tensor.

    Returns:
        the largest relative difference.

    Raises:
        CocomixError: a difference is above the tolerance, or not a number.
    """
    largest = 0.0
    for name, tensor in expected.items():
        difference = largest_difference(actual[name], tensor)
        if not difference <= tolerance:
            raise CocomixError(
                f"the fast path disagrees with its reference: {name} differs by {difference:.1e} of its largest value, "
                f"but only {tolerance:.0e} is allowed; nothing is reported"
            )
        largest = max(largest, difference)
    return largest
