"""Objectives and concept metrics one position at a time."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor


def sampled_divergence(logits: Tensor, tokens: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """temperature^2 * sum of CE(histogram of draws, student) - H(teacher); logits [B, T, V], draws [B, T - 1, K]."""
    total = logits.new_zeros(())
    B, P, K = tokens.shape
    for b in range(B):
        for t in range(P):
            q = (logits[b, t] / temperature).softmax(-1)
            p = (teacher[b, t] / temperature).softmax(-1)
            histogram = Counter(tokens[b, t].tolist())
            cross_entropy = -sum(count / K * q[token].log() for token, count in histogram.items())
            total = total + temperature**2 * (cross_entropy + (p * p.log()).sum())
    return total


def hidden_regression(hidden: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Sum over positions of the mean squared error a dimension of the teacher, both sides normalised a token."""
    total = hidden.new_zeros(())
    for h, t in zip(hidden.flatten(0, 1), target.flatten(0, 1), strict=True):
        x = (h - h.mean()) / (h.std() + 1e-5)
        y = (t - t.mean()) / (t.std() + 1e-5)
        total = total + ((weight @ x + bias - y) ** 2).mean()
    return total


def layer_alignment(hidden: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Sum over positions of 1 - cos; the student's side normalised a token, the teacher's as it is."""
    total = hidden.new_zeros(())
    for h, y in zip(hidden.flatten(0, 1), target.flatten(0, 1), strict=True):
        z = weight @ ((h - h.mean()) / (h.std() + 1e-5)) + bias
        total = total + 1 - z @ y / (z.norm() * y.norm())
    return total


def multi_token(logits: Tensor, ids: Tensor, num_more_tokens: int) -> Tensor:
    """Sum over positions of -log p of the tokens after the next one, each with half of the former's weight."""
    total = logits.new_zeros(())
    for z, row in zip(logits, ids, strict=True):
        for t in range(len(row)):
            for j in range(1, num_more_tokens + 1):
                if t + 1 + j < len(row):
                    total = total - 2.0 ** (1 - j) * z[t].log_softmax(-1)[row[t + 1 + j]]
    return total


def concept_recall(labels: Tensor, active: Tensor) -> float:
    """Share of the labels that are among their position's active concepts."""
    hits = []
    for wanted, found in zip(labels.flatten(0, 1).tolist(), active.flatten(0, 1).tolist(), strict=True):
        hits += [label in found for label in wanted if label != -100]
    return sum(hits) / len(hits)


def label_entropy(labels: Tensor) -> float:
    """Of the histogram of the labels, in nats."""
    counts = Counter(label for label in labels.flatten().tolist() if label != -100)
    num_labels = sum(counts.values())
    return -sum(count / num_labels * math.log(count / num_labels) for count in counts.values())


def expected_draws(logits: Tensor, uniform: Tensor) -> Tensor:
    """For each number of a row, the first token whose cumulated probability exceeds it."""
    rows = []
    for z, numbers in zip(logits, uniform.tolist(), strict=True):
        p = z.double().softmax(-1).tolist()
        possible = [i for i in range(len(p)) if p[i] > 0]
        rows.append([next((i for i in possible if sum(p[: i + 1]) > u), possible[-1]) for u in numbers])
    return torch.tensor(rows)
