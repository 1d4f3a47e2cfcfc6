"""The tables of the evidence, and those of the README, from the stored results; sentences are written by hand.

python -m benchmarks.evidence --page
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.common import DOCS, ROOT, fill, losses, mean, table
from benchmarks.evidence import figures, first_million
from benchmarks.evidence.cells import stored_cells
from benchmarks.evidence.choice import rate_cells, weight_cells
from benchmarks.evidence.copying import copying_table
from benchmarks.evidence.corpora import CORPORA
from benchmarks.evidence.dictionaries import dictionaries_table
from benchmarks.evidence.numbers import COSTS, at_hand_cost, differences, losses_of, share_to_match, whole_cost
from benchmarks.evidence.rows import ROWS, needs_teacher
from benchmarks.evidence.sizes import REGIMES
from benchmarks.evidence.tables import (
    CONTROLS,
    VARIANTS,
    chosen_cell,
    comparisons,
    cost_percent,
    results_of,
    rows_of,
    variant_cell,
)
from cocomix.base.drawing import Drawing
from cocomix.base.errors import CocomixError
from cocomix.base.formats import format_signed
from cocomix.tools.compare.intervals import bootstrap_interval

PAGES = (DOCS / "evidence.md", DOCS / "evidence_details.md", ROOT / "README.md", first_million.FOLDER / "README.md")
IMAGES = DOCS / "images"
NOTHING = "*No run of this kind is stored yet.*"
#: The size of the page's table and figures, and the one that confirms it.
SIZE, CONFIRMS = "nano", "small"
#: What reaching the loss of NTP with equal active parameters is counted in.
TO_WIDER = ("tokens", "with a teacher at hand")
#: What the README shows.
SUMMARY = ("ntp", "ntp-wider", "kd", "alignment-wider", "recommended")


def refresh() -> None:
    """Put tables and figures as they are now on the pages."""
    for drawing in drawings():
        (IMAGES / f"{drawing.name}.png").write_bytes(drawing.png)
    found = blocks()
    for page in PAGES:
        fill(page, found)


def drawings() -> list[Drawing]:
    found = [figures.curves(SIZE, *comparison) for comparison in comparisons(SIZE)]
    found += [figures.stability(SIZE, corpus) for corpus in CORPORA]
    return [drawing for drawing in found if drawing is not None]


def blocks() -> dict[str, str]:
    """All tables by name."""
    images = [f"![{drawing.alt}](images/{drawing.name}.png)" for drawing in drawings()]
    stability = [image for image in images if "-stability" in image]
    curves = [image for image in images if image not in stability]
    return {
        "main": main_table(SIZE),
        "found": main_table(SIZE, SUMMARY),
        "figure": "\n\n".join(curves[:1]) or NOTHING,
        "figures": "\n\n".join(curves[1:]) or NOTHING,
        "stability": "\n\n".join(stability) or NOTHING,
        "confirmed": main_table(CONFIRMS),
        "gpu": main_table("base"),
        "losses": losses_table(SIZE),
        "costs": costs_table(SIZE),
        "rates": rate_table(SIZE),
        "weights": weight_table(SIZE),
        "one change": variants_table(SIZE),
        "readings": dictionaries_table(SIZE) or NOTHING,
        "copying": copying_table(SIZE) or NOTHING,
        **first_million.blocks(),
    }


def main_table(size: str, rows: Sequence[str] = ()) -> str:
    """Mean loss of every row in every comparison that has begun, its difference to NTP, and the tokens to NTP's loss.

    A table of some rows is of the first comparison alone.
    """
    taught = [row for row in rows_of(size) if needs_teacher(row, REGIMES[size].size)]
    pairs = comparisons(size)[: 1 if rows else None]
    begun = [pair for pair in pairs if any(results_of(size, *pair, row) for row in taught)] or pairs[:1]
    body = []
    for row in rows or rows_of(size):
        cells = [_summary(size, corpus, teacher, row) for corpus, teacher in begun]
        if any(cells):
            body.append([ROWS[row].what, *cells])
    longer = [_longer_ntp(size, corpus) if teacher == "weak" else "" for corpus, teacher in begun]
    if any(longer) and not rows:
        body.append(["NTP with all FLOPs of CoCoMix (ours), its teacher's too (seed 0)", *longer])
    head = ["", *(f"{CORPORA[corpus]}, {teacher} teacher" for corpus, teacher in begun)]
    return table(head, body) if body else NOTHING


def _summary(size: str, corpus: str, teacher: str, row: str) -> str:
    results, ntp = (results_of(size, corpus, teacher, name) for name in (row, "ntp"))
    if not results or (teacher != "weak" and row != "ntp" and not needs_teacher(row, REGIMES[size].size)):
        return ""
    changes = differences(results, ntp)
    seeds = "" if len(results) == len(REGIMES[size].seeds) else f", {len(results)} of {len(REGIMES[size].seeds)} seeds"
    text = f"{statistics.fmean(losses_of(results)):.3f}{seeds}"
    if row == "ntp" or not changes:
        return text
    text += f" ({format_signed(statistics.fmean(changes))})"
    return _with_shares(text, shares_to_match(size, corpus, teacher, row, "tokens"), len(results))


def _with_shares(text: str, shares: Sequence[str], num_seeds: int) -> str:
    if not shares:
        return text
    some = "" if len(shares) == num_seeds else f" ({len(shares)} of {num_seeds} seeds)"
    return f"{text}; {', '.join(shares[:1] if len(set(shares)) == 1 else shares)}{some}"


def _longer_ntp(size: str, corpus: str) -> str:
    percent = cost_percent(size, corpus)
    result = None if percent is None else results_of(size, corpus, "none", "ntp", percent).get(0)
    return "" if result is None else f"{result['validation_loss']:.3f}; {percent}% of the tokens"


def shares_to_match(size: str, corpus: str, teacher: str, row: str, cost: str, to: str = "ntp") -> list[str]:
    """What reaching the loss of `ntp` or `ntp-wider` takes on each seed that has shorter runs, as a share of its own."""
    percents = (*REGIMES[size].shares.get(teacher, ()), 100)
    runs = [results_of(size, corpus, teacher, row, percent) for percent in percents]
    ntp, by_seed = results_of(size, corpus, teacher, to), defaultdict[int, list[Any]](list)
    for seed, run in (pair for some in runs for pair in some.items()):
        by_seed[seed].append(run)
    shares = [share_to_match(by_seed[seed], ntp[seed], COSTS[cost]) for seed in ntp if len(by_seed[seed]) > 1]
    return [share for share in shares if share]


def losses_table(size: str) -> str:
    """What the chosen runs reach, by seed."""
    body = []
    for corpus, teacher in comparisons(size):
        ntp = results_of(size, corpus, teacher, "ntp")
        for row in rows_of(size):
            results = results_of(size, corpus, teacher, row)
            if results:
                cell = chosen_cell(size, corpus, teacher, row)
                changes = differences(results, ntp)
                interval = bootstrap_interval(changes) if any(changes) else None
                difference = format_signed(statistics.fmean(changes)) if any(changes) else ""
                named = f"`{cell.row}`" + (f", {cell.setting}" if cell.setting else "")
                body.append(
                    [
                        *(f"{CORPORA[corpus]}, {cell.teacher}", named, f"{cell.rate:g}"),
                        *(losses(losses_of(results)), mean(losses_of(results)), difference),
                        "" if interval is None else " to ".join(map(format_signed, interval)),
                    ]
                )
    head = ["corpus, teacher", "row, weight", "learning rate", "loss by seed", "mean ± sd", "difference to NTP"]
    return table([*head, "interval over seeds"], _unique(body)) if body else NOTHING


def costs_table(size: str) -> str:
    """Mean over seeds of what whole runs take, and what reaching NTP's loss takes by seed; both as shares of NTP's."""
    body = []
    for corpus, teacher in comparisons(size):
        ntp = results_of(size, corpus, teacher, "ntp")
        for row in rows_of(size):
            results = results_of(size, corpus, teacher, row)
            seeds = sorted(results.keys() & ntp.keys())
            if not seeds or row == "ntp":
                continue
            columns = []
            for name, cost in COSTS.items():
                whole = statistics.fmean(cost(results[seed]) / cost(ntp[seed]) for seed in seeds)
                shares = shares_to_match(size, corpus, teacher, row, name)
                columns.append(_with_shares(f"{whole:.0%}", shares, len(seeds)))
            wider = [shares_to_match(size, corpus, teacher, row, name, "ntp-wider") for name in TO_WIDER]
            columns += [", ".join(shares) for shares in wider]
            where = chosen_cell(size, corpus, teacher, row).teacher
            body.append([f"{CORPORA[corpus]}, {where}", f"`{row}`", *columns])
    head = ["corpus, teacher", "row", *COSTS, *(f"to wider NTP's loss: {name}" for name in TO_WIDER)]
    return table(head, _unique(body)) if body else NOTHING


def rate_table(size: str) -> str:
    """Losses at every rate, seed 0."""
    stored = set(stored_cells(size))
    found = {}
    for corpus, row in itertools.product(REGIMES[size].corpora, rows_of(size)):
        try:
            found[corpus, row] = [cell for cell in rate_cells(size, corpus, row) if cell in stored]
        except CocomixError:  # its weights have not run
            continue
    rates = sorted({cell.rate for cells in found.values() for cell in cells})
    body = []
    for (corpus, row), cells in found.items():
        by_rate = {cell.rate: (cell.result() or {})["validation_loss"] for cell in cells}
        if by_rate:
            body.append([CORPORA[corpus], f"`{row}`", *(losses([by_rate[r]]) if r in by_rate else "" for r in rates)])
    return table(["corpus", "row", *(f"{rate:g}" for rate in rates)], body) if body else NOTHING


def weight_table(size: str) -> str:
    """Losses with every weight, seed 0."""
    body = []
    for corpus, teacher in comparisons(size):
        for row in rows_of(size):
            try:
                cells = weight_cells(size, corpus, teacher, row) if len(ROWS[row].settings) > 1 else []
            except CocomixError:  # its rates have not run
                continue
            runs = [(cell.setting, cell.result()) for cell in cells]
            listed = ", ".join(f"{setting}: {run['validation_loss']:.3f}" for setting, run in runs if run is not None)
            if listed:
                body.append([f"{CORPORA[corpus]}, {cells[0].teacher}", f"`{row}`", listed])
    return table(["corpus, teacher", "row", "loss by weight"], _unique(body)) if body else NOTHING


def variants_table(size: str) -> str:
    """What one change to the recommended run gives: differences, paired by seed, and FLOPs as shares of that run's."""
    body = []
    for corpus in REGIMES[size].corpora:
        base = results_of(size, corpus, "weak", "recommended")
        for name in VARIANTS if base else ():
            cells = [variant_cell(size, corpus, name, seed) for seed in REGIMES[size].seeds]
            runs = {cell.seed: run for cell in cells if (run := cell.result()) is not None}
            # But for controls, seed 0 chose what has more seeds.
            counted = {seed: run for seed, run in runs.items() if seed or name in CONTROLS} or runs
            changes, seeds = differences(counted, base), counted.keys() & base.keys()
            if changes:
                costs = [
                    statistics.fmean(cost(runs[s]) / cost(base[s]) for s in seeds)
                    for cost in (at_hand_cost, whole_cost)
                ]
                body.append(
                    [CORPORA[corpus], name, losses(losses_of(runs)), format_signed(statistics.fmean(changes))]
                    + [f"{cost:.0%}" for cost in costs]
                )
    head = ["corpus", "variant", "loss by seed", "difference", "FLOPs, teacher at hand", "teacher for one"]
    return table(head, body) if body else NOTHING


def _unique(body: list[list[str]]) -> list[list[str]]:
    """Rows without a teacher stand once, though they are in every comparison."""
    return [list(row) for row in dict.fromkeys(map(tuple, body))]
