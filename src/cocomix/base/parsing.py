"""JSON written by others: whatever its parser raises becomes one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cocomix.base.errors import CocomixError, reason_of


def parse_json(text: str | bytes, place: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text.

    Args:
        text: the text; bytes are UTF-8.
        place: what an error names, such as a file and a line.
        pairs: makes a value from the members of an object, in order and with repetitions; a dictionary by default.

    Raises:
        CocomixError: the text is no JSON, is nested too deeply, holds an integer of thousands of digits, or is not UTF-8.
    """
    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=pairs)
    except RecursionError:
        raise CocomixError(f"{place} is nested too deeply to be read as JSON") from None
    except (
        ValueError
    ) as error:  # JSONDecodeError, UnicodeDecodeError, int() of too many digits, with advice to programmers
        reason = reason_of(error).partition("; use sys")[0]
        raise CocomixError(f"{place} is not valid JSON ({reason})") from error
