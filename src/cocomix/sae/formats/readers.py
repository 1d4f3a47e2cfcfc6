"""One reader a format: its settings become a `SparseAutoencoderConfig`, its tensors get our names.

SAELens, which has two versions and folds factors into the weights, has a file of its own.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from cocomix.base.artifacts import write_json
from cocomix.base.errors import CocomixError
from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.formats.files import SaeWeights, Settings, Tensors, read_npz, read_pickle, read_safetensors

FORMAT_VERSION = 2


def read_own(folder: Path) -> SaeWeights:
    """Cocomix's own folders: `sae.json` with the format's version and every setting, `sae.safetensors`."""
    settings = Settings.read(folder / "sae.json")
    version = settings.entries.get("format_version")
    if version != FORMAT_VERSION:
        raise CocomixError(
            f"{settings.path} has format version {version}; this cocomix reads {FORMAT_VERSION}; make the dictionary again"
        )
    kinds: dict[str, type] = {"hidden_size": int, "num_latents": int, "normalize_input": str, "activation": str}
    names = [field.name for field in fields(SparseAutoencoderConfig) if field.name != "num_active_latents"]
    required = {name: kinds.get(name, bool) for name in names}
    values = settings.take(required, optional={"num_active_latents": int}, ignored="format_version")
    tensors = read_safetensors(folder / "sae.safetensors")
    return tensors.take_weights(
        SparseAutoencoderConfig(**values), "encoder_weight encoder_bias decoder_weight decoder_bias"
    )


def write_own(folder: Path, config: SparseAutoencoderConfig, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae.safetensors")
    write_json(folder / "sae.json", {"format_version": FORMAT_VERSION, **asdict(config)})


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
            raise CocomixError(f"{path} has TopK with k = {K!r} and postact_fn = {after!r}; expected a number and ReLU")
        config = SparseAutoencoderConfig(D, C, K)
    elif activation == "ReLU":
        config = SparseAutoencoderConfig(D, C, normalize_input="none", activation="relu")
    else:
        raise CocomixError(f"{path} has the activation {activation!r}; OpenAI's dictionaries have TopK or ReLU")
    if unknown := sorted(state.keys() - {"k", "postact_fn"}):
        raise CocomixError(f"{path} has settings of its activation that cocomix does not know: {', '.join(unknown)}")
    return tensors.take_weights(
        config,
        "encoder.weight latent_bias decoder.weight.T pre_bias",
        ignored="stats_last_nonzero latents_activation_frequency latents_mean_square",
    )


def read_sparsify(folder: Path) -> SaeWeights:
    """EleutherAI's sparsify: a folder for each hook point, with `cfg.json` and `sae.safetensors`."""
    values = Settings.read(folder / "cfg.json").take(
        required={"d_in": int, "k": int},
        optional={"num_latents": 0, "expansion_factor": 0, "activation": "topk", "signed": False}
        | {"skip_connection": False, "transcode": False},
        only={"activation": ("topk", "groupmax"), "signed": (False,)},  # signed latents can be negative
        ignored="normalize_decoder multi_topk",  # they matter in training alone
    )
    config = SparseAutoencoderConfig(
        values["d_in"],
        values["num_latents"] or values["d_in"] * values["expansion_factor"],
        values["k"],
        normalize_input="none",
        activation=values["activation"],
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
        settings.refuse("hf_hook_point_out", hook_out, f"a transcoder, whose input is {hook_in!r}")
    tensors = read_safetensors(folder / "params.safetensors")
    return tensors.take_weights(_gemma_config(tensors), "w_enc.T b_enc w_dec b_dec")


def _gemma_config(tensors: Tensors) -> SparseAutoencoderConfig:
    """Of both generations: JumpReLU on the plain input."""
    D, C = tensors.length("b_dec"), tensors.length("b_enc")
    return SparseAutoencoderConfig(D, C, normalize_input="none", activation="jumprelu", subtract_decoder_bias=False)


#: Of the classes of `dictionary_learning` that are read.
_ACTIVATIONS = {"AutoEncoderTopK": "topk", "BatchTopKSAE": "batchtopk"}


def read_dictionary_learning(folder: Path) -> SaeWeights:
    """Folders of the `dictionary_learning` library: `config.json` names the class, `ae.pt` is its pickled state.

    Its TopK and BatchTopK classes have equal tensors, so that only the configuration tells them apart.
    """
    file = Settings.read(folder / "config.json")
    objects = file.take(required={}, optional={"trainer": {}, "buffer": {}})
    if objects["buffer"].get("io") == "in_and_out":
        file.refuse("io", "in_and_out", "a transcoder, whose output is another place than its input")
    settings = Settings(file.path, objects["trainer"])
    values = settings.take(
        required={"dict_class": str, "activation_dim": int, "dict_size": int, "k": int},
        optional={},
        only={"dict_class": _ACTIVATIONS},
        # What the trainers write of the training. Biases are scaled back by `norm_factor` before they are saved.
        ignored="trainer_class lr steps auxk_alpha warmup_steps decay_start threshold_beta threshold_start_step top_k_aux "
        "seed device layer lm_name wandb_name submodule_name norm_factor",
    )
    K, activation = values["k"], _ACTIVATIONS[values["dict_class"]]
    config = SparseAutoencoderConfig(
        values["activation_dim"], values["dict_size"], K, normalize_input="none", activation=activation
    )
    tensors = read_pickle(folder / "ae.pt")
    stored = tensors.take_value("k", K)
    if stored != K:
        raise CocomixError(f"{tensors.path} has k = {stored}, but {file.path} has k = {K}")
    # The TopK class keeps a threshold for an encoding that is off by default.
    ignored = "threshold" if activation == "topk" else ""
    return tensors.take_weights(config, "encoder.weight encoder.bias decoder.weight.T b_dec", ignored=ignored)
