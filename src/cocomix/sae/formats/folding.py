"""Factors that other formats keep beside the weights, folded into them, exactly up to one rounding."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def with_input_scale(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Tensors of the dictionary that sees `factor * h` and whose output is divided by `factor`."""
    changed = {
        "encoder_weight": tensors["encoder_weight"] * factor,
        "decoder_weight": tensors["decoder_weight"] / factor,
        "decoder_bias": tensors["decoder_bias"] / factor,
    }
    return {**tensors, **changed}


def with_decoder_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the dictionary that chooses latents by pre-activation times decoder norm, decoder rows at unit norm."""
    norms = tensors["decoder_weight"].norm(dim=-1, keepdim=True).clamp(min=1e-8)  # a row of zeros stays one
    changed = {
        "encoder_weight": tensors["encoder_weight"] * norms,
        "encoder_bias": tensors["encoder_bias"] * norms.squeeze(-1),
        "decoder_weight": tensors["decoder_weight"] / norms,
    }
    return {**tensors, **changed}
