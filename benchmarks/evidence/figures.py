"""Figures of the pages."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from benchmarks.evidence.corpora import CORPUS_NAMES
from benchmarks.evidence.rows import results_of
from benchmarks.evidence.scaling import FITTED, fits, points
from benchmarks.evidence.tables import COMPARISONS, DISTILLED, PUBLISHED, RECOMMENDED, REGIMES, SCALING_SHAPES
from cocomix.base.drawing import MUTED, SERIES, Drawing, panel, save
from cocomix.base.formats import format_count

#: Of the scaling figure's shapes, smallest first.
MARKERS = ("^", "s", "o")
DASHES: tuple[tuple[float, ...], ...] = ((1, 1.5), (4, 2), ())
#: x and y of a line's end, its name and its colour.
End = tuple[float, float, str, str]
#: Height of a line of text, as a share of the axis.
LINE = 0.058


def figures() -> list[Drawing]:
    found = [*(curves(*comparison) for comparison in COMPARISONS), scaling_curves()]
    return [drawing for drawing in found if drawing is not None]


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


def curves(corpus: str, teacher: str) -> Drawing | None:
    """Validation loss against tokens, mean over the seeds that all drawn rows have; None before there are two rows."""
    drawn = {"NTP": "NTP", DISTILLED: "distillation", PUBLISHED: "published", RECOMMENDED: "recommended"}
    found = {name: results_of(corpus, teacher, REGIMES[teacher].parts[part]) for part, name in drawn.items()}
    found = {name: results for name, results in found.items() if results}
    seeds = sorted(set.intersection(*(set(results) for results in found.values()))) if found else []
    if len(found) < 2 or not seeds:
        return None
    figure, axes = panel(6.4, 3.4, left=0.5, right=1.2, bottom=0.5, top=0.2)
    colors = dict(zip(drawn.values(), SERIES, strict=False))
    ends: list[End] = []
    for name, results in found.items():
        rows = [results[seed]["curve"]["rows"] for seed in seeds]
        tokens = [row[0] for row in rows[0]]
        losses = [statistics.fmean(row[index][3] for row in rows) for index in range(len(tokens))]
        axes.plot(tokens, losses, color=colors[name], linewidth=1.6)
        ends.append((tokens[-1], losses[-1], name, colors[name]))
    loss = next(run["teacher_loss"] for results in found.values() for run in results.values() if "teacher_loss" in run)
    axes.hlines(loss, tokens[0], tokens[-1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    name_ends(axes, [*ends, (tokens[-1], loss, "the teacher's end", MUTED)])
    axes.xaxis.set_major_formatter(lambda value, _: format_count(value) if value else "0")
    axes.set_xlabel("training tokens")
    axes.set_title("validation loss along each run, nats a token", loc="left", fontsize=8.5, color=MUTED)
    alt = f"Validation loss along each run, {CORPUS_NAMES[corpus]}, {teacher} teacher"
    return save(figure, f"evidence-{corpus.replace('_', '-')}-{teacher}", alt)


def scaling_curves() -> Drawing | None:
    """Loss against tokens of each shape, NTP's in one colour and the recommended variant's in another, over their fits."""
    found = fits()
    if found is None:
        return None
    figure, axes = panel(6.4, 3.4, left=0.5, right=1.2, bottom=0.5, top=0.2)
    ends: list[End] = []
    for color, name in zip((SERIES[0], SERIES[3]), FITTED, strict=True):
        runs, curve = points(name), found[name]
        for shape, marker, dashes in zip(SCALING_SHAPES, MARKERS, DASHES, strict=True):
            some = [run for run in runs if run.shape == shape]
            tokens = np.geomspace(some[0].tokens, some[-1].tokens, 50)
            fitted = curve.loss(some[0].parameters, tokens)
            axes.plot(tokens, fitted, color=color, linewidth=1.2, linestyle=(0, dashes))
            axes.plot([r.tokens for r in some], [r.loss for r in some], marker, color=color, markersize=4)
            ends.append((some[-1].tokens, some[-1].loss, f"{'NTP' if name == 'ntp' else name} {shape}", color))
    name_ends(axes, ends)
    axes.set_xscale("log")
    axes.set_xticks(sorted({run.tokens for run in points("ntp")}))
    axes.xaxis.set_major_formatter(lambda value, _: format_count(float(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training tokens, each run with its own whole schedule")
    axes.set_title("validation loss, nats a token, and the fitted curves", loc="left", fontsize=8.5, color=MUTED)
    return save(figure, "evidence-scaling", "Validation loss of three shapes and three numbers of tokens, with fits")
