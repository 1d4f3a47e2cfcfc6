"""`cocomix generate`: continue a prompt, with or without steered concepts.

The continuation goes to standard output, token by token if that is a terminal; the meaning of each edit to standard error.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TextStreamer

from cocomix.base import artifacts
from cocomix.base.devices import this_machine
from cocomix.base.errors import CocomixError
from cocomix.base.hub import local_model
from cocomix.base.progress import say
from cocomix.data.tokenizer import load_tokenizer
from cocomix.modeling.loading import load_causal_lm, product_size
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.modeling.weight_order import order_for_single_tokens
from cocomix.steering.steer import steer
from cocomix.tools.generate.config import GenerateConfig, parse_strengths
from cocomix.tools.generate.strengths import explain_strengths
from cocomix.tools.generate.tokens import Sampling, next_tokens

# Shapes: T tokens.

DEFAULT_NEW_TOKENS = 64


def generate(config: GenerateConfig) -> str | dict[str, Any]:
    """Continue the prompt; returns the text to print, which is empty if it was already printed token by token."""
    strengths = parse_strengths(config.steer, config.mode)
    path = local_model(config.model)
    artifacts.check(path)
    machine = this_machine(config.compute, functools.partial(product_size, path, 1))
    model = load_causal_lm(path, machine)
    if strengths and not isinstance(model, CoCoMixForCausalLM):
        raise CocomixError(f"{config.model} is a plain decoder, which has no concepts; leave out --steer")
    meanings: list[str] = []
    if strengths:
        with steer(
            model, strengths, config.mode, unit=config.unit
        ):  # refuses impossible edits before anything is printed
            meanings = explain_strengths(model, strengths, config.mode, config.unit)
    for meaning in meanings:
        say(meaning)
    tokenizer = load_tokenizer(path)
    prompt = prompt_tokens(tokenizer, config.prompt)
    num_new = room_for_new_tokens(model, prompt.shape[1], config.max_new_tokens)
    order_for_single_tokens(model)

    runs: dict[str, dict[str, float]] = {"original": {}} if config.compare else {}
    runs["steered" if strengths else "continuation"] = strengths
    streams = sys.stdout.isatty() and not config.json
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.seed)
    texts = {}
    for title, edits in runs.items():
        if streams and config.compare:
            print(f"--- {title}")
        streamer = TextStreamer(tokenizer, skip_special_tokens=True) if streams else None
        steered = steer(model, edits, config.mode, unit=config.unit) if edits else contextlib.nullcontext()
        with steered, machine.products():
            texts[title] = continue_text(model, tokenizer, prompt, num_new, sampling, streamer)
    if config.json:
        lengths = {"num_prompt_tokens": prompt.shape[1], "max_new_tokens": num_new}
        return {"prompt": config.prompt, **texts, "edits": meanings, **lengths}
    if streams:
        return ""
    return "\n".join(f"--- {title}\n{text}" for title, text in texts.items()) if config.compare else texts.popitem()[1]


def continue_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: Int64[Tensor, "1 T"],
    num_new_tokens: int,
    sampling: Sampling,
    streamer: TextStreamer | None = None,
) -> str:
    """The continuation of a prompt as text, which ends early at the end of a document.

    Args:
        model: any causal LM, steered by the blocks around the call.
        tokenizer: of the model.
        prompt: token ids.
        num_new_tokens: at most.
        sampling: how tokens are drawn.
        streamer: gets every token as it is made.
    """
    tokens = []
    for (token,) in next_tokens(model, prompt, num_new_tokens, sampling, end_token_id=tokenizer.eos_token_id):
        tokens.append(int(token))
        if streamer is not None:
            streamer.put(token.cpu().view(1))
    if streamer is not None:
        streamer.end()
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def prompt_tokens(tokenizer: PreTrainedTokenizerFast, prompt: str) -> Int64[Tensor, "1 T"]:
    """Token ids of a prompt; an empty one is the token between documents, and a special token spelled out is that token."""
    ids = tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]
    if ids == [None]:
        raise CocomixError("the prompt is empty, and the model's tokenizer has no end-of-sequence token to begin with")
    return torch.tensor([ids])


def room_for_new_tokens(model: PreTrainedModel, num_prompt_tokens: int, wanted: int | None) -> int:
    """How many tokens to generate, so that prompt and new tokens together fit into the model's context.

    Args:
        model: its `max_position_embeddings` is the context; without it there is no limit.
        num_prompt_tokens: of the prompt.
        wanted: None: 64, or as many as fit.

    Raises:
        CocomixError: the prompt fills the context, or leaves too little room.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    room = math.inf if context is None else context - num_prompt_tokens
    if room < 1:
        raise CocomixError(
            f"the prompt has {num_prompt_tokens} tokens and the model's context is {context}: there is no room to continue; "
            "shorten the prompt"
        )
    if wanted is not None and wanted > room:
        raise CocomixError(
            f"the prompt has {num_prompt_tokens} tokens and the model's context is {context}, which leaves room for {room} "
            f"new ones, not {wanted}; shorten the prompt or lower --max-new-tokens"
        )
    return int(min(DEFAULT_NEW_TOKENS, room)) if wanted is None else wanted
