"""Folders of the `dictionary_learning` library: `config.json` names the class, `ae.pt` is its pickled state.

Its TopK and BatchTopK classes have equal tensors, so that only the configuration tells them apart.
"""

from __future__ import annotations

from pathlib import Path

from cocomix.base.errors import CocomixError
from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.formats.files import Dictionary, Settings, read_pickle

_CLASSES = {"AutoEncoderTopK": "topk", "BatchTopKSAE": "batchtopk"}
#: What the library's trainers write of the training. Biases are scaled back by `norm_factor` before they are saved.
_OF_THE_TRAINING = (
    "trainer_class lr steps auxk_alpha warmup_steps decay_start threshold_beta threshold_start_step top_k_aux seed device "
    "layer lm_name wandb_name submodule_name norm_factor"
)


def read(folder: Path) -> Dictionary:
    whole = Settings.read(folder / "config.json")
    settings = Settings(whole.path, whole.take_object("trainer") or {})
    if (whole.take_object("buffer") or {}).get("io") == "in_and_out":
        whole.refuse("io", "in_and_out", "a transcoder, whose output is another place than its input")
    whole.refuse_rest()
    name = settings.take("dict_class", str)
    if name not in _CLASSES:
        settings.refuse("dict_class", name, f"of this library's classes it reads {' and '.join(_CLASSES)}")
    D, C, K = settings.take("activation_dim", int), settings.take("dict_size", int), settings.take("k", int)
    settings.ignore(_OF_THE_TRAINING.split())
    settings.refuse_rest()
    config = SparseAutoencoderConfig(D, C, K, normalize_input="none", activation=_CLASSES[name])
    tensors = read_pickle(folder / "ae.pt")
    stored = tensors.take_value("k", K)
    if stored != K:
        raise CocomixError(f"{tensors.path} has k = {stored}, but {settings.path} has k = {K}")
    found = {
        "encoder_weight": tensors.take("encoder.weight", C, D),
        "encoder_bias": tensors.take("encoder.bias", C),
        "decoder_weight": tensors.take("decoder.weight", D, C).t(),
        "decoder_bias": tensors.take("b_dec", D),
    }
    if config.activation == "batchtopk":
        found["threshold"] = tensors.take("threshold")
    else:
        tensors.ignore("threshold")  # kept by the class for an encoding that is off by default
    tensors.refuse_rest()
    return Dictionary(config, found)
