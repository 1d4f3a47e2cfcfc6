"""Strengths as people write them, and what they mean in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from cocomix.base.errors import CocomixError
from cocomix.modeling.concept_notes import ActivationStatistics, ConceptNotes, notes_of
from cocomix.modeling.steering import MODES, raw_strengths

_WHAT_HAPPENS = {
    "scale": "multiplied by {strength:.3g} where it is active",
    "set": "set to {strength:.3g}{times}",
    "add": "raised by {strength:.3g}{times}",
    "zero": "removed where it is active",
    "scale_logits": "logit multiplied by {strength:.3g} before the strongest concepts are chosen",
    "toward": "steered toward at strength {strength:.3g}",
}


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
    if statistics is None:
        said = _WHAT_HAPPENS[mode].format(strength=strength, times="")
        return f"{said}; what is usual for it was not measured yet (`cocomix inspect` does)"
    usual, share = float(statistics.usual[concept]), float(statistics.share[concept])
    times = f" = {strength / usual:.3g} times its usual activation of {usual:.3g}"
    said = _WHAT_HAPPENS[mode].format(strength=strength, times=times)
    if MODES[mode].is_factor:
        said += f", usually at {float(statistics.mean[concept]):.3g}"
    return f"{said}; active on {share:.1%} of tokens"
