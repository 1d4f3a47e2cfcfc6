"""The curves of a steering score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from cocomix.base.drawing import INK, MUTED, SERIES, Drawing, panel, save

WIDTH, HEIGHT = 4.6, 2.8


def draw_figures(result: Mapping[str, Any]) -> list[Drawing]:
    """`rise` and `cost`, each by strength."""
    return [_rise(result), _cost(result)]


def _rise(result: Mapping[str, Any]) -> Drawing:
    figure, axes = _panel("strength", "activation, steered / unsteered")
    _band(axes, result, "own_ratio", SERIES[0], "the steered concept")
    _band(axes, result, "other_ratio", SERIES[1], "other concepts")
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left")
    return save(figure, "rise", "How much more active concepts are in steered text, by strength: median and quartiles")


def _cost(result: Mapping[str, Any]) -> Drawing:
    figure, axes = _panel("strength", "cost, nats a token")
    _band(axes, result, "fluency_cost", SERIES[0], "")
    axes.axhline(result["max_fluency_cost"], color=MUTED, linewidth=0.8, linestyle="--")
    return save(figure, "cost", "What steering adds to the teacher's loss, by strength: median and quartiles")


def _panel(x: str, y: str) -> tuple[Any, Axes]:
    figure, axes = panel(WIDTH, HEIGHT, left=0.6, right=0.15, bottom=0.5, top=0.35)
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", color=INK, fontsize=9)
    return figure, axes


def _band(axes: Axes, result: Mapping[str, Any], name: str, color: str, label: str) -> None:
    """Median and quartiles over concepts."""
    strengths = [row["strength"] for row in result["strengths"]]
    low, median, high = zip(*(row[name] for row in result["strengths"]), strict=True)
    axes.fill_between(strengths, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(strengths, median, color=color, marker="o", markersize=3.5, linewidth=1.6, label=label)
