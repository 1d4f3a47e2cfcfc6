"""Which learning rate and which weight a row has, by rules that were written down before the runs; `docs/log.md` names the
weights that joined or left later.

Both are searched at one size, `sweep`, and others have them too; a size without runs at its own rate and first weights.

Rate: every row runs at each rate of its size's grid, seed 0, with the weak teacher if it needs one. On prose it has its
first weight, elsewhere the weight that was the best on prose. The rate with the lowest loss is taken, for this corpus.
If that is the lowest or highest rate, the grid grows by half or double of it until it is not. All teachers, weights and
seeds of the row then have that rate, and so have rows that follow it.

Weight: on prose, at that rate, seed 0, every weight that the row has with a teacher runs; the one with the lowest loss is
taken, for all corpora.
"""

from __future__ import annotations

from benchmarks.evidence.cells import Cell, cell_of
from benchmarks.evidence.rows import ROWS, joined
from benchmarks.evidence.sizes import REGIMES
from cocomix.base.errors import CocomixError

#: Rates beyond the grid on either side, at most.
MAX_EXTENSIONS = 3
#: Where weights are searched.
SWEEP_CORPUS = "prose"


def rate_cells(size: str, corpus: str, row: str) -> list[Cell]:
    """A row at every rate of the grid, and beyond it as far as the stored results ask for; none if it has another's.

    Raises:
        CocomixError: on another corpus than prose, not all of its weights have run there.
    """
    regime = REGIMES[size]
    if regime.sweep != size or ROWS[row].follows:
        return []
    rates = sorted(regime.rates)
    setting = ROWS[row].default if corpus == SWEEP_CORPUS else chosen_setting(size, "weak", row)
    while True:
        cells = [cell_of(size, corpus, "weak", row, rate, setting=setting) for rate in rates]
        losses = _losses(cells)
        if len(losses) < len(cells) or len(rates) >= len(regime.rates) + MAX_EXTENSIONS:
            return cells
        best = min(losses, key=lambda cell: losses[cell]).rate
        if best == rates[0]:
            rates.insert(0, best / 2)
        elif best == rates[-1]:
            rates.append(best * 2)
        else:
            return cells


def chosen_rate(size: str, corpus: str, row: str) -> float:
    """The best rate of a row, at the size whose table chooses it.

    Raises:
        CocomixError: not all of its rates have run.
    """
    regime = REGIMES[size]
    if regime.sweep is None:
        return regime.size.learning_rate
    cells = rate_cells(regime.sweep, corpus, (*ROWS[row].follows, row)[0])
    return _best(cells, f"--table rates --size {regime.sweep}").rate


def settings_of(size: str, teacher: str, row: str) -> tuple[str, ...]:
    """Weights that a row is tried with, given a teacher; a row that has none ignores it."""
    found = ROWS[row]
    return (REGIMES[size].teachers[teacher].ahead and found.settings_ahead) or found.settings


def weight_cells(size: str, corpus: str, teacher: str, row: str) -> list[Cell]:
    """A row at its best rate with every weight; none if it has another's."""
    if REGIMES[size].sweep != size or corpus != SWEEP_CORPUS or ROWS[row].follows:
        return []
    rate = chosen_rate(size, corpus, row)
    return [cell_of(size, corpus, teacher, row, rate, setting=setting) for setting in settings_of(size, teacher, row)]


def chosen_setting(size: str, teacher: str, row: str) -> str:
    """The best weight of a row, at the size whose table chooses it.

    Raises:
        CocomixError: not all of its weights have run.
    """
    sweep = REGIMES[size].sweep
    if ROWS[row].follows:
        return joined(chosen_setting(size, teacher, name) for name in ROWS[row].follows)
    if sweep is None or len(ROWS[row].settings) == 1:
        return ROWS[row].default
    return _best(weight_cells(sweep, SWEEP_CORPUS, teacher, row), f"--table weights --size {sweep}").setting


def _best(cells: list[Cell], command: str) -> Cell:
    losses = _losses(cells)
    missing = [cell.name for cell in cells if cell not in losses]
    if missing:
        raise CocomixError(f"{missing[0]} has no result; run `python -m benchmarks.evidence {command}` first")
    return min(losses, key=lambda cell: losses[cell])


def _losses(cells: list[Cell]) -> dict[Cell, float]:
    results = {cell: cell.result() for cell in cells}
    return {cell: result["validation_loss"] for cell, result in results.items() if result is not None}
