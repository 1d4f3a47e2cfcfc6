"""Positions that spoil a dictionary: which ones a training leaves out, from the residual streams of its first step.

In many decoders the first position of a sequence, and a few others without much content, have a residual stream a hundred
times as large as all others: attention rests there (Xiao et al., arXiv 2309.17453). A dictionary that has to reconstruct
them spends latents on them, and its plain FVU measures little else. SAELens leaves special tokens out on request
(`exclude_special_tokens`), dictionary_learning the first position or all above a multiple of the median norm
(`max_activation_norm_multiple`, for which it names 10). Here the bound is a number that the dictionary keeps, so that any
window has the same positions left out whatever else is read with it.
"""

from __future__ import annotations

from collections.abc import Collection

from jaxtyping import Bool, Float
from torch import Tensor

from cocomix.data.token_dataset import TokenDataset
from cocomix.sae.config import ExcludedPositions

# Shapes: B windows, T tokens, D width of the teacher.

#: Residual streams of more than this many times the median norm are outliers.
OUTLIER_RATIO = 10.0


def excluded_positions(kinds: Collection[str], h: Float[Tensor, "B T D"], data: TokenDataset) -> ExcludedPositions:
    """The positions that a dictionary leaves out.

    Args:
        kinds: of `ExcludedKind`.
        h: residual streams of some windows, enough for a median.
        data: whose tokenizer knows the special tokens.
    """
    special = data.tokenizer().added_tokens_decoder if "special" in kinds else {}
    return ExcludedPositions(
        first="first" in kinds,
        tokens=tuple(sorted(index for index, token in special.items() if token.special)),
        max_norm=OUTLIER_RATIO * float(_norms(h).median()) if "outliers" in kinds else None,
    )


def describe_norms(h: Float[Tensor, "B T D"], kept: Bool[Tensor, "B T"]) -> str:
    """One line about how far norms are apart, and how many of the positions are kept."""
    ratios = _norms(h) / _norms(h).median()
    largest, first, share = float(ratios.max()), float(ratios[:, 0].median()), 1 - float(kept.float().mean())
    text = (
        f"norms of residual streams are up to {largest:.3g} times the median ({first:.3g} at first positions); {share:.2%} "
        "of the positions are left out"
    )
    num_outliers = int((kept & (ratios > OUTLIER_RATIO)).sum())
    if num_outliers:
        text += f", and not {num_outliers:,} above {OUTLIER_RATIO:g} times: --exclude outliers leaves those out"
    return text


def _norms(h: Tensor) -> Tensor:
    norms: Tensor = h.float().norm(dim=-1)
    return norms
