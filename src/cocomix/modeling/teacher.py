"""The frozen teacher: any supported decoder, split after one of its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import Cache, PreTrainedModel

from cocomix.base.devices import Machine
from cocomix.modeling.backbones import adapter_for
from cocomix.modeling.families import require_layer
from cocomix.modeling.loading import load_causal_lm

# Shapes: B batch, T tokens, S positions above block `layer`, D width of the teacher, V vocabulary.


def load_teacher(path: Path | str, machine: Machine | None = None) -> PreTrainedModel:
    """A causal LM with frozen parameters; `machine` as `load_causal_lm` takes it.

    Raises:
        CocomixError: no causal LM can be loaded from there.
    """
    return load_causal_lm(path, machine).requires_grad_(False)


class Teacher:
    """A frozen causal LM whose residual stream can be read and replaced after one block.

    Args:
        model: causal LM whose parameters do not require gradients.
        layer: 0-based block after which concepts are read.

    Raises:
        CocomixError: the model has no block `layer`, or its family is not supported.
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self.adapter = adapter_for(model)
        require_layer(layer, self.adapter.num_blocks)
        assert not any(parameter.requires_grad for parameter in model.parameters()), "the teacher must be frozen"
        self.model = model
        self.layer = layer

    def residual(
        self, input_ids: Int64[Tensor, "B T"], position_ids: Int64[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Residual stream after block `layer`, without a graph."""
        (hidden,) = self.residuals(input_ids, position_ids, layers=(self.layer,))
        return hidden

    @torch.no_grad()
    def residuals(
        self,
        input_ids: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B T"] | None = None,
        *,
        layers: Sequence[int],
    ) -> list[Float[Tensor, "B T D"]]:
        """Residual streams after several blocks, without a graph, from one pass up to the highest.

        Args:
            input_ids: windows of tokens.
            position_ids: positions that restart at 0 in each isolated document; None: attention crosses documents.
            layers: 0-based blocks in ascending order.
        """
        positions = self._positions(input_ids.shape[1], input_ids.device) if position_ids is None else position_ids
        hidden = self.adapter.embed(self.adapter.token_embeddings(input_ids), positions)
        residuals, start = [], 0
        for layer in layers:
            hidden = self.adapter.run_blocks(
                hidden, start, layer + 1, position_ids=positions, packed_positions=position_ids
            )
            residuals.append(hidden)
            start = layer + 1
        return residuals

    def hidden(
        self,
        residual: Float[Tensor, "B S D"],
        *,
        position_ids: Int64[Tensor, "#B S"] | None = None,
        attention_mask: Tensor | Mapping[str, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B S D"]:
        """The input of the final norm, from a residual stream after block `layer`; differentiable.

        Args:
            residual: residual stream after block `layer`.
            position_ids: positions; None: from 0 on. Without a mask and a cache, positions that restart at 0 isolate
                documents.
            attention_mask: mask as `DecoderAdapter.run_blocks` takes it; None: plain causal attention.
            cache: keys and values of earlier positions, extended in place.
        """
        positions = self._positions(residual.shape[1], residual.device) if position_ids is None else position_ids
        return self.adapter.run_blocks(
            residual,
            self.layer + 1,
            self.adapter.num_blocks,
            position_ids=positions,
            attention_mask=attention_mask,
            packed_positions=position_ids if attention_mask is None and cache is None else None,
            cache=cache,
        )

    def logits(
        self, residual: Float[Tensor, "B T D"], position_ids: Int64[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Logits from a residual stream after block `layer`; differentiable."""
        return self.adapter.logits(self.hidden(residual, position_ids=position_ids))

    @staticmethod
    def _positions(num_tokens: int, device: torch.device) -> Tensor:
        return torch.arange(num_tokens, device=device).unsqueeze(0)
