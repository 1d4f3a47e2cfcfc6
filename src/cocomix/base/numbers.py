"""Large numbers as people write them."""

from __future__ import annotations

import math
import re

from cocomix.base.errors import CocomixError

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_count(text: str, name: str) -> int:
    """200B, 1.5T, 64M, 20_000, 2e9 as a whole number of at least 1.

    Args:
        text: digits, optionally followed by k, M, B (or G) or T.
        name: name of the option, for the error message.

    Raises:
        CocomixError: the text is not such a number.
    """
    match = re.fullmatch(r"([\d_,]*\.?\d+(?:e\+?\d{1,2})?)\s*([kmbgt]?)", str(text).strip(), re.IGNORECASE)
    value = 0.0
    if match is not None:
        value = float(match[1].replace(",", "").replace("_", "")) * _FACTORS[match[2].lower()]
    if not 1 <= value < math.inf:
        raise CocomixError(f"{name} is {text!r}; expected a number such as 64M, 200B or 1.5T")
    return round(value)
