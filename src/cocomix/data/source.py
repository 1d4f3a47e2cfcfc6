"""What a token dataset is made from: files, the standard library, or a dataset of the Hub.

A source gives its documents in a fixed order. Streamed, it gives them one at a time and its files in an order drawn from
a seed, so that what is read first is not one corner of the corpus; and it has a fingerprint that is known before its
documents are.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.progress import say
from cocomix.data.corpus import (
    Document,
    documents_of,
    files_of,
    fingerprint_of_documents,
    read_documents,
    read_file,
    standard_library_documents,
)

ROWS_PER_READ = 256


class Source(abc.ABC):
    """Where documents come from."""

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """All documents, in a fixed order."""

    def stream(self, seed: int) -> Iterator[Document]:
        """All documents, files of a large corpus in an order drawn from the seed."""
        return self.documents()

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Of what `stream` gives, without reading it as documents."""


class StandardLibrary(Source):
    """The source code of the running Python's standard library."""

    def documents(self) -> Iterator[Document]:
        return standard_library_documents()

    def fingerprint(self) -> str:
        return fingerprint_of_documents(self.documents())

    def __str__(self) -> str:
        return "the standard library"


class Files(Source):
    """Files and folders of text, Markdown, JSON-lines and Parquet.

    Args:
        paths: as given.
        text_field: of a row's text.
    """

    def __init__(self, paths: Sequence[Path], text_field: str) -> None:
        self.paths, self.text_field = paths, text_field

    def documents(self) -> Iterator[Document]:
        return read_documents(self.paths, self.text_field)

    def stream(self, seed: int) -> Iterator[Document]:
        files = files_of(self.paths)
        for index in np.random.default_rng(seed).permutation(len(files)):
            yield from read_file(files[index], self.text_field)

    def fingerprint(self) -> str:
        files = [artifacts.sha256_of_file(file) for file in files_of(self.paths)]
        return artifacts.fingerprint_of_json({"files": files, "text_field": self.text_field})

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))


class HubDataset(Source):
    """One split of a dataset that `datasets` loads: from the Hugging Face Hub, or from a folder or file here.

    Code that comes with a dataset is never run: `datasets` 4 and later have no way to.

    Args:
        name: on the Hub, or a path.
        configuration: of the dataset, where it has several.
        split: such as `train`; without streaming also a part, such as `train[:10%]`.
        text_field: column of the text.
    """

    def __init__(self, name: str, configuration: str | None, split: str, text_field: str) -> None:
        self.name, self.configuration, self.split, self.text_field = name, configuration, split, text_field

    def documents(self) -> Iterator[Document]:
        say(f"loading {self.name}, {self.split}")
        return self._documents_of(self._load(streaming=False))

    def stream(self, seed: int) -> Iterator[Document]:
        rows = self._load(streaming=True)
        for index in np.random.default_rng(seed).permutation(rows.num_shards):
            yield from self._documents_of(rows.shard(rows.num_shards, int(index)))

    def fingerprint(self) -> str:
        """Of the files here; of the commit on the Hub."""
        path = Path(self.name)
        is_here = path.exists()
        version = artifacts.fingerprint_of_path(path) if is_here else self._ask(datasets.load_dataset_builder).hash
        parts = {"configuration": self.configuration, "split": self.split, "text_field": self.text_field}
        return artifacts.fingerprint_of_json({"version": version, **parts})

    def __str__(self) -> str:
        return self.name

    def _load(self, *, streaming: bool) -> Any:
        rows = self._ask(datasets.load_dataset, split=self.split, streaming=streaming)
        if rows.column_names is None:  # a stream whose fields its first row tells
            return rows
        if self.text_field not in rows.column_names:
            raise CocomixError(
                f'{self.name} has no field "{self.text_field}" (it has {", ".join(rows.column_names)}); '
                "choose one with --text-field"
            )
        return rows.select_columns([self.text_field])

    def _ask(self, function: Any, **arguments: Any) -> Any:
        """What a function of `datasets` says about the dataset, or one sentence."""
        where: dict[str, Any] = {"path": self.name}
        if Path(self.name).is_file():
            where = {"path": str(Path(self.name).parent), "data_files": Path(self.name).name}
        try:
            return function(name=self.configuration, **where, **arguments)
        except Exception as error:  # it raises a dozen kinds of its own
            # Where a configuration is to be chosen, the second line lists them.
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__
            raise CocomixError(f"dataset {self.name} can't be loaded: {reason}") from error

    def _documents_of(self, rows: Any) -> Iterator[Document]:
        number = 0
        for batch in self._batches(rows):
            if self.text_field not in batch:
                raise CocomixError(f'{self.name} has no field "{self.text_field}" (it has {", ".join(batch)})')
            for text in batch[self.text_field]:
                if text is not None and not isinstance(text, str):
                    raise CocomixError(f'{self.name}: field "{self.text_field}" holds {type(text).__name__}, not text')
                yield from documents_of(f"{self.name}:{number}", text or "")
                number += 1

    def _batches(self, rows: Any) -> Iterator[dict[str, list[Any]]]:
        try:
            yield from rows.iter(batch_size=ROWS_PER_READ)
        except Exception as error:  # as above
            raise CocomixError(f"dataset {self.name} can't be read: {reason_of(error)}") from error
