"""The `Objective` seam: what a step minimises.

Each objective returns a sum over its targets and, from the batch alone, the number of targets. The training loop divides
once, by the count of the whole step, so that accumulation, packing and uneven labels do not change the result. Everything
known before anything is loaded is in the objective's `Config` (`objectives/config.py`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from cocomix.base.devices import sent
from cocomix.data.token_dataset import Windows
from cocomix.mixers.config import MixerConfig
from cocomix.modeling.output import CoCoMixOutput
from cocomix.objectives.config import ObjectiveConfig

# Shapes: B batch, T tokens, A labels per token.

#: Key in `Batch.extra` of the concepts of each token, [B, T, A], which the student's mixer reads too.
CONCEPT_LABELS = "concept_labels"


@dataclass(frozen=True)
class WindowData:
    """Data on every training window besides its tokens, such as labels; loaded when first read."""

    name: str
    """Key in `Batch.extra`."""
    num_windows: int
    """Number of first windows of the dataset that have the data."""
    read: Callable[[Sequence[int] | np.ndarray], Any]
    """Function from windows to a tensor, or to anything with a method `to(device)`."""
    inputs: Mapping[str, Any]
    """Fingerprints that a run depends on, by their names in the run's settings."""
    training_flops: Callable[[int, int], float] = lambda num_tokens, num_windows: 0.0
    """Function from a run's (num_tokens, num_windows) to the teacher's FLOPs for the data."""
    to: Callable[[torch.device], Any] = lambda device: None
    """Function that moves the computation to a device, for data computed on the fly."""
    check: Callable[[], None] = lambda: None
    """Function that refuses what was read so far if it was computed from values that are not finite; waits for the device."""
    source: Any = None
    """The object that the data comes from, such as a `ConceptDataset`."""
    end: float = 1.0
    """Share of the run's steps in which the data is read: until its objective ends."""


@dataclass(frozen=True)
class Batch:
    """Some windows of a step."""

    windows: Windows
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Data that objectives read besides the tokens, by the names of their `WindowData`."""

    @property
    def concept_labels(self) -> Int64[Tensor, "B T A"] | None:
        """Concepts of each token, `IGNORED_LABEL` in place of each missing one; None if the run has no labels."""
        labels: Tensor | None = self.extra.get(CONCEPT_LABELS)
        return labels

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        extra = {name: sent(x, device) if isinstance(x, Tensor) else x.to(device) for name, x in self.extra.items()}
        return replace(self, windows=self.windows.to(device), extra=extra)


@dataclass(frozen=True)
class Surroundings:
    """What an objective needs to be built."""

    hidden_size: int
    """Width D of the student."""
    num_layers: int
    """Number of blocks of the student."""
    mixer: MixerConfig
    teacher: Callable[[], PreTrainedModel]
    """Function that returns the run's frozen teacher on the device, loaded on the first call."""
    seed: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (it is immutable)
    """Where frozen modules of its own must be; `head` is moved with the student."""


@dataclass(frozen=True)
class Cost:
    """FLOPs per token of text that an objective adds to a run."""

    labels: float = 0.0
    """Teacher FLOPs for concept labels, before or during training."""
    targets: float = 0.0
    """Teacher FLOPs for targets computed during training."""
    stored_targets: float = 0.0
    """Teacher FLOPs for targets stored before training."""
    student: float = 0.0
    """FLOPs of modules trained beside the student."""

    @property
    def teacher(self) -> float:
        """All teacher FLOPs."""
        return self.labels + self.targets + self.stored_targets

    def __mul__(self, share: float) -> Cost:
        return Cost(self.labels * share, self.targets * share, self.stored_targets * share, self.student * share)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.labels + other.labels,
            self.targets + other.targets,
            self.stored_targets + other.stored_targets,
            self.student + other.student,
        )


@dataclass(frozen=True)
class CostInputs:
    """Inputs for counting costs: shapes, and costs recorded in finished folders."""

    run: Any
    """The run's settings."""
    teacher: PreTrainedModel
    """The teacher, on the meta device."""
    teacher_layer: int
    """0-based block of the teacher after which its autoencoder reads."""
    num_concepts: int
    """C, number of latents of the autoencoder."""
    context_length: int
    """T, tokens per window."""
    labels_flops: float | None = None
    """Teacher FLOPs per token recorded in finished labels; None: to be counted."""
    draws_flops: float | None = None
    """Teacher FLOPs per token recorded in finished distillation targets; None: to be counted."""


class Objective(abc.ABC):
    """A weighted term of the loss.

    Args:
        config: settings of the objective.
        surroundings: the student's shape, and the run's teacher and seed.
    """

    Config: ClassVar[type[ObjectiveConfig]]
    name: ClassVar[str]
    """Name in the metrics."""
    needs_logits: ClassVar[bool] = False
    needs_hidden_states: ClassVar[bool] = False
    head: nn.Module | None = None
    """Module trained beside the student and saved in checkpoints, but not in the finished model."""

    def __init__(self, config: Any, surroundings: Surroundings) -> None:
        self.config = config

    @abc.abstractmethod
    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        """Number of targets in the batch, int64."""

    @abc.abstractmethod
    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        """Sum of the loss over the batch's targets, float32."""

    def culprit(self, batch: Batch) -> str | None:
        """What this objective reads of others for the batch, such as a teacher's logits, and is not finite; None: nothing.

        Asked of each window of a step whose losses were not finite.
        """
        return None

    def teacher_flops_per_token(self, context_length: int) -> float:
        """FLOPs per token of a teacher that runs during training."""
        return 0.0

    def student_flops_per_token(self) -> float:
        """FLOPs per token that training the student takes for this objective beside those of next-token prediction."""
        return 0.0

    @classmethod
    def cost(cls, config: Any, inputs: CostInputs) -> Cost:
        """FLOPs that the objective adds to each token until it ends, counted before anything is loaded; without those of
        the student's own modules."""
        return Cost()

    @classmethod
    def memory_bytes(cls, config: Any, num_tokens: int, vocab_size: int) -> float:
        """Bytes that a pass over `num_tokens` tokens holds on top of the student's own activations."""
        return 0.0


def num_next_tokens(batch: Batch) -> Int64[Tensor, ""]:
    """Number of tokens that follow another one in their window."""
    return torch.tensor(batch.windows.input_ids[:, 1:].numel())
