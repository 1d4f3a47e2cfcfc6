"""Controls: labels that a method which needs true concepts should do worse with.

    random      labels of a frozen random dictionary of the same shape: what any projection of the teacher gives
    shuffled    true labels permuted over the labelled positions of their window: its concepts, at the wrong tokens
    frequency   concepts drawn from the histogram of all true labels: how often each occurs, and nothing else

Each is a pure function of a window's tokens, the settings and the seed, like the labels themselves: the same window gets the
same labels in any batch, shard or process. `shuffled` and `frequency` are made from finished labels and need no teacher.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.base.labels import IGNORED_LABEL
from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.model import SparseAutoencoder

# Shapes: B batch, T tokens, C concepts, A labels a token, n labelled positions of a window.


def random_dictionary(sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    """A frozen TopK dictionary of the same shape with random unit directions, its encoder equal to its decoder.

    It keeps the trained one's centre (the decoder's bias): without it, the mean residual stream would choose the same few
    latents at every token.
    """
    given = sae.config
    if given.num_active_latents is None:
        raise CocomixError(
            "the control 'random' keeps as many latents as the given dictionary, which has no fixed number of them"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random = SparseAutoencoder(
            SparseAutoencoderConfig(
                hidden_size=given.hidden_size,
                num_latents=given.num_latents,
                num_active_latents=given.num_active_latents,
                normalize_input=given.normalize_input,
            )
        ).to(sae.decoder_bias)
    with torch.no_grad():
        random.decoder_bias.copy_(sae.decoder_bias)
    return random.eval().requires_grad_(False)


def shuffle_labels(
    input_ids: Int64[Tensor, "B T"], labels: Int64[Tensor, "B T A"], seed: int
) -> Int64[Tensor, "B T A"]:
    """The labels of each window permuted over its labelled positions, those of one position together."""
    shuffled = labels.clone()
    for b, valid in enumerate((labels != IGNORED_LABEL).all(-1)):
        order = _generator(seed, input_ids[b]).permutation(int(valid.sum()))
        shuffled[b, valid] = labels[b, valid][torch.from_numpy(order)]
    return shuffled


def draw_labels(
    input_ids: Int64[Tensor, "B T"], labels: Int64[Tensor, "B T A"], histogram: Int64[Tensor, " C"], seed: int
) -> Int64[Tensor, "B T A"]:
    """A different concepts for each labelled position, one after another with probabilities proportional to `histogram`.

    Args:
        input_ids: the windows.
        labels: true labels; only which positions have some is used.
        histogram: how often each concept is a true label; at least A occur.
        seed: of the draws.
    """
    cumulative = histogram.cumsum(0).numpy()
    drawn = labels.clone()
    for b, valid in enumerate((labels != IGNORED_LABEL).all(-1)):
        n, A = int(valid.sum()), labels.shape[-1]
        drawn[b, valid] = torch.from_numpy(_draw(_generator(seed, input_ids[b]), cumulative, n, A))
    return drawn


def _draw(generator: np.random.Generator, cumulative: np.ndarray, n: int, A: int) -> np.ndarray:
    """[n, A]: a concept that its row has already is drawn again."""
    concepts = np.empty((n, A), dtype=np.int64)
    for k in range(A):
        again = np.arange(n)
        while len(again):
            tickets = generator.integers(cumulative[-1], size=len(again))
            concepts[again, k] = np.searchsorted(cumulative, tickets, side="right")
            again = again[(concepts[again, :k] == concepts[again, k : k + 1]).any(-1)]
    return concepts


def _generator(seed: int, window: Int64[Tensor, " T"]) -> np.random.Generator:
    """Random numbers that belong to a window's tokens, wherever the window stands."""
    digest = hashlib.sha256(window.numpy().astype("<i8").tobytes()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, "<u4")])
