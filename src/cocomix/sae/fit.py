"""Whether a dictionary fits the activations it is about to read: a wrong teacher, place or normalisation shows at once.

A neighbouring layer need not show: residual streams change slowly from block to block.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from cocomix.sae.config import INPUT_NORMALIZATIONS
from cocomix.sae.model import SparseAutoencoder

# Shapes: B batch, T tokens, D width of the teacher.

#: Published dictionaries leave 0.05 to 0.4 of the variance unexplained. Predicting the mean leaves 1. At the demo's size a
#: trained dictionary leaves 0.06, at other layers of its teacher up to 0.18, an untrained one 0.91, and the trained one
#: without its input normalisation 1.8.
PLAUSIBLE_FVU = 0.5


@torch.no_grad()
def reconstruction_fvu(sae: SparseAutoencoder, residual: Float[Tensor, "B T D"]) -> float:
    """Fraction of variance that the reconstruction leaves unexplained, without each window's first position.

    The first position of many models has a hundred times the norm of the others and would be all of the variance; some
    dictionaries (Gemma Scope) were not trained on it.
    """
    h = residual[:, 1:].flatten(0, 1)
    return float((h - sae(h)).double().pow(2).sum() / (h - h.mean(0)).double().pow(2).sum())


def sae_fit_warning(sae: SparseAutoencoder, residual: Float[Tensor, "B T D"]) -> str | None:
    """One sentence where a dictionary does not fit a few windows' activations; None where it does.

    Args:
        sae: the dictionary.
        residual: activations of the place that it is about to read; some hundreds of tokens are enough.
    """
    if sae.config.transcode:
        return (
            "the dictionary is a transcoder: it predicts another module's output, so that its reconstruction can't be "
            "compared with what it reads, and attribution by its decoder says nothing about this place"
        )
    fvu = reconstruction_fvu(sae, residual)
    if fvu <= PLAUSIBLE_FVU:
        return None
    found = (
        f"the dictionary leaves {fvu:.2f} of the variance of these activations unexplained (FVU; plausible is at most "
        f"{PLAUSIBLE_FVU}, and the mean alone has 1)"
    )
    better, least = min(
        ((name, reconstruction_fvu(other, residual)) for name, other in _alternatives(sae, residual)),
        key=lambda pair: pair[1],
    )
    if least <= PLAUSIBLE_FVU:
        return f"{found}; with {better} it would be {least:.2f}: its input normalisation is probably not this one"
    return f"{found}; check that it was trained on this teacher, layer and place"


def _alternatives(sae: SparseAutoencoder, residual: Tensor) -> Iterator[tuple[str, SparseAutoencoder]]:
    """The same weights behind every other input normalisation, by name."""
    for name in INPUT_NORMALIZATIONS:
        if name != sae.config.normalize_input:
            yield f"normalize_input {name!r}", _with_normalization(sae, name)
    # The factor that SAELens estimates for `expected_average_only_in`, over all tokens but the first of a window.
    factor = residual.shape[-1] ** 0.5 / float(residual[:, 1:].norm(dim=-1).mean())
    scaled = copy.deepcopy(_with_normalization(sae, "none"))
    scaled.fold_input_scale(factor)
    yield f"fold_input_scale({factor:.4g})", scaled


def _with_normalization(sae: SparseAutoencoder, name: str) -> SparseAutoencoder:
    other = copy.copy(sae)  # shares its parameters
    other.config = dataclasses.replace(sae.config, normalize_input=name)
    return other
