"""A steering score in words, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from cocomix.base.drawing import INK, MUTED, SERIES, Drawing, panel, save
from cocomix.tools.steer_eval.score import SIGNIFICANCE, Measurements, benjamini_hochberg, sign_flip_p_values

WIDTH, HEIGHT = 4.6, 2.8
QUARTILES = torch.tensor([0.25, 0.5, 0.75])


def summarize_strengths(measured: Measurements, max_cost: float) -> list[dict[str, Any]]:
    """For each strength, over all prompts: rises, costs and repetition.

    A rise is the mean activation in steered texts divided by that in unsteered texts: `own` for the steered concept,
    `other` for the other concepts of the sample.
    """
    N = len(measured.losses)
    differences = measured.activations - measured.unsteered_activations  # (N, S, P, N)
    unsteered = measured.unsteered_activations.mean(0).clamp(min=1e-9)
    own = torch.eye(N, dtype=torch.bool)
    rows = []
    for number, strength in enumerate(measured.strengths):
        ratios = 1 + differences[:, number].mean(1) / unsteered  # (N, N)
        cost = measured.costs()[:, number].mean(-1)
        p_values = sign_flip_p_values(differences[:, number].diagonal(dim1=0, dim2=2).t().unsqueeze(1))
        rows.append(
            {
                "strength": strength,
                "own_ratio": _quartiles(ratios[own]),
                "other_ratio": _quartiles(ratios[~own]),
                "share_rising": float((benjamini_hochberg(p_values) <= SIGNIFICANCE).float().mean()),
                "fluency_cost": _quartiles(cost),
                "share_affordable": float((cost <= max_cost).float().mean()),
                "repetition": float(measured.repetition[:, number].mean()),
            }
        )
    return rows


def headline(result: Mapping[str, Any]) -> str:
    """The score in one sentence."""
    return (
        f"steered by mode {result['mode']}, {result['share_rising']:.0%} of {result['num_concepts']} concepts are "
        f"significantly more active in the text at a cost of at most {result['max_fluency_cost']:g} nats per token; steering "
        f"a random other concept: {result['share_rising_by_others']:.0%}"
    )


def markdown(result: Mapping[str, Any]) -> str:
    """Headline and tables."""
    sentence = headline(result)
    lines = [
        "# Steering score",
        "",
        f"{sentence[0].upper()}{sentence[1:]}.",
        "",
        f"Without steering the teacher's loss is {result['unsteered']['teacher_loss']:.3f} nats per token, and "
        f"{result['unsteered']['repetition']:.1%} of the runs of four tokens repeat an earlier one.",
        "",
        "| strength | activation, steered / unsteered | the other concepts' | rising | cost, nats per token | repetition |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["strengths"]:
        low, cost, high = row["fluency_cost"]
        lines.append(
            f"| {row['strength']:g} | {row['own_ratio'][1]:.2f} | {row['other_ratio'][1]:.2f} | {row['share_rising']:.0%} | "
            f"{cost:.2f} ({low:.2f} to {high:.2f}) | {row['repetition']:.1%} |"
        )
    lines += [
        "",
        "Medians over concepts (quartiles in brackets). Below: at the strength where the concept rises most surely, among "
        "those whose cost with its standard error is allowed.",
        "",
        "| concept | name | strength | activation without | with | p, adjusted | cost | rises | other, steered | rises |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for own, other in zip(result["concepts"], result["others"], strict=True):
        cells = (
            own["concept"],
            _cell(result["names"].get(str(own["concept"]), "")),
            _number(own["strength"], "g"),
            _number(own["unsteered_activation"], ".3f"),
            _number(own["steered_activation"], ".3f"),
            _number(own["adjusted_p_value"], ".2g"),
            _number(own["fluency_cost"], ".2f"),
            _yes(own["rises"]),
            other["steered"],
            _yes(other["rises"]),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def draw_figures(result: Mapping[str, Any]) -> list[Drawing]:
    """The figures `rise` and `cost`, by strength."""
    return [_rise(result), _cost(result)]


def _rise(result: Mapping[str, Any]) -> Drawing:
    figure, axes = _panel("strength", "activation, steered / unsteered")
    _band(axes, result, "own_ratio", SERIES[0], "the steered concept")
    _band(axes, result, "other_ratio", SERIES[1], "other concepts")
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left")
    return save(figure, "rise", "How much more active concepts are in steered text, by strength: median and quartiles")


def _cost(result: Mapping[str, Any]) -> Drawing:
    figure, axes = _panel("strength", "cost, nats per token")
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


def _quartiles(values: Tensor) -> list[float]:
    return [float(value) for value in values.quantile(QUARTILES.to(values))]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _cell(text: str) -> str:
    """Text as a table cell, with all markup escaped."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
