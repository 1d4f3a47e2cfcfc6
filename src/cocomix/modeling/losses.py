"""The next-token loss: per token or summed, from logits or from hidden states without keeping any logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.data import IGNORED_LABEL
from cocomix.mixers.linear_head import linear_head
from cocomix.modeling.backbones import DecoderAdapter


def combined_loss(terms: Iterable[tuple[float, Tensor, Tensor | int]]) -> tuple[Tensor, list[Tensor]]:
    """The loss of every model and run: the weighted sum of the terms' means.

    Args:
        terms: weight, sum over the targets and number of targets of each term; if this is part of a step, the number is
            that of the whole step.

    Returns:
        the loss, and the mean of each term.
    """
    terms = list(terms)
    means = [total / count for _, total, count in terms]
    loss = sum(
        (weight * mean for (weight, _, _), mean in zip(terms, means, strict=True)), start=torch.zeros(()).to(means[0])
    )
    return loss, means


def at_least_float32(logits: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """The same numbers: autocast leaves logits in its own dtype, too coarse for sums over a vocabulary."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def next_token_losses(logits: Float[Tensor, "B T V"], input_ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T-1"]:
    """-log p(x_{t+1} | x_{<=t}), in nats, for all tokens except the first of each window."""
    V = logits.shape[-1]
    losses = F.cross_entropy(
        at_least_float32(logits[:, :-1].reshape(-1, V)), input_ids[:, 1:].reshape(-1), reduction="none"
    )
    return losses.view(len(input_ids), -1)


def loss_of_logits(logits: Float[Tensor, "B T V"], labels: Int64[Tensor, "B T"]) -> Float[Tensor, ""]:
    """The sum of -log p(labels_{t+1} | x_{<=t}), in nats, over the labels that are not `IGNORED_LABEL`."""
    return F.cross_entropy(
        at_least_float32(logits[:, :-1].reshape(-1, logits.shape[-1])),
        labels[:, 1:].reshape(-1),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
    )


def has_plain_head(adapter: DecoderAdapter) -> bool:
    """Whether a decoder's logits are a linear layer after its final norm and nothing else."""
    is_usual = type(adapter).logits is DecoderAdapter.logits
    return is_usual and type(adapter.model.get_output_embeddings()) is nn.Linear


def loss_of_hidden(
    adapter: DecoderAdapter, hidden: Float[Tensor, "B T D"], labels: Int64[Tensor, "B T"], logits_megabytes: int | None
) -> Float[Tensor, ""]:
    """`loss_of_logits` for a decoder with a plain head, computed chunk by chunk.

    Args:
        adapter: adapter of a decoder with a plain head.
        hidden: residual stream after the last block.
        labels: labels, `IGNORED_LABEL` where there are none.
        logits_megabytes: memory for a chunk of logits; None: by the device.
    """
    head = cast(nn.Linear, adapter.model.get_output_embeddings())
    # The last position has no next token, but is kept as a row without a label so that the rows need no copy.
    targets = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED_LABEL)], 1).flatten()
    _, _, loss = linear_head(
        adapter.final_norm(hidden).flatten(0, 1),
        head.weight,
        head.bias,
        labels=targets.unsqueeze(-1),
        logits_megabytes=logits_megabytes,
    )
    return loss
