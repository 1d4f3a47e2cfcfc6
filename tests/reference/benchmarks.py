"""Benchmarks scored without lm-eval: one text at a time, plain sums."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def score(model: nn.Module, context: list[int], answer: list[int], max_length: int) -> tuple[float, bool]:
    """Log-likelihood of an answer's tokens, and whether each is the likeliest; the context's beginning goes first."""
    ids = torch.tensor((context + answer)[-max_length - 1 :])
    log_probs = model(input_ids=ids[None, :-1]).logits[0].double().log_softmax(-1)[-len(answer) :]
    targets = ids[-len(answer) :]
    return float(log_probs.gather(1, targets[:, None]).sum()), bool((log_probs.argmax(-1) == targets).all())


def lambada(model: nn.Module, tokenizer: Any, passages: list[str], max_length: int) -> dict[str, float]:
    scores = []
    for passage in passages:
        context, word = passage.rsplit(" ", 1)
        start, whole = tokenizer.encode(context), tokenizer.encode(f"{context} {word}")
        scores.append(score(model, start, whole[len(start) :], max_length))
    return {
        "acc": statistics.mean(float(hit) for _, hit in scores),
        "perplexity": math.exp(-statistics.mean(log_likelihood for log_likelihood, _ in scores)),
    }


def blimp(model: nn.Module, tokenizer: Any, pairs: list[tuple[str, str]], max_length: int) -> list[float]:
    """1 for each pair whose first sentence is the likelier."""
    hits = []
    for pair in pairs:
        good, bad = (
            score(model, [tokenizer.bos_token_id], tokenizer.encode(f" {text}"), max_length)[0] for text in pair
        )
        hits.append(float(good > bad))
    return hits


@torch.no_grad()
def rolling(model: nn.Module, tokenizer: Any, text: str, max_length: int) -> float:
    """Log-likelihood of a text in windows of the model's length; the last one is filled up with tokens before it."""
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text)]
    total = 0.0
    for start in range(0, len(ids) - 1, max_length):
        end = min(start + max_length, len(ids) - 1)
        total += score(model, ids[max(0, end - max_length) : start + 1], ids[start + 1 : end + 1], max_length)[0]
    return total
