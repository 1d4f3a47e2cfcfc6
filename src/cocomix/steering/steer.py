"""Steering: edits of chosen concepts at chosen positions; each row of a batch can have its own.

What a strength does is a mode (`MODES`); where it acts is a position rule. A strength is a raw logit of the concept head,
whose scale differs between concepts, or a multiple of the concept's usual activation (`ActivationStatistics.mean_abs`).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from cocomix.base.errors import CocomixError
from cocomix.mixers.edits import ConceptEdit, TokenContext, concept_edits
from cocomix.modeling.position_rules import position_rule
from cocomix.steering.concept_metadata import ConceptMetadata, metadata_of
from cocomix.steering.concept_names import NOT_MEASURED
from cocomix.steering.modes import DEFAULT_MODE

# Shapes: B batch, T tokens, K active concepts, M edited concepts, R rows of edits, C concepts.


class SteerEdit(ConceptEdit):
    """A `Steer` for one forward pass.

    Args:
        edited: (value, strength) -> new value.
        concepts: [B, M], ascending in each row; rows with fewer end with C.
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
        """Values of concepts [B, T, K], with those of edited concepts replaced."""
        slots, is_edited = self.find(indices)
        strengths = self.strengths.to(values.dtype).gather(1, slots.flatten(1)).view_as(values)
        return torch.where(is_edited, self.edited(values, strengths), values)

    def find(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """For concepts [B, T, K] the index of their edit, and whether they are edited at this token; both [B, T, K]."""
        flat = indices.flatten(1).contiguous()
        slots = torch.searchsorted(self.concepts, flat).clamp(max=self.concepts.shape[1] - 1)
        is_edited = (self.concepts.gather(1, slots) == flat) & (flat < self.num_concepts)
        return slots.view_as(indices), is_edited.view_as(indices) & self.is_chosen


class LogitEdit(SteerEdit):
    """Edits logits, before the strongest concepts are chosen."""

    def logit_concepts(self) -> Tensor | None:
        return self.concepts

    def edit_logits(self, concepts: Tensor, logits: Tensor) -> Tensor:
        return self.edited_in_place(concepts.unsqueeze(1).expand_as(logits), logits)


class ActivationEdit(SteerEdit):
    """Edits concepts where they are active."""

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return indices, self.edited_in_place(indices, values)


class InsertionEdit(SteerEdit):
    """Edits concepts everywhere: one that is not active has value 0 and becomes active."""

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        slots, is_edited = self.find(indices)
        B, T = indices.shape[:2]
        # Each edited concept gets a slot of its own, so that it counts once; its old slot is set to 0.
        current = values.new_zeros(B, T, self.concepts.shape[1])
        current = current.scatter_add(-1, slots, torch.where(is_edited, values, 0.0))
        new = self.edited(current, self.strengths.to(values.dtype).unsqueeze(1))
        is_edit = self.is_chosen & (self.concepts < self.num_concepts).unsqueeze(1)
        own_indices = self.concepts.clamp(max=self.num_concepts - 1).unsqueeze(1).expand_as(new)
        return (
            torch.cat([indices, own_indices], -1),
            torch.cat([torch.where(is_edited, 0.0, values), torch.where(is_edit, new, 0.0)], -1),
        )


class VectorEdit(SteerEdit):
    """Shifts the compressed vector in the directions toward the edited concepts."""

    def edit_vectors(self, vectors: Tensor) -> Tensor:
        assert self.shifts is not None
        return torch.where(self.is_chosen, self.edited(vectors, self.shifts.to(vectors.dtype)), vectors)


@dataclass(frozen=True)
class Mode:
    """What a strength does to a concept."""

    edited: Callable[[Tensor, Tensor], Tensor]
    """(value, strength) -> new value."""
    edit_class: type[SteerEdit]
    """Which point of the mixer it edits."""
    is_factor: bool = True
    """Whether the strength is a factor, which has no unit."""


MODES: dict[str, Mode] = {
    "scale": Mode(torch.mul, ActivationEdit),
    "set": Mode(lambda value, strength: strength.expand_as(value), InsertionEdit, is_factor=False),
    "add": Mode(torch.add, InsertionEdit, is_factor=False),
    "zero": Mode(lambda value, _: torch.zeros_like(value), ActivationEdit),
    "scale_logits": Mode(torch.mul, LogitEdit),
    "toward": Mode(torch.add, VectorEdit),
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
        mode: str,
        positions: Any = None,
        *,
        num_concepts: int,
        directions: Tensor | None = None,
    ) -> None:
        self.mode = MODES[mode]
        self.num_concepts = num_concepts
        self.is_chosen = position_rule(positions)
        M = max(map(len, strengths), default=0)
        # Ascending, so that a bisection finds a concept; rows with fewer edits end with C, which is not a concept.
        rows = [sorted(row.items()) + [(num_concepts, 0.0)] * (M - len(row)) for row in strengths]
        self.concepts = torch.tensor([[concept for concept, _ in row] for row in rows], dtype=torch.long)
        self.strengths = torch.tensor([[strength for _, strength in row] for row in rows])
        self.shifts = None
        if directions is not None and M:
            along = directions[self.concepts.clamp(max=num_concepts - 1)]  # (R, M, D)
            self.shifts = torch.einsum("rm,rmd->rd", self.strengths, along).unsqueeze(1)

    def at(self, context: TokenContext) -> ConceptEdit:
        R, M = self.concepts.shape
        B = context.batch_size
        if not M:
            return ConceptEdit()
        if B % R:
            raise CocomixError(
                f"edits were given for {R} rows, but the batch has {B}; give one edit per row, or one for all rows"
            )

        def for_rows(part: Tensor) -> Tensor:
            # Beams and samples of a prompt are adjacent rows.
            return part.to(context.positions.device).repeat_interleave(B // R, dim=0)

        return self.mode.edit_class(
            self.mode.edited,
            for_rows(self.concepts),
            for_rows(self.strengths),
            self.is_chosen(context).unsqueeze(-1),
            self.num_concepts,
            None if self.shifts is None else for_rows(self.shifts),
        )


@contextlib.contextmanager
def steer(
    model: nn.Module,
    strengths: Any,
    mode: str = DEFAULT_MODE,
    positions: Any = None,
    *,
    unit: str = "raw",
    metadata: ConceptMetadata | None = None,
    notes: ConceptMetadata | None = None,
) -> Iterator[None]:
    """Steer `model` within a `with` block, in `generate` and in plain forward passes alike.

    Edits belong to the thread that enters the block: a thread started inside it, as with `TextIteratorStreamer`, must enter a
    block of its own. Blocks nest: edits of active concepts apply from the outermost to the innermost; `scale_logits` acts
    before the strongest concepts are chosen, and therefore before all other modes.

    Args:
        model: a `CoCoMixForCausalLM` whose concepts are mixed in, also wrapped (compiled, data-parallel, with adapters).
        strengths: concept to strength; a concept is its index or its name. Or a sequence of such mappings, one per row of the
            batch; with beams or several samples, one per prompt.
        mode: `scale` multiplies the concept's activation where it is active; `set` and `add` replace or raise it, and make
            the concept active where it is not; `zero` removes it, whatever the strength; `scale_logits` multiplies the
            concept's logit before the strongest concepts are chosen, so that it can enter or leave them (the paper's way).
            These five edit what the model thinks its current token is. `toward` brings the concept about in the tokens that
            follow: it shifts the mixture in the direction that does so at the least change of the model's predictions.
            There a strength s changes the next-token distribution by about s^2 / 2 nats per token: 0.3 is a touch, 1 is
            much, and a negative strength steers away.
        positions: which tokens are edited. None: all; `prompt` or `generated`: the tokens that `generate` was given, or
            made; a `slice` or `range` of positions, counted from 0 at each row's first attended token; or a function from
            positions [#B, T] to a mask of the same shape. The concepts of a token steer the token after it.
        unit: of the strengths of `set` and `add`: `raw`, a logit of the concept head, or `usual`, a multiple of the concept's
            usual activation. The strengths of the other modes have no unit.
        metadata: names and statistics of the concepts; by default those in the model's own folder.
        notes: the old name of `metadata`; works in this version only.

    Raises:
        CocomixError: the model has no concepts to steer, a concept or name does not exist, a strength is not a finite
            number, or the mode, the unit or the positions are not valid.
    """
    if notes is not None:
        warnings.warn("steer(notes=...) is now steer(metadata=...)", DeprecationWarning, stacklevel=3)
        metadata = notes if metadata is None else metadata
    model = _unwrapped(model)
    resolver = _Resolver(model, metadata)
    rows = resolver.rows(strengths, mode, unit)
    config: Any = model.config
    directions = resolver.directions(rows) if MODES[mode].edit_class is VectorEdit else None
    edit = Steer(rows, mode, positions, num_concepts=config.num_concepts, directions=directions)
    with concept_edits(model, edit):
        yield


def raw_strengths(
    model: nn.Module,
    strengths: Any,
    mode: str = DEFAULT_MODE,
    unit: str = "raw",
    metadata: ConceptMetadata | None = None,
) -> list[dict[int, float]]:
    """The edits that `steer` makes of its arguments: for each row (or once for all rows) concept index to raw strength.

    Raises:
        CocomixError: see `steer`.
    """
    return _Resolver(_unwrapped(model), metadata).rows(strengths, mode, unit)


class _Resolver:
    """Resolves concepts and strengths as a user writes them; reads the model's metadata once, if it is needed."""

    def __init__(self, model: nn.Module, metadata: ConceptMetadata | None) -> None:
        config: Any = model.config
        self.model, self.given, self.without_names = model, metadata, ConceptMetadata(config.num_concepts)

    @cached_property
    def metadata(self) -> ConceptMetadata:
        return metadata_of(self.model) if self.given is None else self.given

    def rows(self, strengths: Any, mode: str, unit: str) -> list[dict[int, float]]:
        for name, value, allowed in (("mode", mode, tuple(MODES)), ("unit", unit, ("raw", "usual"))):
            if value not in allowed:
                raise CocomixError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        rows = [strengths] if isinstance(strengths, Mapping) else strengths
        if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, Mapping) for row in rows):
            raise CocomixError(
                f"strengths is {strengths!r}; give a mapping of concepts to numbers, such as {{7: 2.0}}, or one per row"
            )
        in_units = unit == "usual" and not MODES[mode].is_factor
        return [self._row(row, in_units) for row in rows]

    def directions(self, rows: Sequence[Mapping[int, float]]) -> Tensor:
        """Directions toward all concepts, [C, D]; refuses rows with a concept whose direction is not known."""
        statistics = self.metadata.statistics
        if statistics is None or statistics.directions is None:
            raise CocomixError(NOT_MEASURED)
        for concept in (concept for row in rows for concept in row):
            if not bool(statistics.directions[concept].any()):
                raise CocomixError(
                    f"there is no direction toward concept {self.metadata.title(concept)}: it was never among the strongest "
                    "of a token in the text that was measured; use mode 'set'"
                )
        return statistics.directions

    def _row(self, strengths: Mapping[Any, Any], in_units: bool) -> dict[int, float]:
        row: dict[int, float] = {}
        for key, strength in strengths.items():
            concept = (self.metadata if isinstance(key, str) else self.without_names).resolve(key)
            if concept in row:
                raise CocomixError(f"concept {concept} is steered twice in one block; nest two blocks instead")
            row[concept] = finite(finite(strength, concept) * (self._mean_abs(concept) if in_units else 1.0), concept)
        return row

    def _mean_abs(self, concept: int) -> float:
        statistics = self.metadata.statistics
        if statistics is None:
            raise CocomixError(
                "the usual activations of this model's concepts are not measured yet; run `cocomix inspect`, or give "
                "raw strengths"
            )
        return float(statistics.mean_abs[concept])


def finite(strength: Any, concept: int) -> float:
    """A strength as a number that float32 can hold.

    Raises:
        CocomixError: it is not a number, or not finite in float32.
    """
    is_number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not is_number or not math.isfinite(strength) or abs(strength) > torch.finfo(torch.float32).max:
        raise CocomixError(f"the strength of concept {concept} is {strength!r}; it must be a finite number")
    return float(strength)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model with the concept mixer, inside any wrappers: edits belong to that module."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        mixer = getattr(config, "mixer", None)
        if "mixer" in module._modules and mixer is not None:  # some wrappers pass on the attributes of what they wrap
            if mixer.unsteerable:
                raise CocomixError(f"the model {mixer.unsteerable}: there is nothing to steer")
            return module
    raise CocomixError("the model is a plain decoder, which has no concepts: there is nothing to steer")
