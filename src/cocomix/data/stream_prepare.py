"""Text to token dataset in bounded memory, whatever the size of the corpus.

Documents are read once (the first ones twice, where a tokenizer is trained on them), tokenized as they come, and put on disk
aside. Each goes to validation or training by a hash of its text and the seed alone, so that copies of a document are all on
one side. When the source is read, both splits are written in the order of random keys (`external_shuffle.py`). Until the
dataset is finished this takes its size on disk once more: 2 bytes a token, or 4 with a vocabulary beyond 65,536.

DIR/.stream/state.json   how far the source was read and how long each file was then: an interrupted run goes on from there
DIR/.stream/tokenizer/   as given or trained
DIR/.stream/digests      64 bits of a hash of each document, for copies
DIR/.stream/train/       `ShuffledPile`
DIR/.stream/validation/
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.progress import ProgressLine, say
from cocomix.data.corpus import Document, head_of
from cocomix.data.external_shuffle import ROW, ShuffledPile, random_bits
from cocomix.data.source import Source
from cocomix.data.token_dataset import TOKENIZER_FOLDER, Split
from cocomix.data.tokenizer import MAX_TOKENIZER_BYTES, encoder_config, load_tokenizer, train_tokenizer
from cocomix.data.tokenizing import EncoderConfig, TokenBatch, batches_of, digest_of, encode_in_order
from cocomix.data.windows import WindowWriter

if TYPE_CHECKING:
    from cocomix.data.prepare import PrepareConfig

FOLDER = ".stream"
BATCHES_PER_SAVE = 64
#: Documents whose hashes are compared at a time.
DIGESTS_PER_PART = 2**20

SPLITS: tuple[Split, Split] = ("train", "validation")


def write_stream(
    config: PrepareConfig, source: Source, tokenizer: PreTrainedTokenizerFast | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Write tokenizer and shards of a dataset that was begun; returns the facts about it.

    Args:
        config: of the dataset.
        source: of its documents.
        tokenizer: as given; None: one is trained on the first training documents.
        settings: of the dataset: what an interrupted run must have had to be continued.
    """
    reading = _Reading(config, source, tokenizer, settings)
    reading.read()
    # Copied: written again after it was read again, its files could differ from those of an undisturbed run.
    shutil.copytree(reading.folder / TOKENIZER_FOLDER, config.output / TOKENIZER_FOLDER, dirs_exist_ok=True)
    repeated = find_repeats(reading.folder / "digests")
    num_duplicates = int(repeated.sum())
    say(describe_duplicates(num_duplicates, len(repeated), dropped=config.drop_duplicates))
    try:
        splits = {split: reading.write(split, repeated if config.drop_duplicates else None) for split in SPLITS}
    except CocomixError:
        clear_stream(config.output)  # with these settings it comes to nothing, and with others it is of no use
        raise
    return {
        "vocab_size": len(reading.tokenizer),
        "eos_token_id": reading.tokenizer.eos_token_id,
        "num_duplicates": num_duplicates,
        "splits": splits,
    }


def clear_stream(output: Path) -> None:
    """Remove what is of no use to a finished dataset."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)


def describe_duplicates(count: int, num_documents: int, *, dropped: bool) -> str:
    """How many exact copies there were, for the user."""
    if count == 0:
        return f"none of {num_documents:,} documents is an exact copy of another"
    what = "were left out" if dropped else "are kept; --drop-duplicates leaves them out"
    return f"{count:,} of {num_documents:,} documents are exact copies of an earlier one and {what}"


def is_validation(digest: int, seed: int, validation_fraction: float) -> bool:
    """Whether a document is held out: a pure function of its text and the seed."""
    return random_bits(seed, digest) < validation_fraction * 2**64


class _Reading:
    """The source on its way to the disk, from where the newest saved state left it."""

    def __init__(
        self,
        config: PrepareConfig,
        source: Source,
        tokenizer: PreTrainedTokenizerFast | None,
        settings: dict[str, Any],
    ) -> None:
        self.config, self.source = config, source
        self.folder = config.output / FOLDER
        self.fingerprint = artifacts.fingerprint_of_json(settings)
        self.state = self._restored()
        if self.state["num_documents"]:
            self.tokenizer = load_tokenizer(self.folder / TOKENIZER_FOLDER)
        else:
            self.tokenizer = tokenizer or self._trained_tokenizer()
            self.tokenizer.save_pretrained(self.folder / TOKENIZER_FOLDER)
        self.encoder: EncoderConfig = encoder_config(self.tokenizer)
        dtype = np.dtype(self.encoder.dtype)
        self.piles = {split: ShuffledPile(self.folder / split, dtype) for split in SPLITS}

    def read(self) -> None:
        """Tokenize the rest of the source."""
        if self.state["is_read"]:
            return
        done = self.state["num_documents"]
        if done:
            say(f"continuing {self.config.output} behind {done:,} documents")
        texts = batches_of(document.text for document in itertools.islice(self._documents(), done, None))
        progress = ProgressLine("reading and tokenizing", None, unit="characters")
        with progress, (self.folder / "digests").open("ab") as digests:
            for count, batch in enumerate(encode_in_order(self.encoder, texts, self.config.num_workers), start=1):
                digests.write(batch.digests.data)
                self._add(batch)
                progress.advance(batch.num_chars, documents=self.state["num_documents"])
                if self._has_enough():
                    break
                if count % BATCHES_PER_SAVE == 0:
                    digests.flush()
                    self._save()
        if self.state["num_documents"] == 0:
            raise CocomixError(f"no text in {self.source}: every document is empty")
        self.state["is_read"] = True
        self._save()

    def write(self, split: Split, repeated: np.ndarray | None) -> dict[str, int]:
        """Write the shards of one split; returns its counts.

        Args:
            split: which.
            repeated: [documents] which to leave out; None: none.
        """
        max_tokens = self.config.max_tokens if split == "train" else None
        T = self.config.context_length
        writer = WindowWriter(self.config.output / split, T, None if max_tokens is None else max_tokens // T)
        total = self.state["num_tokens"][split]
        with ProgressLine(f"writing the {split} windows", total) as progress:
            for rows, ids in self.piles[split].in_order():
                progress.advance(len(ids))
                if repeated is not None:
                    kept = ~repeated[rows["number"]]
                    rows, ids = rows[kept], ids[np.repeat(kept, rows["num_tokens"])]
                writer.add(ids, rows["num_tokens"], int(rows["num_bytes"].sum()))
                if writer.is_full:
                    break
        return writer.finish()

    def _documents(self) -> Iterator[Document]:
        documents = self.source.stream(self.config.seed)
        return documents if self.config.max_bytes is None else head_of(documents, self.config.max_bytes)

    def _trained_tokenizer(self) -> PreTrainedTokenizerFast:
        """Of the first training documents, as many as teach it something."""
        say(f"training a tokenizer of {self.config.vocab_size:,} tokens")
        training = (document for document in self._documents() if not self._is_validation(_digest(document)))
        sample = head_of(training, MAX_TOKENIZER_BYTES)
        return train_tokenizer((document.text for document in sample), self.config.vocab_size)

    def _is_validation(self, digest: int) -> bool:
        return is_validation(digest, self.config.seed, self.config.validation_fraction)

    def _add(self, batch: TokenBatch) -> None:
        """Put the documents of a batch on the piles of their splits."""
        first = self.state["num_documents"]
        rows = np.empty(len(batch.lengths), ROW)
        rows["number"] = np.arange(first, first + len(rows))
        rows["key"] = [random_bits(self.config.seed, int(number), 0) for number in rows["number"]]
        rows["num_tokens"], rows["num_bytes"] = batch.lengths, batch.num_bytes
        held_out = np.array([self._is_validation(int(digest)) for digest in batch.digests])
        for split, chosen in zip(SPLITS, (~held_out, held_out), strict=True):
            if chosen.any():
                self.piles[split].add(rows[chosen], batch.ids[np.repeat(chosen, batch.lengths)])
                self.state["num_tokens"][split] += int(batch.lengths[chosen].sum())
        self.state["num_documents"] += len(rows)

    def _has_enough(self) -> bool:
        max_tokens = self.config.max_tokens
        return max_tokens is not None and self.state["num_tokens"]["train"] >= max_tokens

    def _save(self) -> None:
        for pile in self.piles.values():
            pile.flush()
        self.state["files"] = {
            path.relative_to(self.folder).as_posix(): path.stat().st_size for path in self._growing_files()
        }
        artifacts.write_json(self.folder / "state.json", self.state)

    def _restored(self) -> dict[str, Any]:
        """The state a former process saved, its files cut back to what they were then; else a new one."""
        path = self.folder / "state.json"
        state: dict[str, Any] = artifacts.read_json(path) if path.exists() else {}
        files = {self.folder / name: size for name, size in state.get("files", {}).items()}
        is_whole = all(file.exists() and file.stat().st_size >= size for file, size in files.items())
        if state.get("settings") != self.fingerprint or not is_whole:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            counts = dict.fromkeys(SPLITS, 0)
            return {"settings": self.fingerprint, "is_read": False, "num_documents": 0, "num_tokens": counts}
        for file in self._growing_files():
            if file in files:
                os.truncate(file, files[file])
            else:
                file.unlink()
        return state

    def _growing_files(self) -> list[Path]:
        piles = [file for split in SPLITS for file in (self.folder / split).glob("*.*")]
        return [*self.folder.glob("digests"), *piles]


def _digest(document: Document) -> int:
    return digest_of(document.text.encode())


def find_repeats(path: Path) -> np.ndarray:
    """Which documents are copies of an earlier one, in memory that does not grow with their number.

    Args:
        path: file of the documents' hashes, 64 bits each.

    Returns:
        [documents] booleans, mapped from a file beside it.
    """
    digests = np.memmap(path, "<u8", "r")
    repeated = np.memmap(path.with_name("repeated"), bool, "w+", shape=len(digests))
    num_parts = -(-len(digests) // DIGESTS_PER_PART)
    for part in range(num_parts):
        # Equal hashes fall into the same part.
        numbers = np.concatenate(
            [
                start + np.flatnonzero(digests[start : start + DIGESTS_PER_PART] % num_parts == part)
                for start in range(0, len(digests), DIGESTS_PER_PART)
            ]
        )
        _, first = np.unique(digests[numbers], return_index=True)
        is_repeat = np.ones(len(numbers), bool)
        is_repeat[first] = False
        repeated[numbers[is_repeat]] = True
    return repeated
