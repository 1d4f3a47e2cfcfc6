"""The strongest occurrences of every concept, found in one pass over a stream of windows.

Nothing is kept but the best so far: [C, N] values and places. A batch is first thinned to one occurrence of a window and
concept, then to those that beat their concept's weakest, so that little is left to sort.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

# Shapes: B windows, T tokens, K concepts a token, C concepts, N occurrences kept a concept, M occurrences in hand.


class StrongestOccurrences:
    """For each concept where it is strongest, at most once a window.

    Args:
        num_concepts: C.
        num_kept: N.
    """

    def __init__(self, num_concepts: int, num_kept: int) -> None:
        self.values = torch.full((num_concepts, num_kept), -torch.inf)
        """[C, N], strongest first; -inf where there are fewer."""
        self.windows = torch.full((num_concepts, num_kept), -1)
        self.positions = torch.full((num_concepts, num_kept), -1)
        self.counts = torch.zeros(num_concepts, dtype=torch.long)
        """Occurrences of each concept, those that are not kept included."""

    def add(self, window_ids: Int64[Tensor, " B"], concepts: Tensor, values: Tensor, present: Tensor) -> None:
        """Take a batch into account.

        Args:
            window_ids: of the batch; ties go to the one that came first.
            concepts: [B, T, K], at each token; those of one token differ where they are present.
            values: [B, T, K], by which occurrences are ranked.
            present: [B, T, K], which of them occur.
        """
        row, position, slot = present.nonzero(as_tuple=True)
        concept, value = concepts[row, position, slot], values[row, position, slot].float()
        self.counts += torch.bincount(concept, minlength=len(self.counts))
        better = value > self.values[concept, -1]
        row, position, concept, value = row[better], position[better], concept[better], value[better]
        # The strongest of each (concept, window).
        order = _ranked(concept * len(window_ids) + row, value)
        first = order[_rank_in_group((concept * len(window_ids) + row)[order]) == 0]
        self._merge(concept[first], value[first], window_ids[row[first]], position[first])

    def _merge(self, concept: Tensor, value: Tensor, window: Tensor, position: Tensor) -> None:
        """Merge M occurrences into the rows of their concepts."""
        touched, row = concept.unique(return_inverse=True)
        N = self.values.shape[1]
        old_row = torch.arange(len(touched)).repeat_interleave(N)
        rows = torch.cat([old_row, row])
        values = torch.cat([self.values[touched].flatten(), value])
        order = _ranked(rows, values)
        rank = _rank_in_group(rows[order])
        order, rank = order[rank < N], rank[rank < N]
        place = (touched[rows[order]], rank)
        for kept, new in ((self.windows, window), (self.positions, position)):
            kept[place] = torch.cat([kept[touched].flatten(), new])[order]
        self.values[place] = values[order]


def _ranked(group: Tensor, value: Tensor) -> Tensor:
    """Order by group, strongest first, equals as they came."""
    by_value = value.argsort(descending=True, stable=True)
    return by_value[group[by_value].argsort(stable=True)]


def _rank_in_group(sorted_groups: Tensor) -> Tensor:
    """Place of each item within its run of equal groups, from 0."""
    places = torch.arange(len(sorted_groups))
    is_first = torch.ones_like(sorted_groups, dtype=torch.bool)
    is_first[1:] = sorted_groups[1:] != sorted_groups[:-1]
    return places - torch.where(is_first, places, 0).cummax(0).values
