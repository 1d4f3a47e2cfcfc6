"""Sources of a token dataset's text: files or a dataset on the Hub, both as rows of `datasets`.

`datasets` shuffles both. A `Dataset` is on disk, and all its rows are shuffled. An `IterableDataset` is a stream: its files
are shuffled, and its rows pass through a buffer that mixes neighbours. A source's fingerprint is known before its rows are
read.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.io.generator import GeneratorDatasetInputStream

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.progress import say
from cocomix.data.text_files import read_file

ROWS_PER_READ = 256
#: Rows of a stream held in memory to be mixed.
SHUFFLE_BUFFER_ROWS = 1000

#: A `Dataset` on disk or an `IterableDataset`.
Rows = Any


class Source(abc.ABC):
    """A source of documents.

    Args:
        column: column that holds the text.
    """

    def __init__(self, column: str) -> None:
        self.column = column

    @abc.abstractmethod
    def rows(self, *, stream: bool, folder: Path) -> Rows:
        """All rows: an `IterableDataset` if streamed, otherwise a `Dataset`, copied to `folder` unless already on disk."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Fingerprint of everything that determines the rows, without paths."""

    def texts(self, seed: int, *, stream: bool, folder: Path) -> Iterator[str]:
        """All texts that are not blank, in an order drawn from the seed.

        Args:
            seed: seed of the order.
            stream: whether to stream the source.
            folder: folder for a copy of the text, if not streamed.

        Raises:
            CocomixError: the source can't be read or holds no text; the message says where.
        """
        rows = self.rows(stream=stream, folder=folder)
        order = {"buffer_size": SHUFFLE_BUFFER_ROWS} if stream else {"keep_in_memory": True}
        is_empty = True
        try:
            for batch in rows.shuffle(seed=seed, **order).iter(batch_size=ROWS_PER_READ):
                for text in self._column_of(batch):
                    if text is not None and not isinstance(text, str):
                        raise CocomixError(f'{self}: field "{self.column}" holds {type(text).__name__}, not text')
                    if text and text.strip():
                        is_empty = False
                        yield text
        except CocomixError:
            raise
        except Exception as error:  # `datasets` raises a dozen types of its own
            raise CocomixError(f"{self} can't be read: {reason_of(error)}") from error
        if is_empty:
            raise CocomixError(f"no text in {self}: every document is empty")

    def _column_of(self, batch: dict[str, list[Any]]) -> list[Any]:
        """The texts of a batch; the fields of a stream may not be known before its first row."""
        if self.column not in batch:
            raise CocomixError(f'{self} has no field "{self.column}" (it has {", ".join(batch)})')
        return batch[self.column]


class Files(Source):
    """Text, Markdown, JSON-lines and Parquet files.

    Args:
        files: files in these formats.
        text_field: field of a row that holds the text.
        name: name of the source in messages.
    """

    def __init__(self, files: Sequence[Path], text_field: str, name: str) -> None:
        super().__init__("text")
        self.files, self.text_field, self.name = files, text_field, name

    def rows(self, *, stream: bool, folder: Path) -> Rows:
        if not stream and not folder.exists():
            say(f"copying the text of {self} to {folder}")
        # Sorted by the hash of their content, so that file names don't matter.
        files = [str(file) for _, file in sorted(zip(self._hashes, self.files, strict=True))]
        # Used instead of `from_generator`, which for streams has no `cache_dir` and leaves a lock file in the user's cache.
        generated = GeneratorDatasetInputStream(
            _rows_of_files,
            features=datasets.Features({self.column: datasets.Value("large_string")}),
            gen_kwargs={"files": files, "text_field": self.text_field},
            cache_dir=str(folder),
            streaming=stream,
            writer_batch_size=ROWS_PER_READ,
        )
        try:
            return generated.read()
        except datasets.exceptions.DatasetGenerationError as error:
            raise error.__cause__ or error from None

    def fingerprint(self) -> str:
        return artifacts.fingerprint_of_json({"files": sorted(self._hashes), "text_field": self.text_field})

    def __str__(self) -> str:
        return self.name

    @functools.cached_property
    def _hashes(self) -> list[str]:
        return [artifacts.sha256_of_file(file) for file in self.files]


def _rows_of_files(files: list[str], text_field: str) -> Iterator[dict[str, str]]:
    for file in files:
        for text in read_file(Path(file), text_field):
            yield {"text": text}


class HubDataset(Source):
    """One split of a dataset that `datasets` loads from the Hugging Face Hub or from a local folder or file.

    Code in a dataset's repository is never run: `datasets` 4 and later can't. Unless streamed, the dataset is kept in the
    cache of `datasets`, as after any `load_dataset`.

    Args:
        name: name on the Hub, or a path.
        configuration: configuration of the dataset, if it has several.
        split: split such as `train`; without streaming also a part, such as `train[:10%]`.
        text_field: column that holds the text.
    """

    def __init__(self, name: str, configuration: str | None, split: str, text_field: str) -> None:
        super().__init__(text_field)
        self.name, self.configuration, self.split = name, configuration, split

    def rows(self, *, stream: bool, folder: Path) -> Rows:
        if not stream:
            say(f"loading {self.name}, {self.split}")
        rows = self._ask(datasets.load_dataset, split=self.split, streaming=stream)
        if rows.column_names is None:  # a stream whose fields are not known before its first row
            return rows
        if self.column not in rows.column_names:
            raise CocomixError(
                f'{self} has no field "{self.column}" (it has {", ".join(rows.column_names)}); '
                "choose one with --text-field"
            )
        return rows.select_columns([self.column])

    def fingerprint(self) -> str:
        """Fingerprint of the local files, or of the commit on the Hub."""
        path = Path(self.name)
        is_local = path.exists()
        version = artifacts.fingerprint_of_path(path) if is_local else self._ask(datasets.load_dataset_builder).hash
        parts = {"configuration": self.configuration, "split": self.split, "text_field": self.column}
        return artifacts.fingerprint_of_json({"version": version, **parts})

    def __str__(self) -> str:
        return f"dataset {self.name}"

    def _ask(self, function: Any, **arguments: Any) -> Any:
        """The result of a function of `datasets` for the dataset; any error becomes a `CocomixError`."""
        where: dict[str, Any] = {"path": self.name}
        if Path(self.name).is_file():
            where = {"path": str(Path(self.name).parent), "data_files": Path(self.name).name}
        try:
            return function(name=self.configuration, **where, **arguments)
        except Exception as error:  # `datasets` raises a dozen types of its own
            # If a configuration must be chosen, the second line lists them.
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__
            raise CocomixError(f"{self} can't be loaded: {reason}") from error
