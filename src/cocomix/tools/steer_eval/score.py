"""How well steering works: is a concept more active in steered text, at what cost, and more than by steering another?

Every concept of a sample is steered at every strength on every prompt, and all concepts of the sample are read in each text.
The control needs no further texts: it reads the same concept in texts where a random other concept of the sample was steered.

The test compares each prompt with the same prompt's mean without steering and flips the signs of the differences: without an
effect both signs are equally likely. What counts is the largest t over the strengths that cost little enough, observed and
in each pattern of flips, which pays for the choice (Westfall and Young 1993): every prompt both chooses and scores. P values
are adjusted for the number of concepts (Benjamini and Hochberg 1995), because the score is the share of concepts that rise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.tools.generate.continuations import GenerationSettings, continue_all
from cocomix.tools.steer_eval.reading import TextReader

# Shapes: N concepts of the sample, S strengths, P prompts, T tokens of a prompt.

SIGNIFICANCE = 0.05
#: With at most 14 prompts these are all sign patterns, and the test is exact.
NUM_SIGN_FLIPS = 2**14
#: Sign patterns in memory at a time.
SIGN_FLIP_BATCH = 256
#: Unsteered continuations per prompt; a steered one is compared with their mean.
NUM_UNSTEERED = 8


@dataclass(frozen=True)
class Measurements:
    """Readings of steered and unsteered continuations."""

    strengths: tuple[float, ...]
    activations: Float[Tensor, "N S P N"]
    """By steered concept, strength, prompt and concept that is read."""
    losses: Float[Tensor, "N S P"]
    repetition: Float[Tensor, "N S P"]
    unsteered_activations: Float[Tensor, "P N"]
    unsteered_losses: Float[Tensor, " P"]
    unsteered_repetition: Float[Tensor, " P"]

    def costs(self) -> Float[Tensor, "N S P"]:
        """What steering adds to the teacher's loss, nats per token."""
        return self.losses - self.unsteered_losses


@dataclass(frozen=True)
class ConceptScore:
    """The score of one concept."""

    concept: int
    steered: int
    """The steered concept: itself, or the random other."""
    strength: float | None
    """The surest rise; None: every strength costs too much, and the fields below keep their defaults."""
    unsteered_activation: float
    steered_activation: float | None = None
    p_value: float = 1.0
    """One-sided, of the hypothesis that it does not rise."""
    adjusted_p_value: float = 1.0
    """The p value, adjusted for the number of concepts."""
    fluency_cost: float | None = None
    """What steering adds to the teacher's loss on the text, nats per token."""
    repetition_change: float | None = None
    rises: bool = False
    """Whether it rises significantly."""


def measure_steering(
    model: CoCoMixForCausalLM,
    reader: TextReader,
    prompts: Int64[Tensor, "P T"],
    concepts: Sequence[int],
    strengths: Sequence[float],
    settings: GenerationSettings,
    *,
    left_alone: Collection[int] = (),
    seed: int = 0,
) -> Measurements:
    """Steer each concept at each strength on each prompt, and read all concepts in each text.

    Args:
        model: in evaluation mode.
        reader: of the latents `concepts`, in that order.
        prompts: of equal length.
        concepts: the sample.
        strengths: to try with each concept.
        settings: how prompts are continued.
        left_alone: concepts of the sample that cannot be steered this way; their texts are not steered.
        seed: of sampling.
    """
    N, S, T = len(concepts), len(strengths), prompts.shape[1]
    edits = [{} if concept in left_alone else {concept: strength} for concept in concepts for strength in strengths]
    texts = continue_all(model, prompts, edits, settings, seed=seed, description="steering")
    readings = [reader.read(ids, T) for ids in texts]
    unsteered = torch.cat(list(continue_all(model, prompts, [{}] * NUM_UNSTEERED, settings, seed=seed)))
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
    measured: Measurements, concepts: Sequence[int], steered: Sequence[int], max_cost: float
) -> list[ConceptScore]:
    """Score every concept of the sample while itself or another is steered.

    Args:
        measured: see `measure_steering`.
        concepts: the sample.
        steered: for each concept the index in the sample of the steered one.
        max_cost: nats per token that steering may cost, its standard error included.
    """
    rows, columns = torch.tensor(list(steered)), torch.arange(len(concepts))
    rises = measured.activations[rows, :, :, columns] - measured.unsteered_activations.t().unsqueeze(1)  # (N, S, P)
    costs = measured.costs()[rows]
    standard_errors = costs.std(-1) / math.sqrt(costs.shape[-1])
    is_affordable = costs.mean(-1) + standard_errors <= max_cost  # (N, S)
    p_values = sign_flip_p_values(rises * is_affordable.unsqueeze(-1))
    adjusted = benjamini_hochberg(p_values)
    chosen = torch.where(is_affordable, _sureness(rises).sum(-1), -torch.inf).argmax(-1)
    repetition = measured.repetition[rows] - measured.unsteered_repetition  # (N, S, P)
    unsteered = measured.unsteered_activations.mean(0)
    scores = []
    for n, concept in enumerate(concepts):
        if not is_affordable[n].any():
            scores.append(ConceptScore(concept, concepts[steered[n]], None, float(unsteered[n])))
            continue
        strength = int(chosen[n])
        scores.append(
            ConceptScore(
                concept=concept,
                steered=concepts[steered[n]],
                strength=measured.strengths[strength],
                unsteered_activation=float(unsteered[n]),
                steered_activation=float(unsteered[n] + rises[n, strength].mean()),
                p_value=float(p_values[n]),
                adjusted_p_value=float(adjusted[n]),
                fluency_cost=float(costs[n, strength].mean()),
                repetition_change=float(repetition[n, strength].mean()),
                rises=bool(adjusted[n] <= SIGNIFICANCE),
            )
        )
    return scores


def random_others(num_concepts: int, seed: int = 0) -> list[int]:
    """For each concept of a sample the index of a random other one; each concept is used once."""
    order = torch.randperm(num_concepts, generator=torch.Generator().manual_seed(seed))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return [int(other) for other in others]


def _sureness(differences: Float[Tensor, "*N P"]) -> Float[Tensor, "*N P"]:
    """Terms of a statistic that grows with Student's t, whatever the signs; all 0 where there is no difference."""
    return F.normalize(differences.double(), dim=-1)


def sign_flip_p_values(differences: Float[Tensor, "N S P"]) -> Float[Tensor, " N"]:
    """One-sided p values of no rise at any strength: the share of sign patterns whose largest t is at least the observed one.

    A prompt's sign is that of all its strengths. Uses all patterns for few prompts, else `NUM_SIGN_FLIPS` random ones and the
    observed one. A strength whose differences are all 0 shows no rise, and where there is no other the p value is 1.
    """
    from scipy.stats import permutation_test  # takes a second to import

    result = permutation_test(
        (_sureness(differences).numpy(),),
        lambda terms, axis: terms.sum(axis).max(-1),
        permutation_type="samples",  # of one sample: flips signs, the same ones of all concepts and strengths
        alternative="greater",
        n_resamples=NUM_SIGN_FLIPS,
        batch=SIGN_FLIP_BATCH,
        vectorized=True,
        axis=-1,
        rng=0,
    )
    return torch.from_numpy(result.pvalue).float()


def benjamini_hochberg(p_values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Adjusted p values: if those of at most q count as significant, the expected share of false ones is at most q."""
    from scipy.stats import false_discovery_control  # takes a second to import

    return torch.from_numpy(false_discovery_control(p_values.double().numpy())).to(p_values)
