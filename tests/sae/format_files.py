"""Dictionaries of every format with random weights: their files, and their formulas as their makers state them.

Each `Case` writes one dictionary and returns its path and its formula, which maps h to dense latents and a reconstruction.
All weights are float64, so that formula and loaded dictionary agree to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, C, K = 6, 15, 5

Formula = Callable[[Tensor], tuple[Tensor, Tensor]]
Tensors = dict[str, Any]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def top_k(z: Tensor, k: int = K) -> Tensor:
    """z where it is among the k largest of its row, else 0."""
    return z * torch.zeros_like(z).scatter(-1, z.topk(k, dim=-1).indices, 1.0)


def abs_top_k(z: Tensor, k: int = K) -> Tensor:
    """z where its size is among the k largest of its row, else 0."""
    return z * torch.zeros_like(z).scatter(-1, z.abs().topk(k, dim=-1).indices, 1.0)


@dataclass(frozen=True)
class Case:
    """One dictionary of one format."""

    format: str
    write: Callable[[Path, Tensors, dict[str, Any]], Path]
    """Writes tensors and settings into a folder, and returns what `from_pretrained` is given."""
    tensors: Callable[[], Tensors]
    formula: Callable[[Tensors, dict[str, Any]], Formula]
    settings: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    """Tensors without a meaning for the result."""


# --- OpenAI ---


def write_openai(folder: Path, tensors: Tensors, settings: dict[str, Any]) -> Path:
    torch.save({**tensors, **settings}, folder / "7.pt")
    return folder / "7.pt"


def openai_tensors() -> Tensors:
    return {
        "pre_bias": randn(D),
        "encoder.weight": randn(C, D),
        "latent_bias": randn(C),
        "decoder.weight": randn(D, C),
        **{name: torch.zeros(C) for name in OPENAI_STATISTICS},
    }


OPENAI_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
OPENAI_TOPK = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}


def openai_formula(w: Tensors, settings: dict[str, Any]) -> Formula:
    is_topk = settings.get("activation") == "TopK"

    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        mu, std = 0.0, 1.0
        if is_topk:
            mu = x.mean(-1, keepdim=True)
            std = (x - mu).std(-1, keepdim=True)
            x = (x - mu) / (std + 1e-5)
        pre = (x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
        latents = top_k(pre).relu() if is_topk else pre.relu()
        return latents, (latents @ w["decoder.weight"].T + w["pre_bias"]) * std + mu

    return apply


# --- sparsify ---


def write_sparsify(folder: Path, tensors: Tensors, settings: dict[str, Any]) -> Path:
    (folder / "cfg.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "sae.safetensors")
    return folder


def sparsify_tensors() -> Tensors:
    return {"encoder.weight": randn(C, D), "encoder.bias": randn(C), "W_dec": randn(C, D), "b_dec": randn(D)}


def sparsify_settings(**changed: Any) -> dict[str, Any]:
    shared = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": C, "k": K, "multi_topk": False}
    return shared | {"activation": "topk", "skip_connection": False, "transcode": False, "d_in": D} | changed


def sparsify_formula(w: Tensors, settings: dict[str, Any]) -> Formula:
    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        centred = x if settings["transcode"] else x - w["b_dec"]
        pre = centred @ w["encoder.weight"].T + w["encoder.bias"]
        acts = pre.relu()
        if settings.get("signed"):
            acts = abs_top_k(pre)
        elif settings["activation"] == "topk":
            acts = top_k(acts)
        else:
            groups = acts.unflatten(-1, (K, -1))
            acts = (groups * (groups == groups.amax(-1, keepdim=True))).flatten(-2)
        y = acts @ w["W_dec"] + w["b_dec"]
        return acts, y + x @ w["W_skip"].T if settings["skip_connection"] else y

    return apply


# --- SAELens ---


def write_saelens(folder: Path, tensors: Tensors, settings: dict[str, Any]) -> Path:
    settings = dict(settings)
    if "scaling_factor" in settings:
        scaler = {"scaling_factor": settings.pop("scaling_factor"), "has_whitening": False}
        (folder / "activation_scaler.json").write_text(json.dumps(scaler))
    if "whitening" in settings:
        save_file(settings.pop("whitening"), folder / "activation_whitening.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def saelens_tensors() -> Tensors:
    return {"W_enc": randn(D, C), "b_enc": randn(C), "W_dec": randn(C, D), "b_dec": randn(D)}


def saelens_settings(architecture: str, **changed: Any) -> dict[str, Any]:
    shared = {"architecture": architecture, "d_in": D, "d_sae": C, "dtype": "float64", "device": "cuda"}
    shared |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    metadata = {"sae_lens_version": "6.1.0", "model_name": "gpt2", "hook_name": "blocks.6.hook_resid_post"}
    return shared | {"metadata": metadata} | changed


def saelens_training_settings(architecture: str, **changed: Any) -> dict[str, Any]:
    """Of a checkpoint of version 6, which has the settings of the training too."""
    training: dict[str, Any] = {"decoder_init_norm": 0.1}
    if "topk" in architecture:
        training |= {"k": K, "rescale_acts_by_decoder_norm": True, "use_sparse_activations": False}
        training |= {"aux_loss_coefficient": 1.0}
    if "batchtopk" in architecture:
        training |= {"k": 4.6, "topk_threshold_lr": 0.01}
    if architecture == "matryoshka_batchtopk":
        training |= {"matryoshka_widths": [4, 9, C], "use_matryoshka_aux_loss": False}
    if architecture == "jumprelu":
        training |= {"jumprelu_init_threshold": 0.01, "jumprelu_bandwidth": 0.05, "l0_coefficient": 1.0}
        training |= {"l0_warm_up_steps": 0, "jumprelu_sparsity_loss_mode": "step", "jumprelu_tanh_scale": 4.0}
        training |= {"pre_act_loss_coefficient": None}
    if architecture == "standard":
        training |= {"l1_coefficient": 1.0, "lp_norm": 1.0, "l1_warm_up_steps": 0}
    return saelens_settings(architecture, **training | changed)


def whitening() -> Tensors:
    """z = (x - mean) matrix, and its inverse."""
    generator = torch.Generator().manual_seed(0)
    mean, matrix = torch.randn(D, generator=generator), torch.randn(D, D, generator=generator)
    matrix = matrix.double() + 2 * torch.eye(D)
    return {"mean": mean.double(), "matrix": matrix, "inverse_matrix": matrix.inverse().contiguous()}


def saelens_5_settings(**changed: Any) -> dict[str, Any]:
    shared = {"d_in": D, "d_sae": C, "dtype": "torch.float32", "device": "cpu", "finetuning_scaling_factor": False}
    shared |= {"model_name": "gpt2", "hook_layer": 6, "hook_head_index": None, "context_size": 128, "prepend_bos": True}
    shared |= {"dataset_path": "some/text", "normalize_activations": "none", "sae_lens_training_version": None}
    return shared | {"hook_name": "blocks.6.hook_resid_post", "activation_fn_str": "relu"} | changed


def saelens_formula(w: Tensors, settings: dict[str, Any]) -> Formula:
    """Of version 6; version 5 differs in its settings' names alone."""
    kwargs = settings.get("activation_fn_kwargs", {})
    k = settings.get("k", kwargs.get("k"))
    normalize, scale = settings["normalize_activations"], settings.get("scaling_factor", 1.0)

    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        undo: Callable[[Tensor], Tensor] = lambda y: y  # noqa: E731
        if normalize == "constant_norm_rescale":
            coefficient = D**0.5 / x.norm(dim=-1, keepdim=True)
            x, undo = x * coefficient, lambda y: y / coefficient
        elif normalize == "layer_norm":
            mu = x.mean(-1, keepdim=True)
            std = (x - mu).std(-1, keepdim=True)
            x, undo = (x - mu) / (std + 1e-5), lambda y: y * std + mu
        elif normalize in ("expected_average_only_in", True):
            x, undo = x * scale, lambda y: y / scale
        elif normalize == "covariance_whitening":
            maps = settings["whitening"]
            x, undo = (x - maps["mean"]) @ maps["matrix"], lambda y: y @ maps["inverse_matrix"] + maps["mean"]
        pre = (x - w["b_dec"] * settings.get("apply_b_dec_to_input", True)) @ w["W_enc"] + w["b_enc"]
        norms = w["W_dec"].norm(dim=-1) if settings.get("rescale_acts_by_decoder_norm") else torch.ones(C).double()
        acts = (pre * norms).relu()
        if "topk_threshold" in w:  # an average k, kept by one threshold
            acts = acts * (acts > w["topk_threshold"])
        elif settings.get("architecture") == "abstopk":
            acts = abs_top_k(pre * norms, k)
        elif k is not None:
            acts = top_k(pre * norms, k).relu()
        if "threshold" in w:
            acts = acts * (pre > w["threshold"])
        factor = w.get("finetuning_scaling_factor", torch.ones(C).double())
        return acts, undo((acts * factor / norms) @ w["W_dec"] + w["b_dec"])

    return apply


# --- Gemma Scope ---


def write_gemma_scope(folder: Path, tensors: Tensors, _settings: dict[str, Any]) -> Path:
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    return folder


def write_gemma_scope_2(folder: Path, tensors: Tensors, settings: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "params.safetensors")
    return folder


def gemma_scope_formula(w: Tensors, _settings: dict[str, Any]) -> Formula:
    w = {name.lower(): tensor for name, tensor in w.items()}

    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ w["w_enc"] + w["b_enc"]
        acts = (pre > w["threshold"]) * pre.relu()
        return acts, acts @ w["w_dec"] + w["b_dec"]

    return apply


# --- dictionary_learning ---


def write_dictionary_learning(folder: Path, tensors: Tensors, settings: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps({"trainer": settings, "buffer": {"io": "out", "ctx_len": 128}}))
    torch.save(tensors, folder / "ae.pt")
    return folder


def dictionary_learning_tensors() -> Tensors:
    weights = {"encoder.weight": randn(C, D), "encoder.bias": randn(C), "decoder.weight": randn(D, C)}
    return weights | {"b_dec": randn(D), "k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.7)}


def dictionary_learning_settings(dict_class: str) -> dict[str, Any]:
    shared = {"dict_class": dict_class, "trainer_class": "SomeTrainer", "lr": 1e-4, "steps": 10, "layer": 3}
    return shared | {"activation_dim": D, "dict_size": C, "k": K, "lm_name": "gpt2", "device": "cuda:0"}


def dictionary_learning_formula(w: Tensors, settings: dict[str, Any]) -> Formula:
    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        acts = ((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
        acts = top_k(acts) if settings["dict_class"] == "AutoEncoderTopK" else acts * (acts > w["threshold"])
        return acts, acts @ w["decoder.weight"].T + w["b_dec"]

    return apply


def matryoshka_tensors() -> Tensors:
    groups = {"group_sizes": torch.tensor([4, 5, C - 9])}
    return saelens_tensors() | {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.7)} | groups


def matryoshka_formula(w: Tensors, _settings: dict[str, Any]) -> Formula:
    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        acts = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        acts = acts * (acts > w["threshold"])
        return acts, acts @ w["W_dec"] + w["b_dec"]

    return apply


# --- Qwen-Scope ---


def write_qwen_scope(folder: Path, tensors: Tensors, _settings: dict[str, Any]) -> Path:
    repository = folder / f"SAE-Res-Qwen3-0.6B-Base-W15-L0_{K}"
    repository.mkdir(exist_ok=True)
    torch.save(tensors, repository / "layer7.sae.pt")
    return repository / "layer7.sae.pt"


def qwen_scope_tensors() -> Tensors:
    # The k largest are positive, as among 32,768: its own formula has no ReLU.
    return {"W_enc": randn(C, D), "W_dec": randn(D, C), "b_enc": randn(C) + 50, "b_dec": randn(D)}


def qwen_scope_formula(w: Tensors, _settings: dict[str, Any]) -> Formula:
    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        acts = top_k(x @ w["W_enc"].T + w["b_enc"])
        return acts, acts @ w["W_dec"].T + w["b_dec"]

    return apply


def _saelens(settings: dict[str, Any], **more: tuple[int, ...]) -> Case:
    def tensors() -> Tensors:
        return saelens_tensors() | {name: randn(*shape).abs() for name, shape in more.items()}

    return Case("saelens", write_saelens, tensors, saelens_formula, settings)


def _sparsify(settings: dict[str, Any]) -> Case:
    def tensors() -> Tensors:
        return sparsify_tensors() | ({"W_skip": randn(D, D)} if settings["skip_connection"] else {})

    return Case("sparsify", write_sparsify, tensors, sparsify_formula, settings)


def _gemma_tensors() -> Tensors:
    return saelens_tensors() | {"threshold": randn(C)}  # negative ones too: a ReLU follows


CASES = {
    "openai": Case("openai", write_openai, openai_tensors, openai_formula, OPENAI_TOPK, OPENAI_STATISTICS),
    "openai, ReLU": Case(
        "openai", write_openai, openai_tensors, openai_formula, {"activation": "ReLU"}, OPENAI_STATISTICS
    ),
    "sparsify": _sparsify(sparsify_settings()),
    "sparsify, groupmax": _sparsify(sparsify_settings(activation="groupmax")),
    "sparsify, signed": _sparsify(sparsify_settings(signed=True)),
    "sparsify, transcoder": _sparsify(sparsify_settings(transcode=True, skip_connection=True)),
    "sparsify, skip": _sparsify(sparsify_settings(skip_connection=True)),
    "saelens 6, standard": _saelens(saelens_settings("standard")),
    "saelens 6, bias not subtracted": _saelens(saelens_settings("standard", apply_b_dec_to_input=False)),
    "saelens 6, topk": _saelens(saelens_settings("topk", k=K, normalize_activations="layer_norm")),
    "saelens 6, rescaled topk": _saelens(saelens_settings("topk", k=K, rescale_acts_by_decoder_norm=True)),
    "saelens 6, jumprelu": _saelens(
        saelens_settings("jumprelu", normalize_activations="constant_norm_rescale"), threshold=(C,)
    ),
    "saelens 6, scaled input": _saelens(
        saelens_settings("jumprelu", normalize_activations="expected_average_only_in", scaling_factor=0.3),
        threshold=(C,),
    ),
    "saelens 6, abstopk": _saelens(saelens_settings("abstopk", k=K)),
    "saelens 6, checkpoint of standard": _saelens(saelens_training_settings("standard")),
    "saelens 6, checkpoint of jumprelu": _saelens(saelens_training_settings("jumprelu"), threshold=(C,)),
    "saelens 6, checkpoint of topk": _saelens(saelens_training_settings("topk")),
    "saelens 6, checkpoint of abstopk": _saelens(saelens_training_settings("abstopk")),
    "saelens 6, checkpoint of batchtopk": _saelens(saelens_training_settings("batchtopk"), topk_threshold=()),
    "saelens 6, checkpoint of matryoshka": _saelens(
        saelens_training_settings("matryoshka_batchtopk", rescale_acts_by_decoder_norm=False), topk_threshold=()
    ),
    "saelens 6, whitened": _saelens(
        saelens_training_settings("topk", normalize_activations="covariance_whitening", whitening=whitening())
    ),
    "saelens 6, whitened, bias not subtracted": _saelens(
        saelens_settings("standard", normalize_activations="covariance_whitening", apply_b_dec_to_input=False)
        | {"whitening": whitening()}
    ),
    "saelens 5, standard": _saelens(saelens_5_settings()),
    "saelens 5, topk": _saelens(
        saelens_5_settings(architecture="topk", activation_fn_str="topk", activation_fn_kwargs={"k": K})
    ),
    "saelens 5, older topk": _saelens(
        saelens_5_settings(activation_fn="topk", activation_fn_str=None, activation_fn_kwargs={"k": K}, lr=1e-4)
        | {"normalize_activations": False}
    ),
    "saelens 5, jumprelu": _saelens(saelens_5_settings(architecture="jumprelu"), threshold=(C,)),
    "saelens 5, scaled input": _saelens(saelens_5_settings(normalize_activations=True, scaling_factor=0.3)),
    "saelens 5, fine-tuned": _saelens(
        saelens_5_settings(finetuning_scaling_factor=True), finetuning_scaling_factor=(C,)
    ),
    "gemma scope": Case("gemma_scope", write_gemma_scope, _gemma_tensors, gemma_scope_formula),
    "gemma scope 2": Case(
        "gemma_scope_2",
        write_gemma_scope_2,
        lambda: {name.lower(): tensor for name, tensor in _gemma_tensors().items()},
        gemma_scope_formula,
        {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "width": C, "l0": 60, "affine_connection": False}
        | {"hf_hook_point_in": "model.layers.7.output", "hf_hook_point_out": "model.layers.7.output"},
    ),
    "dictionary_learning, topk": Case(
        "dictionary_learning",
        write_dictionary_learning,
        dictionary_learning_tensors,
        dictionary_learning_formula,
        dictionary_learning_settings("AutoEncoderTopK"),
        ("k", "threshold"),
    ),
    "dictionary_learning, batchtopk": Case(
        "dictionary_learning",
        write_dictionary_learning,
        dictionary_learning_tensors,
        dictionary_learning_formula,
        dictionary_learning_settings("BatchTopKSAE"),
        ("k",),
    ),
    "dictionary_learning, matryoshka": Case(
        "dictionary_learning",
        write_dictionary_learning,
        matryoshka_tensors,
        matryoshka_formula,
        dictionary_learning_settings("MatryoshkaBatchTopKSAE")
        | {"group_fractions": [0.25, 0.35, 0.4], "group_weights": [1 / 3] * 3, "group_sizes": [4, 5, 6]},
        ("k", "group_sizes"),
    ),
    "qwen scope": Case("qwen_scope", write_qwen_scope, qwen_scope_tensors, qwen_scope_formula),
}
