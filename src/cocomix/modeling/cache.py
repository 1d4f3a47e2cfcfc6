"""Two-rate caches: T keys below an interleaving mixer and more above it, in any cache of transformers.

Such a cache is a list of layers, one per block. Before its first use, `adopt_cache` wraps the layers above the mixer, so that
the cache counts tokens on the outside (`get_seq_length`, `crop`) and holds the positions of tokens and concepts inside.
Masks are made in positions, and see the cache through `SpanCache`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from cocomix.base.errors import CocomixError
from cocomix.mixers.layout import Layout


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` with room for more: a new token is written behind the others, which are copied only now and then.

    Like all tensors of a cache, the room is shared by shallow copies: copy a cache with `copy.deepcopy`.
    """

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.rooms: list[Tensor] = []
        self._own_keys: Any = None  # as `update` left them: others crop, reorder and repeat keys

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, S, E] of all positions, with the new ones last."""
        num_seen = self.get_seq_length()
        # A graph may need what would be overwritten; and a prompt alone needs no room.
        if torch.is_grad_enabled() or not num_seen:
            keys, values = super().update(key_states, value_states, *args, **kwargs)
            return keys, values
        stop = num_seen + key_states.shape[-2]
        is_own = self.keys is self._own_keys and self.keys.is_inference() == torch.is_inference_mode_enabled()
        if not is_own or self.rooms[0].shape[-2] < stop:
            self.rooms = [_room(seen, 2 * stop) for seen in (self.keys, self.values)]
        for room, states in zip(self.rooms, (key_states, value_states), strict=True):
            room[..., num_seen:stop, :] = states
        self.keys, self.values = (room[..., :stop, :] for room in self.rooms)
        self._own_keys = self.keys
        return self.keys, self.values


def _room(seen: Tensor, num_positions: int) -> Tensor:
    """Room for a number of positions that begins with those of `seen`."""
    room = seen.new_empty(*seen.shape[:2], num_positions, seen.shape[-1])
    room[..., : seen.shape[-2], :] = seen
    return room


def let_grow(cache: Cache) -> None:
    """Exchange the empty `DynamicLayer`s of a cache, and those that it is going to add, for layers that copy less."""
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and not layer.is_initialized:
            cache.layers[index] = GrowingLayer()


class ManyPositionsLayer(CacheLayerMixin):
    """A cache layer that holds the positions of tokens and concepts and counts tokens.

    Args:
        layer: layer that holds the positions.
        layout: layout of tokens and concepts.
    """

    def __init__(self, layer: CacheLayerMixin, layout: Layout) -> None:
        # The base class's __init__ is not called: its attributes would shadow those of the inner layer.
        self.layer = layer
        self.layout = layout
        for name in ("is_compileable", "is_croppable", "is_sliding", "supports_early_init"):
            setattr(self, name, getattr(layer, name))

    def __getattr__(self, name: str) -> Any:
        if name == "layer":  # not set yet while a copy is being made
            raise AttributeError(name)
        return getattr(self.layer, name)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.layer.lazy_initialization(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self.layer.update(key_states, value_states, *args, **kwargs)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys and offset that a mask must cover, in positions, for `query_length` positions."""
        num_keys, offset = self.layer.get_mask_sizes(query_length)
        return num_keys, offset

    def get_seq_length(self) -> int | Tensor:
        """Number of tokens seen; a static layer keeps it on its device."""
        return cast("int | Tensor", self.layout.num_tokens(self.layer.get_seq_length()))

    def get_max_length(self) -> int:
        """Number of tokens that fit; -1: no limit."""
        length: int = self.layer.get_max_length()
        return length if length < 0 else int(self.layout.num_tokens(length))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; as in transformers, their number is given as a negative one."""
        count = self.layout.num_positions
        # If every token has a concept, the length doesn't matter and can stay on its device.
        num_tokens = 0 if self.layout.stride == 1 else self.get_seq_length()
        self.layer.crop(int(count(num_tokens + tokens_to_remove) - count(num_tokens)))

    def activate_past_recording(self) -> None:
        if hasattr(self.layer, "activate_past_recording"):
            self.layer.activate_past_recording()

    def offload(self) -> None:
        self.layer.offload()

    def prefetch(self) -> None:
        self.layer.prefetch()

    def reset(self) -> None:
        self.layer.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.layer.reorder_cache(beam_idx)


def adopt_cache(cache: Cache, config: PreTrainedConfig, first_layer: int, layout: Layout) -> None:
    """Make an empty cache hold the positions of a layout from layer `first_layer` on; an adopted cache is unchanged.

    Args:
        cache: any cache of transformers.
        config: the backbone's configuration.
        first_layer: first block above the mixer.
        layout: layout of the positions above the mixer.

    Raises:
        CocomixError: the cache was filled by another model.
    """
    if not cache.layers:  # made without a configuration: it would add its layers one by one
        cache.layers = DynamicCache(config=config).layers
        cache.layer_class_to_replicate = None
        let_grow(cache)
    for index, layer in enumerate(cache.layers):
        is_above = index >= first_layer
        if isinstance(layer, ManyPositionsLayer):
            is_foreign = not is_above or layer.layout.stride != layout.stride
        else:
            is_foreign = is_above and bool(layer.get_seq_length() > 0)
        if is_foreign:
            raise CocomixError(
                "past_key_values was filled by another model, with other concept positions or none; start from a new cache"
            )
        if is_above and not isinstance(layer, ManyPositionsLayer):
            cache.layers[index] = ManyPositionsLayer(_larger(layer, layout), layout)


def _larger(layer: CacheLayerMixin, layout: Layout) -> CacheLayerMixin:
    """An empty layer of the same type with room, or a window, for the positions of as many tokens."""
    if isinstance(layer, StaticSlidingWindowLayer):  # its length is the window, or the cache's length if smaller
        room = layout.num_positions(layer.max_cache_len)
        return StaticSlidingWindowLayer(room, room)
    if isinstance(layer, StaticLayer):
        return type(layer)(max_cache_len=layout.num_positions(layer.max_cache_len))
    if isinstance(layer, DynamicSlidingWindowLayer):
        larger = DynamicSlidingWindowLayer(sliding_window=layout.num_positions(layer.sliding_window))
        larger.record_past = layer.record_past
        return larger
    return layer


class SpanCache:
    """A view of a cache for `create_causal_mask`, in positions of one span of blocks.

    Args:
        cache: the real cache.
        layout: layout of the span's positions.
    """

    def __init__(self, cache: Cache, layout: Layout) -> None:
        self.cache = cache
        self.layout = layout

    @property
    def is_compileable(self) -> bool:
        return bool(self.cache.is_compileable)

    def get_query_offset(self, layer_idx: int) -> int | Tensor:
        return cast("int | Tensor", self.layout.num_positions(self.cache.get_seq_length(layer_idx)))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        num_keys, offset = self.cache.get_mask_sizes(query_length, layer_idx)
        return num_keys, offset
