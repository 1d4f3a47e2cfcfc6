"""Reads text with the teacher and its autoencoder: which latents are active, how fluent it is, how much it repeats."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import Cache, DynamicCache

from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.losses import next_token_losses
from cocomix.modeling.teacher import Teacher
from cocomix.sae.model import SparseAutoencoder

# Shapes: B texts, T tokens, L latents.

BATCH_SIZE = 64
REPEATED_LENGTH = 4


@dataclass(frozen=True)
class Readings:
    """Measurements of continuations, without their prompts."""

    activations: Float[Tensor, "*B L"]
    """Mean activation of each latent over all tokens, 0 where it is not active."""
    losses: Float[Tensor, "*B"]
    """The teacher's loss, nats per token."""
    repetition: Float[Tensor, "*B"]
    """Share of the runs of four tokens that occurred earlier in the text."""


class TextReader:
    """Reads continuations.

    Args:
        teacher: gives the residual stream, and the loss that measures fluency.
        sae: the teacher's autoencoder.
        latents: L latents to read.
    """

    def __init__(self, teacher: Teacher, sae: SparseAutoencoder, latents: Sequence[int]) -> None:
        self.teacher, self.sae, self.num_latents = teacher, sae, len(latents)
        self.slots = torch.full((sae.config.num_latents,), len(latents))  # L: not read
        self.slots[torch.tensor(list(latents), dtype=torch.long)] = torch.arange(len(latents))
        self.slots = self.slots.to(teacher.model.device)

    @torch.no_grad()
    def read(self, ids: Int64[Tensor, "*B T"], num_prompt_tokens: int) -> Readings:
        """Read the tokens after the first `num_prompt_tokens`, which are their context. A prompt of many texts runs once."""
        rows = ids.flatten(0, -2).to(self.slots.device)
        prompts, places = rows[:, :num_prompt_tokens].unique(dim=0, return_inverse=True)
        cache = DynamicCache(config=self.teacher.model.config)
        ends = self._run(prompts, cache, 0)[1][:, -1:]
        parts = []
        for texts, place in zip(rows.split(BATCH_SIZE), places.split(BATCH_SIZE), strict=True):
            own = copy.deepcopy(cache)
            own.batch_select_indices(place)
            parts.append(self._read(texts[:, num_prompt_tokens - 1 :], own, ends[place], num_prompt_tokens))
        columns = (torch.cat(column).cpu().unflatten(0, ids.shape[:-1]) for column in zip(*parts, strict=True))
        return Readings(*columns)

    def _read(self, ids: Tensor, cache: Cache, ends: Tensor, num_past: int) -> tuple[Tensor, Tensor, Tensor]:
        """Reads continuations from their prompts' last token on, whose state below the head is `ends`."""
        new = ids[:, 1:]
        hidden, top = self._run(new, cache, num_past)
        latents = self.sae.encode(hidden)
        kept = self.sae.kept(hidden, new, _positions(new, num_past))
        dense = hidden.new_zeros(*latents.values.shape[:2], self.num_latents + 1)
        dense.scatter_add_(-1, self.slots[latents.indices], latents.values * kept.unsqueeze(-1))
        losses = next_token_losses(self.teacher.adapter.logits(torch.cat([ends, top], 1)), ids)
        repetition = torch.tensor([_repetition(row) for row in new.tolist()])
        return dense[..., :-1].mean(1), losses.mean(1), repetition

    def _run(self, ids: Tensor, cache: Cache, num_past: int) -> tuple[Tensor, Tensor]:
        """The residual stream that the autoencoder reads, and the head's."""
        adapter, positions = self.teacher.adapter, _positions(ids, num_past)
        hidden = adapter.embed(adapter.token_embeddings(ids), positions)
        hidden = adapter.run_blocks(hidden, 0, self.teacher.layer + 1, position_ids=positions, cache=cache)
        return hidden, self.teacher.hidden(hidden, position_ids=positions, cache=cache)


def _positions(ids: Tensor, num_past: int) -> Tensor:
    return torch.arange(num_past, num_past + ids.shape[1], device=ids.device).unsqueeze(0)


def _repetition(tokens: Sequence[int]) -> float:
    runs = [tuple(tokens[start : start + REPEATED_LENGTH]) for start in range(len(tokens) - REPEATED_LENGTH + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@torch.no_grad()
def most_used_latents(
    teacher: Teacher, sae: SparseAutoencoder, dataset: TokenDataset, num_strongest: int, max_windows: int | None = None
) -> list[int]:
    """Latents by how often they are among the strongest of a token, the default choice of labels; without unused latents.

    Args:
        teacher: gives the residual stream.
        sae: the teacher's autoencoder.
        dataset: text to read.
        num_strongest: how many latents of a token count.
        max_windows: how many evenly spaced windows to read; None: all.
    """
    counts = torch.zeros(sae.config.num_latents, dtype=torch.long)
    for windows in dataset.batches(BATCH_SIZE, max_windows):
        windows = windows.to(teacher.model.device)
        latents = sae.read(teacher.residual(**windows.inputs()), **windows.inputs())
        best = latents.values.topk(min(num_strongest, latents.values.shape[-1]), dim=-1)
        chosen = latents.indices.gather(-1, best.indices)[best.values > 0]
        counts += torch.bincount(chosen, minlength=len(counts)).cpu()
    order = counts.argsort(descending=True, stable=True)
    return [latent for latent in order.tolist() if counts[latent]]
