"""Strengths as people write them, and what they mean in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from cocomix.base.errors import CocomixError
from cocomix.steering.concept_notes import ActivationStatistics, ConceptNotes, notes_of
from cocomix.steering.steer import raw_strengths

_WHAT_HAPPENS = {
    "scale": "multiplied by {strength:.3g} where it is active",
    "set": "set to {strength:.3g}",
    "add": "raised by {strength:.3g}",
    "zero": "removed where it is active",
    "scale_logits": "logit multiplied by {strength:.3g} before the strongest concepts are chosen",
    "toward": "steered toward, which changes the next token's distribution by about {nats:.2g} nats",
}
#: Behind it, where statistics are known.
_IN_UNITS = " = {times:.3g} times its usual activation of {usual:.3g}"
_COMPARED = {"set": _IN_UNITS, "add": _IN_UNITS, "toward": ""}
_COMPARED_BY_DEFAULT = ", usually at {mean:.3g}"


def parse_strengths(words: Iterable[str], mode: str) -> dict[str, float]:
    """`1234=4` and `name=2` as a mapping for `steer`; in mode `zero` the concept alone will do.

    Raises:
        CocomixError: a word has another form, a strength is no number, or a concept comes twice.
    """
    strengths: dict[str, float] = {}
    for word in words:
        concept, equals, text = word.rpartition("=")
        if not equals and mode == "zero":
            concept, text = word, "0"
        concept = concept.strip()
        if not concept:
            raise CocomixError(f"--steer takes CONCEPT=STRENGTH, such as 1234=4 or 'a name=2', and not {word!r}")
        try:
            strength = float(text)
        except ValueError:
            raise CocomixError(f"the strength of --steer {word!r} is {text!r}; it must be a number") from None
        if concept in strengths:
            raise CocomixError(f"--steer names concept {concept!r} twice")
        strengths[concept] = strength
    return strengths


def explain_strengths(
    model: nn.Module,
    strengths: Mapping[Any, float],
    mode: str = "set",
    unit: str = "raw",
    notes: ConceptNotes | None = None,
) -> list[str]:
    """For each concept one line on what its strength means; arguments are those of `steer`."""
    notes = notes_of(model) if notes is None else notes
    (raw,) = raw_strengths(model, strengths, mode, unit, notes)
    return [f"{notes.title(concept)}: {_meaning(concept, raw[concept], mode, notes.statistics)}" for concept in raw]


def _meaning(concept: int, strength: float, mode: str, statistics: ActivationStatistics | None) -> str:
    said = _WHAT_HAPPENS[mode].format(strength=strength, nats=strength**2 / 2)
    if statistics is None:
        return f"{said}; what is usual for it was not measured yet (`cocomix inspect` does)"
    usual = float(statistics.usual[concept])
    numbers = {"times": strength / usual, "usual": usual, "mean": float(statistics.mean[concept])}
    compared = _COMPARED.get(mode, _COMPARED_BY_DEFAULT).format(**numbers)
    return f"{said}{compared}; active on {float(statistics.share[concept]):.1%} of tokens"
