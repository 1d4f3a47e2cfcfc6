"""Benchmarks: what `tasks/NAME.yaml` says of each, and the published files it is read from.

A benchmark's files lie in DIR/NAME/ or in DIR itself. They become the rows that lm-eval's own definition of the task
expects; prompts and metrics are left to that definition.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.evaluation.readers import READERS, Row

TASKS = importlib.resources.files("cocomix.evaluation").joinpath("tasks")


@dataclass(frozen=True)
class Benchmark:
    """The content of `tasks/NAME.yaml`."""

    files: Sequence[Sequence[str]]
    """Alternatives, the preferred one first: names of the files that belong together, or one pattern for all of them."""
    lm_eval: Mapping[str, Any]
    """The task in lm-eval's terms; `include` is a path in lm-eval's `tasks` folder, and other keys override it."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a row, each with its type, or with `one_of` and the values that it may have (`readers.read_field`)."""
    reader: str = "rows"
    """Name of the function in `readers` that turns files into rows."""
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

    def documents(self, limit: int | None = None) -> dict[str, list[Row]]:
        """Rows of each task: one of the benchmark's name, or one for every file.

        Args:
            limit: maximum number of rows of each task, taken from its beginning.

        Raises:
            CocomixError: a file is damaged or holds something else; the message says which and where.
        """
        benchmark = load_benchmark(self.name)
        tasks = {path.stem: (path,) for path in self.paths} if benchmark.one_task_a_file else {self.name: self.paths}
        documents = {}
        for task, paths in tasks.items():
            documents[task] = [row for _, row in READERS[benchmark.reader](paths, benchmark.fields)][:limit]
            if not documents[task]:
                raise CocomixError(f"{paths[0]} is empty; expected {self.name}")
        return documents


def benchmark_names() -> list[str]:
    """Names of all benchmarks."""
    return sorted(file.name.removesuffix(".yaml") for file in TASKS.iterdir() if file.name.endswith(".yaml"))


def check_names(names: Sequence[str]) -> None:
    """Refuse a benchmark that is not known."""
    known = benchmark_names()
    for name in names:
        if name not in known:
            raise CocomixError(f"there is no task {name!r}; the tasks are {', '.join(known)}")


def load_benchmark(name: str) -> Benchmark:
    """The benchmark of a name that is known."""
    return Benchmark(**yaml.safe_load(TASKS.joinpath(f"{name}.yaml").read_text("utf-8")))


def find_task_files(name: str, folder: Path) -> TaskFiles:
    """The files of a benchmark in `folder/name` or `folder`.

    Raises:
        CocomixError: they are not there; the message names them.
    """
    check_names([name])
    if not folder.is_dir():
        raise CocomixError(f"{folder} is not a folder; --task-data takes the one with the benchmarks' files")
    alternatives = load_benchmark(name).files
    for place in (folder / name, folder):
        for names in alternatives:
            paths = tuple(path for pattern in names for path in sorted(place.glob(pattern)) if path.name[0] != ".")
            if len(paths) >= len(names):
                return TaskFiles(name, paths)
    wanted = " or ".join(" with ".join(names) for names in alternatives)
    raise CocomixError(f"no files of {name} in {folder} or {folder / name}; looked for {wanted}")
