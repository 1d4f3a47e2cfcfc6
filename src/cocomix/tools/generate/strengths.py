"""The meaning of strengths in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cocomix.steering.concept_metadata import ActivationStatistics, ConceptMetadata, metadata_of
from cocomix.steering.modes import DEFAULT_MODE
from cocomix.steering.steer import raw_strengths

_WHAT_HAPPENS = {
    "scale": "multiplied by {strength:.3g} where it is active",
    "set": "set to {strength:.3g}",
    "add": "raised by {strength:.3g}",
    "zero": "removed where it is active",
    "scale_logits": "logit multiplied by {strength:.3g} before the strongest concepts are chosen",
    "toward": "steered toward, which changes the next token's distribution by about {nats:.2g} nats",
}
#: Appended if statistics are known.
_IN_UNITS = " = {times:.3g} times its usual activation of {mean_abs:.3g}"
_COMPARED = {"set": _IN_UNITS, "add": _IN_UNITS, "toward": ""}
_COMPARED_BY_DEFAULT = ", usually at {mean:.3g}"


def explain_strengths(
    model: nn.Module,
    strengths: Mapping[Any, float],
    mode: str = DEFAULT_MODE,
    unit: str = "raw",
    metadata: ConceptMetadata | None = None,
) -> list[str]:
    """One line per concept on what its strength means; the arguments are those of `steer`."""
    metadata = metadata_of(model) if metadata is None else metadata
    (raw,) = raw_strengths(model, strengths, mode, unit, metadata)
    return [
        f"{metadata.title(concept)}: {_meaning(concept, raw[concept], mode, metadata.statistics)}" for concept in raw
    ]


def _meaning(concept: int, strength: float, mode: str, statistics: ActivationStatistics | None) -> str:
    meaning = _WHAT_HAPPENS[mode].format(strength=strength, nats=strength**2 / 2)
    if statistics is None:
        return f"{meaning}; its usual activation is not measured yet (run `cocomix inspect`)"
    mean_abs = float(statistics.mean_abs[concept])
    numbers = {"times": strength / mean_abs, "mean_abs": mean_abs, "mean": float(statistics.mean[concept])}
    compared = _COMPARED.get(mode, _COMPARED_BY_DEFAULT).format(**numbers)
    return f"{meaning}{compared}; active on {float(statistics.activation_rate[concept]):.1%} of tokens"
