"""One concept steered: the same prompt continued with and without an edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.modeling.teacher import Teacher
from cocomix.sae.model import SparseAutoencoder
from cocomix.steering.activations import concept_activations
from cocomix.steering.concept_notes import ConceptNotes
from cocomix.steering.directions import concept_directions
from cocomix.tools.generate.continuations import Continuing, continue_all
from cocomix.tools.steer_eval.reading import TextReader

#: Of the mode `toward`.
STRENGTH = 1.0


@dataclass(frozen=True)
class SteeredContinuation:
    """Greedy continuations of one prompt, and how active the steered concept is in them."""

    concept: int
    strength: float
    """Of the mode `toward`; see `cocomix.steer`."""
    prompt: str
    original: str
    steered: str
    original_activation: float
    """Mean activation of the concept's latent over the continuation, read back by teacher and autoencoder."""
    steered_activation: float


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
    """Steer toward each of some concepts on one prompt and return the one that the text shows most clearly.

    Args:
        model: student with mixed concepts.
        teacher: reads the text back.
        sae: reads the text back.
        dataset: the prompt is the start of its first window.
        concepts: candidates.
        num_prompt_tokens: length of the prompt.
        num_new_tokens: length of a continuation.
        max_windows: windows that the directions are measured on.

    Returns:
        the candidate whose own latent rises most against the original continuation; None if none was ever predicted.
    """
    directions = concept_directions(model, dataset, max_windows)
    statistics = dataclasses.replace(concept_activations(model, dataset, max_windows), directions=directions)
    candidates = [concept for concept in concepts if bool(directions[concept].any())]
    if not candidates:
        return None
    prompt = dataset.input_ids([0])[:, :num_prompt_tokens]
    how = Continuing(
        num_new_tokens=num_new_tokens,
        pad_token_id=dataset.eos_token_id,
        mode="toward",
        notes=ConceptNotes(model.config.num_concepts, {}, statistics),
    )
    edits = [{}, *({concept: STRENGTH} for concept in candidates)]
    ids = torch.cat(list(continue_all(model, prompt, edits, how))).squeeze(1)
    activations = TextReader(teacher, sae, candidates).read(ids, num_prompt_tokens).activations
    original, steered = activations[0], activations[1:].diagonal()
    best = int((steered - original).argmax())
    tokenizer = dataset.tokenizer()
    prompt_text, original_text, steered_text = (
        str(tokenizer.decode(tokens))
        for tokens in (prompt[0], ids[0, num_prompt_tokens:], ids[best + 1, num_prompt_tokens:])
    )
    return SteeredContinuation(
        concept=candidates[best],
        strength=STRENGTH,
        prompt=prompt_text,
        original=original_text,
        steered=steered_text,
        original_activation=float(original[best]),
        steered_activation=float(steered[best]),
    )
