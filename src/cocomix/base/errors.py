"""The one exception that users are meant to read."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection


class CocomixError(ValueError):
    """Input or state that the user can fix. One sentence says what is wrong, where, and what to do."""


def require_at_least(minimum: int, config: object, *names: str) -> None:
    """Raise a `CocomixError` for the first named field of `config` that is below `minimum` or not finite; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not minimum <= value < math.inf:
            bound = "finite" if value == math.inf else f"at least {minimum}"
            raise CocomixError(f"{name} is {value}; it must be {bound}")


def reason_of(error: Exception) -> str:
    """The first line of a library's exception, or its type if it has no message; to end an error message with."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, names: Collection[str], prefix: str = "") -> str:
    """The end of an error message about an unknown name: the closest known names, or all of them if none is close."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    if close:
        return f"; perhaps {' or '.join(prefix + match for match in close)}"
    return f"; choose from {', '.join(prefix + known for known in names)}"
