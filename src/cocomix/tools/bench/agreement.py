"""Nothing is reported of a fast path that computes something else than its reference."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cocomix.base.errors import CocomixError


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Of any element, relative to the largest element expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def require_agreement(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> float:
    """Compare a fast path's results with its reference's, tensor by tensor.

    Returns:
        the largest relative difference.

    Raises:
        CocomixError: one is above the tolerance, or not a number.
    """
    largest = 0.0
    for name, tensor in expected.items():
        difference = largest_difference(found[name], tensor)
        if not difference <= tolerance:
            raise CocomixError(
                f"the fast path disagrees with its reference: {name} differs by {difference:.1e} of its largest value, "
                f"and {tolerance:.0e} is allowed; nothing is reported"
            )
        largest = max(largest, difference)
    return largest
