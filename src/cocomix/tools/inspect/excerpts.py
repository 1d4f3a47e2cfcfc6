"""The text around occurrences of concepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from cocomix.data.token_dataset import TokenDataset
from cocomix.tools.inspect.cards import Context
from cocomix.tools.inspect.strongest import StrongestOccurrences

TOKENS_BEFORE = 20
TOKENS_AFTER = 10
WINDOWS_PER_READ = 1024


def decoder_of(tokenizer: PreTrainedTokenizerFast) -> Callable[[Sequence[Any]], list[str]]:
    """Texts of many token sequences at once, special tokens included."""
    backend = tokenizer.backend_tokenizer
    return lambda sequences: list(backend.decode_batch([list(ids) for ids in sequences], skip_special_tokens=False))


def excerpts(dataset: TokenDataset, strongest: StrongestOccurrences, source: str) -> list[list[Context]]:
    """For each concept the contexts of its strongest occurrences; of equal texts only the strongest.

    Args:
        dataset: the split that was read.
        strongest: occurrences in it.
        source: what `strongest` is made from.
    """
    decode = decoder_of(dataset.tokenizer())
    windows, positions = strongest.windows.numpy(), strongest.positions.numpy()
    values = strongest.values.double().numpy()
    concept, slot = np.nonzero(windows >= 0)
    contexts: dict[tuple[int, int], Context] = {}
    # Window by window, so that each is read once however many concepts are strongest in it.
    order = np.argsort(windows[concept, slot], kind="stable")
    needed, row_of = np.unique(windows[concept, slot][order], return_inverse=True)
    for start in range(0, len(needed), WINDOWS_PER_READ):
        ids = dataset.input_ids(needed[start : start + WINDOWS_PER_READ]).numpy()
        here = (row_of >= start) & (row_of < start + WINDOWS_PER_READ)
        places = [(int(concept[i]), int(slot[i])) for i in order[here]]
        rows = row_of[here] - start
        at = [int(positions[place]) for place in places]
        before = decode([ids[row, max(0, t - TOKENS_BEFORE) : t] for row, t in zip(rows, at, strict=True)])
        token = decode([ids[row, t : t + 1] for row, t in zip(rows, at, strict=True)])
        after = decode([ids[row, t + 1 : t + 1 + TOKENS_AFTER] for row, t in zip(rows, at, strict=True)])
        for i, place in enumerate(places):
            value, window = float(f"{values[place]:.6g}"), int(windows[place])
            contexts[place] = Context(source, before[i], token[i], after[i], value, window, at[i])
    found: list[list[Context]] = [[] for _ in windows]
    seen: set[tuple[int, str, str, str]] = set()
    for place in sorted(contexts):
        context = contexts[place]
        text = (place[0], context.before, context.token, context.after)
        if text not in seen:
            seen.add(text)
            found[place[0]].append(context)
    return found


def any_contexts(dataset: TokenDataset, num_contexts: int, seed: int = 0) -> list[Context]:
    """Contexts of random places of a split, to compare those of concepts with."""
    generator = np.random.default_rng(seed)
    windows = generator.integers(dataset.num_windows, size=(1, num_contexts))
    positions = generator.integers(dataset.context_length, size=(1, num_contexts))
    places = StrongestOccurrences(1, num_contexts)
    places.windows, places.positions = torch.from_numpy(windows), torch.from_numpy(positions)
    places.values.zero_()
    return excerpts(dataset, places, "any")[0]
