"""Figures of the pages, from stored results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from benchmarks.evidence.cells import stored_cells
from benchmarks.evidence.corpora import CORPORA
from benchmarks.evidence.rows import ROWS
from benchmarks.evidence.sizes import REGIMES
from benchmarks.evidence.tables import results_of
from cocomix.base.drawing import MUTED, SERIES, Drawing, panel, save
from cocomix.base.formats import format_count

DRAWN = ("ntp", "kd", "alignment", "recommended", "both")
#: x and y of a line's end, its name and its colour.
End = tuple[float, float, str, str]
#: Height of a line of text, as a share of the axis.
LINE = 0.058


def name_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Names at the ends of lines, moved apart where they would overlap; call it when the y axis has its limits."""
    low, high = axes.get_ylim()
    placed: list[float] = []
    ordered = sorted(ends, key=lambda end: end[1])
    for _, y, _, _ in ordered:
        placed.append(max(y, placed[-1] + LINE * (high - low)) if placed else y)
    drift = statistics.fmean(place - end[1] for place, end in zip(placed, ordered, strict=True))
    for (x, y, name, color), place in zip(ordered, placed, strict=True):
        points_up = (place - drift - y) / (high - low) * axes.get_window_extent().height * 72 / axes.figure.dpi
        how = {"textcoords": "offset points", "fontsize": 8.5, "va": "center"}
        axes.annotate(name, (x, y), xytext=(6, points_up), color=color, **how)


def curves(size: str, corpus: str, teacher: str) -> Drawing | None:
    """Validation loss against tokens, mean over seeds; None before there are two rows."""
    found = {row: results_of(size, corpus, teacher, row) for row in DRAWN}
    found = {row: results for row, results in found.items() if results}
    if len(found) < 2:
        return None
    figure, axes = panel(6.4, 3.4, left=0.5, right=2.1, bottom=0.5, top=0.2)
    ends: list[End] = []
    seconds = []
    for color, row in zip(SERIES, DRAWN, strict=True):
        if row in found:
            points = zip(*(result["curve"]["rows"] for result in found[row].values()), strict=True)
            means = [(some[0][0], statistics.fmean(loss for _, loss in some)) for some in points]
            axes.plot(*zip(*means, strict=True), color=color, linewidth=1.6)
            seconds.append(means[1][1])
            ends.append((*means[-1], ROWS[row].what.partition(",")[0], color))
    whole = REGIMES[size].size.num_tokens
    axes.set_xlim(0.05 * whole, whole)
    axes.set_ylim(top=max(seconds))  # the first points are high, and alike
    name_ends(axes, ends)
    label_axes(axes, "loss on 64 validation windows along each run, nats a token; mean over seeds")
    alt = f"Validation loss along each run, {CORPORA[corpus]}, {teacher} teacher"
    return save(figure, f"evidence-{size}-{corpus.replace('_', '-')}-{teacher}", alt)


def stability(size: str, corpus: str) -> Drawing | None:
    """Every stored run's curve: those of whole length and, muted, those that were only tried."""
    found = [(cell, cell.result()) for cell in stored_cells(size) if cell.corpus == corpus and cell.percent == 100]
    if not found:
        return None
    figure, axes = panel(6.4, 3.4, left=0.5, right=0.2, bottom=0.5, top=0.2)
    tops = []
    for cell, result in sorted(found, key=lambda pair: pair[0].seed > 0):  # several seeds are drawn above
        assert result is not None
        tokens, losses = zip(*result["curve"]["rows"], strict=True)
        tops.append(losses[0])
        axes.plot(tokens, losses, color=SERIES[0] if cell.seed else MUTED, linewidth=0.8, alpha=0.7)
    axes.set_ylim(top=statistics.median(tops))
    label_axes(
        axes, f"every run: seed 0, with all rates and weights (grey), and the other seeds (blue); {len(found)} runs"
    )
    return save(
        figure, f"evidence-{size}-{corpus.replace('_', '-')}-stability", f"Curves of all runs, {CORPORA[corpus]}"
    )


def label_axes(axes: Axes, title: str) -> None:
    """Tokens below, and what is drawn above."""
    axes.xaxis.set_major_formatter(lambda value, _: format_count(value) if value else "0")
    axes.set_xlabel("training tokens")
    axes.set_title(title, loc="left", fontsize=8.5, color=MUTED)
