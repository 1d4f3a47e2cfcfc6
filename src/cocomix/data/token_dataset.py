"""The token dataset: windows of token ids, split into training and validation.

DIR/tokenizer/            the tokenizer, as transformers saves it
DIR/train/00000.parquet   input_ids and document_ids, one window per row
DIR/validation/...
DIR/manifest.json         counts, settings, checksums
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from cocomix.base import artifacts
from cocomix.base.devices import sent
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import TOKEN_DATASET
from cocomix.base.progress import ProgressLine
from cocomix.data.shards import WindowTable
from cocomix.data.tokenizer import has_tokenizer, load_tokenizer, same_tokens

TOKENIZER_FOLDER = "tokenizer"

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Windows:
    """Windows of tokens, as inputs of models."""

    input_ids: Int64[Tensor, "B T"]
    position_ids: Int64[Tensor, "B T"] | None = None
    """Positions that restart at 0 in each isolated document; None: attention crosses documents."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str) -> Windows:
        """The windows on another device."""
        positions = self.position_ids
        return Windows(sent(self.input_ids, device), None if positions is None else sent(positions, device))

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments for a model, a `Teacher` or a `ConceptExtractor`."""
        inputs = {"input_ids": self.input_ids, "position_ids": self.position_ids}
        return {name: tensor for name, tensor in inputs.items() if tensor is not None}


class TokenDataset:
    """One split of a prepared dataset.

    Args:
        path: folder made by `prepare`; every byte of it is checked.
        split: `train` or `validation`.

    Raises:
        CocomixError: the folder is not a finished token dataset, or is damaged.

    `parts` holds the fingerprints of text, tokenizer and windows, which show how two datasets differ.
    """

    def __init__(self, path: Path | str, split: Split = "train") -> None:
        if split not in get_args(Split):
            raise CocomixError(f"split is {split!r}; it must be one of {', '.join(get_args(Split))}")
        path = Path(path)
        manifest = artifacts.read(path, TOKEN_DATASET)
        self.path = path
        self.split = split
        self.fingerprint = manifest.fingerprint
        self.parts = fingerprint_parts(dataclasses.asdict(manifest))
        self.vocab_size = int(manifest.facts["vocab_size"])
        self.eos_token_id = int(manifest.facts["eos_token_id"])
        self.context_length = int(manifest.facts["context_length"])
        self.isolates_documents = bool(manifest.facts.get("isolate_documents", False))
        counts = manifest.facts["splits"][split]
        self.num_windows = int(counts["num_windows"])
        self.tokens_per_byte: float = counts["num_tokens"] / counts["num_bytes"]
        self._table = WindowTable(path / split, counts["num_shards"])
        if len(self._table) != self.num_windows:
            raise CocomixError(
                f"{path / split} holds {len(self._table)} windows, but its manifest says {self.num_windows}"
            )

    def input_ids(self, windows: Sequence[int] | np.ndarray) -> Int64[Tensor, "B T"]:
        """Token ids of the given windows."""
        return torch.from_numpy(self._table.take("input_ids", windows))

    def windows(self, windows: Sequence[int] | np.ndarray) -> Windows:
        """The given windows, with positions if documents are isolated."""
        if not self.isolates_documents:
            return Windows(self.input_ids(windows))
        return Windows(self.input_ids(windows), positions_in_documents(self.document_ids(windows)))

    def batches(
        self, batch_size: int, max_windows: int | None = None, *, mixed: bool = False, description: str | None = None
    ) -> Iterator[Windows]:
        """Batches of evenly spaced windows, a sample of all documents.

        Args:
            batch_size: maximum number of windows per batch; all batches have about the same size.
            max_windows: number of windows in all; None: all of the split.
            mixed: whether to use a fixed random order, so that a batch's windows are not neighbours in one document.
            description: name of the work in a progress line; None: no line.
        """
        count = self.num_windows if max_windows is None else min(max_windows, self.num_windows)
        windows = np.arange(count) * self.num_windows // count
        if mixed:
            windows = np.random.default_rng(0).permutation(windows)
        with contextlib.ExitStack() as stack:
            progress = None
            if description is not None:
                progress = stack.enter_context(ProgressLine(description, count * self.context_length))
            for batch in np.array_split(windows, -(-count // batch_size)):
                yield self.windows(batch)
                if progress is not None:
                    progress.advance(len(batch) * self.context_length)

    def document_ids(self, windows: Sequence[int] | np.ndarray) -> Int64[Tensor, "B T"]:
        """Index of the split's document that each token belongs to."""
        return torch.from_numpy(self._table.take("document_ids", windows))

    def check_model(self, path: Path, vocab_size: int) -> None:
        """Refuse a model that reads other tokens.

        A larger vocabulary is fine: many models pad their embeddings beyond their tokenizer.

        Args:
            path: folder of the model; its tokenizer is compared if it has one.
            vocab_size: vocabulary size of the model.

        Raises:
            CocomixError: the model's vocabulary is too small, or its tokenizer differs.
        """
        if vocab_size < self.vocab_size:
            raise CocomixError(
                f"{path} has {vocab_size} tokens, but {self.path} has {self.vocab_size}; prepare the data with the model's "
                "tokenizer"
            )
        if not has_tokenizer(path):
            return
        if not same_tokens(self.tokenizer(), load_tokenizer(path)):
            raise CocomixError(
                f"{path} and {self.path} have different tokenizers; prepare the data with `--tokenizer {path}`"
            )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.path / TOKENIZER_FOLDER)


def positions_in_documents(document_ids: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
    """Positions that restart at 0 wherever a document begins within a window."""
    positions = torch.arange(document_ids.shape[1]).expand_as(document_ids)
    is_first = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    starts = torch.where(is_first, positions, 0).cummax(dim=1).values
    return positions - starts


def fingerprint_parts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints of the text, of the tokenizer's files, and of the windows with the settings by which they were cut."""
    files, settings = manifest["files"], manifest["settings"]
    tokenizer = {name: entry for name, entry in files.items() if name.startswith(f"{TOKENIZER_FOLDER}/")}
    windows = {name: entry for name, entry in files.items() if name not in tokenizer}
    cut = {name: value for name, value in settings.items() if name not in ("text", "tokenizer", "vocab_size")}
    return {
        "text": str(settings["text"]),
        "tokenizer": artifacts.fingerprint_of_json(tokenizer),
        "windows": artifacts.fingerprint_of_json({"files": windows, "settings": cut}),
    }


def difference(parts: Mapping[str, str], others: Mapping[str, str]) -> str | None:
    """Name of the first part that differs, which explains differences in later ones; None if all are equal.

    Files of the tokenizer may differ, such as the name of its class, where the windows of all the text are equal.
    """
    differing = [name for name, value in parts.items() if others.get(name) != value]
    return None if differing in ([], ["tokenizer"]) else differing[0]
