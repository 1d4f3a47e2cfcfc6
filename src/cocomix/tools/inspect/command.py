"""`cocomix inspect`: a card for every concept of a model or latent of a dictionary, and a site to read them.

The work has two stages. The first computes `concepts.parquet` and `summary.json`. The second derives names and everything
made for reading (`concepts.jsonl`, the site) from these files and from `concept_names.json`; it takes seconds and runs
again after a name is edited.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.devices import this_machine
from cocomix.base.errors import CocomixError
from cocomix.base.hub import local_model
from cocomix.base.kinds import INSPECTION
from cocomix.base.progress import say
from cocomix.data import IGNORED_LABEL
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset
from cocomix.evaluation.probes import run_probes
from cocomix.labels.attribution import ConceptExtractor
from cocomix.labels.config import DERIVED_CONTROLS, AttributionConfig
from cocomix.labels.live import TeacherLabels
from cocomix.modeling.loading import check_data, load_causal_lm, load_config, product_size
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.sae.quality import TOKENS_PER_BATCH
from cocomix.steering.concept_metadata import read_metadata, write_statistics
from cocomix.steering.concept_names import NAMES_NAME, add_names
from cocomix.steering.directions import concept_directions
from cocomix.tools.inspect.card_making import InspectionResults, make_cards
from cocomix.tools.inspect.cards import CARDS_NAME, SUMMARY_NAME, read_columns, read_summary, rename, write_cards
from cocomix.tools.inspect.config import InspectConfig
from cocomix.tools.inspect.effects import direct_effects, measured_effects, nearest_concepts
from cocomix.tools.inspect.export import write_delphi, write_neuronpedia
from cocomix.tools.inspect.occurrences import Occurrences, find_occurrences, predict, read_batches
from cocomix.tools.inspect.site import write_site
from cocomix.tools.inspect.summary import summarize

# Shapes: C concepts.

#: Files of the first stage, and the hidden folder that has their checksums while the second is not done.
COMPUTED = (CARDS_NAME, SUMMARY_NAME)
WORK_FOLDER = ".work"
WINDOWS_PER_READ = 512
#: Directions need a backward pass; this many windows are enough for the concepts that are used.
MAX_DIRECTION_WINDOWS = 512
#: Names use more contexts than a card shows, and equal texts are dropped.
KEPT_PER_CONTEXT = 2


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Make the cards, or update the names of cards made before with equal settings.

    Returns:
        numbers of the whole model, as in `summary.json`.

    Raises:
        CocomixError: the model has no concepts, the labels or the autoencoder do not fit them, or a metadata file is damaged.
    """
    given = config.model or config.teacher
    assert given is not None
    teacher = None if config.teacher is None else local_model(config.teacher)
    model = None if config.model is None else local_model(config.model)
    config = dataclasses.replace(config, model=model, teacher=teacher)
    inputs = _Inputs(config)
    with artifacts.begin(config.output, INSPECTION, inputs.settings, overwrite=config.overwrite) as finished:
        if finished is None and not _is_computed(config.output):
            with inputs.machine.products():
                _compute(config, inputs)
        names = _current_names(config)
        missing = [name for name in config.export if not (config.output / name).exists()]
        if finished is None or missing or names != read_columns(config.output, "name")["name"]:
            _record(config.output)
            (config.output / artifacts.MANIFEST_NAME).unlink(missing_ok=True)  # unfinished from here on
            rename(config.output, names)
            _record(config.output)
            write_site(config.output, inputs.inspected.name)
            for name in config.export if finished is None else missing:
                say(f"writing {config.output / name}")
                _export(name, config, inputs, given)
            artifacts.finish(config.output)
            shutil.rmtree(config.output / WORK_FOLDER)
        return read_summary(config.output)


def _export(name: str, config: InspectConfig, inputs: _Inputs, given: Path) -> None:
    """Write the folder of a format; `given` is the path or name of the model that is read."""
    source, text = inputs.source, config.data.name
    layer = source.layer if source and config.model is None else load_config(inputs.inspected).mixer.layer
    if name == "neuronpedia":
        write_neuronpedia(config.output, given.name, inputs.inspected.name, layer, text)
        return
    with inputs.machine.products(), torch.no_grad():
        write_delphi(config.output, str(given), layer, text, _activations(config, inputs))


def _activations(config: InspectConfig, inputs: _Inputs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Windows [B, T] and their active concepts or latents, with values, both [B, T, K], on the CPU."""
    model = None if config.model is None else load_causal_lm(config.model, inputs.machine)
    for _, windows in read_batches(inputs.dataset, inputs.read_labels, config.max_windows):
        windows = windows.to(inputs.machine.device)
        if isinstance(model, CoCoMixForCausalLM):
            _, indices, values = predict(model, windows)
        else:
            assert inputs.source is not None
            sae, teacher = inputs.source.extractor.sae, inputs.source.extractor.teacher
            latents = sae.read(teacher.residual(**windows.inputs()), **windows.inputs())
            indices, values = latents.indices, latents.values
        yield windows.input_ids.cpu(), indices.cpu(), values.cpu()


def _is_computed(output: Path) -> bool:
    """Whether the first stage was done, and its files are as it left them."""
    recorded = artifacts.read_checksums(output / WORK_FOLDER)
    return bool(recorded) and recorded == artifacts.checksums_of(output, COMPUTED)


def _record(output: Path) -> None:
    """Record the files of the first stage, which an interrupted command goes on from."""
    (output / WORK_FOLDER).mkdir(exist_ok=True)
    artifacts.write_json(output / WORK_FOLDER / artifacts.CHECKSUMS_NAME, artifacts.checksums_of(output, COMPUTED))


class _Inputs:
    """The inputs, with every check that needs no computation."""

    def __init__(self, config: InspectConfig) -> None:
        train, validation = TokenDataset(config.data), TokenDataset(config.data, "validation")
        reader, inspected = config.model or config.teacher, config.model or config.sae
        assert reader is not None
        assert inspected is not None
        self.inspected = inspected
        size = functools.partial(product_size, reader, TOKENS_PER_BATCH)
        self.machine = this_machine(config.compute, size, config.output)
        self.labels = None if config.labels is None else ConceptDataset(config.labels, train)
        attribution = config.attribution
        if self.labels is not None:
            attribution = AttributionConfig(**self.labels.settings["attribution"])
        # Labels derived from other labels cannot be computed for other text.
        is_derived = attribution.control in DERIVED_CONTROLS
        self.source: TeacherLabels | None = None
        if config.teacher is not None and config.sae is not None:
            own = dataclasses.replace(attribution, control="none") if is_derived else attribution
            self.source = TeacherLabels(validation, config.teacher, config.sae, config.layer, own, self.machine)
        self.read_labels = self.labels if self.source is None or is_derived else None
        """Stored labels of the windows that are read; None if labels are computed or there are none."""
        self.dataset = validation if self.read_labels is None else train
        self.settings: dict[str, Any] = {
            "model": None if config.model is None else artifacts.fingerprint_of_path(config.model),
            "data": train.fingerprint,
            "labels": None if self.labels is None else self.labels.fingerprint,
            "source": None if self.source is None else self.source.settings,
            **config.settings(),
            **self.machine.settings,
        }

    def extractor(self, num_concepts: int) -> ConceptExtractor | None:
        """Teacher and autoencoder; refuses an autoencoder with another number of latents than the model has concepts."""
        if self.source is None:
            return None
        if self.source.num_concepts != num_concepts:
            raise CocomixError(
                f"the model has {num_concepts} concepts, the autoencoder {self.source.num_concepts} latents"
            )
        return self.source.extractor


def _compute(config: InspectConfig, inputs: _Inputs) -> None:
    """Compute the statistics, `summary.json` and, last, `concepts.parquet`."""
    results, further = (
        _of_dictionary(config, inputs) if config.model is None else _of_model(config, config.model, inputs)
    )
    summary = {"split": inputs.dataset.split, "probes": None, "num_probe_windows": 0, **summarize(results), **further}
    artifacts.write_json(config.output / SUMMARY_NAME, summary)
    say("writing the cards")
    write_cards(config.output, make_cards(results, inputs.dataset, config.num_contexts))
    _record(config.output)


def _of_dictionary(config: InspectConfig, inputs: _Inputs) -> tuple[InspectionResults, dict[str, Any]]:
    """What is measured of a dictionary's latents, and what is only in the summary."""
    assert inputs.source is not None
    extractor = inputs.source.extractor
    occurrences = _occurrences(config, inputs, None, extractor)
    read = occurrences.token_counts.nonzero().squeeze(-1)
    encoder, decoder = extractor.sae.encoder_weight.detach(), extractor.sae.decoder_weight.detach()
    direct, logits = direct_effects(extractor.teacher.adapter, decoder, read, config.num_tokens)
    nearest, nearest_active = (nearest_concepts(rows, config.num_nearest) for rows in (decoder, encoder))
    results = InspectionResults(occurrences, direct, logits, None, nearest, nearest_active)
    return results, {"num_active_concepts": None, "mixing": None, "has_label_dataset": False}


def _of_model(config: InspectConfig, path: Path, inputs: _Inputs) -> tuple[InspectionResults, dict[str, Any]]:
    """What is measured of a model's concepts, and what is only in the summary; writes the statistics."""
    model = load_causal_lm(path, inputs.machine)
    if not isinstance(model, CoCoMixForCausalLM) or not model.config.mixer.has_concepts:
        raise CocomixError(f"{path} has no concepts; cards need a model with a concept mixer")
    check_data(model, path, inputs.dataset)
    C, labels = model.config.num_concepts, inputs.labels
    if labels is not None and labels.num_concepts != C:
        raise CocomixError(f"the model has {C} concepts, the labels in {labels.path} have {labels.num_concepts}")
    read_metadata(path, C)  # what is damaged there is refused before the work, not after it
    extractor = inputs.extractor(C)
    is_mixed = model.config.mixer.mixes
    if not is_mixed:
        say("the model does not mix its concepts in: there are no effects, no probes and no directions to steer in")
    results = _measure(config, inputs, model, extractor)
    summary: dict[str, Any] = {
        "num_active_concepts": model.config.num_active_concepts,
        "mixing": model.config.mixing,
        "has_label_dataset": labels is not None,
    }
    if config.num_probe_windows and is_mixed:
        has_room = extractor is not None and extractor.config.num_labels <= model.config.num_active_concepts
        oracle = extractor if has_room else None
        probes = run_probes(model, inputs.dataset, oracle, max_windows=config.num_probe_windows)
        summary["probes"] = {name: dataclasses.asdict(probe) for name, probe in probes.items()}
        summary["num_probe_windows"] = min(config.num_probe_windows, inputs.dataset.num_windows)
    statistics = results.occurrences.activations
    assert statistics is not None
    if is_mixed:
        num_windows = min(config.max_windows or MAX_DIRECTION_WINDOWS, MAX_DIRECTION_WINDOWS)
        directions = concept_directions(model, inputs.dataset, num_windows, description="directions toward concepts")
        statistics = dataclasses.replace(statistics, directions=directions)
    write_statistics(config.output, statistics)
    return results, summary


def _occurrences(
    config: InspectConfig, inputs: _Inputs, model: CoCoMixForCausalLM | None, extractor: ConceptExtractor | None
) -> Occurrences:
    occurrences = find_occurrences(
        model,
        inputs.dataset,
        extractor=extractor,
        labels=inputs.read_labels,
        num_kept=KEPT_PER_CONTEXT * config.num_contexts,
        num_random=config.num_contexts,
        max_windows=config.max_windows,
    )
    if inputs.source is not None:
        inputs.source.check()
    return occurrences


def _measure(
    config: InspectConfig, inputs: _Inputs, model: CoCoMixForCausalLM, extractor: ConceptExtractor | None
) -> InspectionResults:
    occurrences = _occurrences(config, inputs, model, extractor)
    assert occurrences.activations is not None
    is_mixed = model.config.mixer.mixes
    measured = None
    if is_mixed and config.num_measured:
        counts = occurrences.strongest["prediction"].counts
        used = [concept for concept in counts.argsort(descending=True, stable=True).tolist() if counts[concept] > 0]
        mean_abs = occurrences.activations.mean_abs
        measured = measured_effects(model, inputs.dataset, used[: config.num_measured], mean_abs, config.num_tokens)
    num_labels, num_labelled_tokens = None, 0
    if inputs.labels is not None:
        num_labels, num_labelled_tokens = label_counts(inputs.labels)
    elif occurrences.quality is not None:
        num_labels, num_labelled_tokens = occurrences.quality.num_labels, occurrences.quality.num_tokens
    read = occurrences.token_counts.nonzero().squeeze(-1)
    compress, head = model.concept_mixer.compress_weight.detach(), model.concept_mixer.head_weight.detach()
    direct, logits = direct_effects(model.adapter, compress, read, config.num_tokens if is_mixed else 0)
    return InspectionResults(
        occurrences=occurrences,
        direct=direct,
        logits=logits if is_mixed else None,
        measured=measured,
        nearest=nearest_concepts(compress, config.num_nearest),
        nearest_predicted=nearest_concepts(head, config.num_nearest),
        compress_norms=compress.float().norm(dim=-1).cpu(),
        num_labels=num_labels,
        num_labelled_tokens=num_labelled_tokens,
    )


def label_counts(concepts: ConceptDataset) -> tuple[Int64[Tensor, " C"], int]:
    """How often each concept is a label, and how many tokens have labels."""
    counts, num_tokens = torch.zeros(concepts.num_concepts, dtype=torch.long), 0
    for start in range(0, concepts.num_windows, WINDOWS_PER_READ):
        labels = concepts.labels(range(start, min(start + WINDOWS_PER_READ, concepts.num_windows)))
        is_label = labels != IGNORED_LABEL
        counts += torch.bincount(labels[is_label], minlength=concepts.num_concepts)
        num_tokens += int(is_label.any(-1).sum())
    return counts, num_tokens


def _current_names(config: InspectConfig) -> list[str]:
    """Names of all concepts; new names and the statistics are written beside the model's weights.

    If that folder is read-only, or there is no model, they are written to the output folder.
    """
    made = read_columns(config.output, "made_name")["made_name"]
    C = len(made)
    model = config.model
    folder = model if model is not None and os.access(model, os.W_OK) else config.output
    names = add_names(folder, dict(enumerate(made)), C)
    num_kept = sum(names[concept] != name for concept, name in enumerate(made))
    if num_kept:
        say(f"{num_kept:,} names in {folder / NAMES_NAME} are kept; delete it and run this again to get new names")
    statistics, known = read_metadata(config.output, C).statistics, read_metadata(folder, C).statistics
    if statistics is not None and (known is None or known.num_tokens <= statistics.num_tokens):
        write_statistics(folder, statistics)  # statistics of more text are kept
    return [names[concept] for concept in range(C)]
