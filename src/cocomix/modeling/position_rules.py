"""Rules for the tokens that an edit acts on: each gives a mask for a forward pass, which may see only part of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.mixers.edits import TokenContext

# Shapes: B batch, T tokens.


def position_rule(positions: Any) -> Callable[[TokenContext], Tensor]:
    """A function that returns a boolean mask [#B, T] of the tokens to edit; `steer` documents `positions`.

    Raises:
        CocomixError: `positions` is not a rule.
    """
    if positions is None:
        return lambda context: torch.ones_like(context.positions, dtype=torch.bool)
    if isinstance(positions, str) and positions in _NAMED_RULES:
        return _NAMED_RULES[positions]
    if isinstance(positions, slice | range):
        start, stop, step = positions.start or 0, positions.stop, positions.step or 1
        if start < 0 or (stop is not None and stop < 0) or step < 1:
            raise CocomixError(
                f"positions is {positions!r}; count from the start of a row, as its end is not known yet"
            )
        return lambda context: _in_range(context.positions, start, stop, step)
    if callable(positions):
        return lambda context: _checked_mask(positions(context.positions), context.positions)
    raise CocomixError(
        f"positions is {positions!r}; it must be None, 'prompt', 'generated', a slice or range, or a function of positions"
    )


_NAMED_RULES: dict[str, Callable[[TokenContext], Tensor]] = {
    "prompt": lambda context: context.is_prompt.unsqueeze(0),
    "generated": lambda context: ~context.is_prompt.unsqueeze(0),
}


def _in_range(positions: Tensor, start: int, stop: int | None, step: int) -> Tensor:
    mask = (positions >= start) & ((positions - start) % step == 0)
    return mask if stop is None else mask & (positions < stop)


def _checked_mask(mask: Any, positions: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != positions.shape:
        shown = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise CocomixError(f"positions returned {shown}; expected a mask (bool) of shape {tuple(positions.shape)}")
    return mask
