"""The texts: the source of Python's standard library, and English prose given on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cocomix import PrepareConfig
from cocomix.base.errors import CocomixError
from cocomix.training.sizes import Size

MAX_STANDARD_LIBRARY_BYTES = 24_000_000


@dataclass(frozen=True)
class Places:
    """Where things are on this machine; results do not contain it.

    Args:
        work: folder for datasets, teachers, labels and runs.
        english: folder with `train.parquet` and `validation.parquet`, one document a row.
        task_data: folder with the published files of LAMBADA and BLiMP.
    """

    work: Path
    english: Path | None = None
    task_data: Path | None = None


def prepare_config(corpus: str, size: Size, places: Places) -> PrepareConfig:
    """How a corpus becomes a dataset, in the shape that a size is for.

    Raises:
        CocomixError: the English text is needed, and was not given.
    """
    output = places.work / corpus / f"data-{size.vocab_size}-{size.context_length}"
    common = {"output": output, "vocab_size": size.vocab_size, "context_length": size.context_length}
    if corpus == "standard_library":
        return PrepareConfig(**common, max_bytes=MAX_STANDARD_LIBRARY_BYTES)
    if places.english is None:
        raise CocomixError("the corpus `english` needs --english, a folder with train.parquet and validation.parquet")
    return PrepareConfig(
        **common, text=(places.english / "train.parquet",), validation_text=(places.english / "validation.parquet",)
    )


#: As the pages name them.
CORPUS_NAMES = {"standard_library": "standard library", "english": "English prose"}
CORPORA = tuple(CORPUS_NAMES)
#: Benchmarks that suit a corpus.
TASKS = {"standard_library": (), "english": ("lambada", "blimp")}
