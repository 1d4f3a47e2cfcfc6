"""The effect of a concept on the next token: direct, from the weights alone, and measured, on text.

Directly: concept c adds its row w_c of the compression to the residual stream, and a latent its row of the decoder, so
head(norm(w_c)) - head(norm(0)) are the logits of a residual stream that holds only that row. The norm removes the row's
length, which does not tell how strongly the concept is active. Blocks above the mixer or the dictionary are skipped.

Measured: the concept is set to its usual activation at every token of some prompts, and the probabilities of the next token
are compared with those of the unedited model, through all blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from cocomix.base.devices import plain_products
from cocomix.base.progress import ProgressLine
from cocomix.data.token_dataset import TokenDataset
from cocomix.mixers.edits import concept_edits
from cocomix.modeling.backbones import DecoderAdapter
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.steering.steer import Steer
from cocomix.tools.inspect.histograms import RowHistograms, row_histograms

# Shapes: C concepts, c concepts of a chunk, N tokens or neighbours kept, P prompts, T tokens, V vocabulary, D width.

#: Elements of one chunk's logits or similarities: 64 MB in float32.
CHUNK_ELEMENTS = 2**24
NUM_PROMPTS = 8
TOKENS_PER_PROMPT = 32
#: Positions of each prompt whose next-token distributions are compared.
POSITIONS_PER_PROMPT = 8
ROWS_PER_PASS = 64


@dataclass(frozen=True)
class Effects:
    """The tokens that each concept promotes and suppresses most, strongest first."""

    promoted: Int64[Tensor, "C N"]
    promoted_by: Float[Tensor, "C N"]
    suppressed: Int64[Tensor, "C N"]
    suppressed_by: Float[Tensor, "C N"]


@dataclass(frozen=True)
class MeasuredEffects:
    """Measured effects of some concepts."""

    concepts: Sequence[int]
    """One per row."""
    effects: Effects
    """Mean change of the next token's probability."""
    change: Float[Tensor, " C"]
    """Mean total variation distance between the two distributions: the share of probability that moves."""


@torch.no_grad()
def direct_effects(
    adapter: DecoderAdapter, rows: Float[Tensor, "C D"], tokens: Int64[Tensor, " V"], num_tokens: int
) -> tuple[Effects, RowHistograms]:
    """Logits of some tokens through each row and the output head, less their mean, and how they are distributed.

    Args:
        adapter: of the model whose head it is.
        rows: what each concept writes.
        tokens: to choose from: those that occur in the text. Tokens without training would win everywhere.
        num_tokens: N, how many promoted and how many suppressed tokens are kept.
    """
    # All rows get the same length; otherwise the norm's epsilon would weaken short rows.
    rows = F.normalize(rows, dim=-1) * rows.shape[-1] ** 0.5
    at_zero = adapter.logits(torch.zeros_like(rows[:1]).unsqueeze(0))[0]  # (1, V): the norm's and the head's biases
    parts, histograms = [], []
    for chunk in rows.split(max(1, CHUNK_ELEMENTS // at_zero.shape[-1])):
        logits = (adapter.logits(chunk.unsqueeze(0))[0].float() - at_zero.float())[:, tokens]
        logits -= logits.mean(-1, keepdim=True)
        most, most_by, least, least_by = _extremes(logits, num_tokens)
        parts.append((tokens[most], most_by, tokens[least], least_by))
        histograms.append(row_histograms(logits))
    return _joined(parts), RowHistograms(
        torch.cat([part.edges for part in histograms]), torch.cat([part.counts for part in histograms])
    )


@torch.no_grad()
def measured_effects(
    model: CoCoMixForCausalLM,
    dataset: TokenDataset,
    concepts: Sequence[int],
    activations: Float[Tensor, " C"],
    num_tokens: int,
) -> MeasuredEffects:
    """Mean change of the next token's probability when a concept is set to its usual activation.

    Args:
        model: with concepts mixed into its hidden states.
        dataset: prompts are the starts of evenly spaced windows.
        concepts: to measure.
        activations: of all concepts: the value that each is set to.
        num_tokens: N, how many promoted and how many suppressed tokens are kept.
    """
    windows = next(dataset.batches(NUM_PROMPTS, NUM_PROMPTS)).to(model.device)
    prompts = {name: tensor[:, :TOKENS_PER_PROMPT] for name, tensor in windows.inputs().items()}
    P, T = prompts["input_ids"].shape
    kept = torch.linspace(T // POSITIONS_PER_PROMPT, T - 1, min(POSITIONS_PER_PROMPT, T)).long()
    base = _probabilities(model, prompts, kept)
    parts, changes = [], []
    with ProgressLine("setting concepts", len(concepts) * P * T) as progress:
        size = max(1, ROWS_PER_PASS // P)
        for chunk in (concepts[start : start + size] for start in range(0, len(concepts), size)):
            inputs = {name: tensor.repeat(len(chunk), 1) for name, tensor in prompts.items()}
            strengths = [{concept: float(activations[concept])} for concept in chunk]
            with concept_edits(model, Steer(strengths, "set", num_concepts=model.config.num_concepts)):
                change = _probabilities(model, inputs, kept).unflatten(0, (len(chunk), P)) - base  # (c, P, kept, V)
            parts.append(_extremes(change.mean((1, 2)), num_tokens))
            changes.append(change.abs().sum(-1).mean((1, 2)).cpu() / 2)
            progress.advance(len(chunk) * P * T)
    return MeasuredEffects(concepts, _joined(parts), torch.cat(changes))


def _probabilities(model: CoCoMixForCausalLM, inputs: dict[str, Tensor], kept: Tensor) -> Tensor:
    """Probabilities of the next token at some positions: [B, kept, V]."""
    logits: Tensor = model(**inputs, use_cache=False, logits_to_keep=kept).logits
    return logits.float().softmax(-1)


@torch.no_grad()
def nearest_concepts(rows: Float[Tensor, "C D"], num_nearest: int) -> tuple[Tensor, Tensor]:
    """For each concept the others whose rows have the largest cosine with its row; never holds [C, C] at once.

    Returns:
        concepts and cosines, both [C, N].
    """
    unit = F.normalize(rows.float(), dim=-1)
    num_nearest = min(num_nearest, len(unit) - 1)
    nearest, similarities = [], []
    start = 0
    for chunk in unit.split(max(1, CHUNK_ELEMENTS // len(unit))):
        with plain_products(unit.device):
            cosine = chunk @ unit.t()
        places = torch.arange(len(chunk), device=unit.device)
        cosine[places, start + places] = -torch.inf
        best = cosine.topk(num_nearest, dim=-1)
        nearest.append(best.indices.cpu())
        similarities.append(best.values.cpu())
        start += len(chunk)
    return torch.cat(nearest), torch.cat(similarities)


def _extremes(change: Float[Tensor, "c V"], num_tokens: int) -> tuple[Tensor, ...]:
    num_tokens = min(num_tokens, change.shape[-1])
    most, least = change.topk(num_tokens, dim=-1), change.topk(num_tokens, dim=-1, largest=False)
    return most.indices.cpu(), most.values.cpu(), least.indices.cpu(), least.values.cpu()


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> Effects:
    return Effects(*(torch.cat([part[i] for part in parts]) for i in range(4)))
