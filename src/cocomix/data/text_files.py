"""Documents in files: plain text, JSON-lines and Parquet, compressed or not; and the source files of the standard library.

`datasets` has readers for these formats, but they don't name the place of an error, or they read a null and go on. Here a
line that is not JSON, a row without the text field and bytes that are not UTF-8 are errors that name the file and the line.
A line may also be a bare JSON string.
"""

from __future__ import annotations

import io
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.base.errors import CocomixError

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst"})
JSON_LINES_SUFFIXES = frozenset({".jsonl", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet"})
#: Suffixes that may follow those of text and JSON-lines; Parquet compresses its columns itself.
COMPRESSION_SUFFIXES = frozenset({".gz", ".zst", ".bz2"})

_NOT_LIBRARY_SOURCE = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


def standard_library_files() -> list[Path]:
    """Source files of the running Python's standard library, without its tests.

    Raises:
        CocomixError: they are not installed.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in folder.rglob("*.py") if _NOT_LIBRARY_SOURCE.isdisjoint(path.relative_to(folder).parts)]
    if not files:
        raise CocomixError(f"no standard library source under {folder}; give a corpus with --text")
    return sorted(files)


def expand_paths(paths: Sequence[Path]) -> list[Path]:
    """The paths with each folder replaced by all files of a known format below it.

    Raises:
        CocomixError: a path does not exist, or a folder holds no such file.
    """
    return [file for path in paths for file in _expand_path(path)]


def _expand_path(path: Path) -> Iterable[Path]:
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
    """The suffix of the format, without a compression suffix after it."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in COMPRESSION_SUFFIXES else suffix


def read_file(path: Path, text_field: str) -> Iterator[str]:
    """Texts of one file; a file that is neither JSON-lines nor Parquet is one text.

    Args:
        path: path of the file.
        text_field: field of a JSON-lines or Parquet row that holds the text.

    Raises:
        CocomixError: the file can't be read or holds something else; the message names the file and the line.
    """
    suffix = _format_of(path)
    try:
        if suffix in JSON_LINES_SUFFIXES:
            yield from _read_json_lines(path, text_field)
        elif suffix in PARQUET_SUFFIXES:
            yield from _read_parquet(path, text_field)
        else:
            with _open_text(path) as file:
                yield file.read()
    except UnicodeDecodeError as error:
        raise CocomixError(f"{path} is not UTF-8 text (byte {error.start}); convert it or leave it out") from error
    except OSError as error:
        raise CocomixError(f"{path} can't be read: {error.strerror or error}") from error


def json_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[int, str, Any]]:
    """The non-blank lines of a JSON-lines file, as (1-based number, place for error messages, value).

    Raises:
        CocomixError: a line is not JSON.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CocomixError(f"{where}: not JSON ({error.msg})") from error
        yield number, where, row


def _open_text(path: Path) -> io.TextIOWrapper:
    """A text file opened for reading, decompressed according to its suffix."""
    if path.suffix.lower() in COMPRESSION_SUFFIXES:
        return io.TextIOWrapper(pa.input_stream(str(path), compression="detect"), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _read_json_lines(path: Path, text_field: str) -> Iterator[str]:
    with _open_text(path) as lines:
        for _, where, row in json_rows(lines, path):
            text = row.get(text_field) if isinstance(row, dict) else row
            if not isinstance(text, str):
                fields = f" (it has {', '.join(row) or 'no field'})" if isinstance(row, dict) else ""
                raise CocomixError(f'{where}: expected a string or an object with a "{text_field}" string{fields}')
            # A lone surrogate (possible in JSON escapes) has no UTF-8 form and would stop the tokenizer.
            yield text.encode("utf-8", errors="replace").decode("utf-8")


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    try:
        file = pq.ParquetFile(path)
        if text_field not in file.schema_arrow.names:
            raise CocomixError(f'{path} has no column "{text_field}" (it has {", ".join(file.schema_arrow.names)})')
        for batch in file.iter_batches(columns=[text_field], batch_size=1024):
            for text in batch.column(0).to_pylist():
                if text is not None and not isinstance(text, str):
                    raise CocomixError(f'{path}: column "{text_field}" holds {type(text).__name__}, not text')
                yield text or ""
    except pa.ArrowException as error:
        raise CocomixError(f"{path} is not a readable Parquet file: {error}") from error
