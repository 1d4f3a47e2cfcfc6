"""How well steering works: is a concept more active in steered text, at what cost, and more than by steering another?

Every concept of a sample is steered at every strength on every prompt, and all concepts of the sample are read in each text.
So the control costs nothing: the same concept, read in the texts where a random other one of the sample was steered.

Strengths are chosen on one half of the prompts and scored on the other, for the concept itself and for the other alike. A
rise is tested over the prompts of the second half, each against the same prompt's mean without steering, by flipping the
signs of the differences: if steering did nothing, either sign were as likely. P values are adjusted for the number of
concepts (Benjamini and Hochberg 1995), as the score is a share of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.tools.generate.continuations import Continuing, continue_all
from cocomix.tools.steer_eval.reading import TextReader

# Shapes: N concepts of the sample, S strengths, P prompts, T tokens of a prompt.

SIGNIFICANCE = 0.05
NUM_SIGN_FLIPS = 2**14
MAX_EXACT_PROMPTS = 14
#: Continuations of each prompt without steering, whose mean the steered one is compared with.
NUM_UNSTEERED = 8


@dataclass(frozen=True)
class Measurements:
    """What was read in steered and unsteered continuations."""

    strengths: tuple[float, ...]
    activations: Float[Tensor, "N S P N"]
    """By steered concept, strength, prompt and read concept."""
    losses: Float[Tensor, "N S P"]
    repetition: Float[Tensor, "N S P"]
    unsteered_activations: Float[Tensor, "P N"]
    unsteered_losses: Float[Tensor, " P"]
    unsteered_repetition: Float[Tensor, " P"]

    def costs(self) -> Float[Tensor, "N S P"]:
        """What steering adds to the teacher's loss, nats a token."""
        return self.losses - self.unsteered_losses


@dataclass(frozen=True)
class ConceptScore:
    """One concept, read on the scoring half of the prompts."""

    concept: int
    steered: int
    """The steered concept: itself, or the random other."""
    strength: float | None
    """Chosen on the other half; None: every strength cost too much there, and what follows is about none."""
    unsteered_activation: float
    steered_activation: float | None = None
    p_value: float = 1.0
    """Of no rise, one-sided."""
    adjusted_p_value: float = 1.0
    """The same, adjusted for the number of concepts."""
    fluency_cost: float | None = None
    """Nats a token that the teacher loses on the text."""
    repetition_change: float | None = None
    rises: bool = False
    """Whether it rises significantly, at a strength that costs no more than allowed on this half, too."""


def measure_steering(
    model: CoCoMixForCausalLM,
    reader: TextReader,
    prompts: Int64[Tensor, "P T"],
    concepts: Sequence[int],
    strengths: Sequence[float],
    how: Continuing,
    *,
    left_alone: Collection[int] = (),
    seed: int = 0,
) -> Measurements:
    """Steer each concept at each strength on each prompt, and read all of them.

    Args:
        model: in evaluation mode.
        reader: of the latents `concepts`, in that order.
        prompts: of equal length.
        concepts: the sample.
        strengths: of every one.
        how: prompts are continued.
        left_alone: concepts of the sample that can't be steered this way; their texts are unsteered ones.
        seed: of sampling.
    """
    N, S, T = len(concepts), len(strengths), prompts.shape[1]
    edits = [{} if concept in left_alone else {concept: strength} for concept in concepts for strength in strengths]
    found = continue_all(model, prompts, edits, how, seed=seed, description="steering")
    readings = [reader.read(ids, T) for ids in found]
    unsteered = torch.cat(list(continue_all(model, prompts, [{}] * NUM_UNSTEERED, how, seed=seed)))
    plain = reader.read(unsteered, T)
    return Measurements(
        strengths=tuple(strengths),
        activations=torch.cat([reading.activations for reading in readings]).unflatten(0, (N, S)),
        losses=torch.cat([reading.losses for reading in readings]).unflatten(0, (N, S)),
        repetition=torch.cat([reading.repetition for reading in readings]).unflatten(0, (N, S)),
        unsteered_activations=plain.activations.mean(0),
        unsteered_losses=plain.losses.mean(0),
        unsteered_repetition=plain.repetition.mean(0),
    )


def score_steering(
    measured: Measurements, concepts: Sequence[int], steered: Sequence[int], max_cost: float, *, seed: int = 0
) -> list[ConceptScore]:
    """Score every concept of the sample, when others or itself are steered.

    Args:
        measured: see `measure_steering`.
        concepts: the sample.
        steered: for each concept the place in the sample of the steered one.
        max_cost: nats a token that steering may cost.
        seed: of the halves.
    """
    P = measured.losses.shape[-1]
    order = torch.randperm(P, generator=torch.Generator().manual_seed(seed))
    choosing, scoring = order[: P // 2], order[P // 2 :]
    rows, columns = torch.tensor(list(steered)), torch.arange(len(concepts))
    rises = measured.activations[rows, :, :, columns] - measured.unsteered_activations.t().unsqueeze(1)  # (N, S, P)
    costs = measured.costs()[rows]
    chosen, is_affordable = _choose(rises[..., choosing], costs[..., choosing], max_cost)

    differences = rises[columns, chosen][:, scoring]
    p_values = torch.where(is_affordable, sign_flip_p_values(differences), 1.0)
    adjusted = benjamini_hochberg(p_values)
    cost = costs[columns, chosen][:, scoring].mean(-1)
    repetition = measured.repetition[rows, chosen][:, scoring] - measured.unsteered_repetition[scoring]
    unsteered = measured.unsteered_activations[scoring].mean(0)
    scores = []
    for n, concept in enumerate(concepts):
        if not is_affordable[n]:
            scores.append(ConceptScore(concept, concepts[steered[n]], None, float(unsteered[n])))
            continue
        scores.append(
            ConceptScore(
                concept=concept,
                steered=concepts[steered[n]],
                strength=measured.strengths[int(chosen[n])],
                unsteered_activation=float(unsteered[n]),
                steered_activation=float(unsteered[n] + differences[n].mean()),
                p_value=float(p_values[n]),
                adjusted_p_value=float(adjusted[n]),
                fluency_cost=float(cost[n]),
                repetition_change=float(repetition[n].mean()),
                rises=bool(adjusted[n] <= SIGNIFICANCE) and bool(cost[n] <= max_cost),
            )
        )
    return scores


def random_others(num_concepts: int, seed: int = 0) -> list[int]:
    """For each concept of a sample the place of a random other one; each is the other of one concept."""
    order = torch.randperm(num_concepts, generator=torch.Generator().manual_seed(seed))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return [int(other) for other in others]


def _choose(
    rises: Float[Tensor, "N S P"], costs: Float[Tensor, "N S P"], max_cost: float
) -> tuple[Int64[Tensor, " N"], Bool[Tensor, " N"]]:
    """The strength whose rise is surest among those that cost little enough, surely; and whether there is one."""
    is_affordable = costs.mean(-1) + _standard_error(costs) <= max_cost
    sureness = rises.mean(-1) / _standard_error(rises).clamp(min=1e-12)
    return torch.where(is_affordable, sureness, -torch.inf).argmax(-1), is_affordable.any(-1)


def _standard_error(values: Float[Tensor, "*N P"]) -> Float[Tensor, "*N"]:
    return values.std(-1) / math.sqrt(values.shape[-1])


def sign_flip_p_values(differences: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
    """Of a mean of at most 0, one-sided: the share of sign patterns whose mean is at least the one found.

    All patterns for few prompts, else so many random ones, the observed pattern among them.
    """
    P = differences.shape[-1]
    if P <= MAX_EXACT_PROMPTS:
        bits = torch.arange(2**P).unsqueeze(-1) >> torch.arange(P)
        signs = 1.0 - 2.0 * (bits & 1)
    else:
        signs = torch.randint(0, 2, (NUM_SIGN_FLIPS, P), generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
        signs[0] = 1.0
    wide = differences.double()
    sums = wide @ signs.double().t()  # (N, patterns)
    # Equal sums in another order differ by rounding.
    slack = 1e-9 * wide.abs().sum(-1, keepdim=True)
    return (sums >= wide.sum(-1, keepdim=True) - slack).double().mean(-1).float()


def benjamini_hochberg(p_values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Adjusted p values: with those of at most q called significant, a share of at most q of them is so by chance."""
    order = p_values.argsort()
    ranks = torch.arange(1, len(p_values) + 1)
    scaled = (p_values[order] * len(p_values) / ranks).flip(0).cummin(0).values.flip(0).clamp(max=1.0)
    return torch.empty_like(p_values).scatter(0, order, scaled)
