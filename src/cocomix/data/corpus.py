"""Documents of files of the user, or of the standard library of the running Python.

A document is one unit of text that is wholly in the training split or wholly in the validation split: a file of plain
text, a line of JSON-lines, a row of Parquet.
"""

from __future__ import annotations

import hashlib
import io
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
#: Behind a suffix of text or JSON-lines; Parquet compresses its columns itself.
COMPRESSION_SUFFIXES = frozenset({".gz", ".zst", ".bz2"})
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


def read_documents(paths: Sequence[Path], text_field: str = TEXT_FIELD) -> Iterator[Document]:
    """Documents of text, Markdown, JSON-lines and Parquet files; a folder stands for all such files below it.

    Args:
        paths: files, compressed ones (`.jsonl.gz`, `.jsonl.zst`) among them, or folders.
        text_field: where a row of JSON-lines or Parquet has its text.

    Raises:
        CocomixError: a path does not exist, can't be read, or has no text; the message names it.
    """
    for file in files_of(paths):
        yield from read_file(file, text_field)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files that paths stand for, in a fixed order."""
    return [file for path in paths for file in _files_of(path)]


def _files_of(path: Path) -> Iterable[Path]:
    if not path.exists():
        raise CocomixError(f"{path} does not exist")
    if path.is_file():
        return [path]
    known = TEXT_SUFFIXES | JSON_LINES_SUFFIXES | PARQUET_SUFFIXES
    files = sorted(file for file in path.rglob("*") if _format_of(file) in known and file.is_file())
    if not files:
        raise CocomixError(f"{path} holds no file ending in {', '.join(sorted(known))}")
    return files


def _format_of(path: Path) -> str:
    """The suffix that says what is inside, without that of a compression around it."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in COMPRESSION_SUFFIXES else suffix


def read_file(path: Path, text_field: str = TEXT_FIELD) -> Iterator[Document]:
    """Documents of one file; what is neither JSON-lines nor Parquet is one document of plain text."""
    suffix = _format_of(path)
    try:
        if suffix in JSON_LINES_SUFFIXES:
            yield from _read_json_lines(path, text_field)
        elif suffix in PARQUET_SUFFIXES:
            yield from _read_parquet(path, text_field)
        else:
            with _open_text(path) as file:
                yield from documents_of(path.name, file.read())
    except UnicodeDecodeError as error:
        raise CocomixError(f"{path} is not UTF-8 text (byte {error.start}); convert it or leave it out") from error
    except OSError as error:
        raise CocomixError(f"{path} can't be read: {error.strerror or error}") from error


def _open_text(path: Path) -> io.TextIOWrapper:
    """Text of a file, decompressed by its suffix."""
    if path.suffix.lower() in COMPRESSION_SUFFIXES:
        return io.TextIOWrapper(pa.input_stream(str(path), compression="detect"), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _read_json_lines(path: Path, text_field: str) -> Iterator[Document]:
    with _open_text(path) as lines:
        for number, where, row in json_rows(lines, path):
            text = row.get(text_field) if isinstance(row, dict) else row
            if not isinstance(text, str):
                fields = f" (it has {', '.join(row) or 'no field'})" if isinstance(row, dict) else ""
                raise CocomixError(f'{where}: expected a string or an object with a "{text_field}" string{fields}')
            yield from documents_of(f"{path.name}:{number}", text)


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


def _read_parquet(path: Path, text_field: str) -> Iterator[Document]:
    try:
        file = pq.ParquetFile(path)
        if text_field not in file.schema_arrow.names:
            raise CocomixError(f'{path} has no column "{text_field}" (it has {", ".join(file.schema_arrow.names)})')
        row = 0
        for batch in file.iter_batches(columns=[text_field], batch_size=1024):
            for text in batch.column(0).to_pylist():
                if text is not None and not isinstance(text, str):
                    raise CocomixError(f'{path}: column "{text_field}" holds {type(text).__name__}, not text')
                yield from documents_of(f"{path.name}:{row}", text or "")
                row += 1
    except pa.ArrowException as error:
        raise CocomixError(f"{path} is not a readable Parquet file: {error}") from error


def documents_of(source: str, text: str) -> Iterator[Document]:
    """The document of a text; none where there is nothing but white space."""
    # A lone surrogate (possible in JSON escapes) has no UTF-8 form and would stop the tokenizer.
    clean = text.encode("utf-8", errors="replace").decode("utf-8")
    if clean.strip():
        yield Document(source, clean)


def head_of(documents: Iterable[Document], max_bytes: int) -> Iterator[Document]:
    """The first documents of at most so many bytes of UTF-8 in all; the last one cut short."""
    left_bytes = max_bytes
    for document in documents:
        text = document.text.encode()
        if len(text) > left_bytes:
            start = text[:left_bytes].decode(errors="ignore")
            if start.strip():
                yield Document(document.source, start)
            return
        left_bytes -= len(text)
        yield document


def fingerprint_of_documents(documents: Iterable[Document]) -> str:
    """SHA-256 of the texts, in their order."""
    digest = hashlib.sha256()
    for document in documents:
        text = document.text.encode()
        digest.update(f"{len(text)}:".encode())
        digest.update(text)
    return digest.hexdigest()
