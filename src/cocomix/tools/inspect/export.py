"""An inspection in the formats of others: the concepts of its model, or the latents of a dictionary without one.

    neuronpedia/batch-0.json   cards as SAEDashboard's `NeuronpediaDashboardBatch`, which Neuronpedia's converter reads
    delphi/latents/layers.N/   delphi's cache: every activation in the text that was read, of which cards show few

What an inspection does not measure is left empty there: alignment with neurons, correlations and the vector.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from cocomix.base.artifacts import atomic, write_json
from cocomix.base.page import write_file
from cocomix.tools.inspect.cards import ConceptCard, Context, Histogram, card_of, read_summary, row_groups

# Shapes: B windows, T tokens, K concepts of a token.

_NOT_MEASURED = (
    *(f"neuron_alignment_{part}" for part in ("indices", "values", "l1")),
    *(f"correlated_{of}_{part}" for of in ("neurons", "features") for part in ("indices", "l1", "pearson")),
    *("decoder_weights_dist", "vector"),
)
#: What SAEDashboard says in place of the edges and the share of a bin, where contexts are the strongest.
_STRONGEST = -1.0
#: Smaller activations are none in delphi.
_SMALLEST = 1e-5
_MAX_UINT16 = 2**16


def write_neuronpedia(folder: Path, model: str, dictionary: str, layer: int, text: str) -> None:
    """Write `neuronpedia/` from the cards and the summary in a folder.

    Args:
        folder: of the inspection.
        model: name of the model that the features are of.
        dictionary: name of the set of features.
        layer: 0-based block after which they are read.
        text: name of the text.
    """
    summary, output = read_summary(folder), folder / "neuronpedia"
    source = "prediction" if "prediction" in summary["sources"] else "sae"
    N = summary["num_windows"]
    read = {"n_prompts_total": N, "n_tokens_in_prompt": summary["num_tokens"] // N, "dataset": text}
    output.mkdir(exist_ok=True)
    for number, rows in enumerate(row_groups(folder)):
        batch = {"model_id": model, "layer": layer, "sae_set": dictionary, "sae_id_suffix": None}
        features = {"features": [_feature(card_of(row), source) | read for row in rows]}
        content = json.dumps(batch | features, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        write_file(output / f"batch-{number}.json", content.encode())


def _feature(card: ConceptCard, source: str) -> dict[str, Any]:
    feature: dict[str, Any] = {name: [] for name in _NOT_MEASURED} | {"feature_index": card.concept}
    feature["frac_nonzero"] = card.prediction_rate if source == "prediction" else card.sae_rate
    for name, effects in (("pos", card.promoted), ("neg", card.suppressed)):
        feature[f"{name}_str"] = [effect.token for effect in effects]
        feature[f"{name}_values"] = [effect.change for effect in effects]
    for name, of in (("freq", source), ("logits", "logits")):
        found = next((histogram for histogram in card.histograms if histogram.of == of), Histogram(of, 0, 0, ()))
        centres = [found.start + (i + 0.5) * found.width for i in range(len(found.counts))]
        feature |= {f"{name}_hist_data_bar_values": centres, f"{name}_hist_data_bar_heights": found.counts}
    top = (_STRONGEST, card.largest(source), _STRONGEST)
    random = [context for context in card.random_contexts if context.source == source]
    feature["activations"] = [_activation(context, *top) for context in card.contexts_of(source)]
    for context in random:
        quarter = [other.activation for other in random if other.quarter == context.quarter]
        feature["activations"].append(_activation(context, min(quarter), max(quarter), len(quarter) / len(random)))
    return feature


def _activation(context: Context, bin_min: float, bin_max: float, bin_contains: float) -> dict[str, Any]:
    values = context.activations or (0.0, context.activation, 0.0)
    bins = {"bin_min": bin_min, "bin_max": bin_max, "bin_contains": bin_contains}
    return {"tokens": context.parts, "values": values, "qualifying_token_index": context.marked, **bins}


def write_delphi(
    folder: Path, model: str, layer: int, text: str, read: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Write `delphi/`: every activation, in one file.

    Args:
        folder: of the inspection.
        model: name or path of the model, whose tokenizer delphi loads unless it is given another.
        layer: 0-based block after which the concepts are read.
        text: name of the text.
        read: windows of it [B, T], their concepts and the activations of these, both [B, T, K].
    """
    summary, output = read_summary(folder), folder / "delphi" / "latents" / f"layers.{layer}"
    tokens, locations, activations = list[Tensor](), list[Tensor](), list[Tensor]()
    for input_ids, concepts, values in read:
        row, position, slot = (values.abs() > _SMALLEST).nonzero(as_tuple=True)  # in order of windows, as delphi needs
        locations.append(torch.stack([row + sum(map(len, tokens)), position, concepts[row, position, slot]], -1))
        activations.append(values[row, position, slot].half())
        tokens.append(input_ids)
    (N, T), C = (ids := torch.cat(tokens)).shape, summary["num_concepts"]
    integer = np.uint16 if max(N, T, C) <= _MAX_UINT16 else np.uint32
    found = {"locations": torch.cat(locations).numpy().astype(integer), "activations": torch.cat(activations).numpy()}
    output.mkdir(parents=True, exist_ok=True)
    with atomic(output / f"0_{C - 1}.safetensors") as partial:
        save_file(found | {"tokens": ids.numpy()}, partial)
    source = {"dataset_repo": text, "dataset_split": summary["split"], "dataset_name": "", "dataset_column": "text"}
    write_json(output / "config.json", {**source, "model_name": model, "ctx_len": T, "n_tokens": N * T, "n_splits": 1})
