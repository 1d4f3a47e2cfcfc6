"""One student of a table: its name, its file, and the command that makes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.evidence.corpora import CORPORA, text_option
from benchmarks.evidence.rows import ROWS, needs_labels, needs_teacher
from benchmarks.evidence.sizes import REGIMES, Regime
from cocomix.base.artifacts import read_json
from cocomix.base.errors import CocomixError
from cocomix.training.config import TrainConfig

RESULTS = Path(__file__).parent.parent / "results" / "evidence"


@dataclass(frozen=True, order=True)
class Cell:
    """A student. Build it with `cell_of`, so that a run without a teacher is the same in every comparison."""

    size: str
    corpus: str
    teacher: str
    row: str
    setting: str
    percent: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        row = f"{self.row}_{self.setting}" if self.setting else self.row
        return "/".join(
            map(str, (self.size, self.corpus, self.teacher, row, self.percent, f"{self.rate:g}", self.seed))
        )

    @property
    def stem(self) -> str:
        """Name of its file and of its run's folder."""
        return "-".join(self.name.split("/")[3:])

    @property
    def file(self) -> Path:
        return RESULTS / self.size / self.corpus / self.teacher / f"{self.stem}.json"

    @property
    def regime(self) -> Regime:
        return REGIMES[self.size]

    @property
    def num_latents(self) -> int:
        """Of the dictionary that its labels come from."""
        return int(self.regime.size.num_concepts * ROWS[self.row].latents)

    @property
    def num_tokens(self) -> int:
        return self.regime.size.num_tokens * self.percent // 100

    @property
    def command(self) -> str:
        return f"python -m benchmarks.evidence --cell {self.name}{text_option(self.corpus)}"

    @property
    def config(self) -> TrainConfig:
        """Its run, with data, output, labels and teacher open."""
        config = ROWS[self.row].build(self.regime.size, self.setting)
        return replace(config, optimizer=replace(config.optimizer, learning_rate=self.rate), seed=self.seed)

    @property
    def has_labels(self) -> bool:
        return needs_labels(self.config)

    def result(self) -> dict[str, Any] | None:
        """What was measured; None: not run yet."""
        return read_json(self.file) if self.file.exists() else None


def cell_of(
    size: str,
    corpus: str,
    teacher: str,
    row: str,
    rate: float,
    *,
    setting: str | None = None,
    percent: int = 100,
    seed: int = 0,
) -> Cell:
    """A cell of a comparison; `setting` is the row's default unless it is given."""
    chosen = ROWS[row].default if setting is None else setting
    teacher = teacher if needs_teacher(row, REGIMES[size].size) else "none"
    return Cell(size, corpus, teacher, row, chosen, percent, rate, seed)


def parse_cell(name: str) -> Cell:
    """A cell from its name, such as `nano/prose/weak/recommended_1-cosine/100/0.004/0`.

    Raises:
        CocomixError: a part is missing or unknown.
    """
    parts = name.split("/")
    if len(parts) != 7:
        raise CocomixError(f"--cell {name!r}: expected SIZE/CORPUS/TEACHER/ROW/PERCENT/RATE/SEED")
    size, corpus, teacher, named, percent, rate, seed = parts
    row, _, setting = named.partition("_")
    for word, known in ((size, REGIMES), (corpus, CORPORA), (row, ROWS)):
        if word not in known:
            raise CocomixError(f"--cell {name!r}: {word!r} is none of {', '.join(known)}")
    teachers = tuple(REGIMES[size].teachers) if needs_teacher(row, REGIMES[size].size) else ("none",)
    if teacher not in teachers:
        raise CocomixError(f"--cell {name!r}: the teacher of {row} must be {' or '.join(teachers)}")
    try:
        cell = Cell(size, corpus, teacher, row, setting, int(percent), float(rate), int(seed))
        _ = cell.config
    except ValueError as error:
        raise CocomixError(f"--cell {name!r}: {error}") from None
    return cell


def stored_cells(size: str) -> Iterator[Cell]:
    """All of a size that have a file."""
    for path in sorted((RESULTS / size).glob("*/*/*.json")):
        named, percent, rate, seed = _split(path.stem)
        yield parse_cell(f"{size}/{path.parent.parent.name}/{path.parent.name}/{named}/{percent}/{rate}/{seed}")


def _split(stem: str) -> tuple[str, ...]:
    return tuple(stem.rsplit("-", 3))
