"""What lies beside a token dataset, row by row: a folder of shards that belongs to its training windows.

DIR/00000.parquet   one window a row
DIR/manifest.json   fingerprints of text, tokenizer and windows; what the rows were made with; checksums
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
        path: folder that the command made; every byte of it is checked.
        tokens: the token dataset that the rows must belong to.

    Raises:
        CocomixError: the rows were made for other tokens, or the folder is damaged.
    """

    kind: ClassVar[str]
    """Of the folder."""
    content: ClassVar[str]
    """Name of the rows, for people."""
    remedy: ClassVar[str]
    """What gives rows for another dataset."""

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
        """FLOPs that made the rows of a run of `num_tokens` on `num_windows`; a window seen again costs nothing more."""
        return min(num_tokens, num_windows * self._context_length) * self.flops_per_token
