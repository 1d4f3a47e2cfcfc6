"""The student without its head, for trainers that compute the next-token loss themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.modeling_outputs import BaseModelOutputWithPast

from cocomix.base.errors import CocomixError

if TYPE_CHECKING:
    from cocomix.modeling.model import CoCoMixForCausalLM


class Body:
    """The `base_model` of a causal LM: called, it gives the hidden states that the head reads, with the concepts mixed in.

    It is no module, because the model itself holds all weights. Its attributes are those of the decoder.

    Args:
        model: the model.
    """

    def __init__(self, model: CoCoMixForCausalLM) -> None:
        self._model = model

    def __call__(self, *arguments: Any, **options: Any) -> BaseModelOutputWithPast:
        """The hidden states; takes what the model's `forward` takes, but no labels.

        Raises:
            CocomixError: concept labels are given, whose loss the caller would not see; or see `forward`.
        """
        if options.get("concept_labels") is not None:
            raise CocomixError(
                "this trainer computes the next-token loss itself and would leave out that of concept_labels; train with "
                "transformers.Trainer, or leave them out"
            )
        # The class's own, because such a trainer replaces the model's.
        output = type(self._model).forward(self._model, *arguments, **options, skip_head=True)
        (hidden,) = output.hidden_states
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=output.past_key_values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model.backbone, name)
