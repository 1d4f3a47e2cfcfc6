"""Exact, token-weighted validation loss of any causal LM on a token dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.losses import next_token_losses


@dataclass(frozen=True)
class LossResult:
    """Mean next-token loss over a number of tokens."""

    loss: float
    """Nats a token."""
    num_tokens: int
    """Predicted tokens: T - 1 of each window."""

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def bits_per_byte(self, dataset: TokenDataset) -> float:
        """Loss in bits a byte of text, through the split's mean number of tokens a byte."""
        return self.loss / math.log(2) * dataset.tokens_per_byte


@torch.no_grad()
def validation_loss(
    model: nn.Module,
    dataset: TokenDataset,
    *,
    max_windows: int | None = None,
    batch_size: int = 32,
    description: str | None = None,
) -> LossResult:
    """Mean next-token loss of a model, in evaluation mode, on evenly spaced windows.

    Args:
        model: a causal LM; returned to the mode it was in.
        dataset: what to evaluate on.
        max_windows: how many windows; None: all.
        batch_size: windows in one forward pass.
        description: name of the work in a progress line; None: no line.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    num_tokens = 0
    for windows in dataset.batches(batch_size, max_windows, description=description):
        logits = model(**windows.inputs(), use_cache=False).logits
        total += next_token_losses(logits, windows.input_ids).double().sum()
        num_tokens += windows.input_ids[:, 1:].numel()
    model.train(was_training)
    return LossResult(float(total) / num_tokens, num_tokens)
