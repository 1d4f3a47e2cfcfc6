"""One steered continuation for the report, as a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cocomix.base import artifacts
from cocomix.base.kinds import STEERING_EXAMPLE
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.config import AttributionConfig
from cocomix.labels.extraction import load_extractor
from cocomix.modeling.loading import load_causal_lm
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.tools.steer_eval.most_steerable import most_steerable

RESULT_NAME = "steering.json"


def steering_example(
    model: Path, teacher: Path, sae: Path, data: Path, output: Path, candidates: Sequence[int]
) -> None:
    """Steer each of some concepts on one prompt; the clearest is in `steering.json`, null if none was ever active.

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
