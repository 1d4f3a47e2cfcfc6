"""One student of a table: its name, its file, and the command that makes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.evidence.corpora import CORPORA
from benchmarks.evidence.inputs import TEACHERS
from benchmarks.evidence.variants import VARIANTS
from cocomix.base.artifacts import read_json
from cocomix.base.errors import CocomixError
from cocomix.base.numbers import parse_count
from cocomix.training.sizes import SIZES

#: What a command needs to find a corpus and what it is tested on.
PLACES = {"standard_library": "", "english": " --english DIR --task-data DIR"}
RESULTS = Path(__file__).parent.parent / "results" / "evidence"


@dataclass(frozen=True, order=True)
class Cell:
    """A student. `teacher` names the comparison, even for a student that learns without one."""

    corpus: str
    teacher: str
    size: str
    variant: str
    tokens: str
    seed: int

    @property
    def name(self) -> str:
        return "/".join(map(str, astuple(self)))

    @property
    def num_tokens(self) -> int:
        return parse_count(self.tokens, "tokens")

    @property
    def key(self) -> Cell:
        """The cell whose run this is: without a teacher it is the same run in every comparison."""
        return self if VARIANTS[self.variant].needs_teacher(self.size) else replace(self, teacher="none")

    @property
    def stem(self) -> str:
        """Name of its file and of its run's folder."""
        return f"{self.variant}-{self.tokens}-{self.seed}"

    @property
    def file(self) -> Path:
        key = self.key
        return RESULTS / key.corpus / f"{key.teacher}-{key.size}" / f"{key.stem}.json"

    @property
    def command(self) -> str:
        return f"python -m benchmarks.evidence --cell {self.key.name}{PLACES[self.corpus]}"

    def result(self) -> dict[str, Any] | None:
        """What was measured; None: not run yet."""
        return read_json(self.file) if self.file.exists() else None


def parse_cell(name: str) -> Cell:
    """A cell from its name, such as `standard_library/weak/small/add/2M/0`.

    Raises:
        CocomixError: a part is missing or unknown.
    """
    parts = name.split("/")
    if len(parts) != 6:
        raise CocomixError(f"--cell {name!r}: expected CORPUS/TEACHER/SIZE/VARIANT/TOKENS/SEED")
    corpus, teacher, size, variant, tokens, seed = parts
    for word, known in (
        (corpus, CORPORA),
        (teacher, (*TEACHERS, "none")),
        (size, tuple(SIZES)),
        (variant, tuple(VARIANTS)),
    ):
        if word not in known:
            raise CocomixError(f"--cell {name!r}: {word!r} is none of {', '.join(known)}")
    if not seed.isdigit():
        raise CocomixError(f"--cell {name!r}: the seed {seed!r} is not a whole number")
    parse_count(tokens, "--cell")
    if teacher == "none" and VARIANTS[variant].needs_teacher(size):
        raise CocomixError(f"--cell {name!r}: {variant} learns from a teacher: {' or '.join(TEACHERS)}")
    return Cell(corpus, teacher, size, variant, tokens, int(seed))


def stored_cells() -> Iterator[Cell]:
    """All that have a file."""
    for path in sorted(RESULTS.glob("*/*/*.json")):
        teacher, _, size = path.parent.name.partition("-")
        variant, tokens, seed = path.stem.rsplit("-", 2)
        yield Cell(path.parent.parent.name, teacher, size, variant, tokens, int(seed))
