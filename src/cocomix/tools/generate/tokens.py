"""The generation loop: one token per step for every prompt of a batch, for streaming, for batches and for the studio.

`next_tokens` is an iterator that keeps no context open between tokens: each step runs in the context of the code that asks
for it, so `steer` blocks around a step apply to that step, another iterator of the same model can run in between, and
whoever iterates can stop at any token.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cocomix.base.errors import CocomixError
from cocomix.mixers.edits import generating

# Shapes: B prompts, T tokens of a prompt, V vocabulary.


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Nothing else decides, in particular no generation_config.json beside the weights."""

    temperature: float = 0.0
    """0: always the likeliest token."""
    top_k: int | None = None
    """Sample from this many of the likeliest tokens; None: from all."""
    top_p: float | None = None
    """Sample from the likeliest tokens that together have this probability; None: from all."""
    seed: int = 0

    def warpers(self) -> LogitsProcessorList:
        """The changes to the logits before a token is drawn, in the order of `generate` of transformers."""
        warpers = [TemperatureLogitsWarper(self.temperature)] if self.temperature != 1 else []
        warpers += [] if self.top_k is None else [TopKLogitsWarper(self.top_k)]
        warpers += [] if self.top_p is None or self.top_p == 1 else [TopPLogitsWarper(self.top_p)]
        return LogitsProcessorList(warpers)


def next_tokens(
    model: PreTrainedModel,
    prompts: Int64[Tensor, "B T"],
    num_tokens: int,
    sampling: Sampling | None = None,
    *,
    end_token_id: int | None = None,
    ends: bool = True,
) -> Iterator[Int64[Tensor, " B"]]:
    """Continue prompts, one token of each per step; leaves the global random state alone.

    Args:
        model: any causal LM, in evaluation mode; it keeps a cache if it can.
        prompts: of equal length.
        num_tokens: steps at most.
        sampling: None: the likeliest token.
        end_token_id: the end of a text. A row that has ended repeats it, and the iterator stops once all rows have ended,
            without returning the last end. None: rows do not end.
        ends: whether rows may end; if not, the end token is never chosen.

    Raises:
        CocomixError: logits are not finite.
    """
    sampling = sampling or Sampling()
    accepted = inspect.signature(model.forward).parameters
    # Models without keys and values, such as recurrent ones, read the whole row at every step.
    has_cache = "past_key_values" in accepted
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    generator = torch.Generator(device=model.device).manual_seed(sampling.seed)
    rows = new = prompts.to(model.device)
    has_ended = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    cache = None
    for _ in range(num_tokens):
        with torch.no_grad(), generating(prompts.shape[1]):
            if has_cache:
                output = model(input_ids=new, past_key_values=cache, use_cache=True, **options)
                cache = output.past_key_values
            else:
                output = model(input_ids=rows, **options)
        logits = output.logits[:, -1].float()
        if not bool(logits.isfinite().all()):
            raise CocomixError("the model's logits are not finite, so there is no next token")
        if end_token_id is not None and not ends:
            logits[:, end_token_id] = -torch.inf
        tokens = _choose(logits, sampling, rows, generator)
        if end_token_id is not None:
            tokens = tokens.masked_fill(has_ended, end_token_id)
            has_ended |= tokens == end_token_id
            if bool(has_ended.all()):
                return
        new = tokens.unsqueeze(1)
        if not has_cache:
            rows = torch.cat([rows, new], dim=1)
        yield tokens


def _choose(
    logits: Float[Tensor, "B V"], sampling: Sampling, rows: Int64[Tensor, "B _"], generator: torch.Generator
) -> Int64[Tensor, " B"]:
    if not sampling.temperature:
        return logits.argmax(-1)
    probabilities = sampling.warpers()(rows, logits).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
