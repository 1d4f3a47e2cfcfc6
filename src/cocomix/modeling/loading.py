"""Loading of causal LMs from folders, GGUF files and the Hub, and whether they can read the data at hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import cocomix.modeling.model  # noqa: F401 (registers CoCoMix with the Auto classes)
from cocomix.base.devices import Machine
from cocomix.base.errors import CocomixError
from cocomix.base.progress import say
from cocomix.base.remote_code import OPTION, is_trusted, loading_reason
from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.pretrained import check_loading_report

#: Attention that `transformers` brings along. It fetches any other, such as "organisation/kernel", and runs it.
ATTENTIONS = (None, "eager", "sdpa", "flex_attention")


def load_config(path: Path | str) -> PreTrainedConfig:
    """The configuration of a model, from a folder, a GGUF file or a Hub name.

    Raises:
        CocomixError: there is none, or it asks for code that is not trusted.
    """
    try:
        source, options = _source(path)
        config = AutoConfig.from_pretrained(source, trust_remote_code=is_trusted(), **options)
    except CocomixError:
        raise
    except Exception as error:  # the libraries raise a dozen types of their own for damaged files
        raise CocomixError(f"the configuration of {path} can't be read: {loading_reason(error, path)}") from error
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        attention = getattr(part, "_attn_implementation", None)
        if attention not in ATTENTIONS and not is_trusted():
            raise CocomixError(
                f"the config.json of {path} asks for the attention {attention!r}, which is code from elsewhere; delete that "
                f"line, or let it run with `cocomix {OPTION} COMMAND`"
            )
    return cast(PreTrainedConfig, config)


def _source(path: Path | str) -> tuple[Path | str, dict[str, str]]:
    """Where `transformers` reads a model from, and its options for a GGUF file.

    Raises:
        CocomixError: the GGUF file does not exist, or can't be read without its package.
    """
    file = Path(path)
    if file.suffix != ".gguf":
        return path, {}
    if not file.is_file():
        raise CocomixError(f"{path} is not a file")
    if importlib.util.find_spec("gguf") is None:
        raise CocomixError(f"{path} needs the package gguf; install it with `pip install gguf accelerate`")
    return file.parent, {"gguf_file": file.name}


def load_causal_lm(
    path: Path | str, machine: Machine | None = None, config: PreTrainedConfig | None = None
) -> PreTrainedModel:
    """A causal LM in evaluation mode, in float32.

    Args:
        path: a folder (a training run, or one written by `save_pretrained`), a GGUF file, or a Hub name.
        machine: the device to load it to, and its precision; None: a CPU in float32. In bfloat16 the model runs in
            `machine.products()` alone, and must not be saved.
        config: the model's configuration, perhaps changed; by default its own.

    Raises:
        CocomixError: the model can't be loaded, needs code that is not trusted, its weights don't fit its configuration, or
            some of them are not finite.
    """
    folder = Path(path)
    source, options = _source(path)
    if not options and isinstance(path, Path) and not (folder / "config.json").exists():
        raise CocomixError(f"{path} has no config.json; expected a model folder")
    try:
        # Attribution and evaluation compute in float32, even if the weights are stored in another dtype.
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=load_config(path) if config is None else config,
            use_safetensors=None if options else True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=is_trusted(),
            **options,
        )
    except CocomixError:
        raise
    except Exception as error:  # the libraries raise a dozen types of their own for damaged files
        raise CocomixError(
            f"no causal language model could be loaded from {folder}: {loading_reason(error, folder)}"
        ) from error
    check_loading_report(report, str(folder))
    if options:
        _forget_quantization(model)
    for name, tensor in model.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise CocomixError(
                f"{folder} is damaged: {name} holds values that are not finite; make or get the model again"
            )
    return _placed(cast(PreTrainedModel, model.eval()), machine or Machine())


def _forget_quantization(model: PreTrainedModel) -> None:
    """Weights from a GGUF file are float32 now, but `transformers` holds the model for quantized and refuses to save it."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _placed(model: PreTrainedModel, machine: Machine) -> PreTrainedModel:
    """The model on a device. For bfloat16 its linear layers hold the rounded matrices that autocast makes in every pass.

    The numbers are those of autocast. A head that shares the embedding's matrix gets a rounded one of its own, and the
    residual stream still starts from float32.
    """
    if machine.precision == "bfloat16":
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D):
                weight = module.weight
                module.weight = nn.Parameter(weight.detach().bfloat16(), requires_grad=weight.requires_grad)
    return model.to(machine.device)


def product_size(path: Path, num_tokens: int) -> tuple[int, int]:
    """Rows and width of the products in a pass of so many tokens through a model."""
    return num_tokens, load_config(path).get_text_config().hidden_size


def check_data(model: PreTrainedModel, path: Path, data: TokenDataset) -> None:
    """Refuse data that a model can't read, and a model that predicts nothing on its first window.

    Args:
        model: the model.
        path: its folder, for its tokenizer and for messages.
        data: windows that it is to read.

    Raises:
        CocomixError: the vocabulary or the tokenizer is another one, the windows don't fit the model's context, or its logits
            are not finite.
    """
    data.check_model(path, model.config.vocab_size)
    remedy = "make shorter ones with `cocomix prepare --context-length`"
    check_context(model, path, data.context_length, f"windows of {data.path}", remedy)
    with torch.no_grad():
        logits = model(**data.windows([0]).to(model.device).inputs(), use_cache=False).logits
    if not bool(logits[..., : data.vocab_size].isfinite().all()):  # rows beyond the tokenizer's tokens are padding
        raise CocomixError(
            f"the logits of {path} are not finite; its weights are too large or damaged: make or get the model again"
        )


def check_context(
    model: PreTrainedModel, path: Path, num_tokens: int, texts: str, remedy: str = "use shorter ones"
) -> None:
    """Refuse texts longer than a table of learned positions; warn about texts longer than rotary positions were trained for.

    Args:
        model: the model.
        path: its folder, for messages.
        num_tokens: of the longest text.
        texts: what they are, for messages: a plural.
        remedy: what to do, for messages.

    Raises:
        CocomixError: they are longer than the table.
    """
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if context is None or num_tokens <= context:
        return
    longer = f"the context of {path} is {context} tokens, but the {texts} have {num_tokens}"
    if getattr(config, "rope_parameters", None) is None:
        raise CocomixError(f"{longer}; {remedy}, or use another model")
    say(f"warning: {longer}; it was not trained for the positions beyond: {remedy}")
