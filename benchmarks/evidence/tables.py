"""Which cells each table needs. Some depend on results: a table is asked again when its cells have run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.evidence.cells import Cell, cell_of
from benchmarks.evidence.choice import chosen_rate, chosen_setting, rate_cells, weight_cells
from benchmarks.evidence.corpora import CORPORA
from benchmarks.evidence.numbers import whole_cost
from benchmarks.evidence.rows import COMPARED, ROWS, needs_teacher
from benchmarks.evidence.sizes import REGIMES, TEACHERS
from cocomix.base.errors import CocomixError
from cocomix.base.formats import format_flops
from cocomix.base.progress import say
from cocomix.modeling.flops import training_flops_per_token
from cocomix.objectives.base import Cost
from cocomix.tools.plan.costs import objectives_cost
from cocomix.tools.plan.teachers import teacher_of_size
from cocomix.training.widths import meta_model

#: Teacher and row of what is changed one at a time, by its name on the page.
VARIANTS = {
    "recommended": ("weak", "recommended"),
    "random dictionary": ("weak", "random"),
    "untrained teacher": ("untrained", "recommended"),
    "a concept loss to the end": ("weak", "to-end"),
    "a quarter of the latents": ("weak", "fewer"),
    "multi-token prediction too": ("weak", "next-tokens"),
    "layer alignment too": ("weak", "aligned"),
    "teacher like the student": ("like-student", "recommended"),
}
#: Controls that have all seeds, whatever comes of the first.
CONTROLS = ("random dictionary", "a concept loss to the end")
#: Those that are read and steered as well.
DICTIONARIES = (*CONTROLS, "untrained teacher")


@dataclass(frozen=True)
class Part:
    """What a table is narrowed to.

    Args:
        size: name.
        corpora, teachers, rows: names; empty: all of the size.
    """

    size: str
    corpora: Collection[str] = ()
    teachers: Collection[str] = ()
    rows: Collection[str] = ()

    def comparisons(self) -> list[tuple[str, str]]:
        corpora, teachers = self.corpora or CORPORA, self.teachers or TEACHERS
        return [pair for pair in comparisons(self.size) if pair[0] in corpora and pair[1] in teachers]

    def keep(self, rows: Iterable[str]) -> list[str]:
        return [row for row in rows if row in (self.rows or ROWS)]


def comparisons(size: str) -> list[tuple[str, str]]:
    """Corpora and teachers."""
    teachers = [teacher for teacher in TEACHERS if teacher in REGIMES[size].teachers]
    return [(corpus, teacher) for corpus in REGIMES[size].corpora for teacher in teachers]


def rows_of(size: str) -> tuple[str, ...]:
    return REGIMES[size].rows or COMPARED


def chosen_cell(size: str, corpus: str, teacher: str, row: str, seed: int = 0, percent: int = 100) -> Cell:
    """A row with its best rate and weight."""
    setting = chosen_setting(size, teacher, row)
    rate = chosen_rate(size, corpus, row)
    return cell_of(size, corpus, teacher, row, rate, setting=setting, percent=percent, seed=seed)


def shorter_rows(size: str) -> list[str]:
    """Rows that run on shares of the tokens too."""
    left_out = ("kd-wider", "alignment-wider", "published", "predicted")
    return [row for row in rows_of(size) if needs_teacher(row, REGIMES[size].size) and row not in left_out]


def rates(part: Part) -> Iterator[Cell]:
    for corpus in dict(part.comparisons()):
        for row in part.keep(rows_of(part.size)):
            try:
                yield from rate_cells(part.size, corpus, row)
            except CocomixError as error:  # the weights of prose are not known yet
                say(f"{corpus}, {row}: {error}")


def weights(part: Part) -> Iterator[Cell]:
    """On prose; then the rates that waited for them."""
    for corpus, teacher in part.comparisons():
        for row in part.keep(rows_of(part.size)):
            yield from weight_cells(part.size, corpus, teacher, row)
    if "weak" in (part.teachers or TEACHERS):
        yield from rates(part)


def main(part: Part) -> Iterator[Cell]:
    """Seed by seed, so that a table left half-way has all its rows; then the shorter runs, and NTP on more tokens."""
    size, regime = part.size, REGIMES[part.size]
    rows = part.keep(rows_of(size))
    for seed in regime.seeds:
        for corpus, teacher in part.comparisons():
            yield from (chosen_cell(size, corpus, teacher, row, seed) for row in rows)
    for seed in regime.seeds:
        for corpus, teacher in part.comparisons():
            for percent in regime.shares.get(teacher, ()):
                shorter = part.keep(shorter_rows(size))
                yield from (chosen_cell(size, corpus, teacher, row, seed, percent) for row in shorter)
    for corpus in dict(part.comparisons()):
        percent = cost_percent(size, corpus)
        if percent is not None and "ntp" in rows:
            yield from (chosen_cell(size, corpus, "none", "ntp", seed, percent) for seed in regime.seeds[:1])


def cost_percent(size: str, corpus: str) -> int | None:
    """Tokens, in percent, for which NTP takes the FLOPs of the recommended run with the whole of its weak teacher."""
    recommended, ntp = (results_of(size, corpus, "weak", row).get(0) for row in ("recommended", "ntp"))
    if recommended is None or ntp is None:
        return None
    return round(100 * whole_cost(recommended) / ntp["train_flops"])


def variant_cell(size: str, corpus: str, name: str, seed: int = 0) -> Cell:
    """A variant of the recommended run, which has that run's rate and weight."""
    teacher, row = VARIANTS[name]
    like = chosen_cell(size, corpus, "weak", "recommended", seed)
    return cell_of(size, corpus, teacher, row, like.rate, setting=like.setting, seed=seed)


def variants(part: Part) -> Iterator[Cell]:
    """All at seed 0; then, of those that are ahead there, and of the control, the other seeds."""
    for corpus in dict(part.comparisons()):
        names = [name for name, (_, row) in VARIANTS.items() if part.keep([row])]
        first = {name: variant_cell(part.size, corpus, name) for name in ("recommended", *names)}
        yield from first.values()
        losses = {name: (cell.result() or {}).get("validation_loss", math.inf) for name, cell in first.items()}
        for seed in REGIMES[part.size].seeds[1:]:
            further = [name for name in names if losses[name] < losses["recommended"] or name in CONTROLS]
            yield from (variant_cell(part.size, corpus, name, seed) for name in ("recommended", *further))


TABLES: dict[str, Callable[[Part], Iterator[Cell]]] = {
    "rates": rates,
    "weights": weights,
    "main": main,
    "variants": variants,
}


def listing(cells: Iterable[Cell]) -> str:
    """The cells without a result, each with the FLOPs of its student and teacher, without those of making a teacher."""
    pending = [cell for cell in dict.fromkeys(cells) if not cell.file.exists()]
    costs = [planned_flops(cell) for cell in pending]
    lines = [f"{format_flops(cost):>12}  {cell.name}" for cell, cost in zip(pending, costs, strict=True)]
    return "\n".join([*lines, f"{format_flops(sum(costs)):>12}  {len(pending)} cells"])


def planned_flops(cell: Cell) -> float:
    """FLOPs of a run, its labels included, as `cocomix plan` counts them."""
    size, config = cell.regime.size, cell.config
    cost = Cost()
    if cell.teacher != "none":
        spec = cell.regime.teachers[cell.teacher]
        teacher = teacher_of_size(replace(size, teacher=spec.shape, teacher_layer=spec.layer))
        cost = objectives_cost(config, teacher, size.num_concepts, size.context_length)
    share = config.concept_loss.end
    student = training_flops_per_token(meta_model(config, size), size.context_length, concept_loss_share=share)
    return cell.num_tokens * (student + cost.student + cost.teacher)


def results_of(size: str, corpus: str, teacher: str, row: str, percent: int = 100) -> dict[int, dict[str, Any]]:
    """Stored results of a row with its best rate and weight, by seed; none while these are not known."""
    try:
        cells = [chosen_cell(size, corpus, teacher, row, seed, percent) for seed in REGIMES[size].seeds]
    except CocomixError:
        return {}
    return {cell.seed: result for cell in cells if (result := cell.result()) is not None}
