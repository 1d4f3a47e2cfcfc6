"""Documents: units of text that are entirely in the training split or entirely in the validation split.

A hash of its text alone decides the split of a document. So copies of a document are in the same split, and a document stays
in its split regardless of the rest of the corpus, the order of reading and the seed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

#: Fewer documents than this are cut into pieces, as a split would leave one side without variety.
MIN_DOCUMENTS = 20
#: Approximate minimum number of pieces. With 100, at the default share of 5 %, none is held out with probability 0.006.
NUM_PIECES = 100


def text_digest(text: str) -> int:
    """64 bits of a hash of a text; a hundred million different texts have a collision with probability 3e-4."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def is_held_out(digests: np.ndarray, validation_fraction: float) -> np.ndarray:
    """The split rule: whether each document is in the validation split.

    Args:
        digests: [documents] uint64, from `text_digest`.
        validation_fraction: expected share of the documents, between 0 and 1.

    Returns:
        [documents] booleans.
    """
    return digests < np.uint64(validation_fraction * 2**64)


def first_bytes(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """The first texts, up to `max_bytes` of UTF-8 in total; the last one is cut short."""
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
    """The texts unchanged, or, if there are fewer than `MIN_DOCUMENTS`, pieces of them in an order drawn from the seed."""
    first = list(itertools.islice(texts, MIN_DOCUMENTS))
    if 0 < len(first) < MIN_DOCUMENTS:
        pieces = _pieces_of(sorted(first))
        first = [pieces[i] for i in np.random.default_rng(seed).permutation(len(pieces))]
    return itertools.chain(first, texts)


def _pieces_of(texts: Sequence[str]) -> list[str]:
    """Pieces of the texts, cut at blank lines if there are enough, otherwise at line ends, otherwise anywhere."""
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
