"""Inspections in the formats of Neuronpedia and delphi, read back as their own readers do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from cocomix import CardReader, TokenDataset, inspect
from cocomix.base import artifacts
from cocomix.tools.inspect import command as module
from tests.conftest import Tiny
from tests.tools.inspect.conftest import config
from tests.tools.inspect.made_up import make_inspection

#: Fields of SAEDashboard's `NeuronpediaDashboardFeature` and `NeuronpediaDashboardActivation`; all are lists but four.
FEATURE = {
    *("feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson"),
    *("correlated_features_indices", "correlated_features_l1", "correlated_features_pearson"),
    *("neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero", "freq_hist_data_bar_values"),
    *("freq_hist_data_bar_heights", "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "n_prompts_total"),
    *("n_tokens_in_prompt", "dataset", "activations", "decoder_weights_dist", "vector"),
}
ACTIVATION = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


@pytest.fixture(scope="module")
def own(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the student, beside which names are written."""
    return Path(shutil.copytree(student, tmp_path_factory.mktemp("export") / "cocomix"))


def batches(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "neuronpedia").glob("batch-*.json"), key=lambda path: int(path.stem.partition("-")[2]))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def of_dictionary(tiny: Tiny, output: Path, **settings: object) -> Any:
    return config(tiny, tiny.root, output, model=None, labels=None, **settings)


def test_neuronpedia_gets_every_feature_with_its_contexts(tiny: Tiny, tmp_path: Path) -> None:
    given = of_dictionary(tiny, tmp_path / "out", export=("neuronpedia",))
    inspect(given)
    (batch,) = batches(given.output)
    features = batch.pop("features")
    assert batch == {"model_id": "teacher", "layer": 0, "sae_set": "sae", "sae_id_suffix": None}
    reader = CardReader(given.output)
    assert [feature["feature_index"] for feature in features] == list(range(32))
    for feature in features:
        card = reader.card(feature["feature_index"])
        assert feature.keys() == FEATURE
        assert feature["frac_nonzero"] == card.sae_rate
        assert feature["pos_str"] == [effect.token for effect in card.promoted]
        assert feature["neg_values"] == sorted(feature["neg_values"])
        assert (feature["n_prompts_total"], feature["n_tokens_in_prompt"], feature["dataset"]) == (24, 16, "data")
        for name in ("freq", "logits"):
            centres, heights = (feature[f"{name}_hist_data_bar_{part}"] for part in ("values", "heights"))
            assert len(centres) == len(heights)
            assert centres == sorted(centres)
        assert sum(feature["freq_hist_data_bar_heights"]) == round(feature["frac_nonzero"] * 24 * 16)
        top = [each for each in feature["activations"] if each["bin_contains"] == -1]
        assert len(top) == len(card.contexts)
        assert len(feature["activations"]) == len(card.contexts) + len(card.random_contexts)
        for each in feature["activations"]:
            assert each.keys() == ACTIVATION
            assert len(each["tokens"]) == len(each["values"])
            at_mark = each["values"][each["qualifying_token_index"]]
            assert each in top or each["bin_min"] * 0.99 <= at_mark <= each["bin_max"] * 1.01
            assert each not in top or max(each["values"]) == pytest.approx(at_mark, rel=0.01)


def test_neuronpedia_gets_many_features_in_batches(tmp_path: Path) -> None:
    make_inspection(tmp_path / "out", 300)
    module.write_neuronpedia(tmp_path / "out", "model", "set", 3, "text")
    found = batches(tmp_path / "out")
    assert [len(batch["features"]) for batch in found] == [128, 128, 44]
    assert found[2]["features"][0]["feature_index"] == 256
    assert found[0]["features"][0]["frac_nonzero"] == CardReader(tmp_path / "out").card(0).prediction_rate


def cached(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The settings of delphi's cache and its one file, whose name says the first and the last latent."""
    (module_folder,) = (folder / "delphi" / "latents").iterdir()
    assert module_folder.name == "layers.0"
    (file,) = module_folder.glob("*.safetensors")
    first, last = map(int, file.stem.split("_"))
    assert (first, last) == (0, 31)
    tensors = load_file(file)
    assert {name: str(tensor.dtype) for name, tensor in tensors.items()} == {
        "locations": "uint16",
        "activations": "float16",
        "tokens": "int64",
    }
    settings: dict[str, Any] = json.loads((module_folder / "config.json").read_text(encoding="utf-8"))
    return settings, tensors


def test_delphi_gets_every_activation(tiny: Tiny, tmp_path: Path) -> None:
    given = of_dictionary(tiny, tmp_path / "out", export=("delphi",))
    inspect(given)
    settings, tensors = cached(given.output)
    locations, tokens, data = tensors["locations"], tensors["tokens"], TokenDataset(tiny.data, "validation")
    assert tokens.shape == (24, 16)
    assert (settings["ctx_len"], settings["n_tokens"], settings["dataset_split"]) == (16, 24 * 16, "validation")
    assert AutoTokenizer.from_pretrained(settings["model_name"]).vocab_size == data.tokenizer().vocab_size
    flat = locations[:, 0].astype(int) * 16 + locations[:, 1]
    assert (np.diff(flat) >= 0).all(), "delphi counts runs of equal contexts"
    reader = CardReader(given.output)
    for latent in range(32):
        card, own = reader.card(latent), tensors["activations"][locations[:, 2] == latent]
        assert len(own) == round((card.sae_rate or 0) * settings["n_tokens"])
        if len(own):
            assert float(own.max()) == pytest.approx(card.contexts[0].activation, rel=1e-3)


def test_a_finished_inspection_of_a_model_is_exported_without_a_new_one(
    tiny: Tiny, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(tiny, own, tmp_path / "out", num_probe_windows=0)
    inspect(given)

    def refuse(*_: Any) -> None:
        raise AssertionError("nothing is computed again")

    monkeypatch.setattr(module, "_compute", refuse)
    exporting = config(tiny, own, tmp_path / "out", num_probe_windows=0, export=("neuronpedia", "delphi"))
    inspect(exporting)
    (batch,) = batches(given.output)
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("cocomix", 0, "cocomix")
    reader, (_, tensors) = CardReader(given.output), cached(given.output)
    assert len(tensors["activations"]) == 4 * tensors["tokens"].size, "K concepts a token"
    for feature in batch["features"]:
        card = reader.card(feature["feature_index"])
        assert feature["frac_nonzero"] == card.prediction_rate
        assert len(feature["activations"]) == len(card.contexts_of("prediction"))
    page = given.output / "data" / "index.js"
    before = page.stat().st_mtime_ns
    inspect(exporting)
    assert page.stat().st_mtime_ns == before, "what is there is recognised"
    assert "neuronpedia/batch-0.json" in artifacts.read(given.output, "concept-inspection").files
