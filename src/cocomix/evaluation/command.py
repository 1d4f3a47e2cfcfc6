"""Evaluate a model on a token dataset: loss, perplexity, bits per byte, and the causal probes of a concept model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.concepts.attribution import AttributionConfig
from cocomix.concepts.extraction import load_extractor
from cocomix.data.token_dataset import TokenDataset
from cocomix.evaluation.loss import validation_loss
from cocomix.evaluation.probes import run_probes
from cocomix.modeling.loading import load_causal_lm
from cocomix.modeling.model import CoCoMixForCausalLM

KIND = "evaluation"
RESULT_NAME = "evaluation.json"


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, on what."""

    model: Path
    """Any causal LM: a training run, or a folder of `save_pretrained`."""
    data: Path
    """Token dataset with the model's tokenizer; its validation split is used."""
    output: Path
    """Folder for `evaluation.json`."""
    probes: bool = False
    """Also run the causal probes (a model with a concept mixer)."""
    teacher: Path | None = None
    """Teacher for the `oracle` probe."""
    sae: Path | None = None
    """Its autoencoder, for the `oracle` probe."""
    attribution: AttributionConfig = dataclasses.field(default_factory=AttributionConfig)
    """How the `oracle` probe's labels are chosen."""
    max_windows: int | None = None
    """Evaluate on so many evenly spaced validation windows; by default on all."""
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "max_windows")
        if (self.teacher is None) != (self.sae is None):
            raise CocomixError("the oracle probe needs both --teacher and --sae")


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Evaluate, or return a former evaluation with equal settings; the result is also in `evaluation.json`."""
    dataset = TokenDataset(config.data, "validation")
    settings = {
        "model": artifacts.fingerprint_of_folder(config.model),
        "data": dataset.fingerprint,
        "probes": config.probes,
        "teacher": artifacts.fingerprint_of_folder(config.teacher) if config.teacher else None,
        "sae": artifacts.fingerprint_of_folder(config.sae) if config.sae else None,
        "attribution": dataclasses.asdict(config.attribution),
        "max_windows": config.max_windows,
    }
    with artifacts.begin(config.output, KIND, settings, overwrite=config.overwrite) as finished:
        if not finished:
            artifacts.write_json(config.output / RESULT_NAME, _evaluate(config, dataset))
            artifacts.finish(config.output)
        result: dict[str, Any] = artifacts.read_json(config.output / RESULT_NAME)
        return result


def _evaluate(config: EvalConfig, dataset: TokenDataset) -> dict[str, Any]:
    model = load_causal_lm(config.model)
    dataset.check_model(config.model, model.config.vocab_size)
    loss = validation_loss(
        model, dataset, max_windows=config.max_windows, description=f"evaluating {config.model.name}"
    )
    result: dict[str, Any] = {
        "validation_loss": loss.loss,
        "perplexity": loss.perplexity,
        "bits_per_byte": loss.bits_per_byte(dataset),
        "num_tokens": loss.num_tokens,
    }
    if config.probes:
        if not isinstance(model, CoCoMixForCausalLM):
            raise CocomixError(f"{config.model} is a plain decoder; probes need a model with a concept mixer")
        extractor = None
        if config.teacher is not None and config.sae is not None:
            extractor = load_extractor(config.teacher, config.sae, config.attribution)
        probes = run_probes(model, dataset, extractor, max_windows=config.max_windows)
        result["probes"] = {name: dataclasses.asdict(probe) for name, probe in probes.items()}
    return result
