"""Figures of loss curves, shared by the page of a comparison and the report of an experiment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cocomix.base.drawing import INK, MUTED, SERIES, Drawing, panel, save
from cocomix.base.formats import format_count, format_flops, format_seconds
from cocomix.tools.compare.curves import Curve

LINE_STYLES = ("-", "-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)))

#: The first part of each run falls so steeply that it would flatten the rest; it may leave the panel at the top.
CUT_SHARE = 0.2
#: Longest name that fits beside the end of a curve.
MAX_DIRECT_LABEL = 10
#: With more names the legend does not fit into the upper right corner.
MAX_INSIDE_LEGEND = 3


@dataclass(frozen=True)
class Line:
    """One run's curve in a figure."""

    title: str
    curve: Curve
    series: int
    """Index of its colour and line style; runs of the same group share it, and one entry of the legend."""
    crossing: Mapping[str, float | None] | None = None
    """Where it reaches the target, by axis (None: never); without a mapping nothing is marked."""

    @property
    def color(self) -> str:
        return SERIES[self.series % len(SERIES)]

    @property
    def style(self) -> Any:
        """The style of the line; colours and styles combine in as many ways as possible."""
        return LINE_STYLES[(self.series + self.series // len(SERIES)) % len(LINE_STYLES)]


@dataclass(frozen=True)
class Target:
    """A loss to reach."""

    title: str
    loss: float


@dataclass(frozen=True)
class Axis:
    """A quantity that a run consumes."""

    key: str
    """Its key in the points of a curve."""
    name: str
    """Its name in a sentence."""
    text: Callable[[float | int, float | int], str]
    """Formats a value as part of a whole."""
    unit: Callable[[float | int], tuple[float, str]]
    """Divisor and name of a readable unit for the largest value."""


def _token_unit(largest: float | int) -> tuple[float, str]:
    units = ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
    return next((unit for unit in units if largest >= unit[0]), (1.0, "tokens"))


def _flop_unit(largest: float | int) -> tuple[float, str]:
    units = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
    return next((unit for unit in units if largest >= unit[0]), (1.0, "FLOP"))


def _time_unit(largest: float | int) -> tuple[float, str]:
    return (1.0, "seconds") if largest < 120 else (60.0, "minutes") if largest < 7200 else (3600.0, "hours")


def _tokens_text(part: float | int, whole: float | int) -> str:
    return f"{format_count(part, whole)} tokens"


AXES = (
    Axis("train_tokens", "training tokens", _tokens_text, _token_unit),
    Axis("train_flops", "training FLOPs", lambda part, _: format_flops(part), _flop_unit),
    Axis("train_seconds", "training time", lambda part, _: format_seconds(part), _time_unit),
)


def draw_curves(lines: Sequence[Line], target: Target | None, axis: Axis, alt: str) -> Drawing:
    """Validation loss of some runs against one axis.

    Args:
        lines: curves, each with at least one point.
        target: drawn as a line, with a ring where a curve crosses it; None: no target.
        axis: of the figure.
        alt: a description in words.
    """
    largest = max(line.curve[-1][axis.key] for line in lines)
    divisor, unit = axis.unit(largest)
    ends = [line.curve[-1] for line in lines]
    titles = list(dict.fromkeys(line.title for line in lines))
    is_single = len(titles) == len(lines)
    direct = is_single and len({end[axis.key] for end in ends}) == 1 and max(map(len, titles)) <= MAX_DIRECT_LABEL
    # A long legend goes below the panel.
    below = 0.0 if len(titles) <= MAX_INSIDE_LEGEND else 0.165 * len(titles) + 0.05
    figure, axes = panel(3.4, 2.75 + below, left=0.36, right=0.68 if direct else 0.12, bottom=0.47 + below, top=0.28)
    named: set[str] = set()
    for line, end in zip(lines, ends, strict=True):
        points = [(point[axis.key] / divisor, point["validation_loss"]) for point in line.curve]
        label = None if line.title in named else line.title
        named.add(line.title)
        axes.plot(*zip(*points, strict=True), color=line.color, linestyle=line.style, linewidth=1.6, label=label)
        axes.plot(end[axis.key] / divisor, end["validation_loss"], "o", color=line.color, markersize=3.5)
    lowest, highest = _loss_range([line.curve for line in lines], axis.key)
    height = highest - lowest
    axes.set_ylim(lowest - 0.2 * height, highest)
    axes.set_xlim(0, largest / divisor * 1.02)
    axes.set_xlabel(f"{axis.name[0].upper()}{axis.name[1:]} ({unit})", loc="left")
    axes.set_title("Validation loss (nats a token)", loc="left", fontsize=8.5, color=MUTED, pad=7)
    if direct:
        _label_ends(axes, lines, gap=0.095 * height)
    else:
        _legend(figure, axes, inside=not below)
    crossings = [(line, line.crossing[axis.key]) for line in lines if line.crossing is not None]
    crossed = [(line, x) for line, x in crossings if x is not None]
    if target is not None:
        _mark_target(axes, target)
        for line, x in crossed:
            text = axis.text(x, largest) if len(crossed) == 1 else ""  # several texts would overlap
            _mark_crossing(axes, x / divisor, target.loss, text, line.color)
    return save(figure, f"loss-{axis.key.removeprefix('train_')}", alt)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Move values apart until neighbours differ by `gap`; each moved group keeps its centre."""
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[list[int]] = []
    centers: list[float] = []
    for index in order:
        members, center = [index], values[index]
        while groups and center - centers[-1] < gap * (len(members) + len(groups[-1])) / 2:
            members = groups.pop() + members
            centers.pop()
            center = sum(values[i] for i in members) / len(members)
        groups.append(members)
        centers.append(center)
    moved = list(values)
    for members, center in zip(groups, centers, strict=True):
        for rank, index in enumerate(members):
            moved[index] = center + gap * (rank - (len(members) - 1) / 2)
    return moved


def _legend(figure: Figure, axes: Axes, *, inside: bool) -> None:
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": INK, "handlelength": 2.8, "borderaxespad": 0}
    if inside:
        axes.legend(loc="upper right", **look)
    else:
        look |= {"bbox_to_anchor": (axes.get_position().x0, 0.01), "borderpad": 0, "labelspacing": 0.35}
        figure.legend(loc="lower left", **look)


def _loss_range(curves: Sequence[Sequence[Mapping[str, float | int]]], key: str) -> tuple[float, float]:
    """The lowest loss, and the highest loss after the first part of each run."""
    lowest = min(point["validation_loss"] for curve in curves for point in curve)
    shown = [p["validation_loss"] for curve in curves for p in curve if p[key] >= CUT_SHARE * curve[-1][key]]
    # A flat curve still needs an axis with some height.
    return lowest, max(*shown, lowest + 0.01)


def _label_ends(axes: Axes, lines: Sequence[Line], gap: float) -> None:
    heights = spread([line.curve[-1]["validation_loss"] for line in lines], gap)
    for line, height in zip(lines, heights, strict=True):
        axes.annotate(
            line.title,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=line.color,
            fontsize=8.5,
            annotation_clip=False,
        )


def _mark_target(axes: Axes, target: Target) -> None:
    """The target as a line, labelled at that end and on that side of it where the curves are least in the way."""
    axes.axhline(target.loss, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    (bottom, top), right = axes.get_ylim(), axes.get_xlim()[1]
    text = f"{target.title} {target.loss:.3f}"
    width, height = 0.026 * len(text) * right, top - bottom
    # The ends of runs are lines of one point, the target one of two.
    curves = [xy for line in axes.lines if (xy := np.asarray(line.get_xydata()).T).shape[1] > 2]

    def in_the_way(place: tuple[float, int]) -> int:
        x = np.linspace(place[0], place[0] + width, 40)
        away = [place[1] * (np.interp(x, *curve) - target.loss) for curve in curves]
        return int(sum(((y > 0) & (y < 0.09 * height)).sum() for y in away))

    x, side = min(itertools.product((0.985 * right - width, 0.015 * right), (-1, 1)), key=in_the_way)
    va = "top" if side < 0 else "bottom"
    axes.text(x, target.loss + side * 0.015 * height, text, va=va, color=MUTED, fontsize=8)


def _mark_crossing(axes: Axes, x: float, target: float, text: str, color: str) -> None:
    """A ring where a curve reaches the target, and its value in the free strip below all curves."""
    bottom, (_, right) = axes.get_ylim()[0], axes.get_xlim()
    axes.plot([x, x], [bottom, target], color=color, linewidth=0.8, linestyle=(0, (1, 1.5)))
    axes.plot(x, target, "o", markersize=6.5, markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.3)
    left_side = x > 0.5 * right
    axes.annotate(
        text,
        (x, bottom),
        xytext=(-4 if left_side else 4, 4),
        textcoords="offset points",
        ha="right" if left_side else "left",
        color=color,
        fontsize=8,
    )
