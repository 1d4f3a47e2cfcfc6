"""The one exception a user is meant to read."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection


class CocomixError(ValueError):
    """Input or state a user can mend: one sentence says what was wrong, where, and what to do."""


def require_at_least(minimum: int, config: object, *names: str) -> None:
    """Raise a `CocomixError` for the first of a configuration's numbers that is below a minimum or no finite number at all.

    None is left alone.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not minimum <= value < math.inf:
            bound = "finite" if value == math.inf else f"at least {minimum}"
            raise CocomixError(f"{name} is {value}; it must be {bound}")


def reason_of(error: Exception) -> str:
    """The first line of what a library's exception says, or its kind: for the end of a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, names: Collection[str], prefix: str = "") -> str:
    """The end of a sentence about an unknown name: the nearest ones, or all where none is near."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    if close:
        return f"; perhaps {' or '.join(prefix + match for match in close)}"
    return f"; there are {', '.join(prefix + known for known in names)}"
