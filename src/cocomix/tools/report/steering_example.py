"""Steered continuations for the report: held-out prompts continued with and without an edit, where that shows something."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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
from cocomix.tools.report.summary import STEERING_NAME, Sources
from cocomix.tools.steer_eval.reading import TextReader

#: Of mode `toward`.
STRENGTHS = (0.25, 0.5, 1.0)
NUM_CANDIDATES = 10
TEMPERATURE = 0.7
#: Prompts that are continued, and those that are shown, the first of them.
NUM_PROMPTS, NUM_SHOWN = 16, 3
#: What is shown: a rise to so many times the activation without steering, of so many standard errors over prompts, in text
#: whose loss, read by the teacher, rises by no more nats a token.
MIN_RATIO, MIN_ERRORS, MAX_LOSS = 2.0, 3.0, 0.5


@dataclass(frozen=True)
class SteeredContinuations:
    """Continuations of some prompts with and without steering toward one concept."""

    concept: int
    strength: float
    """Of mode `toward`; see `cocomix.steer`."""
    temperature: float
    num_prompts: int
    num_candidates: int
    original_activation: float
    """Mean activation of the concept's latent over the continuations of all prompts, read by teacher and autoencoder."""
    steered_activation: float
    original_loss: float
    """The teacher's, nats a token of these continuations."""
    steered_loss: float
    examples: list[dict[str, object]]
    """The first prompts: `prompt`, `original`, and `steered` as pairs of text and whether it differs from the original."""


def steering_example(model: Path, sources: Sources, output: Path, candidates: Sequence[int]) -> None:
    """Steer toward each candidate; the clearest effect goes into `steering.json`, null where none is clear.

    Args:
        model: training run of a student with a concept mixer.
        sources: what it was given; the prompts are from the validation split.
        output: folder for `steering.json`.
        candidates: concepts to try.
    """
    settings = {
        "model": artifacts.fingerprint_of_path(model),
        "sae": artifacts.fingerprint_of_path(sources.sae),
        "candidates": list(candidates),
        "strengths": list(STRENGTHS),
        "temperature": TEMPERATURE,
        "num_prompts": NUM_PROMPTS,
    }
    is_other = (output / artifacts.SETTINGS_NAME).exists() and artifacts.read_header(output)["settings"] != settings
    with artifacts.begin(output, STEERING_EXAMPLE, settings, overwrite=is_other) as finished:
        if finished:
            return
        student = load_causal_lm(model)
        assert isinstance(student, CoCoMixForCausalLM)
        extractor = load_extractor(sources.teacher, sources.sae, AttributionConfig(), sources.layer)
        validation = TokenDataset(sources.data, "validation")
        steered = most_steerable(student, extractor.teacher, extractor.sae, validation, candidates)
        artifacts.write_json(output / STEERING_NAME, dataclasses.asdict(steered) if steered is not None else None)
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
    min_ratio: float = MIN_RATIO,
    min_errors: float = MIN_ERRORS,
    max_loss: float = MAX_LOSS,
) -> SteeredContinuations | None:
    """Steer toward each candidate and return the continuations of the concept that rises most in the text.

    Args:
        model: student with concepts mixed in.
        teacher: reads the continuations.
        sae: the teacher's autoencoder.
        dataset: the prompts are the starts of evenly spaced windows of it.
        concepts: candidates, the first of which are tried.
        num_prompt_tokens: length of a prompt.
        num_new_tokens: length of a continuation.
        max_windows: windows on which the directions are measured.
        min_ratio: how many times as active the concept has to be as without steering.
        min_errors: how many standard errors over prompts it has to rise.
        max_loss: how much the text's loss may rise.

    Returns:
        None where no candidate has a direction, or none rises clearly in readable text.
    """
    num_prompt_tokens = min(num_prompt_tokens, dataset.context_length // 3)
    num_new_tokens = min(
        num_new_tokens, dataset.context_length - num_prompt_tokens
    )  # a model may have no more positions
    directions = concept_directions(model, dataset, max_windows)
    statistics = dataclasses.replace(concept_activations(model, dataset, max_windows), directions=directions)
    candidates = [concept for concept in concepts if bool(directions[concept].any())][:NUM_CANDIDATES]
    if not candidates:
        return None
    windows = next(iter(dataset.batches(NUM_PROMPTS, NUM_PROMPTS)))
    prompts = windows.input_ids[:, :num_prompt_tokens]
    settings = GenerationSettings(
        num_new_tokens=num_new_tokens,
        end_token_id=dataset.eos_token_id,
        temperature=TEMPERATURE,
        mode="toward",
        metadata=ConceptMetadata(model.config.num_concepts, {}, statistics),
        batch_size=len(prompts),
    )
    # An edit a call: all are sampled with the same numbers.
    edits = [(concept, strength) for concept in candidates for strength in STRENGTHS]
    of_edit = [candidates.index(concept) for concept, _ in edits]
    all_edits = [{}, *({concept: strength} for concept, strength in edits)]
    ids = torch.cat([next(continue_all(model, prompts, [edit], settings)) for edit in all_edits])
    readings = TextReader(teacher, sae, candidates).read(ids, num_prompt_tokens)
    original = readings.activations[0].T[of_edit]  # [edits, prompts]
    steered = torch.stack([readings.activations[n, :, latent] for n, latent in enumerate(of_edit, 1)])
    rise, loss = steered - original, readings.losses.mean(-1)
    is_clear = steered.mean(-1) >= min_ratio * original.mean(-1)
    is_clear &= rise.mean(-1) >= min_errors * rise.std(-1) / len(prompts) ** 0.5
    is_clear &= (loss[1:] - loss[0] <= max_loss) & (rise.mean(-1) > 0)
    if not is_clear.any():
        return None
    best = int(torch.where(is_clear, rise.mean(-1), -torch.inf).argmax())
    return SteeredContinuations(
        concept=edits[best][0],
        strength=edits[best][1],
        temperature=TEMPERATURE,
        num_prompts=len(prompts),
        num_candidates=len(candidates),
        original_activation=float(original[best].mean()),
        steered_activation=float(steered[best].mean()),
        original_loss=float(loss[0]),
        steered_loss=float(loss[best + 1]),
        examples=[
            _example(dataset, prompts[row], ids[0, row, num_prompt_tokens:], ids[best + 1, row, num_prompt_tokens:])
            for row in range(min(NUM_SHOWN, len(prompts)))
        ],
    )


def _example(dataset: TokenDataset, prompt: Tensor, original: Tensor, steered: Tensor) -> dict[str, object]:
    """Text of one prompt and its continuations, with what differs between them."""
    tokenizer = dataset.tokenizer()
    matcher = difflib.SequenceMatcher(None, original.tolist(), steered.tolist(), autojunk=False)
    parts = [
        [str(tokenizer.decode(steered[start:end])), kind != "equal"]
        for kind, _, _, start, end in matcher.get_opcodes()
        if end > start
    ]
    return {"prompt": str(tokenizer.decode(prompt)), "original": str(tokenizer.decode(original)), "steered": parts}
