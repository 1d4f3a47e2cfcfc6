"""SAELens: `cfg.json` and `sae_weights.safetensors`, read in versions 6 and 5, written in version 6."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cocomix.base.artifacts import write_json
from cocomix.base.errors import CocomixError
from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.formats import saelens_5
from cocomix.sae.formats.files import Dictionary, Settings, Tensors, read_safetensors
from cocomix.sae.formats.folding import with_decoder_norms, with_input_scale

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"
#: Where a training run leaves the factor of `expected_average_only_in`.
SCALER_NAME = "activation_scaler.json"
_ARCHITECTURES = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}
_NORMALIZATIONS = {
    "none": "none",
    "expected_average_only_in": "none",  # its factor is folded into the weights
    "constant_norm_rescale": "constant_norm_rescale",
    "layer_norm": "layer_norm",
}


def read(folder: Path) -> Dictionary:
    settings = Settings.read(folder / CONFIG_NAME)
    if settings.take_object("metadata") is None:  # new in version 6
        settings = Settings(settings.path, saelens_5.as_version_6(settings))
    is_finetuned = settings.take("finetuning_scaling_factor", bool, False)
    rescales = settings.take("rescale_acts_by_decoder_norm", bool, False)
    normalization = settings.take("normalize_activations", str, "none")
    config = _configuration(settings, normalization)
    if rescales and config.activation != "topk":
        settings.refuse("rescale_acts_by_decoder_norm", True, "only its topk architecture has it")
    settings.ignore(("dtype", "device"))
    settings.refuse_rest()
    tensors = _tensors(read_safetensors(folder / WEIGHTS_NAME), config, is_finetuned)
    if rescales:
        tensors = with_decoder_norms(tensors)
    if normalization == "expected_average_only_in":
        tensors = with_input_scale(tensors, _input_scale(folder))
    return Dictionary(config, tensors)


def write(folder: Path, config: SparseAutoencoderConfig, tensors: dict[str, Tensor]) -> None:
    """Write version 6. BatchTopK becomes JumpReLU with equal thresholds, as SAELens's own BatchTopK does."""
    if config.activation == "groupmax" or config.skip_connection or config.transcode:
        what = "a transcoder" if config.transcode or config.skip_connection else "activation 'groupmax'"
        raise CocomixError(f"SAELens has no autoencoder with {what}; save it in cocomix's own format")
    architectures = {"relu": "standard", "topk": "topk"}
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
    if config.activation == "topk":
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


def _configuration(settings: Settings, normalization: str) -> SparseAutoencoderConfig:
    architecture = settings.take("architecture", str)
    if architecture not in _ARCHITECTURES:
        settings.refuse("architecture", architecture, f"it reads {', '.join(_ARCHITECTURES)}")
    reshaping = settings.take("reshape_activations", str, "none")
    if reshaping != "none":
        settings.refuse("reshape_activations", reshaping, "it reads the residual stream, not the heads of an attention")
    if normalization not in _NORMALIZATIONS:
        settings.refuse("normalize_activations", normalization, f"it reads {', '.join(_NORMALIZATIONS)}")
    return SparseAutoencoderConfig(
        settings.take("d_in", int),
        settings.take("d_sae", int),
        settings.take("k", int) if architecture == "topk" else None,
        normalize_input=_NORMALIZATIONS[normalization],
        activation=_ARCHITECTURES[architecture],
        subtract_decoder_bias=settings.take("apply_b_dec_to_input", bool, True),
    )


def _tensors(tensors: Tensors, config: SparseAutoencoderConfig, is_finetuned: bool) -> dict[str, Tensor]:
    C, D = config.num_latents, config.hidden_size
    found = {
        "encoder_weight": tensors.take("W_enc", D, C).t(),
        "encoder_bias": tensors.take("b_enc", C),
        "decoder_weight": tensors.take("W_dec", C, D),
        "decoder_bias": tensors.take("b_dec", D),
    }
    if config.activation == "jumprelu":
        found["threshold"] = tensors.take("threshold", C)
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        # A factor on each latent before decoding; for a time it was written, as ones, where it was not used.
        if name in tensors:
            factor = tensors.take(name, C)
            if not is_finetuned and not torch.equal(factor, torch.ones_like(factor)):
                raise CocomixError(f"{tensors.path} has a {name}, but {CONFIG_NAME} does not say that it is used")
            found["decoder_weight"] = found["decoder_weight"] * factor.unsqueeze(-1)
    tensors.refuse_rest()
    return found


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
    scale = settings.take("scaling_factor", float)
    if not scale > 0:
        settings.refuse("scaling_factor", scale, "expected a positive number")
    return scale
