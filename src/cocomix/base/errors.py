"""The one exception that users are meant to read."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection

#: The largest number of 64 bits with a sign: seeds and sizes of tensors are such numbers.
MAX_NUMBER = 2**63 - 1
#: Seeds that torch takes; what is made from a seed and a step is counted modulo this.
NUM_SEEDS = 2**64
#: Bound of what a model or a batch has along one dimension. With far more, libraries end the process, or fill the memory
#: bit by bit until the system does.
MAX_SIZE = 2**24
#: What libraries say where memory does not suffice.
OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator|out of memory|[Nn]ot enough memory|Cannot allocate memory")


class CocomixError(ValueError):
    """Input or state that the user can fix. One sentence says what is wrong, where, and what to do."""


def require_at_least(minimum: int, config: object, *names: str, maximum: int = MAX_NUMBER) -> None:
    """Raise a `CocomixError` for the first named field of `config` that is not finite, below `minimum` or above `maximum`;
    None passes."""
    for name in names:
        value = getattr(config, name)
        if value is None or minimum <= value <= maximum:
            continue
        if maximum < value < math.inf:
            raise CocomixError(
                f"{name} is above {maximum:,}, which is more than any machine can take; choose a smaller one"
            )
        raise CocomixError(f"{name} is {value}; it must be {'finite' if value == math.inf else f'at least {minimum}'}")


def reason_of(error: BaseException) -> str:
    """What a library's exception says, to end an error message with: its first line, or its type if it has no message.

    A first line that ends in a colon takes the second along. The libraries' texts for too little memory are one here, and
    Python's advice about integers is left out.
    """
    if "set_int_max_str_digits" in str(error):
        return "an integer has thousands of digits"
    if OUT_OF_MEMORY.search(str(error)):
        return "there is not enough memory"
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if first.rstrip().endswith(":") and rest else first


def shortened(text: str, max_length: int) -> str:
    """A text that has at most this many characters, and an ellipsis if some are left out."""
    return text if len(text) <= max_length else text[:max_length] + "…"


def nearest(name: str, names: Collection[str], prefix: str = "") -> str:
    """The end of an error message about an unknown name: the closest known names, or all of them if none is close."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    if close:
        return f"; perhaps {' or '.join(prefix + match for match in close)}"
    return f"; choose from {', '.join(prefix + known for known in names)}"
