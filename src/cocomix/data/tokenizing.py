"""Texts to token ids, in this process or in several, always in the order of the texts.

Workers start afresh and import little more than `tokenizers`: a process forked from one that has used its threads may hang.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from cocomix.base.errors import CocomixError

#: Batches that wait for each worker: enough that none is idle, few enough for memory.
BATCHES_AHEAD = 3
DOCUMENTS_PER_BATCH = 256
CHARS_PER_BATCH = 2**20


@dataclass(frozen=True)
class TokenBatch:
    """Some documents as token ids."""

    ids: np.ndarray
    """[tokens] of all documents, each ended with the end-of-sequence token."""
    lengths: np.ndarray
    """[documents] tokens of each, the end-of-sequence token included."""
    num_bytes: np.ndarray
    """[documents] bytes of UTF-8."""
    num_chars: int
    """Characters of all."""
    digests: np.ndarray
    """[documents] 64 bits of a hash of each text: equal for copies."""


@dataclass(frozen=True)
class EncoderConfig:
    """A tokenizer as it is sent to a worker."""

    tokenizer_json: str
    """All of the tokenizer."""
    splits_special_tokens: bool
    """Whether the text of a special token is read as text."""
    eos_token_id: int
    """Written behind every document."""
    dtype: str
    """Of the ids."""


class Encoder:
    """Turns texts into ids.

    Args:
        config: of the tokenizer.
    """

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config
        self.tokenizer = Tokenizer.from_str(config.tokenizer_json)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = config.splits_special_tokens

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [np.array([*encoding.ids, self.config.eos_token_id], self.config.dtype) for encoding in encodings]
        raw = [text.encode() for text in texts]
        return TokenBatch(
            ids=np.concatenate(rows),
            lengths=np.array([len(row) for row in rows], np.int64),
            num_bytes=np.array([len(text) for text in raw], np.int64),
            num_chars=sum(map(len, texts)),
            digests=np.array([digest_of(text) for text in raw], np.uint64),
        )


def digest_of(text: bytes) -> int:
    """64 bits of a hash of a text: among a hundred million different texts two are equal with probability 3e-4."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def batches_of(texts: Iterable[str]) -> Iterator[Sequence[str]]:
    """Texts in batches of bounded length."""
    batch: list[str] = []
    num_chars = 0
    for text in texts:
        batch.append(text)
        num_chars += len(text)
        if len(batch) >= DOCUMENTS_PER_BATCH or num_chars >= CHARS_PER_BATCH:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def encode_in_order(
    config: EncoderConfig, batches: Iterable[Sequence[str]], num_workers: int = 1
) -> Iterator[TokenBatch]:
    """Encode batches of texts; the result does not depend on the number of workers.

    Args:
        config: of the tokenizer.
        batches: read only as far ahead as the workers need.
        num_workers: processes; 1: this one, with the threads of `tokenizers`.
    """
    if num_workers == 1:
        yield from map(Encoder(config), batches)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(config,))
    waiting: deque[Future[TokenBatch]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_encode, batch))
            if len(waiting) >= num_workers * BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise CocomixError(
            'a worker process died: out of memory, or started from a script that lacks `if __name__ == "__main__":`; '
            "the same command continues, with fewer --num-workers if need be"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder | None = None


def _start_worker(config: EncoderConfig) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what Ctrl-C means
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a worker
    _encoder = Encoder(config)


def _encode(texts: Sequence[str]) -> TokenBatch:
    assert _encoder is not None
    return _encoder(texts)
