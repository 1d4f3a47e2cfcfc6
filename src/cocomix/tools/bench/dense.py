"""The reference for fast paths: CoCoMix as the paper describes it and its released code computes it.

It computes logits of all C concepts, a mask of the K_mix largest, mask times logits times the whole compress matrix, one
cross-entropy per label, and all vocabulary logits at once; every position goes through every block, with the backbone's own
attention (SDPA). Parameter names equal those of `ConceptMixer`, so one state dict fits both.

Shapes: B batch, T tokens, N = B * T, D width, C concepts, K active concepts, A labels per token, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.data import IGNORED_LABEL
from cocomix.mixers.base import Mixer, MixerInputs, MixerOutput
from cocomix.mixers.concept import STD_EPSILON, ConceptMixer
from cocomix.modeling.model import CoCoMixForCausalLM


class DenseConceptMixer(ConceptMixer):
    """`ConceptMixer` with dense products; takes no edits."""

    def forward(self, hidden: Float[Tensor, "B T D"], inputs: MixerInputs) -> MixerOutput:
        B, T, D = hidden.shape
        assert not inputs.edits, "the reference takes no edits"
        concept_labels, K = inputs.concept_labels, self.config.num_active_concepts
        mean = hidden.mean(-1, keepdim=True)
        std = hidden.std(-1, keepdim=True)
        x = ((hidden - mean) / (std + STD_EPSILON) - self.pre_bias).view(B * T, D)
        z = F.linear(x, self.head_weight, self.head_bias)  # (N, C)
        values, indices = z.topk(K, dim=-1)
        mask = torch.zeros_like(z).scatter(-1, indices, 1.0)
        vectors = ((mask * z) @ self.compress_weight).view(B, T, D)
        concept = (vectors + self.compress_bias + self.pre_bias) * std + mean
        loss_sum = count = None
        if concept_labels is not None:
            labels = concept_labels.view(B * T, -1)
            valid = (labels != IGNORED_LABEL).all(-1)
            columns = labels.masked_fill(~valid.unsqueeze(-1), IGNORED_LABEL).unbind(-1)
            sums = [F.cross_entropy(z, column, ignore_index=IGNORED_LABEL, reduction="sum") for column in columns]
            loss_sum, count = torch.stack(sums).mean(), valid.sum()
        shape = (B, T, K)
        return MixerOutput(
            self.mixing.combine(hidden, concept), indices.view(shape), values.view(shape), loss_sum, count
        )


@dataclass(frozen=True)
class DenseOutput:
    """Output of the dense student."""

    loss: Float[Tensor, ""]
    concept_indices: Int64[Tensor, "B T K"]


class DenseStudent(nn.Module):
    """A CoCoMix student computed densely.

    Args:
        model: the student to copy, with a concept mixer; its weights are copied too.
    """

    def __init__(self, model: CoCoMixForCausalLM) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.mixer = dense_mixer(model)

    def forward(self, input_ids: Int64[Tensor, "B T"], concept_labels: Int64[Tensor, "B T A"]) -> DenseOutput:
        """The training loss of a batch: next-token loss plus weighted concept loss."""
        model, mixer = self.model, self.model.mixer
        adapter, insert, layout = model.adapter, mixer.config.insertion, mixer.config.layout
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        hidden = adapter.embed(adapter.token_embeddings(input_ids), positions)
        hidden = adapter.run_blocks(hidden, 0, insert, position_ids=positions)
        mixed = mixer(hidden, MixerInputs(concept_labels))
        span = layout.span(0, input_ids.shape[1], input_ids.device)
        hidden = adapter.run_blocks(  # without `read`: all positions through all blocks
            mixed.hidden,
            insert,
            adapter.num_blocks,
            position_ids=span.positions(positions, mixer.config.position_mode),
            layout=layout,
        )
        logits = adapter.logits(hidden[:, span.read])  # (B, T, V)
        lm_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        concept_loss = mixed.concept_loss_sum / mixed.concept_count.clamp(min=1)
        return DenseOutput(lm_loss + model.config.concept_loss_weight * concept_loss, mixed.concept_indices)


def dense_mixer(model: CoCoMixForCausalLM) -> Mixer:
    """A dense mixer with the weights of a student's concept mixer."""
    original = model.concept_mixer
    mixer = DenseConceptMixer(original.config, model.config.hidden_size).to(original.head_weight)
    mixer.load_state_dict(original.state_dict())
    return mixer
