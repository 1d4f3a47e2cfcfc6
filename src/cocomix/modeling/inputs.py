"""Checks of the arguments of `forward`.

Reading values is free on the CPU but waits for any other device, so ranges are checked on the CPU only, and not while a
graph is traced.
"""

from __future__ import annotations

from torch import Tensor, compiler

from cocomix.base.errors import CocomixError
from cocomix.data import IGNORED_LABEL
from cocomix.modeling.configuration import CoCoMixConfig

# Shapes: B batch, T tokens, A labels per token.


def check_tokens(config: CoCoMixConfig, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> None:
    """Require either token ids [B, T] in the vocabulary or embeddings [B, T, D]."""
    if (input_ids is None) == (inputs_embeds is None):
        raise CocomixError("give either input_ids or inputs_embeds")
    if inputs_embeds is not None:
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != config.hidden_size:
            raise CocomixError(
                f"inputs_embeds has shape {tuple(inputs_embeds.shape)}; expected [batch, tokens, {config.hidden_size}]"
            )
    elif input_ids is not None:
        if input_ids.ndim != 2:
            raise CocomixError(f"input_ids has shape {tuple(input_ids.shape)}; expected [batch, tokens]")
        check_range("input_ids", input_ids, config.vocab_size, "the vocabulary has ids", ignored=None)


def check_mask(attention_mask: Tensor | None, batch_size: int, num_tokens: int) -> None:
    """Require a padding mask to have the shape of the tokens, in a call without a cache."""
    if (
        attention_mask is not None
        and attention_mask.ndim == 2
        and tuple(attention_mask.shape) != (batch_size, num_tokens)
    ):
        raise CocomixError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; the tokens have {(batch_size, num_tokens)}"
        )


def checked_labels(
    config: CoCoMixConfig, shape: tuple[int, ...], labels: Tensor | None, concept_labels: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Check labels for tokens of `shape` (B, T); returns token labels [B, T] and concept labels [B, T, A] as int64."""
    if labels is not None:
        if tuple(labels.shape) != shape:
            raise CocomixError(f"labels has shape {tuple(labels.shape)}; the tokens have {shape}")
        _check_integer("labels", labels)
        check_range("labels", labels, config.vocab_size, "the vocabulary has ids")
        labels = labels.long()
    if concept_labels is None:
        return labels, None
    if not config.mixer.has_concepts:
        raise CocomixError(f"concept_labels were given to a model with mixer {config.mixer.mixer!r}")
    if concept_labels.ndim != 3 or tuple(concept_labels.shape[:2]) != shape or not concept_labels.shape[2]:
        raise CocomixError(
            f"concept_labels has shape {tuple(concept_labels.shape)}; expected {(*shape, 'labels per token')}"
        )
    _check_integer("concept_labels", concept_labels)
    check_range("concept_labels", concept_labels, config.num_concepts, "the model has concepts")
    return labels, concept_labels.long()


def check_range(name: str, ids: Tensor, size: int, has: str, ignored: int | None = IGNORED_LABEL) -> None:
    """Refuse ids outside [0, size), except the ignored one."""
    # Subclasses of Tensor, such as a plan's fake tensors, may have no values.
    if type(ids) is not Tensor or ids.device.type != "cpu" or not ids.numel() or compiler.is_compiling():
        return
    wrong = (ids >= size) | (ids < 0)
    if ignored is not None:
        wrong &= ids != ignored
    if bool(wrong.any()):
        raise CocomixError(f"{name} holds {int(ids[wrong][0])}; {has} 0 to {size - 1}")


def _check_integer(name: str, ids: Tensor) -> None:
    if ids.is_floating_point() or ids.is_complex():
        raise CocomixError(f"{name} has dtype {ids.dtype}; expected integers")
