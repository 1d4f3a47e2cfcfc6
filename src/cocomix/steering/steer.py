"""Steering: edits of named concepts, of a strength, at some positions, each row of a batch with its own.

What a strength does is a mode, a row of `MODES`; where it acts is a rule about positions. A strength is a raw logit of the
concept head, whose scale is each concept's own, or a multiple of its usual activation (`ActivationStatistics.usual`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cocomix.base.errors import CocomixError
from cocomix.mixers.edits import ConceptEdit, Places, concept_edits
from cocomix.modeling.position_rules import position_rule
from cocomix.steering.concept_notes import ConceptNotes, notes_of

# Shapes: B batch, T tokens, K active concepts, M edited concepts, R rows of edits, C concepts.

SteerMode = Literal["scale", "set", "add", "zero", "scale_logits", "toward"]
Unit = Literal["raw", "usual"]


class _SteerHere(ConceptEdit):
    """A `Steer` in one forward pass.

    Args:
        edited: (value, strength) -> new value.
        concepts: [B, M], ascending in each row; C where a row has fewer.
        strengths: [B, M].
        is_chosen: [#B, T, 1], the tokens to edit.
        num_concepts: C.
        shifts: of the vectors, [B, 1, D], where the mode has directions.
    """

    def __init__(
        self,
        edited: Callable[[Tensor, Tensor], Tensor],
        concepts: Tensor,
        strengths: Tensor,
        is_chosen: Tensor,
        num_concepts: int,
        shifts: Tensor | None,
    ) -> None:
        self.edited, self.concepts, self.strengths, self.is_chosen = edited, concepts, strengths, is_chosen
        self.num_concepts, self.shifts = num_concepts, shifts

    def edited_in_place(self, indices: Tensor, values: Tensor) -> Tensor:
        """Values of concepts [B, T, K], those of edited ones replaced."""
        slots, is_edited = self.find(indices)
        strengths = self.strengths.to(values.dtype).gather(1, slots.flatten(1)).view_as(values)
        return torch.where(is_edited, self.edited(values, strengths), values)

    def find(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Which edit concepts [B, T, K] belong to, and whether to any at this token; both [B, T, K]."""
        flat = indices.flatten(1).contiguous()
        slots = torch.searchsorted(self.concepts, flat).clamp(max=self.concepts.shape[1] - 1)
        is_edited = (self.concepts.gather(1, slots) == flat) & (flat < self.num_concepts)
        return slots.view_as(indices), is_edited.view_as(indices) & self.is_chosen


class _LogitsHere(_SteerHere):
    """Acts before the strongest concepts are chosen."""

    def logit_concepts(self) -> Tensor | None:
        return self.concepts

    def edit_logits(self, concepts: Tensor, logits: Tensor) -> Tensor:
        return self.edited_in_place(concepts.unsqueeze(1).expand_as(logits), logits)


class _ActiveHere(_SteerHere):
    """Acts on concepts that are active."""

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return indices, self.edited_in_place(indices, values)


class _InsertedHere(_SteerHere):
    """Acts on all edited concepts, and makes those active that are not: their value was 0."""

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        slots, is_edited = self.find(indices)
        B, T = indices.shape[:2]
        # The edited concepts get slots of their own, so that each counts once; the slots they had are left with 0.
        current = values.new_zeros(B, T, self.concepts.shape[1])
        current = current.scatter_add(-1, slots, torch.where(is_edited, values, 0.0))
        new = self.edited(current, self.strengths.to(values.dtype).unsqueeze(1))
        is_edit = self.is_chosen & (self.concepts < self.num_concepts).unsqueeze(1)
        own_indices = self.concepts.clamp(max=self.num_concepts - 1).unsqueeze(1).expand_as(new)
        return (
            torch.cat([indices, own_indices], -1),
            torch.cat([torch.where(is_edited, 0.0, values), torch.where(is_edit, new, 0.0)], -1),
        )


class _VectorsHere(_SteerHere):
    """Acts on what the active concepts compress to, in the directions toward the edited ones."""

    def edit_vectors(self, vectors: Tensor) -> Tensor:
        assert self.shifts is not None
        return torch.where(self.is_chosen, self.edited(vectors, self.shifts.to(vectors.dtype)), vectors)


@dataclass(frozen=True)
class Mode:
    """What a strength does to a concept."""

    edited: Callable[[Tensor, Tensor], Tensor]
    """(value, strength) -> new value."""
    here: type[_SteerHere]
    """At which point of the mixer."""
    is_factor: bool = True
    """Whether the strength is a number without unit."""


MODES: dict[str, Mode] = {
    "scale": Mode(torch.mul, _ActiveHere),
    "set": Mode(lambda value, strength: strength.expand_as(value), _InsertedHere, is_factor=False),
    "add": Mode(torch.add, _InsertedHere, is_factor=False),
    "zero": Mode(lambda value, _: torch.zeros_like(value), _ActiveHere),
    "scale_logits": Mode(torch.mul, _LogitsHere),
    "toward": Mode(torch.add, _VectorsHere),
}


class Steer(ConceptEdit):
    """Edit the strengths of some concepts.

    Args:
        strengths: concept to strength, for each row of a batch, or one mapping for all; see `steer`.
        mode: a name of `MODES`.
        positions: see `steer`.
        num_concepts: C.
        directions: toward each concept, [C, D], for `toward`.
    """

    def __init__(
        self,
        strengths: Sequence[Mapping[int, float]],
        mode: str = "set",
        positions: Any = None,
        *,
        num_concepts: int,
        directions: Tensor | None = None,
    ) -> None:
        self.mode = MODES[mode]
        self.num_concepts = num_concepts
        self.is_chosen = position_rule(positions)
        M = max(map(len, strengths), default=0)
        # Ascending, so that a concept is found by bisection; rows with fewer edits end with C, which is no concept.
        rows = [sorted(row.items()) + [(num_concepts, 0.0)] * (M - len(row)) for row in strengths]
        self.concepts = torch.tensor([[concept for concept, _ in row] for row in rows], dtype=torch.long)
        self.strengths = torch.tensor([[strength for _, strength in row] for row in rows])
        self.shifts = None
        if directions is not None and M:
            along = directions[self.concepts.clamp(max=num_concepts - 1)]  # (R, M, D)
            self.shifts = torch.einsum("rm,rmd->rd", self.strengths, along).unsqueeze(1)

    def at(self, places: Places) -> ConceptEdit:
        R, M = self.concepts.shape
        B = places.batch_size
        if not M:
            return ConceptEdit()
        if B % R:
            raise CocomixError(
                f"edits were given for {R} rows, but the batch has {B}; give one for each row, or one for all"
            )

        def of_rows(part: Tensor) -> Tensor:
            # Beams and samples of one prompt are neighbours.
            return part.to(places.positions.device).repeat_interleave(B // R, dim=0)

        return self.mode.here(
            self.mode.edited,
            of_rows(self.concepts),
            of_rows(self.strengths),
            self.is_chosen(places).unsqueeze(-1),
            self.num_concepts,
            None if self.shifts is None else of_rows(self.shifts),
        )


@contextlib.contextmanager
def steer(
    model: nn.Module,
    strengths: Any,
    mode: str = "set",
    positions: Any = None,
    *,
    unit: str = "raw",
    notes: ConceptNotes | None = None,
) -> Iterator[None]:
    """Steer `model` within a `with` block, in `generate` and in plain forward passes alike.

    Edits are those of the thread that enters the block: a thread started inside it, as with `TextIteratorStreamer`, enters
    a block of its own. Blocks nest: edits of active concepts are applied from the outermost to the innermost; `scale_logits`
    acts before the strongest concepts are chosen, and so before all of them.

    Args:
        model: a `CoCoMixForCausalLM` with mixed concepts, also wrapped (compiled, data-parallel, with adapters).
        strengths: concept to strength; a concept is its index or its name. Or a sequence of such mappings, one for each row
            of the batch: with beams or several samples a prompt, one for each prompt.
        mode: `scale` multiplies the value of the concept where it is active; `set` and `add` replace or raise it, and make it
            active where it is not; `zero` removes it, whatever the strength; `scale_logits` multiplies the concept's logit
            before the strongest concepts are chosen, so that it can enter or leave them (the paper's way). These five say
            that the concept is there; `toward` brings it about in the tokens that follow: it shifts the mixture in the
            direction that does so at the least change of the model's predictions. There a strength s changes the next-token
            distribution by about s^2 / 2 nats a token, so that 0.3 is a touch and 1 is much; a negative one steers away.
        positions: which tokens are edited. None: all; `prompt` or `generated`: those that `generate` was given, or made; a
            `slice` or `range` of positions, counted from 0 at each row's first attended token; or a function from positions
            [#B, T] to a mask of the same shape. The concepts of a token steer the token after it.
        unit: of the strengths of `set` and `add`: `raw`, a logit of the concept head, or `usual`, a multiple of the concept's
            usual activation. The other modes take factors.
        notes: names and statistics of the concepts; by default those in the model's own folder.

    Raises:
        CocomixError: the model has no concepts to steer, a concept or name does not exist, a strength is no finite number, or
            a mode, a unit or positions are none.
    """
    model = _unwrapped(model)
    rows = raw_strengths(model, strengths, mode, unit, notes)
    config: Any = model.config
    directions = _Resolver(model, notes).directions(rows) if MODES[mode].here is _VectorsHere else None
    edit = Steer(rows, mode, positions, num_concepts=config.num_concepts, directions=directions)
    with concept_edits(model, edit):
        yield


def raw_strengths(
    model: nn.Module, strengths: Any, mode: str = "set", unit: str = "raw", notes: ConceptNotes | None = None
) -> list[dict[int, float]]:
    """What `steer` makes of its arguments: for each row (or for all) concept index to raw strength.

    Raises:
        CocomixError: see `steer`.
    """
    for name, value, allowed in (("mode", mode, tuple(MODES)), ("unit", unit, ("raw", "usual"))):
        if value not in allowed:
            raise CocomixError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    rows = [strengths] if isinstance(strengths, Mapping) else strengths
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise CocomixError(
            f"strengths is {strengths!r}; give a mapping of concepts to numbers, such as {{7: 2.0}}, or one for each row"
        )
    resolver = _Resolver(_unwrapped(model), notes)
    in_units = unit == "usual" and not MODES[mode].is_factor
    return [resolver.row(row, in_units) for row in rows]


class _Resolver:
    """From what a user wrote to concepts and raw strengths; notes are read only where something needs them."""

    def __init__(self, model: nn.Module, notes: ConceptNotes | None) -> None:
        config: Any = model.config
        self.model, self.given, self.bare = model, notes, ConceptNotes(config.num_concepts)

    @property
    def notes(self) -> ConceptNotes:
        return notes_of(self.model) if self.given is None else self.given

    def row(self, strengths: Mapping[Any, Any], in_units: bool) -> dict[int, float]:
        found: dict[int, float] = {}
        for key, strength in strengths.items():
            concept = (self.notes if isinstance(key, str) else self.bare).resolve(key)
            if concept in found:
                raise CocomixError(f"concept {concept} is steered twice in one block; nest two blocks instead")
            found[concept] = finite(finite(strength, concept) * (self._usual(concept) if in_units else 1.0), concept)
        return found

    def directions(self, rows: Sequence[Mapping[int, float]]) -> Tensor:
        """Directions toward all concepts, [C, D], where those that are wanted are known."""
        found = None if self.notes.statistics is None else self.notes.statistics.directions
        if found is None:
            raise CocomixError(
                "the directions toward this model's concepts were not measured yet; run `cocomix inspect`, or use mode 'set'"
            )
        for concept in (concept for row in rows for concept in row):
            if not bool(found[concept].any()):
                raise CocomixError(
                    f"there is no direction toward concept {self.notes.title(concept)}: it was never among the strongest in "
                    "the text it was measured on; use mode 'set'"
                )
        return found

    def _usual(self, concept: int) -> float:
        statistics = self.notes.statistics
        if statistics is None:
            raise CocomixError(
                "what is usual for this model's concepts was not measured yet; run `cocomix inspect`, or give raw strengths"
            )
        return float(statistics.usual[concept])


def finite(strength: Any, concept: int) -> float:
    """A strength as a number that float32 can hold.

    Raises:
        CocomixError: it is none.
    """
    is_number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not is_number or not math.isfinite(strength) or abs(strength) > torch.finfo(torch.float32).max:
        raise CocomixError(f"the strength of concept {concept} is {strength!r}; it must be a finite number")
    return float(strength)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model with a concept mixer inside whatever wraps it: edits belong to that one."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        mixer = getattr(config, "mixer", None)
        if hasattr(module, "mixer") and mixer is not None and mixer.has_concepts:
            if not mixer.is_steerable:
                raise CocomixError(
                    "this model's concepts are predicted but not mixed in (mixing 'none'): nothing to steer"
                )
            return module
    raise CocomixError("only a model with a concept mixer can be steered")
