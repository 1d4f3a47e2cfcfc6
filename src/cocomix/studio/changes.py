"""What differs between two continuations."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher


def changed_tokens(original: Sequence[int], steered: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """For each token of both, whether it is outside of what they share in the same order."""
    marks = [True] * len(original), [True] * len(steered)
    for a, b, size in SequenceMatcher(None, original, steered, autojunk=False).get_matching_blocks():
        marks[0][a : a + size] = [False] * size
        marks[1][b : b + size] = [False] * size
    return marks
