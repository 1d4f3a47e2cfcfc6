"""Exact, token-weighted validation loss of any causal LM on a token dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.data.token_dataset import TokenDataset

# Shapes: B batch, T tokens, V vocabulary.


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


def first_windows(dataset: TokenDataset, max_windows: int | None) -> range:
    """The first windows of a split, which are a fair sample of it."""
    return range(dataset.num_windows if max_windows is None else min(max_windows, dataset.num_windows))


def batches(windows: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
    """Windows in order, `batch_size` at a time."""
    for start in range(0, len(windows), batch_size):
        yield np.asarray(windows[start : start + batch_size])


@torch.no_grad()
def validation_loss(
    model: nn.Module, dataset: TokenDataset, *, max_windows: int | None = None, batch_size: int = 32
) -> LossResult:
    """Mean next-token loss of a model, in evaluation mode, on a dataset's first windows.

    Args:
        model: a causal LM; returned to the mode it was in.
        dataset: what to evaluate on.
        max_windows: how many windows; None: all.
        batch_size: windows in one forward pass.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    num_tokens = 0
    for windows in batches(first_windows(dataset, max_windows), batch_size):
        input_ids = dataset.input_ids(windows)
        total += next_token_losses(model(input_ids=input_ids, use_cache=False).logits, input_ids).double().sum()
        num_tokens += input_ids[:, 1:].numel()
    model.train(was_training)
    return LossResult(float(total) / num_tokens, num_tokens)


def next_token_losses(logits: Tensor, input_ids: Tensor) -> Tensor:
    """-log p(x_{t+1} | x_{<=t}) of logits [B, T, V] and ids [B, T]: [B, T - 1], float32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten(), reduction="none").view(
        len(input_ids), -1
    )
