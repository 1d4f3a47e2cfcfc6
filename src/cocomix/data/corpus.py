"""Where text comes from: files of the user, or the standard library of the running Python.

A document is one unit of text that is wholly in the training split or wholly in the validation split: a file of plain
text, a line of JSON-lines, a row of Parquet.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.base.errors import CocomixError

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst"})
JSON_LINES_SUFFIXES = frozenset({".jsonl", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet"})
TEXT_FIELD = "text"

_NOT_LIBRARY_SOURCE = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    source: str
    text: str


def standard_library_documents() -> Iterator[Document]:
    """Source files of the running Python's standard library, tests left out, in a fixed order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = False
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if _NOT_LIBRARY_SOURCE.isdisjoint(parts):
            text = path.read_bytes().decode("utf-8", errors="replace")
            if text.strip():
                found = True
                yield Document("/".join(parts), text)
    if not found:
        raise CocomixError(f"no standard library source under {folder}; give a corpus with --text")


def read_documents(paths: Sequence[Path]) -> Iterator[Document]:
    """Documents of text, Markdown, JSON-lines and Parquet files; a folder stands for all such files below it.

    Raises:
        CocomixError: a path does not exist, can't be read, or has no text; the message names it.
    """
    for path in paths:
        for file in _files_of(path):
            yield from _read_file(file)


def _files_of(path: Path) -> Iterable[Path]:
    if not path.exists():
        raise CocomixError(f"{path} does not exist")
    if path.is_file():
        return [path]
    known = TEXT_SUFFIXES | JSON_LINES_SUFFIXES | PARQUET_SUFFIXES
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file())
    if not files:
        raise CocomixError(f"{path} holds no file ending in {', '.join(sorted(known))}")
    return files


def _read_file(path: Path) -> Iterator[Document]:
    suffix = path.suffix.lower()
    try:
        if suffix in JSON_LINES_SUFFIXES:
            yield from _read_json_lines(path)
        elif suffix in PARQUET_SUFFIXES:
            yield from _read_parquet(path)
        else:
            yield from _documents(path.name, path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CocomixError(f"{path} is not UTF-8 text (byte {error.start}); convert it or leave it out") from error
    except OSError as error:
        raise CocomixError(f"{path} can't be read: {error.strerror or error}") from error


def _read_json_lines(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, where, row in json_rows(lines, path):
            text = row.get(TEXT_FIELD) if isinstance(row, dict) else row
            if not isinstance(text, str):
                raise CocomixError(f'{where}: expected a string or an object with a "{TEXT_FIELD}" string')
            yield from _documents(f"{path.name}:{number}", text)


def json_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[int, str, Any]]:
    """Values of the lines of a JSON-lines file, blank ones left out, each with its number and its place, for errors."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CocomixError(f"{where}: not JSON ({error.msg})") from error
        yield number, where, row


def _read_parquet(path: Path) -> Iterator[Document]:
    try:
        file = pq.ParquetFile(path)
        if TEXT_FIELD not in file.schema_arrow.names:
            raise CocomixError(f'{path} has no column "{TEXT_FIELD}" (it has {", ".join(file.schema_arrow.names)})')
        row = 0
        for batch in file.iter_batches(columns=[TEXT_FIELD], batch_size=1024):
            for text in batch.column(0).to_pylist():
                if text is not None and not isinstance(text, str):
                    raise CocomixError(f'{path}: column "{TEXT_FIELD}" holds {type(text).__name__}, not text')
                yield from _documents(f"{path.name}:{row}", text or "")
                row += 1
    except pa.ArrowException as error:
        raise CocomixError(f"{path} is not a readable Parquet file: {error}") from error


def _documents(source: str, text: str) -> Iterator[Document]:
    # A lone surrogate (possible in JSON escapes) has no UTF-8 form and would stop the tokenizer.
    clean = text.encode("utf-8", errors="replace").decode("utf-8")
    if clean.strip():
        yield Document(source, clean)
