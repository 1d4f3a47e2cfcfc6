"""Concept cards and one steered continuation of a model, as a folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.concepts.attribution import AttributionConfig
from cocomix.concepts.extraction import load_extractor
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset
from cocomix.interpretation.contexts import most_used_concepts
from cocomix.interpretation.continuation import most_steerable
from cocomix.modeling.loading import load_causal_lm
from cocomix.modeling.model import CoCoMixForCausalLM

KIND = "concept-report"
RESULT_NAME = "concepts.json"


@dataclass(frozen=True)
class ConceptReportConfig:
    """Which model's concepts, by which teacher and dictionary."""

    model: Path
    """Training run of a student with a concept mixer."""
    teacher: Path
    """The teacher of its labels."""
    sae: Path
    """The teacher's autoencoder."""
    concepts: Path
    """Concept dataset whose labels are counted."""
    data: Path
    """Token dataset; contexts and the prompt are from its validation split."""
    output: Path
    """Folder for `concepts.json`."""
    max_windows: int | None = None
    """Search so many evenly spaced validation windows; by default all."""


def concept_report(config: ConceptReportConfig) -> dict[str, Any]:
    """Make the cards, or return those made before with equal settings; the result is also in `concepts.json`."""
    settings = {
        "model": artifacts.fingerprint_of_path(config.model),
        "concepts": artifacts.fingerprint_of_path(config.concepts),
        "max_windows": config.max_windows,
    }
    with artifacts.begin(config.output, KIND, settings) as finished:
        if not finished:
            artifacts.write_json(config.output / RESULT_NAME, _make(config))
            artifacts.finish(config.output)
        result: dict[str, Any] = artifacts.read_json(config.output / RESULT_NAME)
        return result


def _make(config: ConceptReportConfig) -> dict[str, Any]:
    model = load_causal_lm(config.model)
    if not isinstance(model, CoCoMixForCausalLM):
        raise CocomixError(f"{config.model} is a plain decoder; a concept report needs a model with a concept mixer")
    extractor = load_extractor(config.teacher, config.sae, AttributionConfig())
    concepts = ConceptDataset(config.concepts, TokenDataset(config.data))
    validation = TokenDataset(config.data, "validation")
    cards = most_used_concepts(concepts, extractor.teacher, extractor.sae, validation, max_windows=config.max_windows)
    candidates = [card.concept for card in cards]
    steered = most_steerable(model, extractor.teacher, extractor.sae, validation, candidates)
    return {
        "most_used": [dataclasses.asdict(card) for card in cards],
        "steering": dataclasses.asdict(steered) if steered is not None else None,
    }
