"""Texts to token ids, in one process or several, always in the order of the texts.

`datasets` can map in several processes only data that is already on disk; this takes a stream. Workers are spawned, not
forked, because a process forked from one that has used tokenizer threads may hang.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from cocomix.base.errors import CocomixError
from cocomix.data.documents import text_digest

#: Batches queued per worker: enough to keep each busy, few enough for memory.
BATCHES_AHEAD = 3
DOCUMENTS_PER_BATCH = 256
CHARS_PER_BATCH = 2**20


@dataclass(frozen=True)
class Encoder:
    """Turns texts into token ids. Send it to worker processes before its first call."""

    tokenizer_json: str
    """The tokenizer, serialised."""
    splits_special_tokens: bool
    """Whether the text of a special token is tokenized as ordinary text."""
    eos_token_id: int
    """Token appended to every document."""
    dtype: str
    """Dtype of the ids."""

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._ready(self.tokenizer_json)

    @functools.cached_property
    def _special_pieces(self) -> dict[str, int]:
        """Special tokens that the tokenizer finds in ordinary text all the same: Unigram models look up every piece."""
        model = json.loads(self.tokenizer_json)["model"]
        if model["type"] != "Unigram" or not self.splits_special_tokens:
            return {}
        special = self._tokenizer.get_added_tokens_decoder().items()
        return {token.content: index for index, token in special if token.special and index != model["unk_id"]}

    @functools.cached_property
    def _without_special_pieces(self) -> Tokenizer:
        """The tokenizer with scores by which it never chooses them. Other text could come out differently by these."""
        state = json.loads(self.tokenizer_json)
        state["model"]["vocab"] = [
            [piece, -1e9 if piece in self._special_pieces else score] for piece, score in state["model"]["vocab"]
        ]
        return self._ready(json.dumps(state))

    def _ready(self, tokenizer_json: str) -> Tokenizer:
        tokenizer = Tokenizer.from_str(tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = self.splits_special_tokens
        return tokenizer

    def __call__(self, texts: Sequence[str]) -> pa.RecordBatch:
        """Encode at least one text.

        Returns:
            one row per document: `input_ids`, a list of `dtype` that ends with the end-of-sequence token; `num_tokens`, the
            list's length, and `num_bytes` of UTF-8, int64; `digest` of the text, uint64.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        for i, text in enumerate(texts if self._special_pieces else ()):
            if any(piece in text for piece in self._special_pieces):
                encodings[i] = self._without_special_pieces.encode(text, add_special_tokens=False)
        rows = [np.array([*encoding.ids, self.eos_token_id], self.dtype) for encoding in encodings]
        num_tokens = np.array([len(row) for row in rows], np.int64)
        offsets = np.concatenate([[0], np.cumsum(num_tokens)]).astype(np.int32)
        columns = {
            "input_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows))),
            "num_tokens": pa.array(num_tokens),
            "num_bytes": pa.array([len(text.encode()) for text in texts], pa.int64()),
            "digest": pa.array([text_digest(text) for text in texts], pa.uint64()),
        }
        return pa.RecordBatch.from_pydict(columns)


def batch_texts(texts: Iterable[str]) -> Iterator[Sequence[str]]:
    """Batches of texts, bounded in documents and characters."""
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
    encoder: Encoder, batches: Iterable[Sequence[str]], num_workers: int = 1
) -> Iterator[pa.RecordBatch]:
    """Encode batches of texts; the result does not depend on the number of workers.

    Args:
        encoder: encoder that was not called yet.
        batches: batches of texts, read only as far ahead as the workers need.
        num_workers: number of processes; 1: this process, with the threads of `tokenizers`.

    Raises:
        CocomixError: a worker process died.
    """
    if num_workers == 1:
        yield from map(encoder, batches)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(encoder,))
    waiting: deque[Future[pa.RecordBatch]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_encode, batch))
            if len(waiting) >= num_workers * BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise CocomixError(
            'a worker process died: out of memory, or started from a script without `if __name__ == "__main__":`; run the '
            "same command again to continue, if necessary with fewer --num-workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder | None = None


def _start_worker(encoder: Encoder) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per worker
    _encoder = encoder


def _encode(texts: Sequence[str]) -> pa.RecordBatch:
    assert _encoder is not None
    return _encoder(texts)
