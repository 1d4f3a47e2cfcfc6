"""Sidecars of a token dataset: folders of shards with one row for each of its training windows.

DIR/00000.parquet   one window per row
DIR/manifest.json   fingerprints of text, tokenizer and windows; settings of the rows; checksums
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.data.shards import WindowTable
from cocomix.data.token_dataset import TokenDataset, difference


class Sidecar:
    """Rows of the first `num_windows` training windows of a token dataset.

    Args:
        path: folder of the sidecar; every byte of it is checked.
        tokens: token dataset that the rows must belong to.

    Raises:
        CocomixError: the rows were made for other tokens, or the folder is damaged.
    """

    kind: ClassVar[str]
    """Kind of the folder."""
    content: ClassVar[str]
    """Name of the rows in messages."""
    remedy: ClassVar[str]
    """Advice in messages on how to get rows for another dataset."""

    def __init__(self, path: Path | str, tokens: TokenDataset) -> None:
        path = Path(path)
        manifest = artifacts.read(path, self.kind)
        other = difference(tokens.parts, manifest.settings["data"])
        if other is not None:
            raise CocomixError(
                f"the {self.content} in {path} belong to another token dataset than {tokens.path} (the {other} differs); "
                f"{self.remedy} for this one, or train on the dataset they were made for"
            )
        self.path = path
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.settings = manifest.settings
        self.num_windows = int(manifest.settings["num_windows"])
        self.flops_per_token = float(manifest.facts["flops_per_token"])
        self._context_length = tokens.context_length
        self._table = WindowTable(path, manifest.facts["num_shards"])

    def training_flops(self, num_tokens: int, num_windows: int) -> float:
        """FLOPs spent on the rows of a run of `num_tokens` on `num_windows`; a window seen again costs nothing more."""
        return min(num_tokens, num_windows * self._context_length) * self.flops_per_token
