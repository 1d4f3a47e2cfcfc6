"""One steered continuation for the report: the same prompt continued with and without an edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cocomix.base import artifacts
from cocomix.base.kinds import STEERING_EXAMPLE
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.config import AttributionConfig
from cocomix.labels.live import load_extractor
from cocomix.modeling.loading import load_causal_lm
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.modeling.teacher import Teacher
from cocomix.sae.model import SparseAutoencoder
from cocomix.steering.activations import concept_activations
from cocomix.steering.concept_metadata import ConceptMetadata
from cocomix.steering.directions import concept_directions
from cocomix.tools.generate.continuations import GenerationSettings, continue_all
from cocomix.tools.steer_eval.reading import TextReader

RESULT_NAME = "steering.json"
#: Of mode `toward`.
STRENGTH = 1.0


@dataclass(frozen=True)
class SteeredContinuation:
    """Continuations of one prompt with and without steering, and how active the steered concept is in both."""

    concept: int
    strength: float
    """Of mode `toward`; see `cocomix.steer`."""
    prompt: str
    original: str
    steered: str
    original_activation: float
    """Mean activation of the concept's latent over the continuation, read by teacher and autoencoder."""
    steered_activation: float


def steering_example(
    model: Path, teacher: Path, sae: Path, data: Path, output: Path, candidates: Sequence[int]
) -> None:
    """Steer toward each candidate on one prompt; the clearest result goes into `steering.json` (null without a direction).

    Args:
        model: training run of a student with a concept mixer.
        teacher: the teacher of its labels.
        sae: the teacher's autoencoder.
        data: token dataset; the prompt is from its validation split.
        output: folder for `steering.json`.
        candidates: concepts to try.
    """
    settings = {
        "model": artifacts.fingerprint_of_path(model),
        "sae": artifacts.fingerprint_of_path(sae),
        "candidates": list(candidates),
    }
    with artifacts.begin(output, STEERING_EXAMPLE, settings) as finished:
        if finished:
            return
        student = load_causal_lm(model)
        assert isinstance(student, CoCoMixForCausalLM)
        extractor = load_extractor(teacher, sae, AttributionConfig())
        validation = TokenDataset(data, "validation")
        steered = most_steerable(student, extractor.teacher, extractor.sae, validation, candidates)
        artifacts.write_json(output / RESULT_NAME, dataclasses.asdict(steered) if steered is not None else None)
        artifacts.finish(output)


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
    """Steer toward each candidate on one prompt and return the concept that rises most in the text.

    Args:
        model: student with concepts mixed in.
        teacher: reads the continuations.
        sae: the teacher's autoencoder.
        dataset: the prompt is the start of its first window.
        concepts: candidates.
        num_prompt_tokens: length of the prompt.
        num_new_tokens: length of a continuation.
        max_windows: windows on which the directions are measured.

    Returns:
        the candidate whose latent rises most over the unsteered continuation; None if no candidate has a direction.
    """
    directions = concept_directions(model, dataset, max_windows)
    statistics = dataclasses.replace(concept_activations(model, dataset, max_windows), directions=directions)
    candidates = [concept for concept in concepts if bool(directions[concept].any())]
    if not candidates:
        return None
    prompt = dataset.input_ids([0])[:, :num_prompt_tokens]
    settings = GenerationSettings(
        num_new_tokens=num_new_tokens,
        end_token_id=dataset.eos_token_id,
        mode="toward",
        metadata=ConceptMetadata(model.config.num_concepts, {}, statistics),
    )
    edits = [{}, *({concept: STRENGTH} for concept in candidates)]
    ids = torch.cat(list(continue_all(model, prompt, edits, settings))).squeeze(1)
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
