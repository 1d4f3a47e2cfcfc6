"""The figures of the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cocomix.base.drawing import INK, MUTED, RULE, SERIES, Drawing, panel, save
from cocomix.base.formats import format_count, format_flops, format_seconds, format_signed

LINE_STYLES = ("-", "-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)))

#: The first part of a run falls so steeply that it would flatten the rest; it leaves the panel at the top.
CUT_SHARE = 0.2
#: Longer names do not fit beside the end of a curve.
MAX_DIRECT_LABEL = 10
#: Curves that leave the upper right corner free enough for their names.
MAX_INSIDE_LEGEND = 3


def curve_figures(summary: Mapping[str, Any]) -> list[Drawing]:
    """Validation loss of every student against tokens, FLOPs and seconds."""
    return [_curves(summary, axis) for axis in _AXES]


def probe_figures(summary: Mapping[str, Any]) -> dict[str, Drawing]:
    """What each probe does to the loss, for every student that has probes."""
    students = {name: summary[name] for name in summary["students"]}
    return {
        name: _probes(f"probes-{name}", student["title"], student["probes"])
        for name, student in students.items()
        if "probes" in student
    }


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Move values apart until neighbours differ by `gap`, each group staying centred on where it was."""
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


@dataclass(frozen=True)
class _Axis:
    key: str
    name: str
    match_key: str
    text: Callable[[float | int, float | int], str]
    """A value in words, as part of a whole."""
    unit: Callable[[float | int], tuple[float, str]]
    """Divisor and name of the unit in which the largest value is readable."""


def _token_unit(largest: float | int) -> tuple[float, str]:
    units = ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
    return next((unit for unit in units if largest >= unit[0]), (1.0, "tokens"))


def _flop_unit(largest: float | int) -> tuple[float, str]:
    units = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
    return next((unit for unit in units if largest >= unit[0]), (1.0, "FLOP"))


def _time_unit(largest: float | int) -> tuple[float, str]:
    if largest < 120:
        return 1.0, "seconds"
    return (60.0, "minutes") if largest < 7200 else (3600.0, "hours")


def _tokens_text(part: float | int, whole: float | int) -> str:
    return f"{format_count(part, whole)} tokens"


_AXES = (
    _Axis("train_tokens", "training tokens", "tokens_to_match_ntp", _tokens_text, _token_unit),
    _Axis("train_flops", "training FLOPs", "flops_to_match_ntp", lambda part, _: format_flops(part), _flop_unit),
    _Axis("train_seconds", "training time", "seconds_to_match_ntp", lambda part, _: format_seconds(part), _time_unit),
)


def _curves(summary: Mapping[str, Any], axis: _Axis) -> Drawing:
    students = [summary[name] for name in summary["students"]]
    largest = max(student["curve"][-1][axis.key] for student in students)
    divisor, unit = axis.unit(largest)
    ends = [student["curve"][-1] for student in students]
    titles = [student["title"] for student in students]
    direct = len({end[axis.key] for end in ends}) == 1 and max(map(len, titles)) <= MAX_DIRECT_LABEL
    # A long legend has no free corner inside; its lines go below the panel.
    below = 0.0 if len(titles) <= MAX_INSIDE_LEGEND else 0.165 * len(titles) + 0.05
    figure, axes = panel(3.4, 2.75 + below, left=0.36, right=0.68 if direct else 0.12, bottom=0.47 + below, top=0.28)
    for index, (student, end) in enumerate(zip(students, ends, strict=True)):
        points = [(point[axis.key] / divisor, point["validation_loss"]) for point in student["curve"]]
        color, style = SERIES[index % len(SERIES)], LINE_STYLES[index % len(LINE_STYLES)]
        axes.plot(*zip(*points, strict=True), color=color, linestyle=style, linewidth=1.6, label=student["title"])
        axes.plot(end[axis.key] / divisor, end["validation_loss"], "o", color=color, markersize=3.5)
    lowest, highest = _loss_range([student["curve"] for student in students], axis.key)
    height = highest - lowest
    axes.set_ylim(lowest - 0.2 * height, highest)
    axes.set_xlim(0, largest / divisor * 1.02)
    axes.set_xlabel(f"{axis.name[0].upper()}{axis.name[1:]} ({unit})", loc="left")
    axes.set_title("Validation loss (nats a token)", loc="left", fontsize=8.5, color=MUTED, pad=7)
    if direct:
        _label_ends(axes, students, gap=0.095 * height)
    else:
        _legend(figure, axes, inside=not below)
    target = summary["ntp"]["curve"][-1]["validation_loss"]
    crossing = summary[axis.match_key]
    _mark_target(axes, target, height, crosses_early=crossing is not None and crossing < 0.6 * largest)
    if crossing is not None:
        cocomix = summary["students"].index("cocomix")
        _mark_crossing(axes, crossing / divisor, target, axis.text(crossing, largest), SERIES[cocomix % len(SERIES)])
    return save(figure, f"loss-{axis.key.removeprefix('train_')}", _curves_alt(students, summary, axis))


def _legend(figure: Figure, axes: Axes, *, inside: bool) -> None:
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": INK, "handlelength": 2.8, "borderaxespad": 0}
    if inside:
        axes.legend(loc="upper right", **look)
    else:
        left = axes.get_position().x0
        figure.legend(loc="lower left", bbox_to_anchor=(left, 0.01), borderpad=0, labelspacing=0.35, **look)


def _loss_range(curves: Sequence[Sequence[Mapping[str, float | int]]], key: str) -> tuple[float, float]:
    """Lowest loss of all, and the highest that is left after the cut first part of each run."""
    lowest = min(point["validation_loss"] for curve in curves for point in curve)
    shown = [p["validation_loss"] for curve in curves for p in curve if p[key] >= CUT_SHARE * curve[-1][key]]
    # A run that learned nothing has a flat curve, and an axis needs a height.
    return lowest, max(*shown, lowest + 0.01)


def _label_ends(axes: Axes, students: Sequence[Mapping[str, Any]], gap: float) -> None:
    heights = spread([student["curve"][-1]["validation_loss"] for student in students], gap)
    for index, (student, height) in enumerate(zip(students, heights, strict=True)):
        axes.annotate(
            student["title"],
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=SERIES[index % len(SERIES)],
            fontsize=8.5,
            annotation_clip=False,
        )


def _mark_target(axes: Axes, target: float, height: float, *, crosses_early: bool) -> None:
    """NTP's final loss as a line, named where no curve crosses the name."""
    axes.axhline(target, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    right = axes.get_xlim()[1]
    text = f"NTP’s final loss, {target:.3f}"
    x, side = (0.985 * right, "right") if crosses_early else (0.015 * right, "left")
    axes.text(x, target - 0.02 * height, text, va="top", ha=side, color=MUTED, fontsize=8)


def _mark_crossing(axes: Axes, x: float, target: float, text: str, color: str) -> None:
    """A ring where CoCoMix reaches NTP's final loss, and its place on the axis, in the free strip below all curves."""
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


def _curves_alt(students: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], axis: _Axis) -> str:
    ends = {student["title"]: student["curve"][-1] for student in students}
    largest = max(end[axis.key] for end in ends.values())
    curves = "; ".join(
        f"{title} ends at {end['validation_loss']:.3f} after {axis.text(end[axis.key], largest)}"
        for title, end in ends.items()
    )
    crossing = summary[axis.match_key]
    match = (
        "does not reach NTP’s final loss"
        if crossing is None
        else f"reaches NTP’s final loss at {axis.text(crossing, largest)}"
    )
    return f"Validation loss against {axis.name}: {curves}. CoCoMix {match}."


def _probes(name: str, title: str, probes: Mapping[str, Mapping[str, Any]]) -> Drawing:
    figure, axes = panel(4.2, 0.5 + 0.28 * len(probes), left=1.0, right=0.08, bottom=0.46, top=0.02)
    reaches = []
    for row, (probe, result) in enumerate(probes.items()):
        delta, error = result["loss_delta"], 2 * (result["standard_error"] or 0.0)
        # The oracle is hollow: it is no model of its own, but needs the teacher.
        face = "none" if probe == "oracle" else SERIES[0]
        axes.barh(row, delta, height=0.56, facecolor=face, edgecolor=SERIES[0], linewidth=1)
        axes.errorbar(delta, row, xerr=error, color=INK, linewidth=1, capsize=2.5, capthick=1)
        reach = delta + math.copysign(error, delta)
        axes.annotate(
            format_signed(delta),
            (reach, row),
            xytext=(math.copysign(5, delta), 0),
            textcoords="offset points",
            va="center",
            ha="left" if delta >= 0 else "right",
            color=INK,
            fontsize=8.5,
        )
        reaches.append(reach)
    width = max(0.0, *reaches) - min(0.0, *reaches) or 1.0
    axes.set_xlim(min(0.0, *reaches) - 0.27 * width * (min(reaches) < 0), max(0.0, *reaches) + 0.27 * width)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(range(len(probes)), [probe.replace("_", " ") for probe in probes], color=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("Change of the validation loss (nats a token)", loc="left")
    changes = "; ".join(f"{probe.replace('_', ' ')} {format_signed(r['loss_delta'])}" for probe, r in probes.items())
    return save(figure, name, f"Change of {title}’s validation loss under each probe: {changes} nats a token.")
