"""OpenAI's dictionaries of GPT-2 small (Gao et al., arXiv 2406.04093): one pickled file a layer, without a configuration.

Layer norm on the input belongs to the TopK files (v5); the older ReLU files have none.
"""

from __future__ import annotations

from pathlib import Path

from cocomix.base.errors import CocomixError
from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.formats.files import Dictionary, read_pickle


def read(path: Path) -> Dictionary:
    tensors = read_pickle(path)
    D, C = tensors.length("pre_bias"), tensors.length("latent_bias")
    activation = tensors.take_value("activation", "ReLU")  # the oldest files name none
    state = tensors.take_value("activation_state_dict", {})
    if not isinstance(state, dict):
        raise CocomixError(f"{path} has activation_state_dict as {type(state).__name__}; expected named values")
    if activation == "TopK":
        num_active, after = state.get("k"), state.get("postact_fn", "ReLU")
        if type(num_active) is not int or after != "ReLU":
            raise CocomixError(
                f"{path} has TopK with k = {num_active!r} and postact_fn = {after!r}; expected a number and ReLU"
            )
        config = SparseAutoencoderConfig(D, C, num_active)
    elif activation == "ReLU":
        config = SparseAutoencoderConfig(D, C, normalize_input="none", activation="relu")
    else:
        raise CocomixError(f"{path} has the activation {activation!r}; OpenAI's dictionaries have TopK or ReLU")
    unknown = sorted(state.keys() - {"k", "postact_fn"})
    if unknown:
        raise CocomixError(f"{path} has settings of its activation that cocomix does not know: {', '.join(unknown)}")
    found = {
        "encoder_weight": tensors.take("encoder.weight", C, D),
        "encoder_bias": tensors.take("latent_bias", C),
        "decoder_weight": tensors.take("decoder.weight", D, C).t(),
        "decoder_bias": tensors.take("pre_bias", D),
    }
    tensors.ignore("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
    tensors.refuse_rest()
    return Dictionary(config, found)
