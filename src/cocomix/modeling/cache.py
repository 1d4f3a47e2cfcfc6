"""Two-rate caches: T keys below an interleaving mixer, 2T above, whatever cache the caller brought.

Any cache of transformers is a list of layers, one a block. Before its first use, `adopt_cache` wraps the layers above the
mixer, so that the cache speaks of tokens to the outside (`get_seq_length`, `crop`) and holds twice as many positions
inside. Masks are made in positions: `SpanCache` shows them the cache that way.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from cocomix.base.errors import CocomixError


class ManyPositionsLayer(CacheLayerMixin):
    """A cache layer that holds several positions a token and counts tokens.

    Args:
        layer: holds the positions.
        positions_per_token: how many positions make a token.
    """

    def __init__(self, layer: CacheLayerMixin, positions_per_token: int) -> None:
        # The base class would shadow the state of the layer inside with its own.
        self.layer = layer
        self.positions_per_token = positions_per_token
        for name in ("is_compileable", "is_croppable", "is_sliding", "supports_early_init"):
            setattr(self, name, getattr(layer, name))

    def __getattr__(self, name: str) -> Any:
        if name == "layer":  # a copy being made has none yet
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
        """Tokens seen; a static layer keeps the number on its device."""
        return cast("int | Tensor", self.layer.get_seq_length() // self.positions_per_token)

    def get_max_length(self) -> int:
        """Tokens that fit; -1 where there is no limit."""
        length: int = self.layer.get_max_length()
        return length if length < 0 else length // self.positions_per_token

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; like its siblings, it takes their number as a negative one."""
        self.layer.crop(self.positions_per_token * tokens_to_remove)

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


def adopt_cache(cache: Cache, config: PreTrainedConfig, first_layer: int, positions_per_token: int) -> None:
    """Make an empty cache hold `positions_per_token` positions a token from layer `first_layer` on; adopted ones stay.

    Args:
        cache: of any kind.
        config: the backbone's.
        first_layer: first block above the mixer.
        positions_per_token: how many positions a token has there.

    Raises:
        CocomixError: the cache was filled by another model.
    """
    if not cache.layers:  # made without a configuration: its layers would come one by one
        cache.layers = DynamicCache(config=config).layers
        cache.layer_class_to_replicate = None
    for index in range(first_layer, len(cache.layers)):
        layer = cache.layers[index]
        if isinstance(layer, ManyPositionsLayer):
            continue
        if layer.get_seq_length() > 0:
            raise CocomixError(
                "past_key_values was filled by another model: above the mixer it would hold one key a token instead of "
                f"{positions_per_token}; start from an empty cache"
            )
        cache.layers[index] = ManyPositionsLayer(_larger(layer, positions_per_token), positions_per_token)


def _larger(layer: CacheLayerMixin, factor: int) -> CacheLayerMixin:
    """An empty layer of the same kind with room, or a window, for `factor` times the positions."""
    if isinstance(layer, StaticSlidingWindowLayer):  # its room is the window, or the cache's length if that is smaller
        return StaticSlidingWindowLayer(factor * layer.max_cache_len, factor * layer.max_cache_len)
    if isinstance(layer, StaticLayer):
        return type(layer)(max_cache_len=factor * layer.max_cache_len)
    if isinstance(layer, DynamicSlidingWindowLayer):
        larger = DynamicSlidingWindowLayer(sliding_window=factor * layer.sliding_window)
        larger.record_past = layer.record_past
        return larger
    return layer


class SpanCache:
    """What `create_causal_mask` asks of a cache, in positions of one span of blocks.

    Args:
        cache: the real one.
        positions_per_token: of the span.
    """

    def __init__(self, cache: Cache, positions_per_token: int) -> None:
        self.cache = cache
        self.positions_per_token = positions_per_token

    @property
    def is_compileable(self) -> bool:
        return bool(self.cache.is_compileable)

    def get_query_offset(self, layer_idx: int) -> int | Tensor:
        return cast("int | Tensor", self.cache.get_seq_length(layer_idx) * self.positions_per_token)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        num_keys, offset = self.cache.get_mask_sizes(query_length, layer_idx)
        return num_keys, offset
