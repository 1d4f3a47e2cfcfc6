"""One reader a format: its settings become a `SparseAutoencoderConfig`, its tensors get our names.

SAELens, which has two versions and folds factors into the weights, has a file of its own.
"""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from cocomix.base.artifacts import write_json
from cocomix.base.errors import CocomixError
from cocomix.sae.config import ExcludedPositions, SparseAutoencoderConfig
from cocomix.sae.formats.files import SaeWeights, Settings, Tensors, read_npz, read_pickle, read_safetensors, short

FORMAT_VERSION = 2


def read_own(folder: Path) -> SaeWeights:
    """Cocomix's own folders: `sae.json` with the format's version and every setting, `sae.safetensors`."""
    settings = Settings.read(folder / "sae.json")
    version = settings.entries.get("format_version")
    if version != FORMAT_VERSION:
        raise CocomixError(
            f"{settings.path} has format version {short(version)}, not {FORMAT_VERSION}; make the dictionary again"
        )
    kinds: dict[str, type] = {"hidden_size": int, "num_latents": int, "normalize_input": str, "activation": str}
    optional = {"num_active_latents": int, "excluded": {}}
    required = {
        field.name: kinds.get(field.name, bool)
        for field in fields(SparseAutoencoderConfig)
        if field.name not in optional
    }
    values = settings.take(required, optional, ignored="format_version")
    rule = Settings(settings.path, values["excluded"]).take({}, {"first": False, "tokens": [], "max_norm": float})
    values["excluded"] = ExcludedPositions.from_json(rule)
    tensors = read_safetensors(folder / "sae.safetensors")
    return tensors.take_weights(
        SparseAutoencoderConfig(**values), "encoder_weight encoder_bias decoder_weight decoder_bias"
    )


def write_own(folder: Path, config: SparseAutoencoderConfig, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae.safetensors")
    values = asdict(config)
    if (
        config.excluded == ExcludedPositions()
    ):  # as before there was such a rule, so that equal dictionaries have equal files
        del values["excluded"]
    write_json(folder / "sae.json", {"format_version": FORMAT_VERSION, **values})


def read_openai(path: Path) -> SaeWeights:
    """OpenAI's dictionaries of GPT-2 small (Gao et al., arXiv 2406.04093): a pickled file a layer, without a configuration.

    Layer norm on the input belongs to the TopK files (v5); the older ReLU files have none.
    """
    tensors = read_pickle(path)
    D, C = tensors.length("pre_bias"), tensors.length("latent_bias")
    activation = tensors.take_value("activation", "ReLU")  # the oldest files name none
    state = tensors.take_value("activation_state_dict", {})
    if not isinstance(state, dict):
        raise CocomixError(f"{path} has activation_state_dict as {type(state).__name__}; expected named values")
    if activation == "TopK":
        K, after = state.get("k"), state.get("postact_fn", "ReLU")
        if type(K) is not int or after != "ReLU":
            raise CocomixError(
                f"{path} has TopK with k = {short(K)} and postact_fn = {short(after)}; expected a number and ReLU"
            )
        config = SparseAutoencoderConfig(D, C, K)
    elif activation == "ReLU":
        config = SparseAutoencoderConfig(D, C, normalize_input="none", activation="relu")
    else:
        raise CocomixError(f"{path} has the activation {short(activation)}; OpenAI's dictionaries have TopK or ReLU")
    if unknown := sorted(map(str, state.keys() - {"k", "postact_fn"})):
        raise CocomixError(f"{path} has settings of its activation that cocomix does not know: {', '.join(unknown)}")
    return tensors.take_weights(
        config,
        "encoder.weight latent_bias decoder.weight.T pre_bias",
        ignored="stats_last_nonzero latents_activation_frequency latents_mean_square",
    )


def read_sparsify(folder: Path) -> SaeWeights:
    """EleutherAI's sparsify: a folder for each hook point, with `cfg.json` and `sae.safetensors`."""
    settings = Settings.read(folder / "cfg.json")
    values = settings.take(
        required={"d_in": int, "k": int},
        optional={"num_latents": 0, "expansion_factor": 0, "activation": "topk", "signed": False}
        | {"skip_connection": False, "transcode": False},
        only={"activation": ("topk", "groupmax")},
        ignored="normalize_decoder multi_topk",  # they matter in training alone
    )
    if values["signed"] and values["activation"] != "topk":
        settings.refuse("signed", True, f"with the activation {values['activation']!r} it has no formula")
    config = SparseAutoencoderConfig(
        values["d_in"],
        values["num_latents"] or values["d_in"] * values["expansion_factor"],
        values["k"],
        normalize_input="none",
        activation="abstopk" if values["signed"] else values["activation"],
        subtract_decoder_bias=not values["transcode"],
        skip_connection=values["skip_connection"],
        transcode=values["transcode"],
    )
    tensors = read_safetensors(folder / "sae.safetensors")
    return tensors.take_weights(config, "encoder.weight encoder.bias W_dec b_dec", skip="W_skip")


def read_gemma_scope(path: Path) -> SaeWeights:
    """Gemma Scope (Lieberum et al., arXiv 2408.05147): `params.npz` without a configuration."""
    tensors = read_npz(path / "params.npz" if path.is_dir() else path)
    return tensors.take_weights(_gemma_config(tensors), "W_enc.T b_enc W_dec b_dec")


def read_gemma_scope_2(folder: Path) -> SaeWeights:
    """Gemma Scope 2: `config.json` and `params.safetensors`; its autoencoders, not its transcoders."""
    settings = Settings.read(folder / "config.json")
    values = settings.take(
        required={"architecture": str},
        optional={"type": "sae", "affine_connection": False, "hf_hook_point_in": str, "hf_hook_point_out": str},
        only={"architecture": ("jump_relu",), "type": ("sae",), "affine_connection": (False,)},
        ignored="model_name width l0",  # descriptions
    )
    hook_in, hook_out = values["hf_hook_point_in"], values["hf_hook_point_out"]
    if hook_out not in (None, hook_in):
        settings.refuse("hf_hook_point_out", hook_out, f"a transcoder, whose input is {short(hook_in)}")
    tensors = read_safetensors(folder / "params.safetensors")
    return tensors.take_weights(_gemma_config(tensors), "w_enc.T b_enc w_dec b_dec")


def _gemma_config(tensors: Tensors) -> SparseAutoencoderConfig:
    """Of both generations: JumpReLU on the plain input."""
    D, C = tensors.length("b_dec"), tensors.length("b_enc")
    return SparseAutoencoderConfig(D, C, normalize_input="none", activation="jumprelu", subtract_decoder_bias=False)


def read_qwen_scope(path: Path) -> SaeWeights:
    """Qwen-Scope: a pickled file of four tensors a layer. How many latents are active only its repository's name says."""
    K = num_active_by_name(path)
    tensors = read_pickle(path)
    D, C = tensors.length("b_dec"), tensors.length("b_enc")
    config = SparseAutoencoderConfig(D, C, K, normalize_input="none", subtract_decoder_bias=False)
    return tensors.take_weights(config, "W_enc b_enc W_dec.T b_dec")


def num_active_by_name(path: Path) -> int:
    """K of a file of Qwen-Scope, from the innermost folder whose name ends in `L0_K`."""
    found = re.findall(r"L0_(\d{1,9})(?=[/\\])", path.absolute().as_posix())
    if not found:
        raise CocomixError(
            f"{path} does not say how many latents are active; put it into a folder that ends in L0_50, like its repository"
        )
    return int(found[-1])


_LINEAR = "encoder.weight encoder.bias decoder.weight.T b_dec"
#: Of the classes of `dictionary_learning` that are read: the activation, the weights, and what matters in training alone.
DICTIONARY_LEARNING = {
    "AutoEncoderTopK": ("topk", _LINEAR, "threshold"),  # of an encoding that is off by default
    "BatchTopKSAE": ("batchtopk", _LINEAR, ""),
    "MatryoshkaBatchTopKSAE": ("batchtopk", "W_enc.T b_enc W_dec b_dec", "group_sizes"),
}


def read_dictionary_learning(folder: Path) -> SaeWeights:
    """Folders of the `dictionary_learning` library: `config.json` names the class, `ae.pt` is its pickled state.

    Its TopK and BatchTopK classes have equal tensors, so that only the configuration tells them apart. The nested groups of
    a Matryoshka dictionary matter in training alone.
    """
    file = Settings.read(folder / "config.json")
    objects = file.take(required={}, optional={"trainer": {}, "buffer": {}})
    if objects["buffer"].get("io") == "in_and_out":
        file.refuse("io", "in_and_out", "a transcoder")
    settings = Settings(file.path, objects["trainer"])
    values = settings.take(
        required={"dict_class": str, "activation_dim": int, "dict_size": int, "k": int},
        optional={},
        only={"dict_class": DICTIONARY_LEARNING},
        # What the trainers write of the training. Biases are scaled back by `norm_factor` before they are saved.
        ignored="trainer_class lr steps auxk_alpha warmup_steps decay_start threshold_beta threshold_start_step top_k_aux "
        "seed device layer lm_name wandb_name submodule_name norm_factor k_anneal_steps group_fractions group_weights "
        "group_sizes",
    )
    K, (activation, names, ignored) = values["k"], DICTIONARY_LEARNING[values["dict_class"]]
    config = SparseAutoencoderConfig(
        values["activation_dim"], values["dict_size"], K, normalize_input="none", activation=activation
    )
    tensors = read_pickle(folder / "ae.pt")
    stored = tensors.take_value("k", K)
    if stored != K:
        raise CocomixError(f"{tensors.path} has k = {short(stored)}, but {file.path} has k = {K}")
    return tensors.take_weights(config, names, ignored=ignored)
