"""`cocomix steer-eval`: the steering score of a model, as a folder.

DIR/steering.json   all results: a summary of each strength, and a score of each concept and of its control
DIR/steering.md     the same as tables, for people
DIR/rise.png        how much more active concepts are, by strength
DIR/cost.png        the cost, by strength
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.devices import Machine, this_machine
from cocomix.base.errors import CocomixError
from cocomix.base.hub import local_model
from cocomix.base.kinds import STEERING_SCORE
from cocomix.base.page import write_file
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.config import AttributionConfig
from cocomix.labels.live import identify_sae, load_extractor
from cocomix.modeling.loading import check_context, check_data, load_causal_lm, product_size
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.steering.activations import concept_activations
from cocomix.steering.concept_metadata import ConceptMetadata, read_metadata
from cocomix.steering.directions import NUM_STRONGEST, concept_directions
from cocomix.tools.generate.continuations import GenerationSettings
from cocomix.tools.steer_eval.config import SteerEvalConfig
from cocomix.tools.steer_eval.reading import TextReader, most_used_latents
from cocomix.tools.steer_eval.report import draw_figures, headline, markdown, summarize_strengths
from cocomix.tools.steer_eval.score import ConceptScore, Measurements, measure_steering, random_others, score_steering

RESULT_NAME, TABLE_NAME = "steering.json", "steering.md"


def steer_eval(config: SteerEvalConfig) -> str:
    """Score a model, or recognise a finished score with equal settings; returns the folder and the headline."""
    config = dataclasses.replace(config, model=local_model(config.model), teacher=local_model(config.teacher))
    teacher_fingerprint = artifacts.fingerprint_of_path(config.teacher)
    sae_fingerprint, layer = identify_sae(config.sae, config.layer, config.teacher, teacher_fingerprint)
    num_tokens = config.batch_size * config.num_prompt_tokens
    machine = this_machine(config.compute, functools.partial(product_size, config.model, num_tokens), config.output)
    settings = config.settings() | {
        "model": artifacts.fingerprint_of_path(config.model),
        "teacher": teacher_fingerprint,
        "sae": sae_fingerprint,
        "layer": layer,
        "data": artifacts.fingerprint_of_path(config.data),
        **machine.settings,
    }
    with artifacts.begin(config.output, STEERING_SCORE, settings, overwrite=config.overwrite) as finished:
        if not finished:
            _write(config, settings, layer, machine)
            artifacts.finish(config.output)
        result = artifacts.read_json(config.output / RESULT_NAME)
    return f"{config.output}\n{headline(result)}"


def _write(config: SteerEvalConfig, settings: dict[str, Any], layer: int, machine: Machine) -> None:
    with machine.products():
        measured, concepts, names = _measure(config, settings["strengths"], layer, machine)
    scores = {
        name: score_steering(measured, concepts, steered, config.max_fluency_cost)
        for name, steered in (
            ("concepts", list(range(len(concepts)))),
            ("others", random_others(len(concepts), config.seed)),
        )
    }
    result = {
        "mode": config.mode,
        "max_fluency_cost": config.max_fluency_cost,
        "num_concepts": len(concepts),
        "share_rising": _share_rising(scores["concepts"]),
        "share_rising_by_others": _share_rising(scores["others"]),
        "unsteered": {
            "teacher_loss": float(measured.unsteered_losses.mean()),
            "repetition": float(measured.unsteered_repetition.mean()),
        },
        "strengths": summarize_strengths(measured, config.max_fluency_cost),
        "names": {str(concept): names[concept] for concept in concepts if concept in names},
        **{name: [dataclasses.asdict(score) for score in each] for name, each in scores.items()},
    }
    artifacts.write_json(config.output / RESULT_NAME, result)
    write_file(config.output / TABLE_NAME, markdown(result).encode())
    for drawing in draw_figures(result):
        write_file(config.output / f"{drawing.name}.png", drawing.png)


def _measure(
    config: SteerEvalConfig, strengths: Sequence[float], layer: int, machine: Machine
) -> tuple[Measurements, list[int], Mapping[int, str]]:
    """Measurements, the concepts of the sample, and the names of concepts."""
    model = _student(config, machine)
    extractor = load_extractor(config.teacher, config.sae, AttributionConfig(), layer, machine)
    teacher, sae = extractor.teacher, extractor.sae
    train, validation = TokenDataset(config.data), TokenDataset(config.data, "validation")
    check_data(model, config.model, validation)
    check_data(teacher.model, config.teacher, validation)
    length = config.num_prompt_tokens + config.num_new_tokens
    check_context(teacher.model, config.teacher, length, "prompts with their continuations")
    C, L = model.config.num_concepts, sae.config.num_latents
    if C != L:
        raise CocomixError(
            f"{config.model} has {C} concepts, but {config.sae} has {L} latents; give the autoencoder of its labels"
        )
    prompts = _prompts(config, model, validation)
    for concept in config.concepts:
        ConceptMetadata(C).resolve(concept)
    concepts = list(config.concepts)
    if not concepts:
        concepts = most_used_latents(teacher, sae, train, NUM_STRONGEST, config.num_windows)[: config.num_concepts]
    statistics = concept_activations(model, train, config.num_windows)
    directions = concept_directions(model, train, config.num_windows, description="directions toward concepts")
    names = read_metadata(config.model, C).names
    generation = GenerationSettings(
        num_new_tokens=config.num_new_tokens,
        end_token_id=validation.eos_token_id,
        temperature=config.temperature,
        mode=config.mode,
        positions=None if config.steer_prompt else slice(config.num_prompt_tokens - 1, None),
        unit="usual",
        metadata=ConceptMetadata(C, names, dataclasses.replace(statistics, directions=directions)),
        batch_size=config.batch_size,
    )
    # A concept that the model never predicts has no direction. It stays in the sample and does not rise.
    unknown = [concept for concept in concepts if config.mode == "toward" and not bool(directions[concept].any())]
    reader = TextReader(teacher, sae, concepts)
    measured = measure_steering(
        model, reader, prompts, concepts, strengths, generation, left_alone=unknown, seed=config.seed
    )
    return measured, concepts, names


def _student(config: SteerEvalConfig, machine: Machine) -> CoCoMixForCausalLM:
    model = load_causal_lm(config.model, machine)
    if not isinstance(model, CoCoMixForCausalLM):
        raise CocomixError(f"{config.model} is a plain decoder, which has no concepts: there is nothing to steer")
    if model.config.mixer.unsteerable:
        raise CocomixError(f"{config.model} {model.config.mixer.unsteerable}: there is nothing to steer")
    return model


def _prompts(config: SteerEvalConfig, model: CoCoMixForCausalLM, validation: TokenDataset) -> Tensor:
    """Starts of evenly spaced windows: [P, T]."""
    length, context = config.num_prompt_tokens + config.num_new_tokens, model.config.max_position_embeddings
    if length > context or config.num_prompt_tokens > validation.context_length:
        raise CocomixError(
            f"prompts of {config.num_prompt_tokens} tokens and {config.num_new_tokens} new ones do not fit: the model's "
            f"context is {context}, the windows of {config.data} have {validation.context_length} tokens"
        )
    if validation.num_windows < config.num_prompts:
        raise CocomixError(
            f"num_prompts is {config.num_prompts}, but {config.data} has {validation.num_windows} validation windows"
        )
    (windows,) = validation.batches(config.num_prompts, config.num_prompts)
    return windows.input_ids[:, : config.num_prompt_tokens]


def _share_rising(scores: Sequence[ConceptScore]) -> float:
    return sum(score.rises for score in scores) / len(scores)
