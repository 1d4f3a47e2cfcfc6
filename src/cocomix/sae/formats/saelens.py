"""SAELens: `cfg.json` and `sae_weights.safetensors`, read in versions 6 and 5, written in version 6.

Checkpoints of a training have the same files. They compute what SAELens's own export of them computes: BatchTopK and
Matryoshka by their threshold. Four of its settings are maps that it keeps beside the weights; they are folded into them,
exactly up to rounding.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cocomix.base.artifacts import write_json
from cocomix.base.errors import CocomixError
from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.formats.files import SaeWeights, Settings, read_safetensors, short

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"
#: Where a training run leaves the factor of `expected_average_only_in`, and the maps of `covariance_whitening`.
SCALER_NAME = "activation_scaler.json"
WHITENING_NAME = "activation_whitening.safetensors"
#: The activation of each architecture, and the type of its k: on average, BatchTopK can keep any number of latents.
ARCHITECTURES: dict[str, tuple[str, type | None]] = {
    "standard": ("relu", None),
    "topk": ("topk", int),
    "abstopk": ("abstopk", int),
    "jumprelu": ("jumprelu", None),
    "batchtopk": ("batchtopk", float),
    "matryoshka_batchtopk": ("batchtopk", float),
}
NORMALIZATIONS = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
    "expected_average_only_in": "none",  # these two are folded into the weights
    "covariance_whitening": "none",
}

#: Older names in the flat object that was written before version 6.
_RENAMED_SINCE_5 = {"activation_fn": "activation_fn_str", "hook_point": "hook_name"}
#: Settings of either version that describe the model, the data and the training: they do not change what is computed.
_IGNORED = (
    "model_name model_class_name hook_eval hook_layer hook_head_index hook_point_layer hook_point_head_index dataset_path "
    "dataset_trust_remote_code streaming is_dataset_tokenized context_size use_cached_activations cached_activations_path "
    "b_dec_init_method expansion_factor normalize_sae_decoder noise_scale from_pretrained_path decoder_orthogonal_init "
    "decoder_heuristic_init decoder_heuristic_init_norm init_encoder_as_decoder_transpose n_batches_in_buffer "
    "training_tokens finetuning_tokens store_batch_size_prompts store_batch_size seqpos_slice act_store_device seed "
    "prepend_bos jumprelu_init_threshold jumprelu_bandwidth autocast autocast_lm compile_llm llm_compilation_mode "
    "compile_sae sae_compilation_mode train_batch_size_tokens train_batch_size adam_beta1 adam_beta2 mse_loss_normalization "
    "l1_coefficient lp_norm scale_sparsity_penalty_by_decoder_norm l1_warm_up_steps lr lr_scheduler_name "
    "lr_warm_up_steps lr_end lr_decay_steps n_restart_cycles finetuning_method use_ghost_grads feature_sampling_window "
    "dead_feature_window dead_feature_threshold n_eval_batches eval_batch_size_prompts log_to_wandb "
    "log_activations_store_to_wandb log_optimizer_state_to_wandb wandb_project wandb_id run_name wandb_entity "
    "wandb_log_frequency eval_every_n_wandb_logs resume n_checkpoints checkpoint_path verbose model_kwargs "
    "model_from_pretrained_kwargs sae_lens_version sae_lens_training_version exclude_special_tokens neuronpedia_id "
    "tokens_per_buffer decoder_init_norm l0_coefficient l0_warm_up_steps jumprelu_sparsity_loss_mode jumprelu_tanh_scale "
    "pre_act_loss_coefficient use_sparse_activations aux_loss_coefficient topk_threshold_lr matryoshka_widths "
    "use_matryoshka_aux_loss dtype device"
)


def read(folder: Path) -> SaeWeights:
    settings = Settings.read(folder / CONFIG_NAME)
    if settings.entries.get("metadata") is None:  # new in version 6
        settings = Settings(settings.path, _as_version_6(settings))
    architecture = settings.entries.get("architecture")  # an unknown one is refused next
    activation, kind_of_k = ARCHITECTURES.get(architecture if isinstance(architecture, str) else "", ("", None))
    values = settings.take(
        required={"architecture": str, "d_in": int, "d_sae": int} | ({"k": kind_of_k} if kind_of_k else {}),
        optional={"normalize_activations": "none", "apply_b_dec_to_input": True, "reshape_activations": "none"}
        | {"finetuning_scaling_factor": False, "rescale_acts_by_decoder_norm": False, "metadata": {}},
        only={
            "architecture": ARCHITECTURES,
            "normalize_activations": NORMALIZATIONS,
            "reshape_activations": ("none",),  # other values belong to the heads of an attention
            "rescale_acts_by_decoder_norm": (False, True) if kind_of_k else (False,),
        },
        ignored=_IGNORED,
    )
    K: Any = values.get("k")
    if kind_of_k is float:
        if not 0 < K <= values["d_sae"]:
            settings.refuse("k", K, "it must be above 0 and at most d_sae")
        K = max(1, round(K))
    config = SparseAutoencoderConfig(
        values["d_in"],
        values["d_sae"],
        K,
        normalize_input=NORMALIZATIONS[values["normalize_activations"]],
        activation=activation,
        subtract_decoder_bias=values["apply_b_dec_to_input"],
    )
    tensors = read_safetensors(folder / WEIGHTS_NAME)
    factors = []  # on each latent before decoding
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in tensors:
            factor = tensors.take(name, config.num_latents)
            # For a time it was written, as ones, where it was not used.
            if not values["finetuning_scaling_factor"] and not torch.equal(factor, torch.ones_like(factor)):
                raise CocomixError(f"{tensors.path} has a {name}, but {CONFIG_NAME} does not say that it is used")
            factors.append(factor)
    threshold = "topk_threshold" if activation == "batchtopk" else "threshold"
    weights = tensors.take_weights(config, f"W_enc.T b_enc W_dec b_dec {threshold}").tensors
    for factor in factors:
        weights["decoder_weight"] = weights["decoder_weight"] * factor.unsqueeze(-1)
    if values["rescale_acts_by_decoder_norm"]:
        weights = _with_decoder_norms(weights)
    if values["normalize_activations"] == "expected_average_only_in":
        weights = with_input_scale(weights, _input_scale(folder))
    if values["normalize_activations"] == "covariance_whitening":
        weights = _with_whitening(weights, folder, is_bias_subtracted=config.subtract_decoder_bias)
    return SaeWeights(config, weights)


def write(folder: Path, config: SparseAutoencoderConfig, tensors: dict[str, Tensor]) -> None:
    """Write version 6. BatchTopK becomes JumpReLU with equal thresholds, as SAELens's own BatchTopK does."""
    if config.activation == "groupmax" or config.skip_connection or config.transcode:
        what = "a transcoder" if config.transcode or config.skip_connection else "activation 'groupmax'"
        raise CocomixError(f"SAELens has no autoencoder with {what}; save it in cocomix's own format")
    architectures = {"relu": "standard", "topk": "topk", "abstopk": "abstopk"}
    values: dict[str, Any] = {
        "architecture": architectures.get(config.activation, "jumprelu"),
        "d_in": config.hidden_size,
        "d_sae": config.num_latents,
        "dtype": str(tensors["encoder_weight"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": config.subtract_decoder_bias,
        "normalize_activations": config.normalize_input,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0"},  # a lower one, or none, would be read as version 5
    }
    if config.activation in ("topk", "abstopk"):
        values |= {"k": config.num_active_latents, "rescale_acts_by_decoder_norm": False}
    renamed = {
        "W_enc": tensors["encoder_weight"].t().contiguous(),
        "b_enc": tensors["encoder_bias"],
        "W_dec": tensors["decoder_weight"],
        "b_dec": tensors["decoder_bias"],
    }
    if "threshold" in tensors:
        renamed["threshold"] = tensors["threshold"].expand(config.num_latents).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(renamed, folder / WEIGHTS_NAME)
    write_json(folder / CONFIG_NAME, values)


def with_input_scale(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Tensors of the dictionary that sees `factor * h` and whose output is divided by `factor`."""
    return {
        **tensors,
        "encoder_weight": tensors["encoder_weight"] * factor,
        "decoder_weight": tensors["decoder_weight"] / factor,
        "decoder_bias": tensors["decoder_bias"] / factor,
    }


def _with_decoder_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the dictionary that chooses latents by pre-activation times decoder norm, decoder rows at unit norm."""
    norms = tensors["decoder_weight"].norm(dim=-1, keepdim=True).clamp(min=1e-8)  # a row of zeros stays one
    return {
        **tensors,
        "encoder_weight": tensors["encoder_weight"] * norms,
        "encoder_bias": tensors["encoder_bias"] * norms.squeeze(-1),
        "decoder_weight": tensors["decoder_weight"] / norms,
    }


def _with_whitening(tensors: Mapping[str, Tensor], folder: Path, *, is_bias_subtracted: bool) -> dict[str, Tensor]:
    """Tensors of the dictionary that sees z = (h - mean) M and gives z' M^-1 + mean, in the precision of the whitening."""
    file, D = read_safetensors(folder / WHITENING_NAME), len(tensors["decoder_bias"])
    mean = file.take("mean", D).double()
    matrix, inverse = (file.take(name, D, D).double() for name in ("matrix", "inverse_matrix"))
    encoder = tensors["encoder_weight"].double() @ matrix.t()
    whitened = {
        "encoder_weight": encoder,
        # Where the decoder's bias is subtracted, it takes the mean with it.
        "encoder_bias": tensors["encoder_bias"].double() - (0 if is_bias_subtracted else encoder @ mean),
        "decoder_weight": tensors["decoder_weight"].double() @ inverse,
        "decoder_bias": tensors["decoder_bias"].double() @ inverse + mean,
    }
    return {**tensors, **{name: tensor.to(tensors[name].dtype) for name, tensor in whitened.items()}}


def _as_version_6(settings: Settings) -> dict[str, Any]:
    """Settings of version 5 as version 6 would write them; unknown ones are passed on, to be refused like any other."""
    values = {_RENAMED_SINCE_5.get(name, name): value for name, value in settings.entries.items()}
    hook = values.pop("hook_name", None)
    if isinstance(hook, str) and hook.endswith("_z"):
        values["reshape_activations"] = "hook_z"
    values.setdefault("architecture", "standard")
    activation = values.pop("activation_fn_str", None) or "relu"
    options = values.pop("activation_fn_kwargs", None) or {}
    if activation == "topk" and values["architecture"] in ("standard", "topk") and isinstance(options, dict):
        values |= {"architecture": "topk", "k": options.get("k")}
        options = {name: value for name, value in options.items() if name != "k"}
    elif activation != "relu":
        reason = f"for the architecture {short(values['architecture'])} cocomix reads 'relu'"
        settings.refuse("activation_fn", activation, reason)
    if options:
        settings.refuse("activation_fn_kwargs", options, "these options are not known")
    if isinstance(values.get("normalize_activations"), bool):
        values["normalize_activations"] = "expected_average_only_in" if values["normalize_activations"] else "none"
    return values


def _input_scale(folder: Path) -> float:
    """The factor of `expected_average_only_in`, sqrt(D) over the mean norm of the training's activations."""
    path = folder / SCALER_NAME
    if not path.is_file():
        warnings.warn(
            f"{folder} was trained on inputs scaled by a factor that it does not hold ({SCALER_NAME} is missing), so it "
            "reads them unscaled; if you know the factor, call fold_input_scale(factor) on the loaded dictionary",
            stacklevel=2,
        )
        return 1.0
    settings = Settings.read(path)
    scale = settings.entries.get("scaling_factor")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= sys.float_info.max:
        settings.refuse("scaling_factor", scale, "expected a positive number")
    return float(scale)
