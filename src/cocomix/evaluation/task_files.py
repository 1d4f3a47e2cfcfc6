"""The benchmarks' own published files, found and turned into documents for lm-eval.

A benchmark's files lie in DIR/<benchmark>/ or in DIR itself. What a document holds is what `tasks/<benchmark>.yaml`
names: the prompt's parts, `choices` and the index `gold` of the right one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.data.text_files import json_rows
from cocomix.evaluation import wikitext

Document = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is published."""

    files: tuple[tuple[str, ...], ...]
    """Alternatives, the preferred one first: names of the files that belong together, or one pattern for all of them."""
    read: Callable[[Sequence[Path]], list[Document]]
    """From the files of one task to its documents."""
    one_task_a_file: bool = False
    """Whether each file is scored as a task of its own, and their mean reported."""


@dataclass(frozen=True)
class TaskFiles:
    """A benchmark and the files it was found in."""

    name: str
    paths: tuple[Path, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names and contents of all files."""
        return artifacts.fingerprint_of_json({path.name: artifacts.sha256_of_file(path) for path in self.paths})

    def documents(self, limit: int | None = None) -> dict[str, list[Document]]:
        """Documents of each task: one of the benchmark's name, or one for every file.

        Args:
            limit: only the first so many of each task.

        Raises:
            CocomixError: a file is damaged or holds something else; the message says which and where.
        """
        benchmark = BENCHMARKS[self.name]
        tasks = {path.stem: (path,) for path in self.paths} if benchmark.one_task_a_file else {self.name: self.paths}
        documents = {}
        for task, paths in tasks.items():
            documents[task] = benchmark.read(paths)[:limit]
            if not documents[task]:
                raise CocomixError(f"{paths[0]} is empty; expected {self.name}")
        return documents


def check_names(names: Sequence[str]) -> None:
    """Refuse a benchmark that is not known."""
    for name in names:
        if name not in BENCHMARKS:
            raise CocomixError(f"there is no task {name!r}; the tasks are {', '.join(BENCHMARKS)}")


def find_task_files(name: str, folder: Path) -> TaskFiles:
    """The files of a benchmark in `folder/name` or `folder`.

    Raises:
        CocomixError: they are not there; the message names them.
    """
    check_names([name])
    if not folder.is_dir():
        raise CocomixError(f"{folder} is not a folder; --task-data takes the one with the benchmarks' files")
    for place in (folder / name, folder):
        for names in BENCHMARKS[name].files:
            paths = tuple(path for pattern in names for path in sorted(place.glob(pattern)) if path.name[0] != ".")
            if len(paths) >= len(names):
                return TaskFiles(name, paths)
    wanted = " or ".join(" with ".join(names) for names in BENCHMARKS[name].files)
    raise CocomixError(f"no files of {name} in {folder} or {folder / name}; looked for {wanted}")


def _wikitext(paths: Sequence[Path]) -> list[Document]:
    return [
        {
            "text": wikitext.detokenize(page),
            "num_words": wikitext.num_words(page),
            "num_bytes": len(page.encode()),
        }
        for page in wikitext.articles(_text_of(paths[0]))
    ]


def _lambada(paths: Sequence[Path]) -> list[Document]:
    """Passages, parted at their last space; the model is to say what follows it."""
    path = paths[0]
    if path.suffix == ".txt":
        passages = [(f"{path}, line {i}", line) for i, line in enumerate(_text_of(path).split("\n"), 1) if line.strip()]
    else:
        passages = [(where, _field(row, "text", str, where)) for where, row in _rows(path)]
    documents = []
    for where, passage in passages:
        context, space, word = passage.rstrip().rpartition(" ")
        if not context.strip():
            raise CocomixError(f"{where}: a passage of LAMBADA has more than one word")
        documents.append({"context": context, "target": space + word})
    return documents


def _hellaswag(paths: Sequence[Path]) -> list[Document]:
    documents = []
    for where, row in _rows(paths[0]):
        activity, start, rest = (_field(row, name, str, where) for name in ("activity_label", "ctx_a", "ctx_b"))
        endings = [_without_wikihow_marks(ending) for ending in _field(row, "endings", list, where)]
        documents.append(
            {
                "query": _without_wikihow_marks(f"{activity}: {start} {rest.capitalize()}"),
                "choices": endings,
                "gold": _index(_field(row, "label", int, where), range(len(endings)), where),
            }
        )
    return documents


def _without_wikihow_marks(text: str) -> str:
    """`[title]` ends a sentence, `[step]` and its like say nothing; they are left from WikiHow's pages."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _piqa(paths: Sequence[Path]) -> list[Document]:
    return [
        {
            "goal": _field(row, "goal", str, where),
            "choices": [_field(row, name, str, where) for name in ("sol1", "sol2")],
            "gold": gold,
        }
        for (where, row), gold in _labelled(paths, ("0", "1"))
    ]


def _siqa(paths: Sequence[Path]) -> list[Document]:
    return [
        {
            "context": _field(row, "context", str, where),
            "question": _field(row, "question", str, where),
            "choices": [_field(row, name, str, where) for name in ("answerA", "answerB", "answerC")],
            "gold": gold,
        }
        for (where, row), gold in _labelled(paths, ("1", "2", "3"))
    ]


def _arc(paths: Sequence[Path]) -> list[Document]:
    documents = []
    for where, row in _rows(paths[0]):
        question = _field(row, "question", dict, where)
        choices = _field(question, "choices", list, where)
        labels = [_field(choice, "label", str, where) for choice in choices]
        documents.append(
            {
                "question": _field(question, "stem", str, where),
                "choices": [_field(choice, "text", str, where) for choice in choices],
                "gold": _index(_field(row, "answerKey", str, where), labels, where),
            }
        )
    return documents


def _winogrande(paths: Sequence[Path]) -> list[Document]:
    """Two beginnings, one with each option in the gap, and the ending that both share."""
    rows = list(_rows(paths[0]))
    if len(paths) > 1 and not all("answer" in row for _, row in rows):
        golds = [gold for _, gold in _labelled(paths, ("1", "2"))]
    else:
        golds = [_index(_field(row, "answer", str, where), ("1", "2"), where) for where, row in rows]
    documents = []
    for (where, row), gold in zip(rows, golds, strict=True):
        before, gap, after = _field(row, "sentence", str, where).partition("_")
        if not gap or not after.strip():
            raise CocomixError(f"{where}: the sentence has no gap `_` with text after it")
        documents.append(
            {
                "beginnings": [before + _field(row, name, str, where) for name in ("option1", "option2")],
                "ending": after.strip(),
                "gold": gold,
            }
        )
    return documents


def _blimp(paths: Sequence[Path]) -> list[Document]:
    return [
        {"choices": [_field(row, name, str, where) for name in ("sentence_good", "sentence_bad")]}
        for where, row in _rows(paths[0])
    ]


def _text_of(path: Path) -> str:
    try:
        # Not `read_text`, which would take other line ends for "\n".
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CocomixError(f"{path} is not UTF-8 text (byte {error.start})") from error


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a JSON-lines file, each with the place to name in an error."""
    for _, where, row in json_rows(_text_of(path).split("\n"), path):
        if not isinstance(row, dict):
            raise CocomixError(f"{where}: expected a JSON object")
        yield where, row


def _labelled(paths: Sequence[Path], labels: Sequence[str]) -> list[tuple[tuple[str, dict[str, Any]], int]]:
    """Rows of a file and, from the file beside it with a label a line, the index of each right answer."""
    rows = list(_rows(paths[0]))
    lines = _text_of(paths[1]).split()
    if len(lines) != len(rows):
        raise CocomixError(f"{paths[1]} has {len(lines)} labels, {paths[0]} has {len(rows)} items")
    return [
        (row, _index(label, labels, f"{paths[1]}, line {i}"))
        for i, (row, label) in enumerate(zip(rows, lines, strict=True), 1)
    ]


def _field(row: Any, name: str, kind: type, where: str) -> Any:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise CocomixError(f'{where}: no "{name}" of type {kind.__name__}; is this another file?')
    return value


def _index(label: Any, labels: Sequence[Any], where: str) -> int:
    if label not in labels:
        raise CocomixError(f"{where}: the label is {label!r}; expected one of {', '.join(map(str, labels))}")
    return labels.index(label)


BENCHMARKS = {
    "wikitext": Benchmark(
        (("wiki.test.raw",), ("wiki.valid.raw",), ("wikitext2_test.txt",), ("wikitext2_valid.txt",)), _wikitext
    ),
    "lambada": Benchmark((("lambada_test.jsonl",), ("lambada.jsonl",), ("lambada_test_plain_text.txt",)), _lambada),
    "hellaswag": Benchmark((("hellaswag_val.jsonl",),), _hellaswag),
    "piqa": Benchmark((("valid.jsonl", "valid-labels.lst"),), _piqa),
    "siqa": Benchmark((("dev.jsonl", "dev-labels.lst"),), _siqa),
    "arc_easy": Benchmark(
        (("ARC-Easy-Test.jsonl",), ("ARC-Easy-Dev.jsonl",), ("arc_easy_test.jsonl",), ("arc_easy_dev.jsonl",)), _arc
    ),
    "winogrande": Benchmark((("dev.jsonl", "dev-labels.lst"), ("dev.jsonl",)), _winogrande),
    "blimp": Benchmark((("*.jsonl",),), _blimp, one_task_a_file=True),
}
