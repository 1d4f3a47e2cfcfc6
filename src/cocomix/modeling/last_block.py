"""The last block, run only on positions that are read; the others contribute their keys and values.

With interleaving the next token is predicted at the concept positions, so in the last block the queries, attention and MLP
of token positions would be wasted. The block therefore runs on the positions that are read. In place of a cache it gets a
`SharedKeys`, which adds the keys and values of the other positions, computed by the block's own norm and projections, before
attention. That happens inside the block's forward, so anything that gathers, casts, recomputes or compiles a block treats
these keys like the block's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import Cache

from cocomix.mixers.layout import Span

# Shapes: B batch, S positions, R unread positions, D width, H key heads, E width of a head.

KeysAndValues = tuple[Float[Tensor, "B H R E"], Float[Tensor, "B H R E"]]

#: Attention implementations whose mask is a tensor, from which rows can be selected.
_MASKED_BY_TENSORS = ("eager", "sdpa")


@dataclass
class SharedKeys:
    """Acts as a cache for a block, so that attention gets the keys and values of all positions."""

    unread: Float[Tensor, "B R D"]
    """The residual stream at unread positions."""
    arguments: dict[str, Any]
    """Arguments of the block for the unread positions."""
    keys_and_values: Callable[[Tensor, dict[str, Any]], KeysAndValues]
    span: Span
    cache: Cache | None

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, S, E] of all positions, from those that are read; with a cache, earlier ones too."""
        more_keys, more_values = self.keys_and_values(self.unread, self.arguments)
        keys, values = self._merged(keys, more_keys), self._merged(values, more_values)
        if self.cache is None:
            return keys, values
        keys, values = self.cache.update(keys, values, layer_idx, *more, **named)
        return keys, values

    def _merged(self, read: Tensor, unread: Tensor) -> Tensor:
        B, H, num_read, E = read.shape
        merged = read.new_empty(B, H, num_read + unread.shape[2], E)
        merged[:, :, self.span.read] = read
        merged[:, :, self.span.unread] = unread
        return merged


# FSDP finds a block's input tensors, to cast them and hook their gradients, by walking through registered containers.
pytree.register_pytree_node(
    SharedKeys,
    lambda shared: ([shared.unread, shared.arguments], (shared.keys_and_values, shared.span, shared.cache)),
    lambda children, context: SharedKeys(*children, *context),
)


def can_skip(block: nn.Module, attention: str, cache: Cache | None) -> bool:
    """Whether a block can run on some positions only, with this attention and the block's checkpointing."""
    if attention not in _MASKED_BY_TENSORS:
        return False
    if not _is_checkpointed(block):
        return True
    # Checkpointing would update a cache twice, and its reentrant form does not see tensors nested in other arguments.
    options = getattr(block._gradient_checkpointing_func, "keywords", {})
    return cache is None and options.get("use_reentrant") is False


@contextmanager
def shared_keys_kept(block: nn.Module) -> Iterator[None]:
    """Within the block, checkpointed decoder blocks keep the cache they are given instead of dropping it."""
    if not _is_checkpointed(block):
        yield
        return
    block._can_checkpoint_with_cache = True  # type: ignore[assignment]
    try:
        yield
    finally:
        del block._can_checkpoint_with_cache


def _is_checkpointed(block: nn.Module) -> bool:
    return bool(getattr(block, "gradient_checkpointing", False)) and block.training
