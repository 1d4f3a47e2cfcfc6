"""Exact, token-weighted validation loss of any causal LM on a token dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cocomix.base.errors import CocomixError
from cocomix.base.ranks import Ranks
from cocomix.data.token_dataset import TokenDataset, Windows
from cocomix.modeling.losses import next_token_losses

MAX_WINDOWS = 32
#: Of a batch in float32. Copies on the way to the losses take a few times as much, and a training run holds its state beside.
LOGITS_BYTES = 2**28


@dataclass(frozen=True)
class LossResult:
    """Mean next-token loss over a number of tokens."""

    loss: float
    """Loss in nats per token."""
    num_tokens: int
    """Number of predicted tokens: T - 1 per window."""

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def bits_per_byte(self, dataset: TokenDataset) -> float:
        """Loss in bits per byte of text, from the split's mean number of tokens per byte."""
        return self.loss / math.log(2) * dataset.tokens_per_byte


@torch.no_grad()
def validation_loss(
    model: nn.Module,
    dataset: TokenDataset,
    *,
    max_windows: int | None = None,
    batch_size: int = MAX_WINDOWS,
    description: str | None = None,
    ranks: Ranks | None = None,
) -> LossResult:
    """Mean next-token loss of a model, in evaluation mode, on evenly spaced windows.

    Args:
        model: causal LM; its training mode is restored.
        dataset: split to evaluate on.
        max_windows: number of windows; None: all.
        batch_size: windows per forward pass, at most; fewer where their logits would take more than `LOGITS_BYTES`.
        description: name of the work in a progress line; None: no line.
        ranks: ranks that share the work; all get the result of a single process, bit for bit if their models are identical.

    Raises:
        CocomixError: the loss is not finite.
    """
    ranks = ranks or Ranks()
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    batch_size = max(1, min(batch_size, LOGITS_BYTES // (4 * dataset.context_length * dataset.vocab_size)))
    sums: list[Tensor] = []
    num_tokens = 0
    for index, windows in enumerate(dataset.batches(batch_size, max_windows, description=description)):
        sums.append(torch.zeros((), dtype=torch.float64, device=device))
        num_tokens += windows.input_ids[:, 1:].numel()
        if index % ranks.size == ranks.rank:
            sums[-1] += _loss_sum(model, windows.to(device))
    if len(sums) % ranks.size and ranks.rank >= len(sums) % ranks.size:
        _loss_sum(model, windows.to(device))  # discarded: a sharded model must run on all ranks
    model.train(was_training)
    total = torch.zeros((), dtype=torch.float64)
    for batch_sum in ranks.sum(torch.stack(sums)).cpu():
        total += batch_sum
    if not bool(total.isfinite()):
        raise CocomixError(
            f"the loss on {dataset.path} is {float(total) / num_tokens}: the model's logits are not finite"
        )
    return LossResult(float(total) / num_tokens, num_tokens)


def _loss_sum(model: nn.Module, windows: Windows) -> Float[Tensor, ""]:
    logits = model(**windows.inputs(), use_cache=False).logits
    return next_token_losses(logits.float(), windows.input_ids).double().sum()
