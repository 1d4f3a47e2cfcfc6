"""A steering score in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cocomix.tools.steer_eval.score import SIGNIFICANCE, Measurements, benjamini_hochberg, sign_flip_p_values

QUARTILES = torch.tensor([0.25, 0.5, 0.75])


def summarize_strengths(measured: Measurements, max_cost: float) -> list[dict[str, Any]]:
    """For each strength, over all prompts: rises, costs and repetition.

    A rise is the mean activation in steered texts over that in unsteered ones; `own` ones are of the steered concept, `other`
    ones of all other concepts of the sample.
    """
    N = len(measured.losses)
    differences = measured.activations - measured.unsteered_activations  # (N, S, P, N)
    unsteered = measured.unsteered_activations.mean(0).clamp(min=1e-9)
    own = torch.eye(N, dtype=torch.bool)
    rows = []
    for number, strength in enumerate(measured.strengths):
        ratios = 1 + differences[:, number].mean(1) / unsteered  # (N, N)
        cost = measured.costs()[:, number].mean(-1)
        p_values = sign_flip_p_values(differences[:, number].diagonal(dim1=0, dim2=2).t())
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
        f"significantly more active in the text at a cost of at most {result['max_fluency_cost']:g} nats a token; steering a "
        f"random other concept: {result['share_rising_by_others']:.0%}"
    )


def markdown(result: Mapping[str, Any]) -> str:
    """Headline and tables."""
    sentence = headline(result)
    lines = [
        "# Steering score",
        "",
        f"{sentence[0].upper()}{sentence[1:]}.",
        "",
        f"Without steering the teacher's loss is {result['unsteered']['teacher_loss']:.3f} nats a token, and "
        f"{result['unsteered']['repetition']:.1%} of the runs of four tokens repeat an earlier one.",
        "",
        "| strength | activation, steered / unsteered | the other concepts' | rising | cost, nats a token | repetition |",
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
        "Medians over concepts (quartiles in brackets), all prompts. Below: strengths chosen on one half of the prompts, "
        "scored on the other.",
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


def _quartiles(values: Tensor) -> list[float]:
    return [float(value) for value in values.quantile(QUARTILES.to(values))]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _cell(text: str) -> str:
    """Text as a table's cell: nothing in it is markup."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
