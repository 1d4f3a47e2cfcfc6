"""The figures of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cocomix.base.drawing import INK, MUTED, RULE, SERIES, Drawing, panel, save
from cocomix.base.formats import format_signed
from cocomix.tools.compare.curves import series_of
from cocomix.tools.compare.figures import AXES, Axis, Line, Target, draw_curves


def curve_figures(summary: Mapping[str, Any]) -> list[Drawing]:
    """Validation loss of every student against tokens, FLOPs and seconds."""
    crossing = {axis.key: summary[_match_key(axis)] for axis in AXES}
    lines = [
        Line(summary[name]["title"], summary[name]["curve"], series, crossing if name == "cocomix" else None)
        for name, series in series_of(summary["students"]).items()
    ]
    target = Target(summary["ntp"]["title"], summary["ntp"]["curve"][-1]["validation_loss"])
    return [draw_curves(lines, target, axis, _curves_alt(summary, axis)) for axis in AXES]


def probe_figures(summary: Mapping[str, Any]) -> dict[str, Drawing]:
    """The effect of each probe on the loss, for every student with probes."""
    return {
        name: _probes(f"probes-{name}", summary[name]["title"], summary[name]["probes"], SERIES[series % len(SERIES)])
        for name, series in series_of(summary["students"]).items()
        if "probes" in summary[name]
    }


def _match_key(axis: Axis) -> str:
    return f"{axis.key.removeprefix('train_')}_to_match_ntp"


def _curves_alt(summary: Mapping[str, Any], axis: Axis) -> str:
    ends = {summary[name]["title"]: summary[name]["curve"][-1] for name in summary["students"]}
    largest = max(end[axis.key] for end in ends.values())
    curves = "; ".join(
        f"{title} ends at {end['validation_loss']:.3f} after {axis.text(end[axis.key], largest)}"
        for title, end in ends.items()
    )
    crossing = summary[_match_key(axis)]
    match = (
        "does not reach NTP’s final loss"
        if crossing is None
        else f"reaches NTP’s final loss at {axis.text(crossing, largest)}"
    )
    return f"Validation loss against {axis.name}: {curves}. CoCoMix {match}."


def _probes(name: str, title: str, probes: Mapping[str, Mapping[str, Any]], color: str) -> Drawing:
    figure, axes = panel(4.2, 0.5 + 0.28 * len(probes), left=1.0, right=0.08, bottom=0.46, top=0.02)
    reaches = []
    for row, (probe, result) in enumerate(probes.items()):
        delta, error = result["loss_delta"], 2 * (result["standard_error"] or 0.0)
        # The bar of the oracle is hollow: it needs the teacher and is not a model of its own.
        face = "none" if probe == "oracle" else color
        axes.barh(row, delta, height=0.56, facecolor=face, edgecolor=color, linewidth=1)
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
