"""Text to token dataset: split by document, tokenize, cut into windows.

Here the text is held in memory; `stream_prepare.py` does the same for a corpus of any size. Documents are shuffled once by
the seed, so that every prefix of a split is a fair sample of it: training on the first n windows needs no second shuffle and
no second dataset. Each document ends with the end-of-sequence token; documents are joined and cut into windows of
`context_length`, and the last, incomplete window is dropped. Concept labels are computed for these very windows, so that
teacher and student see the same context.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.kinds import TOKEN_DATASET
from cocomix.base.progress import ProgressLine, say
from cocomix.data.corpus import TEXT_FIELD, Document, fingerprint_of_documents, head_of
from cocomix.data.source import Files, HubDataset, Source, StandardLibrary
from cocomix.data.stream_prepare import SPLITS, clear_stream, describe_duplicates, write_stream
from cocomix.data.token_dataset import TOKENIZER_FOLDER
from cocomix.data.tokenizer import (
    MAX_TOKENIZER_BYTES,
    encoder_config,
    fingerprint_of_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from cocomix.data.tokenizing import batches_of, encode_in_order
from cocomix.data.windows import WindowWriter

#: Below this many documents, a split by document would leave one side without variety: they are cut into pieces.
MIN_DOCUMENTS = 20


@dataclass(frozen=True)
class PrepareConfig:
    """How text becomes windows of tokens."""

    output: Path
    """Folder of the token dataset."""
    text: tuple[Path, ...] | None = None
    """Text, Markdown, JSON-lines and Parquet files or folders; by default the running Python's standard library."""
    validation_text: tuple[Path, ...] | None = None
    """Files or folders that are the validation split, whole, in place of a share of the text; not with --stream."""
    dataset: str | None = None
    """In place of text: a dataset of the Hugging Face Hub, or a folder or file that `datasets` reads."""
    dataset_config: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split of the dataset to take all documents from; without streaming also a part, such as `train[:10%]`."""
    text_field: str = TEXT_FIELD
    """Field of a JSON-lines or Parquet row, or of a dataset, that holds the text."""
    stream: bool = False
    """Read documents one at a time, in memory that does not grow with the corpus."""
    num_workers: int = 1
    """Processes that tokenize; the result does not depend on it."""
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
    """Take at most this many bytes of UTF-8: of a random sample of the documents, or, streamed, of the first ones."""
    max_tokens: int | None = None
    """Make at most this many tokens of training windows; a stream is read no further."""
    drop_duplicates: bool = False
    """Leave out documents that are exact copies of an earlier one; by default they are counted and kept."""
    seed: int = 0
    """Seed of the shuffle of the documents."""
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    def __post_init__(self) -> None:
        require_at_least(2, self, "context_length")
        require_at_least(1, self, "max_bytes", "num_workers")
        require_at_least(0, self, "seed")
        if self.max_tokens is not None and self.max_tokens < self.context_length:
            raise CocomixError(f"max_tokens is {self.max_tokens}, less than one window of {self.context_length}")
        if self.dataset is not None and self.text is not None:
            raise CocomixError("--text and --dataset are both given; choose one source of text")
        if self.validation_text is not None and self.stream:
            raise CocomixError(
                "--validation-text and --stream do not go together; a stream holds out a share of its own"
            )
        if self.dataset is None and (self.dataset_config is not None or self.split != "train"):
            raise CocomixError("--dataset-config and --split choose a part of a dataset; give its name with --dataset")
        if not 0.0 < self.validation_fraction < 1.0:
            raise CocomixError(f"validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")


def prepare(config: PrepareConfig) -> artifacts.Manifest:
    """Make the token dataset, continue an interrupted stream, or recognise that it is made already."""
    source = _source_of(config)
    tokenizer = _given_tokenizer(config.tokenizer)
    documents: list[Document] = []
    held_out: list[Document] | None = None
    facts: dict[str, Any] = {"context_length": config.context_length, "isolate_documents": config.isolate_documents}
    if config.stream:
        text = artifacts.fingerprint_of_json({"source": source.fingerprint(), "max_bytes": config.max_bytes})
    else:
        documents, facts["num_duplicates"] = _documents_of(source, drop_duplicates=config.drop_duplicates)
        documents = _sample(documents, config.max_bytes, config.seed)
        text = fingerprint_of_documents(documents)
        if config.validation_text is not None:
            held_out = _held_out(config, documents)
    settings = _settings_of(config, text, tokenizer)
    if held_out is not None:
        settings |= {"validation_text": fingerprint_of_documents(held_out), "validation_fraction": None}
    with artifacts.begin(config.output, TOKEN_DATASET, settings, overwrite=config.overwrite) as finished:
        if finished:
            say(f"{config.output}: the token dataset is there already")
            clear_stream(config.output)  # in case the former process ended right before it
            return finished
        try:
            if config.stream:
                facts |= write_stream(config, source, tokenizer, settings)
            else:
                splits = _split(documents, config.validation_fraction) if held_out is None else (documents, held_out)
                facts |= _write(config, *splits, tokenizer)
        except CocomixError:  # nothing half-written stays in the way of a retry with other settings
            for name in (TOKENIZER_FOLDER, *SPLITS):
                shutil.rmtree(config.output / name, ignore_errors=True)
            raise
        manifest = artifacts.finish(config.output, facts)
        clear_stream(config.output)
        return manifest


def _given_tokenizer(name: str | None) -> PreTrainedTokenizerFast | None:
    """Load what `--tokenizer` names, if it names anything."""
    if name is None:
        return None
    try:
        return load_tokenizer(name)
    except CocomixError as error:
        raise CocomixError(f"--tokenizer: {error}") from error


def _source_of(config: PrepareConfig) -> Source:
    if config.dataset is not None:
        return HubDataset(config.dataset, config.dataset_config, config.split, config.text_field)
    if config.text is None:
        return StandardLibrary()
    if not config.text:
        raise CocomixError("--text names no file or folder; leave it out for the standard library")
    return Files(config.text, config.text_field)


def _settings_of(config: PrepareConfig, text: str, tokenizer: PreTrainedTokenizerFast | None) -> dict[str, Any]:
    """What determines the content; options that came later only where they are used, so that older datasets keep theirs."""
    settings: dict[str, Any] = {
        "text": text,
        "tokenizer": None if tokenizer is None else fingerprint_of_tokenizer(tokenizer),
        "vocab_size": config.vocab_size if config.tokenizer is None else None,
        "context_length": config.context_length,
        "validation_fraction": config.validation_fraction,
        "isolate_documents": config.isolate_documents,
        "seed": config.seed,
    }
    if config.max_tokens is not None:
        settings["max_tokens"] = config.max_tokens
    if config.stream:  # elsewhere the fingerprint of the text knows what was dropped
        settings |= {"stream": True, "drop_duplicates": config.drop_duplicates}
    return settings


def _documents_of(source: Source, *, drop_duplicates: bool) -> tuple[list[Document], int]:
    """All documents, and how many of them are, or were, exact copies of an earlier one."""
    documents = list(source.documents())
    if not documents:
        raise CocomixError(f"no text in {source}: every document is empty")
    firsts = list({document.text: document for document in reversed(documents)}.values())[::-1]
    num_duplicates = len(documents) - len(firsts)
    if num_duplicates:
        say(describe_duplicates(num_duplicates, len(documents), dropped=drop_duplicates))
    if drop_duplicates:
        documents = firsts
    return documents if len(documents) >= MIN_DOCUMENTS else _cut_into_pieces(documents), num_duplicates


def _held_out(config: PrepareConfig, training: Sequence[Document]) -> list[Document]:
    """The documents of `validation_text`, shuffled; a document that is also trained on would not be held out."""
    assert config.validation_text is not None
    documents = list(Files(config.validation_text, config.text_field).documents())
    if not documents:
        raise CocomixError(f"no text in {', '.join(map(str, config.validation_text))}: every document is empty")
    shared = {document.text for document in documents} & {document.text for document in training}
    if shared:
        raise CocomixError(
            f"{len(shared):,} documents of --validation-text are in the training text too; remove them there"
        )
    return _sample(documents, None, config.seed)


def _write(
    config: PrepareConfig,
    training: Sequence[Document],
    validation: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast | None,
) -> dict[str, Any]:
    """Write tokenizer and shards; returns the facts about them."""
    if tokenizer is None:
        say(f"training a tokenizer of {config.vocab_size:,} tokens")
        sample = head_of(training, MAX_TOKENIZER_BYTES)
        tokenizer = train_tokenizer((document.text for document in sample), config.vocab_size)
    tokenizer.save_pretrained(config.output / TOKENIZER_FOLDER)
    return {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "splits": {
            "train": _write_split(config, "train", training, tokenizer, config.max_tokens),
            "validation": _write_split(config, "validation", validation, tokenizer, None),
        },
    }


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
    return shuffled if max_bytes is None else list(head_of(shuffled, max_bytes))


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
    config: PrepareConfig,
    name: str,
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int | None,
) -> dict[str, int]:
    """Tokenize one split and write its shards; returns its counts."""
    T = config.context_length
    writer = WindowWriter(config.output / name, T, None if max_tokens is None else max_tokens // T)
    texts = batches_of(document.text for document in documents)
    total_chars = sum(len(document.text) for document in documents)
    with ProgressLine(f"tokenizing the {name} text", total_chars, unit="characters") as progress:
        for batch in encode_in_order(encoder_config(tokenizer), texts, config.num_workers):
            writer.add(batch.ids, batch.lengths, int(batch.num_bytes.sum()))
            progress.advance(batch.num_chars)
            if writer.is_full:
                break
    return writer.finish()
