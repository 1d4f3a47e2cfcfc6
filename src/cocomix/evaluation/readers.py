"""From a benchmark's published files to the rows of the data set that lm-eval's definition of the task expects.

`rows` needs nothing but the fields that the benchmark's YAML lists; the other readers are for files of another form.
Every field is checked here, and an error names the file and the line: lm-eval itself would score the text "None" for a
missing field, and count an item with a wrong label as a miss.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError
from cocomix.data.text_files import json_rows, read_text

_SURROGATE = re.compile("[\ud800-\udfff]")

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]  # each row after its place (file and line) as errors name it


def rows(paths: Sequence[Path], fields: Mapping[str, Any]) -> Rows:
    """The given fields of JSON lines, or the lines of a text; a second file has a label a line, for rows without one."""
    found = list(_objects(paths[0]))
    if len(paths) > 1:
        _add_labels(found, paths, fields)
    for where, row in found:
        yield where, {name: read_field(row, name, kind, where) for name, kind in fields.items()}


def arc(paths: Sequence[Path], _: Mapping[str, Any]) -> Rows:
    """Questions of AI2, with the choices of each question in two lists."""
    for where, row in _objects(paths[0]):
        question = read_field(row, "question", "dict", where)
        choices = read_field(question, "choices", "list", where)
        texts, labels = ([read_field(choice, name, "text", where) for choice in choices] for name in ("text", "label"))
        yield (
            where,
            {
                "question": read_field(question, "stem", "text", where),
                "choices": {"text": texts, "label": labels},
                "answerKey": read_field(row, "answerKey", {"one_of": labels}, where),
            },
        )


def lambada(paths: Sequence[Path], fields: Mapping[str, Any]) -> Rows:
    """Passages; the model is to say what follows their last space."""
    for where, row in rows(paths, fields):
        passage = row["text"].rstrip()
        if not passage.rpartition(" ")[0].strip():
            raise CocomixError(f"{where}: a passage of LAMBADA has more than one word")
        yield where, {"text": passage}


def wikitext(paths: Sequence[Path], _: Mapping[str, Any]) -> Rows:
    """Articles, each with its title line ` = Title = `; sections have two marks or more on each side."""
    articles: list[list[str]] = [[]]
    for line in read_text(paths[0]).split("\n"):
        marked = line.replace("= = =", "===").replace("= =", "==").strip()
        if marked.startswith("= ") and marked.endswith(" ="):
            articles.append([])
        articles[-1].append(line)
    return ((str(paths[0]), {"page": page}) for page in map("\n".join, articles) if page.strip())


def winogrande(paths: Sequence[Path], fields: Mapping[str, Any]) -> Rows:
    """Sentences with a gap."""
    for where, row in rows(paths, fields):
        if not row["sentence"].partition("_")[2].strip():
            raise CocomixError(f"{where}: the sentence has no gap `_` with text after it")
        yield where, row


READERS = {reader.__name__: reader for reader in (rows, arc, lambada, wikitext, winogrande)}


def read_field(row: Any, name: str, kind: Any, where: str) -> Any:
    """A field of a row, checked.

    Args:
        row: a JSON value, which is refused unless it is an object.
        name: of the field.
        kind: name of the value's type, where `text` is a `str` that is not blank; or a list of them, for a list with as
            many items; or `{"one_of": VALUES}` for a label, which is returned as it stands in VALUES: files hold 1 where
            others hold "1".
        where: file and line, for the error.
    """
    value = row.get(name) if isinstance(row, dict) else None
    if isinstance(kind, dict):
        return _label(value, kind["one_of"], where)
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and _SURROGATE.search(text):
            raise CocomixError(f'{where}: "{name}" holds half a character (a lone surrogate), which no tokenizer takes')
    if not _has_type(value, kind):
        expected = f"a list of {len(kind)} {kind[0]}" if isinstance(kind, list) else kind
        raise CocomixError(f'{where}: no "{name}" of type {expected}; is this another file?')
    return value


def _has_type(value: Any, kind: str | list[str]) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and len(value) == len(kind) and all(map(_has_type, value, kind))
    if kind == "text":
        return isinstance(value, str) and bool(value.strip())
    return type(value).__name__ == kind


def _label(label: Any, allowed: Sequence[Any], where: str) -> Any:
    for value in allowed:
        if str(value) == str(label):
            return value
    raise CocomixError(f"{where}: the label is {label!r}; expected one of {', '.join(map(str, allowed))}")


def _add_labels(found: Sequence[tuple[str, Row]], paths: Sequence[Path], fields: Mapping[str, Any]) -> None:
    """Give every row its label from the second file, unless the rows hold their labels."""
    name, allowed = next((name, kind["one_of"]) for name, kind in fields.items() if isinstance(kind, dict))
    if all(name in row for _, row in found):
        return
    labels = read_text(paths[1]).split()
    if len(labels) != len(found):
        raise CocomixError(f"{paths[1]} has {len(labels)} labels, {paths[0]} has {len(found)} items")
    for i, ((_, row), label) in enumerate(zip(found, labels, strict=True), 1):
        row[name] = _label(label, allowed, f"{paths[1]}, line {i}")


def _objects(path: Path) -> Rows:
    """Objects of a JSON-lines file; a line of a `.txt` file is the field `text`."""
    lines = read_text(path).split("\n")
    if path.suffix == ".txt":
        yield from ((f"{path}, line {i}", {"text": line}) for i, line in enumerate(lines, 1) if line.strip())
        return
    for _, where, row in json_rows(lines, path):
        if not isinstance(row, dict):
            raise CocomixError(f"{where}: expected a JSON object")
        yield where, row
