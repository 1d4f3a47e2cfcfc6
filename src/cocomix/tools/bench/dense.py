"""The reference as modules, with the parameters of what it is compared with."""

from __future__ import annotations

import copy

from jaxtyping import Float, Int64
from torch import Tensor, nn

from cocomix.mixers.base import MixerInputs, MixerOutput
from cocomix.mixers.concept import ConceptMixer
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.tools.bench import reference


class DenseConceptMixer(ConceptMixer):
    """`ConceptMixer` that adds the reference's vectors; takes no edits."""

    def forward(self, hidden: Float[Tensor, "B T D"], inputs: MixerInputs) -> MixerOutput:
        assert not inputs.edits, "the reference takes no edits"
        labels, config = inputs.concept_labels, self.config
        found = reference.concepts(
            hidden,
            dict(self.named_parameters()),
            labels,
            K=config.num_active_concepts,
            rescale_epsilon=config.rescale_epsilon,
        )
        total, count = (None, None) if labels is None else (found.loss_sum, found.num_labelled)
        return MixerOutput(self.mixing.combine(hidden, found.vectors), found.indices, found.values, total, count)


class DenseStudent(nn.Module):
    """The reference with the weights of an interleaving CoCoMix student on GPT-2.

    Args:
        model: the student, which is copied.
    """

    def __init__(self, model: CoCoMixForCausalLM) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)

    def forward(self, input_ids: Int64[Tensor, "B T"], concept_labels: Int64[Tensor, "B T A"]) -> reference.Output:
        """The whole training loss of some windows."""
        config, mixer = self.model.config, self.model.concept_mixer.config
        return reference.gpt2(
            dict(self.model.named_parameters()),
            input_ids,
            concept_labels,
            num_blocks=config.backbone_config.num_hidden_layers,
            num_heads=config.backbone_config.num_attention_heads,
            layer=mixer.layer,
            K=mixer.num_active_concepts,
            concept_weight=config.concept_loss_weight,
            rescale_epsilon=mixer.rescale_epsilon,
        )
