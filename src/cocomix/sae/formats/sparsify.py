"""EleutherAI's sparsify: a folder for each hook point, with `cfg.json` and `sae.safetensors`."""

from __future__ import annotations

from pathlib import Path

from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.formats.files import Dictionary, Settings, read_safetensors


def read(folder: Path) -> Dictionary:
    settings = Settings.read(folder / "cfg.json")
    D = settings.take("d_in", int)
    expansion = settings.take_optional("expansion_factor", int)
    C = settings.take("num_latents", int, 0) or D * (expansion or settings.take("expansion_factor", int))
    activation = settings.take("activation", str, "topk")
    if activation not in ("topk", "groupmax"):
        settings.refuse("activation", activation, "sparsify's are topk and groupmax")
    if settings.take("signed", bool, False):
        settings.refuse("signed", True, "its latents can be negative")
    transcode = settings.take("transcode", bool, False)
    config = SparseAutoencoderConfig(
        D,
        C,
        settings.take("k", int),
        normalize_input="none",
        activation=activation,
        subtract_decoder_bias=not transcode,
        skip_connection=settings.take("skip_connection", bool, False),
        transcode=transcode,
    )
    settings.ignore(("normalize_decoder", "multi_topk"))  # of the training alone
    settings.refuse_rest()
    tensors = read_safetensors(folder / "sae.safetensors")
    found = {
        "encoder_weight": tensors.take("encoder.weight", C, D),
        "encoder_bias": tensors.take("encoder.bias", C),
        "decoder_weight": tensors.take("W_dec", C, D),
        "decoder_bias": tensors.take("b_dec", D),
    }
    if config.skip_connection:
        found["skip_weight"] = tensors.take("W_skip", D, D)
    tensors.refuse_rest()
    return Dictionary(config, found)
