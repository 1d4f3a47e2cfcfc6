"""The quality card of a dictionary: `quality.json`, and the same as one page, `quality.html`.

It shows the quality of the reconstruction, how often latents are active, and where a sample of latents is strongest. The
sample runs from the most used latent to the rarest, so that a person sees more than the best ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from markupsafe import Markup
from torch import Tensor

from cocomix.base.artifacts import write_json
from cocomix.base.drawing import MUTED, RULE, SERIES, Drawing, panel, save
from cocomix.base.formats import NARROW_SPACE
from cocomix.base.page import page_environment, write_file
from cocomix.sae.quality import windows_per_batch
from cocomix.sae.train import TrainedAutoencoder
from cocomix.tools.inspect.card_making import excerpts
from cocomix.tools.inspect.occurrences import StrongestOccurrences

# Shapes: C latents, K active at one token at most.

CARD_NAME = "quality.json"
PAGE_NAME = "quality.html"
NUM_SAMPLED_LATENTS = 24
NUM_CONTEXTS = 5
BINS_PER_DECADE = 4


def write_card(trained: TrainedAutoencoder) -> None:
    """Write `quality.json` and `quality.html`; equal dictionaries and data give equal bytes."""
    sae, quality, counts = trained.sae, trained.quality, trained.counts
    K = sae.config.max_active_latents
    sample = sample_latents(counts)
    contexts = excerpts(trained.validation, strongest_occurrences(sample, trained), "sae")
    card = {
        "layer": trained.teacher.layer,
        "num_latents": sae.config.num_latents,
        "k": None if sae.config.num_latents == K else K,  # where thresholds decide, there is no such number
        "train_tokens": trained.train_tokens,
        "quality": dataclasses.asdict(quality),
        "density": density_histogram(counts, quality.num_counted_tokens),
        "latents": [
            {
                "latent": latent,
                "density": int(counts[latent]) / quality.num_counted_tokens,
                "contexts": [
                    {name: getattr(context, name) for name in ("before", "token", "after", "activation")}
                    for context in contexts[latent]
                ],
            }
            for latent in sample
        ],
    }
    write_json(trained.output / CARD_NAME, card)
    write_file(trained.output / PAGE_NAME, card_page(card).encode())


@torch.no_grad()
def strongest_occurrences(latents: Sequence[int], trained: TrainedAutoencoder) -> StrongestOccurrences:
    """Where some latents are strongest in the validation text that was measured on."""
    sae, dataset, max_windows = trained.sae, trained.validation, trained.max_windows
    strongest = StrongestOccurrences(sae.config.num_latents, NUM_CONTEXTS)
    count = min(max_windows or dataset.num_windows, dataset.num_windows)
    window_ids = torch.from_numpy(np.arange(count) * dataset.num_windows // count)
    wanted = torch.tensor(latents, dtype=torch.long, device=trained.teacher.model.device)
    start = 0
    for windows in dataset.batches(windows_per_batch(dataset), max_windows, description="finding contexts"):
        windows = windows.to(wanted.device)
        active = sae.read(trained.teacher.residual(**windows.inputs()), **windows.inputs())
        present = (active.values > 0) & torch.isin(active.indices, wanted)
        strongest.add(window_ids[start : start + len(windows)], active.indices, active.values, present)
        start += len(windows)
    return strongest


def sample_latents(counts: Int64[Tensor, " C"], num_latents: int = NUM_SAMPLED_LATENTS) -> list[int]:
    """Latents that are not dead, evenly spaced from the most to the least often active."""
    ranked = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
    num_latents = min(num_latents, len(ranked))
    places = [i * (len(ranked) - 1) // max(num_latents - 1, 1) for i in range(num_latents)]
    return [int(ranked[place]) for place in places]


def density_histogram(counts: Int64[Tensor, " C"], num_tokens: int) -> dict[str, Any]:
    """How many latents, dead ones aside, are active at which share of tokens (its log10), from once to always.

    Returns:
        `log10_edges`, one more than there are bins, and `num_latents` of each bin, the last including its upper edge.
    """
    decades = math.ceil(math.log10(num_tokens))
    logs = (counts[counts > 0].double() / num_tokens).log10()
    num_bins = decades * BINS_PER_DECADE
    bins = ((logs + decades) * BINS_PER_DECADE).long().clamp(0, num_bins - 1)
    return {
        "log10_edges": [i / BINS_PER_DECADE - decades for i in range(num_bins + 1)],
        "num_latents": torch.bincount(bins, minlength=num_bins).tolist(),
    }


def card_page(card: Mapping[str, Any]) -> str:
    """The page of a card, one self-contained HTML file."""
    template = page_environment("cocomix.tools.sae_card").get_template(PAGE_NAME)
    return template.render(card=card, histogram=Markup(_histogram(card).svg))


def _histogram(card: Mapping[str, Any]) -> Drawing:
    density, quality = card["density"], card["quality"]
    edges, numbers = density["log10_edges"], density["num_latents"]
    decades = range(round(edges[0]), 1)
    figure, axes = panel(4.2, 2.1, left=0.45, right=0.25, bottom=0.47, top=0.28)
    axes.bar(
        edges[:-1], numbers, width=1 / BINS_PER_DECADE, align="edge", color=SERIES[0], edgecolor=RULE, linewidth=0.4
    )
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xticks(decades, [_percent(exponent) for exponent in decades])
    axes.set_xlabel("Share of tokens at which a latent is active (logarithmic)", loc="left")
    axes.set_title("Latents", loc="left", fontsize=8.5, color=MUTED, pad=7)
    shares = [
        f"{sum(numbers[i * BINS_PER_DECADE : (i + 1) * BINS_PER_DECADE]):,} at {_percent(low)} to {_percent(low + 1)}"
        for i, low in enumerate(decades[:-1])
    ]
    alt = f"Latents by the share of tokens at which they are active: {', '.join(shares)}; {quality['num_dead']:,} at none."
    return save(figure, "density", alt)


def _percent(exponent: int) -> str:
    """10 to a power as a percentage."""
    return f"{100 * 10.0**exponent:g}{NARROW_SPACE}%"
