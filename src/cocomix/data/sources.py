"""Sources of a token dataset's text: files or a dataset on the Hub, both as rows of `datasets`.

`datasets` shuffles both. A `Dataset` is on disk, and all its rows are shuffled. An `IterableDataset` is a stream: its files
are shuffled, and its rows pass through a buffer that mixes neighbours. A source's fingerprint is known before its rows are
read. What is left out is a row too, so that it is counted however the rows are read.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets.io.generator import GeneratorDatasetInputStream

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.progress import say
from cocomix.data.text_files import FoundFiles, field_of, format_of, read_file

ROWS_PER_READ = 256
#: Rows of a stream held in memory to be mixed.
SHUFFLE_BUFFER_ROWS = 1000
#: Formats that version 0.1 read as plain text; a fingerprint names them, so that its folders are not taken for equal.
_NEW_FORMATS = frozenset({".json", ".csv", ".tsv"})

NUM_PROBLEMS_SHOWN = 10
#: What a token dataset counts of its text.
LEFT_OUT = {
    "num_hidden": "files that are hidden or in a cache",
    "num_without_text": "documents without text",
    "num_unreadable": "files or rows that can't be read",
}

#: A `Dataset` on disk or an `IterableDataset`.
Rows = Any


@dataclass
class LeftOut:
    """What was left out of the documents read so far; the counts are those of `LEFT_OUT`."""

    num_hidden: int = 0
    num_without_text: int = 0
    num_unreadable: int = 0
    problems: list[str] = field(default_factory=list)
    """One sentence for each of the first few files and rows that can't be read."""

    def add_problem(self, problem: str) -> None:
        self.num_unreadable += 1
        if len(self.problems) < NUM_PROBLEMS_SHOWN:
            self.problems.append(problem)

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in LEFT_OUT}


class Source(abc.ABC):
    """A source of documents.

    Args:
        column: column that holds the text.
    """

    num_hidden = 0
    """Files that were left out because they are hidden or in a cache."""

    def __init__(self, column: str) -> None:
        self.column = column

    @abc.abstractmethod
    def rows(self, *, stream: bool, folder: Path) -> Rows:
        """All rows: an `IterableDataset` if streamed, otherwise a `Dataset`, copied to `folder` unless already on disk."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Fingerprint of everything that determines the rows, without paths."""

    def texts(self, seed: int, *, stream: bool, folder: Path, left_out: LeftOut | None = None) -> Iterator[str]:
        r"""All texts that are not blank, in an order drawn from the seed; every line end is `\n`.

        Args:
            seed: seed of the order.
            stream: whether to stream the source.
            folder: folder for a copy of the text, if not streamed.
            left_out: grows by what is left out, as the texts are taken.

        Raises:
            CocomixError: the source can't be read or holds no text; the message says where.
        """
        left_out = LeftOut() if left_out is None else left_out
        rows = self.rows(stream=stream, folder=folder)
        order = {"buffer_size": SHUFFLE_BUFFER_ROWS} if stream else {"keep_in_memory": True}
        is_empty = True
        try:
            for batch in rows.shuffle(seed=seed, **order).iter(batch_size=ROWS_PER_READ):
                for text, problem in self._documents(batch):
                    if text is not None and not isinstance(text, str):
                        raise CocomixError(f'{self}: field "{self.column}" holds {type(text).__name__}, not text')
                    if problem is not None:
                        left_out.add_problem(problem)
                    elif text is None or not text.strip():
                        left_out.num_without_text += 1
                    else:
                        is_empty = False
                        yield text.replace("\r\n", "\n").replace("\r", "\n")
        except CocomixError:
            raise
        except Exception as error:  # `datasets` raises a dozen types of its own
            raise CocomixError(f"{self} can't be read: {reason_of(error)}") from error
        if is_empty:
            reason = "; ".join(["every document is empty", *left_out.problems[:1]])
            raise CocomixError(f"no text in {self}: {reason}")

    @abc.abstractmethod
    def _documents(self, batch: dict[str, list[Any]]) -> Iterable[tuple[Any, str | None]]:
        """The documents of a batch of rows, each with what kept it from being read, or None."""


class Files(Source):
    """Files in the formats of `text_files`.

    Args:
        found: the files.
        text_field: field of a row that holds the text.
        name: name of the source in messages.
        skips_errors: whether what can't be read is left out; otherwise it is an error.
    """

    def __init__(self, found: FoundFiles, text_field: str, name: str, *, skips_errors: bool = False) -> None:
        super().__init__("text")
        self.files, self.num_hidden = found
        self.text_field, self.name, self.skips_errors = text_field, name, skips_errors

    def rows(self, *, stream: bool, folder: Path) -> Rows:
        if not stream and not folder.exists():
            say(f"copying the text of {self} to {folder}")
        # Sorted by their content, so that file names don't matter.
        files = [str(file) for _, file in sorted(zip(self._contents, self.files, strict=True))]
        # Used instead of `from_generator`, which for streams has no `cache_dir` and leaves a lock file in the user's cache.
        generated = GeneratorDatasetInputStream(
            _rows_of_files,
            features=datasets.Features({name: datasets.Value("large_string") for name in ("text", "problem")}),
            gen_kwargs={"files": files, "text_field": self.text_field, "skips_errors": self.skips_errors},
            cache_dir=str(folder),
            streaming=stream,
            writer_batch_size=ROWS_PER_READ,
        )
        try:
            return generated.read()
        except datasets.exceptions.DatasetGenerationError as error:
            raise error.__cause__ or error from None

    def fingerprint(self) -> str:
        return artifacts.fingerprint_of_json({"files": sorted(self._contents), "text_field": self.text_field})

    def __str__(self) -> str:
        return self.name

    def _documents(self, batch: dict[str, list[Any]]) -> Iterable[tuple[Any, str | None]]:
        return zip(batch["text"], batch["problem"], strict=True)

    @functools.cached_property
    def _contents(self) -> list[str]:
        """A hash of each file's content, and its format if that is a new one."""
        suffixes = [suffix if (suffix := format_of(file)) in _NEW_FORMATS else "" for file in self.files]
        return [artifacts.sha256_of_file(file) + suffix for file, suffix in zip(self.files, suffixes, strict=True)]


def _rows_of_files(files: list[str], text_field: str, skips_errors: bool) -> Iterator[dict[str, str | None]]:
    for file in files:
        for text in read_file(Path(file), text_field):
            if not isinstance(text, CocomixError):
                yield {"text": text, "problem": None}
            elif skips_errors:  # Arrow takes no path that isn't UTF-8
                yield {"text": None, "problem": str(text).encode("utf-8", "backslashreplace").decode("utf-8")}
            else:
                raise text


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
        column = self.column if self.column in rows.column_names else self.column.partition(".")[0]
        if column not in rows.column_names:
            raise CocomixError(f"{self._lack_of_field(rows.column_names)}; choose one with --text-field")
        return rows.select_columns([column])

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
            file = Path(self.name).absolute()
            where = {"path": str(file.parent), "data_files": file.name}
        try:
            return function(name=self.configuration, **where, **arguments)
        except Exception as error:  # `datasets` raises a dozen types of its own
            # If a configuration must be chosen, the second line lists them.
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__
            raise CocomixError(f"{self} can't be loaded: {reason}") from error

    def _documents(self, batch: dict[str, list[Any]]) -> Iterable[tuple[Any, str | None]]:
        for values in zip(*batch.values(), strict=True):
            row = dict(zip(batch, values, strict=True))
            try:
                yield field_of(row, self.column), None
            except KeyError:
                raise CocomixError(self._lack_of_field(row)) from None

    def _lack_of_field(self, fields: Iterable[str]) -> str:
        return f'{self} has no field "{self.column}" (it has {", ".join(fields)})'
