"""Gemma Scope (Lieberum et al., arXiv 2408.05147): `params.npz` without a configuration; JumpReLU on the plain input."""

from __future__ import annotations

from pathlib import Path

from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.formats.files import Dictionary, Tensors, read_npz


def read(path: Path) -> Dictionary:
    return jumprelu_dictionary(read_npz(path / "params.npz" if path.is_dir() else path), "W_enc", "W_dec")


def jumprelu_dictionary(tensors: Tensors, encoder_name: str, decoder_name: str) -> Dictionary:
    """The dictionary of both generations, which differ in where the tensors are and in the case of their names."""
    D, C = tensors.length("b_dec"), tensors.length("b_enc")
    config = SparseAutoencoderConfig(D, C, normalize_input="none", activation="jumprelu", subtract_decoder_bias=False)
    found = {
        "encoder_weight": tensors.take(encoder_name, D, C).t(),
        "encoder_bias": tensors.take("b_enc", C),
        "decoder_weight": tensors.take(decoder_name, C, D),
        "decoder_bias": tensors.take("b_dec", D),
        "threshold": tensors.take("threshold", C),
    }
    tensors.refuse_rest()
    return Dictionary(config, found)
