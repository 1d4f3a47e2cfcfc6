"""Text to token dataset: split by document, tokenize, cut into windows.

Documents are shuffled once by the seed, so that every prefix of a split is a fair sample of it: training on the first
n windows needs no second shuffle and no second dataset. Each document ends with the end-of-sequence token; documents are
joined and cut into windows of `context_length`, and the last, incomplete window is dropped. Concept labels are
computed for these very windows, so that teacher and student see the same context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.progress import ProgressLine, say
from cocomix.data.corpus import Document, read_documents, standard_library_documents
from cocomix.data.shards import write_shard
from cocomix.data.token_dataset import KIND, TOKENIZER_FOLDER
from cocomix.data.tokenizer import fingerprint_of_tokenizer, load_tokenizer, train_tokenizer

#: Below this many documents, a split by document would leave one side without variety: they are cut into pieces.
MIN_DOCUMENTS = 20
#: More text than this teaches a small byte-level tokenizer nothing, and costs minutes.
MAX_TOKENIZER_BYTES = 20_000_000
WINDOWS_PER_SHARD = 8192
DOCUMENTS_PER_BATCH = 256


@dataclass(frozen=True)
class PrepareConfig:
    """How text becomes windows of tokens."""

    output: Path
    """Folder of the token dataset."""
    text: tuple[Path, ...] | None = None
    """Text, Markdown, JSON-lines and Parquet files or folders; by default the running Python's standard library."""
    tokenizer: str | None = None
    """Folder or Hub name of a tokenizer; by default a byte-level BPE is trained on the training documents."""
    vocab_size: int = 2048
    """Size of the trained tokenizer's vocabulary."""
    context_length: int = 128
    """Tokens in a window."""
    validation_fraction: float = 0.05
    """Share of the text, by whole documents, held out for validation."""
    isolate_documents: bool = False
    """Attention stays within each document and positions start over in it; by default it crosses documents within a
    window, as in the paper."""
    max_bytes: int | None = None
    """Take a random sample of the documents with at most this many bytes of UTF-8."""
    seed: int = 0
    """Seed of the shuffle of the documents."""
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    def __post_init__(self) -> None:
        require_at_least(2, self, "context_length")
        require_at_least(1, self, "max_bytes")
        if not 0.0 < self.validation_fraction < 1.0:
            raise CocomixError(f"validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")


def prepare(config: PrepareConfig) -> artifacts.Manifest:
    """Make the token dataset, or recognise that it is made already."""
    documents = _sample(_documents_of(config), config.max_bytes, config.seed)
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer is not None else None
    settings = {
        "text": _fingerprint_of_documents(documents),
        "tokenizer": None if tokenizer is None else fingerprint_of_tokenizer(tokenizer),
        "vocab_size": config.vocab_size if config.tokenizer is None else None,
        "context_length": config.context_length,
        "validation_fraction": config.validation_fraction,
        "isolate_documents": config.isolate_documents,
        "seed": config.seed,
    }
    with artifacts.begin(config.output, KIND, settings, overwrite=config.overwrite) as finished:
        if finished:
            say(f"{config.output}: the token dataset is there already")
            return finished
        training, validation = _split(documents, config.validation_fraction)
        if tokenizer is None:
            say(f"training a tokenizer of {config.vocab_size:,} tokens")
            tokenizer = train_tokenizer(_head(training, MAX_TOKENIZER_BYTES), config.vocab_size)
        tokenizer.save_pretrained(config.output / TOKENIZER_FOLDER)
        facts: dict[str, object] = {
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "context_length": config.context_length,
            "isolate_documents": config.isolate_documents,
            "splits": {
                name: _write_split(config, name, part, tokenizer)
                for name, part in (("train", training), ("validation", validation))
            },
        }
        return artifacts.finish(config.output, facts)


def _documents_of(config: PrepareConfig) -> list[Document]:
    if config.text is None:
        return list(standard_library_documents())
    if not config.text:
        raise CocomixError("--text names no file or folder; leave it out for the standard library")
    documents = list(read_documents(config.text))
    if not documents:
        raise CocomixError(f"no text in {', '.join(map(str, config.text))}: every document is empty")
    return documents if len(documents) >= MIN_DOCUMENTS else _cut_into_pieces(documents)


def _cut_into_pieces(documents: Sequence[Document]) -> list[Document]:
    """Cut the few documents there are, at blank lines if they can be, into at least about `MIN_DOCUMENTS` pieces."""
    target_chars = max(1, sum(len(document.text) for document in documents) // (2 * MIN_DOCUMENTS))
    pieces: list[Document] = []
    for document in documents:
        separator = "\n\n" if document.text.count("\n\n") >= MIN_DOCUMENTS else "\n"
        piece = ""
        for part in _parts(document.text, separator, target_chars):
            piece += part
            if len(piece) >= target_chars:
                pieces.append(Document(f"{document.source}#{len(pieces)}", piece))
                piece = ""
        if piece.strip():
            pieces.append(Document(f"{document.source}#{len(pieces)}", piece))
    return pieces


def _parts(text: str, separator: str, max_chars: int) -> Iterator[str]:
    """The text, cut behind every separator, and anywhere where a part would still be too long."""
    for part in text.split(separator):
        whole = part + separator
        for start in range(0, len(whole), max_chars):
            yield whole[start : start + max_chars]


def _sample(documents: list[Document], max_bytes: int | None, seed: int) -> list[Document]:
    order = np.random.default_rng(seed).permutation(len(documents))
    shuffled = [documents[i] for i in order]
    return shuffled if max_bytes is None else list(_head_documents(shuffled, max_bytes))


def _head_documents(documents: Sequence[Document], max_bytes: int) -> Iterable[Document]:
    """The first documents of at most so many bytes in all; the last one cut short."""
    left_bytes = max_bytes
    for document in documents:
        text = document.text.encode()
        if len(text) > left_bytes:
            start = text[:left_bytes].decode(errors="ignore")
            if start.strip():
                yield Document(document.source, start)
            return
        left_bytes -= len(text)
        yield document


def _head(documents: Sequence[Document], max_bytes: int) -> Iterable[str]:
    return (document.text for document in _head_documents(documents, max_bytes))


def _split(documents: Sequence[Document], validation_fraction: float) -> tuple[Sequence[Document], Sequence[Document]]:
    """Documents for validation are taken from the front until their share of the characters is reached.

    A document that would more than double the share is left to training, so that a few long ones do not end up there whole.
    """
    budget = validation_fraction * sum(len(document.text) for document in documents)
    training: list[Document] = []
    validation: list[Document] = []
    taken_chars = 0
    for document in documents:
        if taken_chars < budget and taken_chars + len(document.text) <= 2 * budget:
            taken_chars += len(document.text)
            validation.append(document)
        else:
            training.append(document)
    return training, validation


def _write_split(
    config: PrepareConfig, name: str, documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast
) -> dict[str, int]:
    """Tokenize one split and write its shards; returns its counts."""
    folder = config.output / name
    folder.mkdir(exist_ok=True)
    T = config.context_length
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.int32)
    num_tokens = num_bytes = num_windows = num_shards = 0
    ids = np.empty(0, dtype)
    document_ids = np.empty(0, np.int32)
    total_bytes = sum(len(document.text) for document in documents)
    with ProgressLine(f"tokenizing the {name} text", total_bytes, unit="characters") as progress:
        for start in range(0, len(documents), DOCUMENTS_PER_BATCH):
            batch = documents[start : start + DOCUMENTS_PER_BATCH]
            encoded = tokenizer([document.text for document in batch], add_special_tokens=False)["input_ids"]
            rows = [np.array([*tokens, tokenizer.eos_token_id], dtype) for tokens in encoded]
            ids = np.concatenate([ids, *rows])
            owners = [np.full(len(row), start + i, np.int32) for i, row in enumerate(rows)]
            document_ids = np.concatenate([document_ids, *owners])
            num_tokens += sum(map(len, rows))
            num_bytes += sum(len(document.text.encode()) for document in batch)
            progress.advance(sum(len(document.text) for document in batch))
            is_last = start + DOCUMENTS_PER_BATCH >= len(documents)
            while len(ids) // T >= (1 if is_last else WINDOWS_PER_SHARD):
                count = min(len(ids) // T, WINDOWS_PER_SHARD)
                columns = {"input_ids": ids[: count * T], "document_ids": document_ids[: count * T]}
                write_shard(folder, num_shards, {key: value.reshape(count, T) for key, value in columns.items()})
                ids, document_ids = ids[count * T :], document_ids[count * T :]
                num_windows += count
                num_shards += 1
    if num_windows == 0:
        raise CocomixError(
            f"the {name} text has {num_tokens} tokens, less than one window of {T}: give more text, "
            "a smaller context_length or another validation_fraction"
        )
    return {
        "num_documents": len(documents),
        "num_bytes": num_bytes,
        "num_tokens": num_tokens,
        "num_windows": num_windows,
        "num_shards": num_shards,
    }


def _fingerprint_of_documents(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        text = document.text.encode()
        digest.update(f"{len(text)}:".encode())
        digest.update(text)
    return digest.hexdigest()
