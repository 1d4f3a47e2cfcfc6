"""How good a dictionary is on held-out text, and whether it fits the activations that it is about to read.

A wrong teacher, place or normalisation shows at once. A neighbouring layer need not show: residual streams change slowly from
block to block.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.data.token_dataset import TokenDataset, Windows
from cocomix.modeling.losses import next_token_losses
from cocomix.modeling.teacher import Teacher
from cocomix.sae.config import INPUT_NORMALIZATIONS
from cocomix.sae.model import SparseAutoencoder

# Shapes: B batch, T tokens, D width of the teacher, C latents, V vocabulary.

#: Tokens that the teacher reads at a time; at least one window.
TOKENS_PER_BATCH = 4096
#: Logits held at a time, 0.13 GB of them; at least one window's.
LOGITS_PER_BATCH = 2**25
#: Published dictionaries leave 0.05 to 0.4 of the variance unexplained. Predicting the mean leaves 1. At the demo's size a
#: trained dictionary leaves 0.06, at other layers of its teacher up to 0.18, an untrained one 0.91, and the trained one
#: without its input normalisation 1.8.
PLAUSIBLE_FVU = 0.5


@dataclass(frozen=True)
class SaeQuality:
    """Quality of a dictionary on a number of tokens."""

    fvu: float
    """Fraction of the residual stream's variance that the reconstruction leaves unexplained."""
    fvu_normalized: float
    """The same with every token's error, and variance, on the scale of its own residual stream. The first positions of some
    models are a hundred times the size of all others, and would make up nearly all of the variance."""
    l0: float
    """Mean number of active latents."""
    num_dead: int
    """Latents that were active at none of `num_counted_tokens`."""
    loss: float
    """The teacher's next-token loss, nats."""
    spliced_loss: float
    """The same with the reconstruction in place of the residual stream."""
    mean_ablated_loss: float
    """The same with the mean residual stream at every token."""
    num_tokens: int
    """Tokens measured on, without those that the dictionary leaves out."""
    num_counted_tokens: int
    """Tokens at which active latents were counted: those measured on, and further ones."""
    loss_recovered: float
    """1 - (spliced - loss) / (mean ablated - loss)."""
    num_excluded: int = 0
    """Tokens beside them that the dictionary leaves out; they keep their own residual stream in all three losses."""


@torch.no_grad()
def measure_sae(
    teacher: Teacher,
    sae: SparseAutoencoder,
    dataset: TokenDataset,
    *,
    max_windows: int | None = None,
    further: Iterable[Windows] = (),
) -> tuple[SaeQuality, Int64[Tensor, " C"]]:
    """Measure a dictionary on evenly spaced windows of a split.

    Args:
        teacher: whose residual stream it reads.
        sae: the dictionary.
        dataset: the split.
        max_windows: None: all.
        further: more held-out windows, at which active latents are counted and nothing else is measured.

    Returns:
        the quality, and at how many of `num_counted_tokens` each latent was active.

    Raises:
        CocomixError: a number is not finite, such as the teacher's loss.
    """
    batch_size = windows_per_batch(dataset)
    mean, mean_x, num_tokens = _means(teacher, sae, dataset, batch_size, max_windows)
    sums = torch.zeros(8, dtype=torch.float64)
    counts = torch.zeros(sae.config.num_latents, dtype=torch.long)
    num_excluded = num_predictions = 0
    for windows in dataset.batches(batch_size, max_windows, description="measuring the autoencoder"):
        windows = windows.to(teacher.model.device)
        h = teacher.residual(**windows.inputs())
        kept = sae.kept(h, **windows.inputs())
        num_excluded += int((~kept).sum())
        num_predictions += kept.numel() - len(windows)
        own = h[kept]
        latents = sae.encode(own)
        rebuilt = sae.decode(latents)
        active = latents.values != 0
        counts += torch.bincount(latents.indices[active], minlength=len(counts)).cpu()
        sums += torch.stack(
            [
                (own - rebuilt).double().pow(2).sum(),
                (own - mean).double().pow(2).sum(),
                ((own - rebuilt) / own.std(-1, keepdim=True)).double().pow(2).sum(),
                (_normalize(own) - mean_x).double().pow(2).sum(),
                active.double().sum(),
                _loss_sum(teacher, h, windows),
                _loss_sum(teacher, h.masked_scatter(kept.unsqueeze(-1), rebuilt), windows),
                _loss_sum(teacher, h.masked_scatter(kept.unsqueeze(-1), mean.expand_as(own)), windows),
            ]
        ).cpu()
    num_counted = num_tokens
    for windows in further:
        windows = windows.to(teacher.model.device)
        h = teacher.residual(**windows.inputs())
        rows = h[sae.kept(h, **windows.inputs())]
        latents = sae.encode(rows)
        counts += torch.bincount(latents.indices[latents.values != 0], minlength=len(counts)).cpu()
        num_counted += len(rows)
    loss, spliced, ablated = (float(value) / num_predictions for value in sums[5:])
    quality = SaeQuality(
        fvu=float(sums[0] / sums[1]),
        fvu_normalized=float(sums[2] / sums[3]),
        l0=float(sums[4]) / num_tokens,
        num_dead=int((counts == 0).sum()),
        loss=loss,
        spliced_loss=spliced,
        mean_ablated_loss=ablated,
        num_tokens=num_tokens,
        num_counted_tokens=num_counted,
        loss_recovered=1 - (spliced - loss) / (ablated - loss) if ablated != loss else math.nan,
        num_excluded=num_excluded,
    )
    wrong = {name: value for name, value in dataclasses.asdict(quality).items() if not math.isfinite(value)}
    if wrong:
        numbers = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise CocomixError(
            f"the dictionary of {teacher.model.config.name_or_path} after block {teacher.layer} can't be measured on "
            f"{dataset.path}: {numbers}; the weights of one of them are damaged or too large"
        )
    return quality, counts


def windows_per_batch(dataset: TokenDataset) -> int:
    """Windows of a dataset that the teacher reads at a time."""
    return max(1, TOKENS_PER_BATCH // dataset.context_length)


def _normalize(h: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Each token's residual stream without its mean and scale."""
    return (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True)


def _means(
    teacher: Teacher, sae: SparseAutoencoder, dataset: TokenDataset, batch_size: int, max_windows: int | None
) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"], int]:
    """The mean residual stream of all tokens that the dictionary keeps, that of the normalised one, and their number."""
    total = total_x = torch.zeros((), dtype=torch.float64, device=teacher.model.device)
    num_tokens = 0
    for windows in dataset.batches(batch_size, max_windows):
        windows = windows.to(teacher.model.device)
        h = teacher.residual(**windows.inputs())
        rows = h[sae.kept(h, **windows.inputs())]
        total = total + rows.double().sum(0)
        total_x = total_x + _normalize(rows).double().sum(0)
        num_tokens += len(rows)
    if not num_tokens:
        raise CocomixError(
            f"the dictionary leaves out every position of {dataset.path}; train it with fewer kinds of --exclude"
        )
    return (total / num_tokens).float(), (total_x / num_tokens).float(), num_tokens


def _loss_sum(teacher: Teacher, residual: Tensor, windows: Windows) -> Tensor:
    """Summed next-token loss, some windows at a time, so that a large vocabulary's logits fit into memory."""
    input_ids, positions = windows.input_ids, windows.position_ids
    size = max(1, LOGITS_PER_BATCH // (input_ids.shape[1] * int(teacher.model.config.vocab_size)))
    losses = []
    for start in range(0, len(input_ids), size):
        part = slice(start, start + size)
        logits = teacher.logits(residual[part], None if positions is None else positions[part])
        losses.append(next_token_losses(logits, input_ids[part]).double().sum())
    return torch.stack(losses).sum()


def require_variance(residual: Float[Tensor, "*N D"], place: str) -> None:
    """Refuse activations that say nothing about the text.

    Args:
        residual: activations of some windows.
        place: teacher and block, for the message.

    Raises:
        CocomixError: they are the same at every token, not finite, or so large that their squares are not.
    """
    h = residual.detach().flatten(0, -2)
    variance = float((h.double() - h.double().mean(0)).pow(2).sum())
    # Dictionaries are read in the teacher's own dtype, in which squares overflow much earlier.
    if variance == 0 or not bool(h.pow(2).sum().isfinite()):
        what = "the same at every token" if variance == 0 else "not finite, or too large to be squared"
        raise CocomixError(f"the hidden states of {place} are {what}; its weights are damaged, or were never trained")


@torch.no_grad()
def reconstruction_fvu(sae: SparseAutoencoder, residual: Float[Tensor, "B T D"]) -> float:
    """Fraction of variance that the reconstruction leaves unexplained, without each window's first position and the outliers
    that the dictionary leaves out.

    The first position of many models has a hundred times the norm of the others and would be all of the variance; some
    dictionaries (Gemma Scope) were not trained on it.
    """
    h = residual[:, 1:].flatten(0, 1)
    if sae.config.excluded.max_norm is not None:
        h = h[~(h.float().norm(dim=-1) > sae.config.excluded.max_norm)]
    return float((h - sae(h)).double().pow(2).sum() / (h - h.mean(0)).double().pow(2).sum())


def sae_fit_warning(sae: SparseAutoencoder, residual: Float[Tensor, "B T D"]) -> str | None:
    """One sentence where a dictionary does not fit a few windows' activations; None where it does.

    Args:
        sae: the dictionary.
        residual: activations of the place that it is about to read; a few hundred tokens are enough.

    Raises:
        CocomixError: the reconstruction is not finite.
    """
    if sae.config.transcode:
        return (
            "the dictionary is a transcoder: it predicts another module's output, so that its reconstruction can't be "
            "compared with what it reads, and attribution by its decoder says nothing about this place"
        )
    fvu = reconstruction_fvu(sae, residual)
    if not math.isfinite(fvu):
        raise CocomixError(
            f"the FVU of the dictionary on these activations is {fvu}; check that it belongs to this teacher, layer and place"
        )
    if fvu <= PLAUSIBLE_FVU:
        return None
    misfit = (
        f"the dictionary leaves {fvu:.2f} of the variance of these activations unexplained (FVU; plausible is at most "
        f"{PLAUSIBLE_FVU}, and the mean alone has 1)"
    )
    better, least = min(
        ((name, reconstruction_fvu(other, residual)) for name, other in _alternatives(sae, residual)),
        key=lambda pair: pair[1],
    )
    if least <= PLAUSIBLE_FVU:
        return f"{misfit}; with {better} it would be {least:.2f}: its input normalisation is probably not this one"
    return f"{misfit}; check that it was trained on this teacher, layer and place"


def _alternatives(sae: SparseAutoencoder, residual: Tensor) -> Iterator[tuple[str, SparseAutoencoder]]:
    """The same weights after every other input normalisation, by name."""
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
