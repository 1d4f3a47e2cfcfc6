"""Documents in files: plain text, JSON, CSV and Parquet, compressed or not; and the source files of the standard library.

`datasets` has readers for these formats, but they don't name the place of an error, or they read a null and go on. Here a
line that is not JSON, a row without the text field and bytes that are not UTF-8 are errors that name the file and the line.
A row may also be a bare JSON string.

A reader yields what it finds, one document after another: a text, None for a row whose text is null, or a `CocomixError`
for what can't be read. After an error it goes on with the next row if there is one. The caller decides what becomes of it.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import sys
import sysconfig
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.foreign import require_content
from cocomix.base.parsing import parse_json

Document = str | CocomixError | None

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst"})
#: Folders that people don't mean when they name the folder above; hidden ones and hidden files neither.
CACHE_FOLDERS = frozenset({"__pycache__", "__MACOSX", "node_modules"})

_NOT_LIBRARY_SOURCE = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


class FoundFiles(NamedTuple):
    """Files of a corpus."""

    files: list[Path]
    num_hidden: int
    """Files that would have been among them if they weren't hidden or in a cache."""


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


def find_files(paths: Sequence[Path], suffixes: Collection[str] | None = None) -> FoundFiles:
    """The paths with each folder replaced by the files below it.

    Args:
        paths: files and folders.
        suffixes: endings of the files to take from folders, such as `.py`, compressed or not; None: of known formats.

    Raises:
        CocomixError: a path does not exist, or a folder holds no such file.
    """
    known = [*TEXT_SUFFIXES, *FORMATS] if suffixes is None else suffixes
    endings = tuple(suffix.lower() + packed for suffix in known for packed in ("", *_OPENERS))
    files: list[Path] = []
    num_hidden = 0
    for path in paths:
        if not path.exists():
            raise CocomixError(f"{path} does not exist")
        if path.is_file():
            files.append(path)
            continue
        below = sorted(file for file in path.rglob("*") if file.name.lower().endswith(endings) and file.is_file())
        shown = [file for file in below if not _is_hidden(file.relative_to(path))]
        if not shown:
            raise CocomixError(
                f"{path} holds no file ending in {', '.join(sorted(known))}; --suffix names other endings"
            )
        files += shown
        num_hidden += len(below) - len(shown)
    return FoundFiles(files, num_hidden)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts) or not CACHE_FOLDERS.isdisjoint(path.parts)


def format_of(path: Path) -> str:
    """The suffix of the format, without a compression suffix after it."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in _OPENERS else suffix


def read_file(path: Path, text_field: str) -> Iterator[Document]:
    """Documents of one file; a file of no format in `FORMATS` is one text.

    Args:
        path: path of the file.
        text_field: field of a row that holds the text; one inside another is named with a dot, as in `doc.text`.

    Yields:
        texts, None for a row without one, and errors that name the file and the line.
    """
    try:
        require_content(path)
        yield from FORMATS.get(format_of(path), _read_text)(path, text_field)
    except CocomixError as error:
        yield error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        yield CocomixError(f"{path} can't be read: {getattr(error, 'strerror', None) or reason_of(error)}")


def field_of(row: Any, field: str) -> Any:
    """The value of a field, or, by a name with dots, of a field inside another; None where what it lies in is null.

    Raises:
        KeyError: the row has no such field.
    """
    if row is None:
        return None
    if isinstance(row, dict):
        if field in row:
            return row[field]
        outer, dot, inner = field.partition(".")
        if dot and outer in row:
            return field_of(row[outer], inner)
    raise KeyError(field)


def json_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[int, str, Any]]:
    """The non-blank lines of a JSON-lines file, as (1-based number, place for error messages, value).

    Raises:
        CocomixError: a line is not JSON.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield number, where, parse_json(line, where)


def _open_zstd(path: Path, mode: str) -> io.BufferedIOBase:
    # Opened by Python, because a name that is not UTF-8 is none for pyarrow.
    return io.BufferedReader(pa.CompressedInputStream(path.open(mode), "zstd"))


#: By suffixes that may follow those of all formats but Parquet, which compresses its columns itself.
_OPENERS: dict[str, Callable[..., io.BufferedIOBase]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
    ".zstd": _open_zstd,
}


def _open(path: Path) -> io.BufferedIOBase:
    """A file opened for reading, decompressed according to its suffix."""
    file: io.BufferedIOBase = _OPENERS.get(path.suffix.lower(), Path.open)(path, "rb")
    return file


def _lines_of(path: Path) -> Iterator[bytes]:
    """Lines of a file, without a byte order mark."""
    with _open(path) as file:
        for number, line in enumerate(file):
            yield line if number else line.removeprefix(codecs.BOM_UTF8)


def read_text(path: Path) -> str:
    """The text of a file, decompressed, without a byte order mark and with its own line ends.

    Raises:
        CocomixError: it is not text in UTF-8.
    """
    try:
        with _open(path) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CocomixError(f"{path} is not UTF-8 text (byte {error.start}); convert it or leave it out") from error
    if "\0" in text:
        raise CocomixError(f"{path} is not text (it holds NUL characters); leave it out")
    return text


def _read_text(path: Path, _: str) -> Iterator[Document]:
    yield read_text(path)


def _read_json_lines(path: Path, text_field: str) -> Iterator[Document]:
    for number, line in enumerate(_lines_of(path), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield _text_of(parse_json(line, where), text_field, where)
            except CocomixError as error:
                yield error


def _read_json(path: Path, text_field: str) -> Iterator[Document]:
    """One array of rows, or one row; or JSON lines under another name, which are told by their first line."""
    first = next((line for line in _lines_of(path) if line.strip()), b"")
    if not first.lstrip().startswith(b"[") and _is_json(first):
        yield from _read_json_lines(path, text_field)
        return
    with _open(path) as file:
        value = parse_json(file.read().removeprefix(codecs.BOM_UTF8), str(path))
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, start=1):
        yield _text_of(row, text_field, f"{path}, item {number}")


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line, "")
    except CocomixError:
        return False
    return True


def _text_of(row: Any, text_field: str, where: str) -> Document:
    """The text of a JSON value."""
    try:
        text = field_of(row, text_field) if isinstance(row, dict) else row
    except KeyError:
        return CocomixError(f'{where}: there is no "{text_field}" (it has {", ".join(row) or "no field"})')
    if text is None:
        return None
    if not isinstance(text, str):
        return CocomixError(f'{where}: expected a string or an object with a "{text_field}" string')
    # A lone surrogate (possible in JSON escapes) has no UTF-8 form and would stop the tokenizer.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _read_csv(path: Path, text_field: str, delimiter: str = ",") -> Iterator[Document]:
    csv.field_size_limit(sys.maxsize)  # 128 kB otherwise
    rows = csv.reader((line.decode("utf-8") for line in _lines_of(path)), delimiter=delimiter, strict=True)
    try:
        names = next(rows, None)
        if names is None:  # an empty file
            return
        if text_field not in names:
            raise CocomixError(f'{path} has no column "{text_field}" (it has {", ".join(names)})')
        column = names.index(text_field)
        for row in rows:
            if len(row) == len(names):
                yield row[column]
            elif row:  # not a blank line
                yield CocomixError(f"{path}, line {rows.line_num}: {len(row)} values for {len(names)} columns")
    except csv.Error as error:
        raise CocomixError(f"{path}, line {rows.line_num}: not CSV ({error})") from error
    except UnicodeDecodeError as error:
        raise CocomixError(f"{path}, line {rows.line_num + 1} is not UTF-8 text; convert it or leave it out") from error


def _read_tsv(path: Path, text_field: str) -> Iterator[Document]:
    return _read_csv(path, text_field, "\t")


def _read_parquet(path: Path, text_field: str) -> Iterator[Document]:
    with path.open("rb") as opened:
        file = pq.ParquetFile(opened)
        names = [file.schema.column(i).path for i in range(len(file.schema))]
        if text_field not in names:
            raise CocomixError(f'{path} has no column "{text_field}" (it has {", ".join(names)})')
        for batch in file.iter_batches(columns=[text_field], batch_size=1024):
            for row in batch.to_pylist():
                text = field_of(row, text_field)
                if text is not None and not isinstance(text, str):
                    raise CocomixError(f'{path}: column "{text_field}" holds {type(text).__name__}, not text')
                yield text


#: Readers of files with rows, by suffix.
FORMATS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
