"""The texts: English prose given on the command line, and the source of Python's standard library."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence.sizes import Regime
from cocomix import PrepareConfig
from cocomix.base.errors import CocomixError

#: As the pages name them.
CORPORA = {"prose": "English prose", "standard_library": "standard library"}


@dataclass(frozen=True)
class Places:
    """Where things are on this machine; results do not contain it.

    Args:
        work: folder for datasets, teachers, labels and runs.
        prose: files of text; those whose names begin with `validation` are the validation split.
        device: `cpu` or `cuda`.
    """

    work: Path
    prose: tuple[Path, ...] = ()
    device: str = "cpu"


def text_option(corpus: str) -> str:
    """What a stored command says of its text."""
    return " --prose FILE..." if corpus == "prose" else ""


def prepare_config(corpus: str, regime: Regime, places: Places) -> PrepareConfig:
    """How a corpus becomes a dataset, in the shape that a size is for.

    Raises:
        CocomixError: the prose is needed, and was not given.
    """
    V, T = regime.size.vocab_size, regime.size.context_length
    output = places.work / corpus / f"data-{V}-{T}"
    num_workers = 1 if places.device == "cpu" else os.cpu_count() or 1  # with a GPU nothing else runs meanwhile
    shared = {"output": output, "vocab_size": V, "context_length": T, "num_workers": num_workers}
    if corpus == "standard_library":
        return PrepareConfig(**shared, max_bytes=regime.max_bytes)
    if not places.prose:
        raise CocomixError(
            "the corpus `prose` needs --prose, files of text such as train.parquet and validation.parquet"
        )
    validation = tuple(path for path in places.prose if path.name.startswith("validation"))
    text = tuple(path for path in places.prose if path not in validation)
    return PrepareConfig(**shared, text=text, validation_text=validation or None)
