"""What a document is: one unit of text that is wholly in the training split or wholly in the validation split.

Which of the two is a function of the document alone: a hash of its text. So copies of a document are on one side, and a
document stays on its side whatever else is in the corpus, however it is read, and whatever the seed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

#: With fewer documents than this, a split would leave one side without variety: they are cut into pieces.
MIN_DOCUMENTS = 20
#: About how many pieces, at least: of 100, at the default share of 5 %, none is held out with probability 0.006.
NUM_PIECES = 100


def digest_of(text: str) -> int:
    """64 bits of a hash of a text: among a hundred million different texts two are equal with probability 3e-4."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def is_held_out(digests: np.ndarray, validation_fraction: float) -> np.ndarray:
    """The split rule: which documents are in the validation split.

    Args:
        digests: [documents] uint64, from `digest_of`.
        validation_fraction: between 0 and 1, the expected share of the documents.

    Returns:
        [documents] booleans.
    """
    return digests < np.uint64(validation_fraction * 2**64)


def head_of(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """The first texts, up to `max_bytes` of UTF-8 in all; the last one is cut short."""
    left_bytes = max_bytes
    for text in texts:
        raw = text.encode()
        if len(raw) > left_bytes:
            start = raw[:left_bytes].decode(errors="ignore")
            if start.strip():
                yield start
            return
        left_bytes -= len(raw)
        yield text


def cut_if_few(texts: Iterator[str], seed: int) -> Iterator[str]:
    """The texts as they are; or, of fewer than `MIN_DOCUMENTS`, pieces in an order drawn from the seed."""
    first = list(itertools.islice(texts, MIN_DOCUMENTS))
    if 0 < len(first) < MIN_DOCUMENTS:
        pieces = _pieces_of(sorted(first))
        first = [pieces[i] for i in np.random.default_rng(seed).permutation(len(pieces))]
    return itertools.chain(first, texts)


def _pieces_of(texts: Sequence[str]) -> list[str]:
    """Cut texts at blank lines if there are enough, else at line ends, else anywhere."""
    target_chars = max(1, sum(map(len, texts)) // NUM_PIECES)
    pieces: list[str] = []
    for text in texts:
        separator = "\n\n" if text.count("\n\n") >= MIN_DOCUMENTS else "\n"
        piece = ""
        for part in text.split(separator):
            whole = part + separator
            for start in range(0, len(whole), target_chars):
                piece += whole[start : start + target_chars]
                if len(piece) >= target_chars:
                    pieces.append(piece)
                    piece = ""
        pieces.append(piece)
    return [piece for piece in pieces if piece.strip()]
