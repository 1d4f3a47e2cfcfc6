"""Every format's files load to that format's own formula, and what is not exactly that format is refused with a sentence."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix import CocomixError, SparseAutoencoder
from cocomix.sae.find import local_path, recognise
from cocomix.sae.formats.files import NEEDED
from tests.sae.format_files import (
    CASES,
    OPENAI_TOPK,
    C,
    Case,
    D,
    K,
    dictionary_learning_settings,
    randn,
    saelens_5_settings,
    saelens_settings,
    sparsify_settings,
)
from tests.sae.test_model import dense

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
first_case_of_each_format = pytest.mark.parametrize(
    "case", {case.format: case for case in reversed(CASES.values())}.values(), ids=lambda case: case.format
)


def refused(path: Path, *named: str, **options: Any) -> None:
    """Loading raises one sentence that names these files, tensors, settings and values."""
    with pytest.raises(CocomixError) as caught:
        SparseAutoencoder.from_pretrained(path, **options)
    assert "\n" not in str(caught.value)
    assert [name for name in named if name not in str(caught.value)] == []


@every_case
def test_loaded_equals_the_formula_of_its_format(case: Case, tmp_path: Path) -> None:
    tensors = case.tensors()
    path = case.write(tmp_path, tensors, case.settings)
    assert recognise(path) == case.format
    sae = SparseAutoencoder.from_pretrained(path)
    h = 3 * randn(2, 7, D) + 1
    c, h_hat = case.formula(tensors, case.settings)(h)
    assert 0 < (c > 0).double().mean() < 1
    latents = sae.encode(h)
    torch.testing.assert_close(dense(latents, C), c)
    torch.testing.assert_close(sae.decode(latents), h_hat)
    assert latents.indices.shape[-1] <= sae.config.max_active_latents
    assert not any(parameter.requires_grad for parameter in sae.parameters())
    named = SparseAutoencoder.from_pretrained(str(path), case.format)
    assert torch.equal(named(h), sae(h))


@every_case
def test_a_step_of_a_latent_moves_the_reconstruction_by_its_scaled_decoder_row(case: Case, tmp_path: Path) -> None:
    sae = SparseAutoencoder.from_pretrained(case.write(tmp_path, case.tensors(), case.settings))
    latents = sae.encode(randn(3, D))
    before = sae.decode(latents)
    latents.values[:, 0] += 0.5
    step = 0.5 * latents.std * sae.decoder_weight[latents.indices[:, 0]]
    torch.testing.assert_close(sae.decode(latents) - before, step)


@every_case
def test_tensors_that_are_not_exactly_those_of_the_format_are_refused(case: Case, tmp_path: Path) -> None:
    good = case.tensors()
    for name in good:
        if name in case.ignored:
            continue
        others = {key: value for key, value in good.items() if key != name}
        path = case.write(tmp_path, {**others, f"{name}_renamed": good[name]}, case.settings)
        refused(path, name, format=case.format)
        if good[name].ndim:
            path = case.write(tmp_path, {**good, name: good[name][:-1].clone()}, case.settings)
            refused(path, "shape", str(tmp_path))
        if good[name].ndim == 2 and len(set(good[name].shape)) == 2:
            path = case.write(tmp_path, {**good, name: good[name].T.contiguous()}, case.settings)
            refused(path, name, "transposed")
    extra = case.write(tmp_path, {**good, "W_more": randn(2)}, case.settings)
    refused(extra, "W_more")


@first_case_of_each_format
def test_damaged_files_are_refused(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path, case.tensors(), case.settings)
    weights = next(file for file in tmp_path.rglob("*.*") if file.is_file() and file.suffix != ".json")
    whole = weights.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no weights"):
        weights.write_bytes(content)
        refused(path, weights.name, format=case.format)
    for settings in tmp_path.glob("*.json"):
        for content in ("{", "[]", "[" * 100_000, f'{{"a": {"9" * 5000}}}', '{"a": NaN}'):
            settings.write_text(content)
            refused(path, settings.name, format=case.format)
        settings.unlink()
        refused(path, settings.name, format=case.format)


@first_case_of_each_format
def test_as_many_latents_as_inputs_need_a_word(case: Case, tmp_path: Path) -> None:
    sizes = {"num_latents": D, "d_sae": D, "dict_size": D, "k": 2}
    settings = {name: sizes.get(name, value) for name, value in case.settings.items()}
    tensors = {name: tensor[(slice(0, D),) * tensor.ndim].clone() for name, tensor in case.tensors().items()}
    if "k" in tensors:
        tensors["k"] = torch.tensor(2)
    path = case.write(tmp_path, tensors, settings)
    refused(path, f"({D})", "allow_square=True")
    assert SparseAutoencoder.from_pretrained(path, allow_square=True).config.num_latents == D


@pytest.mark.parametrize(
    ("name", "changed", "named"),
    [
        ("openai", {"activation": "Swish"}, "activation 'Swish'"),
        ("openai", {"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "postact_fn = 'Identity'"),
        ("openai", {"activation_state_dict": [K]}, "activation_state_dict"),
        ("openai", {"activation_state_dict": {"k": "5", "postact_fn": "ReLU"}}, "k = '5'"),
        ("openai", {"activation_state_dict": {**OPENAI_TOPK["activation_state_dict"], "slope": 2}}, "slope"),
        ("sparsify, groupmax", {"signed": True}, "signed = True"),
        ("sparsify", {"activation": "relu"}, "activation = 'relu'"),
        ("sparsify", {"jump": 1}, "(jump)"),
        ("sparsify", {"k": True}, "k = True"),
        ("sparsify", {"k": None}, "setting k"),
        ("sparsify", {"k": C + 1}, "num_active_latents is 16"),
        ("sparsify, groupmax", {"k": 4}, "num_active_latents (4)"),
        ("saelens 6, standard", {"architecture": "gated"}, "architecture = 'gated'"),
        ("saelens 6, standard", {"architecture": "transcoder"}, "architecture = 'transcoder'"),
        ("saelens 6, standard", {"reshape_activations": "hook_z"}, "reshape_activations = 'hook_z'"),
        ("saelens 6, standard", {"normalize_activations": "covariance_whitening"}, "activation_whitening.safetensors"),
        ("saelens 6, checkpoint of batchtopk", {"k": 0}, "k = 0"),
        ("saelens 6, checkpoint of batchtopk", {"k": float("nan")}, "k = nan"),
        ("saelens 6, checkpoint of topk", {"k": 4.5}, "k = 4.5"),
        ("saelens 6, standard", {"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm"),
        ("saelens 6, standard", {"slope": 0.1}, "(slope)"),
        ("saelens 6, standard", {"k": 3}, "(k)"),
        ("saelens 5, standard", {"hook_name": "blocks.3.attn.hook_z"}, "reshape_activations = 'hook_z'"),
        ("saelens 5, standard", {"activation_fn_str": "tanh-relu"}, "activation_fn = 'tanh-relu'"),
        ("saelens 5, standard", {"activation_fn_kwargs": {"slope": 1}}, "slope"),
        ("saelens 5, standard", {"activation_fn_kwargs": ["slope"]}, "activation_fn_kwargs = ['slope']"),
        ("saelens 5, standard", {"slope": 0.1}, "(slope)"),
        ("saelens 5, topk", {"activation_fn_kwargs": {}}, "setting k"),
        ("saelens 5, fine-tuned", {"finetuning_scaling_factor": False}, "finetuning_scaling_factor"),
        ("saelens 5, scaled input", {"scaling_factor": -1}, "scaling_factor = -1"),
        ("gemma scope 2", {"architecture": "topk"}, "architecture = 'topk'"),
        ("gemma scope 2", {"type": "transcoder"}, "type = 'transcoder'"),
        ("gemma scope 2", {"affine_connection": True}, "affine_connection = True"),
        ("gemma scope 2", {"hf_hook_point_out": "model.layers.7.mlp"}, "hf_hook_point_out = 'model.layers.7.mlp'"),
        ("gemma scope 2", {"slope": 1}, "(slope)"),
        ("dictionary_learning, topk", {"dict_class": "GatedAutoEncoder"}, "dict_class = 'GatedAutoEncoder'"),
        ("dictionary_learning, topk", {"slope": 1}, "(slope)"),
        ("dictionary_learning, topk", {"k": K - 1}, "k = 4"),
    ],
)
def test_settings_that_change_the_result_are_refused_by_name(
    name: str, changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    case = CASES[name]
    refused(case.write(tmp_path, case.tensors(), case.settings | changed), named)


def test_a_transcoder_of_dictionary_learning_is_refused(tmp_path: Path) -> None:
    case = CASES["dictionary_learning, topk"]
    case.write(tmp_path, case.tensors(), case.settings)
    settings = {"trainer": dictionary_learning_settings("AutoEncoderTopK"), "buffer": {"io": "in_and_out"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    refused(tmp_path, "io = 'in_and_out'")


@pytest.mark.parametrize(("name", "setting"), [("saelens 6, standard", "architecture"), ("gemma scope 2", "type")])
@pytest.mark.parametrize("value", ["gated", "transcoder", "temporal"])
def test_what_is_not_read_says_what_it_would_need(name: str, setting: str, value: str, tmp_path: Path) -> None:
    case = CASES[name]
    refused(
        case.write(tmp_path, case.tensors(), case.settings | {setting: value}), f"{setting} = '{value}'", NEEDED[value]
    )


UNREADABLE = ("[" * 100_000, '{"k": ' + "9" * 5000 + "}", "\udcff", "null", '"text"', "")


@pytest.mark.parametrize("name", ["sparsify", "saelens 6, topk", "gemma scope 2", "dictionary_learning, topk"])
def test_settings_that_no_parser_takes_end_in_a_sentence(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = case.write(tmp_path, case.tensors(), case.settings)
    file = next(tmp_path.glob("*.json"))
    for content in UNREADABLE:
        file.write_text(content, encoding="utf-8", errors="surrogateescape")
        refused(path, file.name)


NUMBERS = ("9" * 4000, "-1", "0", "1e999", "NaN")
OTHERS = ("null", "true", "[1]", '{"k": []}', '""', '"' + "x" * 10**5 + '"', "[" * 300 + "]" * 300)


@pytest.mark.parametrize(
    "name",
    [
        "sparsify",
        "own",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("saelens 6, checkpoint of batchtopk", "saelens 5, topk", "gemma scope 2")
        ),
    ],
)
def test_any_value_of_a_setting_is_read_or_refused_in_a_short_sentence(name: str, tmp_path: Path) -> None:
    case = CASES["sparsify" if name == "own" else name]
    path = case.write(tmp_path, case.tensors(), case.settings)
    if name == "own":
        path = tmp_path / "own"
        SparseAutoencoder.from_pretrained(tmp_path).save_pretrained(path)
    (file,) = path.glob("*.json")
    settings = json.loads(file.read_text())
    for setting in settings:
        for value in (*NUMBERS, *OTHERS):
            file.write_text(json.dumps(settings | {setting: "VALUE"}).replace('"VALUE"', value))
            said = ""
            with warnings.catch_warnings(action="ignore"):
                try:
                    SparseAutoencoder.from_pretrained(path)
                except CocomixError as error:
                    said = str(error)
            assert len(said) < 1000
            assert "\n" not in said
            assert not said or str(tmp_path) in said


def test_how_many_latents_of_qwen_scope_are_active_is_said_by_the_folder_or_asked_for(tmp_path: Path) -> None:
    case = CASES["qwen scope"]
    path = case.write(tmp_path, case.tensors(), {})
    assert SparseAutoencoder.from_pretrained(path).config.num_active_latents == K
    refused(path.parent.parent, "layer7.sae.pt")
    shutil.copy(path, tmp_path / "layer7.sae.pt")
    refused(tmp_path / "layer7.sae.pt", "layer7.sae.pt", "L0_50")


class Payload:
    """A pickle that would write a file when opened carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "ran")


def test_files_that_could_run_code_are_refused_without_running_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    case = CASES["openai"]
    path = case.write(tmp_path, case.tensors() | {"pre_bias": Payload(victim)}, case.settings)
    refused(path, path.name)
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "params.npz", W_enc=np.array([Payload(victim)], dtype=object))
    refused(tmp_path / "npz", "params.npz")
    assert not victim.exists()


def test_pickles_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    for content in ([torch.ones(2)], {"weight": torch.ones(2)}, torch.nn.Linear(2, 3)):
        torch.save(content, path)
        refused(path, path.name)
    torch.save({"pre_bias": "text", "latent_bias": torch.ones(3)}, path)
    refused(path, "pre_bias", "str")
    case = CASES["openai"]
    quantised = case.tensors()["encoder.weight"].to(torch.int8)
    refused(case.write(tmp_path, case.tensors() | {"encoder.weight": quantised}, case.settings), "torch.int8")


def test_folders_that_are_no_dictionary_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "sae.json + sae.safetensors", "params.npz")
    refused(tmp_path, "'npy'", "own, openai", format="npy")
    sparsify, saelens = CASES["sparsify"], CASES["saelens 6, standard"]
    (tmp_path / "layers.3").mkdir()
    sparsify.write(tmp_path / "layers.3", sparsify.tensors(), sparsify.settings)
    refused(tmp_path, "layers.3")
    refused(tmp_path / "layers.3" / "sae.safetensors", "folder")
    saelens.write(tmp_path / "layers.3", saelens.tensors(), saelens.settings)
    refused(tmp_path / "layers.3", "sparsify or saelens")
    refused(tmp_path / "layers.3", "params.npz", format="gemma_scope")


@pytest.mark.parametrize(
    "settings",
    [
        sparsify_settings(num_latents=0, expansion_factor=2),
        {name: value for name, value in sparsify_settings(expansion_factor=2).items() if name != "num_latents"},
    ],
)
def test_sparsify_counts_latents_by_its_expansion_factor(settings: dict[str, Any], tmp_path: Path) -> None:
    tensors = {"encoder.weight": randn(12, D), "encoder.bias": randn(12), "W_dec": randn(12, D), "b_dec": randn(D)}
    path = CASES["sparsify"].write(tmp_path, tensors, settings)
    assert SparseAutoencoder.from_pretrained(path).config.num_latents == 12


@pytest.mark.parametrize(
    "settings",
    [
        saelens_settings("standard", normalize_activations="expected_average_only_in"),
        saelens_5_settings(normalize_activations=True),
    ],
)
def test_a_scaled_input_without_its_factor_is_warned_about(settings: dict[str, Any], tmp_path: Path) -> None:
    case = CASES["saelens 6, standard"]
    tensors = case.tensors()
    with pytest.warns(UserWarning, match=r"activation_scaler.json.*fold_input_scale"):
        sae = SparseAutoencoder.from_pretrained(case.write(tmp_path, tensors, settings))
    h = randn(4, D)
    torch.testing.assert_close(sae(h), case.formula(tensors, settings)(h)[1])
    sae.fold_input_scale(0.3)
    torch.testing.assert_close(sae(h), case.formula(tensors, settings | {"scaling_factor": 0.3})(h)[1])


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    case = CASES["sparsify"]
    tensors = {name: tensor.bfloat16() for name, tensor in case.tensors().items()}
    sae = SparseAutoencoder.from_pretrained(case.write(tmp_path, tensors, case.settings))
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.float32}
    assert torch.equal(sae.encoder_weight, tensors["encoder.weight"].float())


@every_case
def test_own_format_keeps_everything(case: Case, tmp_path: Path) -> None:
    sae = SparseAutoencoder.from_pretrained(case.write(tmp_path, case.tensors(), case.settings))
    sae.save_pretrained(tmp_path / "own")
    assert recognise(tmp_path / "own") == "own"
    loaded = SparseAutoencoder.from_pretrained(tmp_path / "own")
    assert loaded.config == sae.config
    h = randn(5, D)
    assert torch.equal(loaded(h), sae(h))


@every_case
def test_written_for_saelens_is_read_back_the_same_or_refused(case: Case, tmp_path: Path) -> None:
    sae = SparseAutoencoder.from_pretrained(case.write(tmp_path, case.tensors(), case.settings))
    target = tmp_path / "saelens"
    if sae.config.activation == "groupmax" or sae.config.skip_connection:
        with pytest.raises(CocomixError, match="SAELens"):
            sae.save_pretrained(target, format="saelens")
        return
    sae.save_pretrained(target, format="saelens")
    assert recognise(target) == "saelens"
    tensors, settings = load_file(target / "sae_weights.safetensors"), json.loads((target / "cfg.json").read_text())
    h = randn(5, D)
    expected = sae(h)
    torch.testing.assert_close(SparseAutoencoder.from_pretrained(target)(h), expected)
    formula = CASES["saelens 6, standard"].formula(tensors, settings)  # as SAELens itself would compute
    torch.testing.assert_close(formula(h)[1], expected)


def test_own_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    case = CASES["gemma scope"]
    sae = SparseAutoencoder.from_pretrained(case.write(tmp_path, case.tensors(), case.settings))
    with pytest.raises(CocomixError, match=r"own or saelens.*'npz'"):
        sae.save_pretrained(tmp_path, format="npz")
    own = tmp_path / "own"
    sae.save_pretrained(own)
    good = load_file(own / "sae.safetensors")
    for bad, named in (
        (good | {"extra": torch.ones(1)}, "extra"),
        ({name: tensor for name, tensor in good.items() if name != "threshold"}, "threshold"),
        (good | {"decoder_weight": good["decoder_weight"].T.contiguous()}, "decoder_weight"),
    ):
        save_file(bad, own / "sae.safetensors")
        refused(own, named)
    settings = json.loads((own / "sae.json").read_text())
    for changed, named in (
        ({"format_version": 1}, "has format version 1, not 2"),
        ({"slope": 1}, "slope"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"normalize_input": True}, "normalize_input = True"),
        ({"num_active_latents": 3}, "num_active_latents is 3"),
        ({"excluded": {"last": True}}, "does not know (last)"),
        ({"excluded": {"tokens": ["a"]}}, "tokens is ['a']; excluded tokens"),
        ({"excluded": {"max_norm": -1}}, "max_norm is -1"),
    ):
        (own / "sae.json").write_text(json.dumps(settings | changed))
        refused(own, named)


def test_hub_names_are_downloaded_where_nothing_is_at_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []
    case = CASES["gemma scope"]
    (tmp_path / "layer_7" / "width_16k").mkdir(parents=True)
    case.write(tmp_path / "layer_7" / "width_16k", case.tensors(), {})

    def download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    sae = SparseAutoencoder.from_pretrained("google/gemma-scope/layer_7/width_16k")
    assert sae.config.activation == "jumprelu"
    assert asked[0][0] == "google/gemma-scope"
    assert "layer_7/width_16k/params.npz" in asked[0][1]
    with pytest.raises(CocomixError, match="layer_8"):
        SparseAutoencoder.from_pretrained("google/gemma-scope/layer_8")
    shutil.rmtree(tmp_path / "layer_7")
    case.write(tmp_path, case.tensors(), {})
    assert local_path("google/gemma-scope") == tmp_path
    assert "params.npz" in asked[-1][1]


def test_names_that_lead_nowhere_are_refused_with_a_sentence(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "missing", "Hugging Face Hub")
    refused(Path("nobody/nothing-here"), "nobody/nothing-here", "Hugging Face Hub")
