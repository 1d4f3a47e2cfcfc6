"""One concept steered: the same prompt continued with and without an edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import Teacher
from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.edits import ConceptEdit, concept_edits
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.modeling.steering import steer

# Shapes: B batch, T tokens, K active concepts, C concepts.

#: A steered activation, in units of the concept's strongest activation on validation text.
STRENGTH_FACTOR = 2.0


@dataclass(frozen=True)
class SteeredContinuation:
    """Greedy continuations of one prompt, and how active the steered concept is in them."""

    concept: int
    strength: float
    """Activation that was set, a raw logit of the student's concept head."""
    strength_factor: float
    """The same in units of the concept's strongest activation on validation text."""
    prompt: str
    original: str
    steered: str
    original_activation: float
    """Mean activation of the concept's latent over the continuation, read back by teacher and autoencoder."""
    steered_activation: float


class _StrongestActivation(ConceptEdit):
    """Remembers each concept's largest active value, and changes nothing."""

    def __init__(self, num_concepts: int) -> None:
        self.values = torch.full((num_concepts,), -torch.inf)

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.values.scatter_reduce_(0, indices.flatten(), values.detach().flatten(), reduce="amax")
        return indices, values


@torch.no_grad()
def strongest_activations(model: CoCoMixForCausalLM, dataset: TokenDataset, max_windows: int) -> Tensor:
    """Largest activation of each concept on some windows of a split; -inf where never active: [C]."""
    recorder = _StrongestActivation(model.config.num_concepts)
    with concept_edits(model, recorder):
        for windows in dataset.batches(32, max_windows):
            model(**windows.inputs(), use_cache=False, logits_to_keep=1)
    return recorder.values


@torch.no_grad()
def most_steerable(
    model: CoCoMixForCausalLM,
    teacher: Teacher,
    sae: SparseAutoencoder,
    dataset: TokenDataset,
    concepts: Sequence[int],
    *,
    num_prompt_tokens: int = 24,
    num_new_tokens: int = 40,
    max_windows: int = 128,
) -> SteeredContinuation | None:
    """Steer each of some concepts on one prompt and return the one that the text shows most clearly.

    Args:
        model: student with mixed concepts.
        teacher: reads the text back.
        sae: reads the text back.
        dataset: the prompt is the start of its first window.
        concepts: candidates.
        num_prompt_tokens: length of the prompt.
        num_new_tokens: length of a continuation.
        max_windows: windows that give the concepts' usual strength.

    Returns:
        the candidate whose own latent rises most against the original continuation; None if none was ever active.
    """
    tokenizer = dataset.tokenizer()
    prompt = dataset.input_ids([0])[:, :num_prompt_tokens]
    usual = strongest_activations(model, dataset, max_windows)
    candidates = [concept for concept in concepts if usual[concept] > 0]

    def continuation() -> Tensor:
        return model.generate(  # type: ignore[no-any-return]
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=num_new_tokens,
            min_new_tokens=num_new_tokens,
            do_sample=False,
            pad_token_id=dataset.eos_token_id,
        )

    original = continuation()
    best: SteeredContinuation | None = None
    for concept in candidates:
        strength = STRENGTH_FACTOR * float(usual[concept])
        with steer(model, {concept: strength}, mode="set"):
            steered = continuation()
        before, after = (_mean_activation(teacher, sae, ids, concept, num_prompt_tokens) for ids in (original, steered))
        if best is None or after - before > best.steered_activation - best.original_activation:
            best = SteeredContinuation(
                concept,
                strength,
                STRENGTH_FACTOR,
                tokenizer.decode(prompt[0]),
                _decode(tokenizer, original, num_prompt_tokens),
                _decode(tokenizer, steered, num_prompt_tokens),
                before,
                after,
            )
    return best


def _mean_activation(teacher: Teacher, sae: SparseAutoencoder, ids: Tensor, concept: int, start: int) -> float:
    latents = sae.encode(teacher.residual(ids))
    activation = (latents.values * (latents.indices == concept)).sum(-1)
    return float(activation[:, start:].mean())


def _decode(tokenizer: PreTrainedTokenizerFast, ids: Tensor, start: int) -> str:
    return str(tokenizer.decode(ids[0, start:]))
