"""The `Objective` seam: what a step minimises.

Each objective gives a sum over its targets and, from the batch alone, how many targets there are. The loop divides once, by
the count of the whole step, so that accumulation, packing and uneven labels do not change the result. All that can be said of
an objective before anything is loaded is in its `Config` (`objectives/config.py`).
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

from cocomix.data.token_dataset import Windows
from cocomix.mixers.config import MixerConfig
from cocomix.modeling.output import CoCoMixOutput
from cocomix.objectives.config import ObjectiveConfig

# Shapes: B batch, T tokens, A labels a token.

#: Of `Batch.extra`: concepts of each token, [B, T, A], which the student's mixer reads as well.
CONCEPT_LABELS = "concept_labels"


@dataclass(frozen=True)
class WindowData:
    """What is known of every training window beside its tokens, such as labels; opened, and loaded when first read."""

    name: str
    """In `Batch.extra`."""
    num_windows: int
    """The first windows of the dataset have it."""
    read: Callable[[Sequence[int] | np.ndarray], Any]
    """Windows -> a tensor, or anything with a method `to(device)`."""
    inputs: Mapping[str, Any]
    """Fingerprints that a run depends on, by the names that they have in its settings."""
    training_flops: Callable[[int, int], float] = lambda num_tokens, num_windows: 0.0
    """What it costs a run of so many tokens on so many windows, in FLOPs of a teacher."""
    to: Callable[[torch.device], Any] = lambda device: None
    """Compute on another device from now on, if it is computed."""
    source: Any = None
    """Where it comes from, for whoever wants more of it."""


@dataclass(frozen=True)
class Batch:
    """Some windows of a step."""

    windows: Windows
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What objectives read beside the tokens, by the names of their `WindowData`."""

    @property
    def concept_labels(self) -> Int64[Tensor, "B T A"] | None:
        """`IGNORED_LABEL` where a position has none."""
        labels: Tensor | None = self.extra.get(CONCEPT_LABELS)
        return labels

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        windows = self.windows.to(device)
        return replace(self, windows=windows, extra={name: value.to(device) for name, value in self.extra.items()})


@dataclass(frozen=True)
class Surroundings:
    """What objectives are built with."""

    hidden_size: int
    """Width D of the student."""
    num_layers: int
    """Blocks of the student."""
    mixer: MixerConfig
    teacher: Callable[[], PreTrainedModel]
    """Loads the run's teacher, frozen; once, however many objectives ask."""
    seed: int = 0


@dataclass(frozen=True)
class Cost:
    """FLOPs a token of text that an objective adds to a run."""

    labels: float = 0.0
    """Of the teacher, for concept labels: before training, or along with it."""
    targets: float = 0.0
    """Of the teacher, which runs along."""
    stored_targets: float = 0.0
    """Of the teacher, before training."""
    student: float = 0.0
    """Of what is trained beside the student."""

    @property
    def teacher(self) -> float:
        """All that the teacher computes."""
        return self.labels + self.targets + self.stored_targets

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.labels + other.labels,
            self.targets + other.targets,
            self.stored_targets + other.stored_targets,
            self.student + other.student,
        )


@dataclass(frozen=True)
class CostInputs:
    """What costs are counted with: shapes, and what finished folders say of themselves."""

    run: Any
    """The run's settings."""
    teacher: PreTrainedModel
    """On the meta device."""
    teacher_layer: int
    """0-based block of the teacher after which its autoencoder reads."""
    num_concepts: int
    """C, latents of the autoencoder."""
    context_length: int
    """T."""
    labels_flops: float | None = None
    """FLOPs of the teacher a token, as finished labels say; None: to be counted."""
    draws_flops: float | None = None
    """Likewise, as finished distillation targets say."""


class Objective(abc.ABC):
    """A weighted term of the loss.

    Args:
        config: its settings.
        surroundings: of the run.
    """

    Config: ClassVar[type[ObjectiveConfig]]
    name: ClassVar[str]
    """In the metrics."""
    needs_logits: ClassVar[bool] = False
    needs_hidden_states: ClassVar[bool] = False
    head: nn.Module | None = None
    """What it learns beside the student; trained and saved with it, and left out of the finished model."""
    frozen: tuple[nn.Module, ...] = ()
    """What it reads, such as a teacher; to be moved to where the student runs."""

    def __init__(self, config: Any, surroundings: Surroundings) -> None:
        self.config = config

    @abc.abstractmethod
    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        """Targets in the batch."""

    @abc.abstractmethod
    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        """Sum of the loss over the batch's targets, float32."""

    def teacher_flops_per_token(self, context_length: int) -> float:
        """What a teacher that runs along costs, a token."""
        return 0.0

    def student_flops_per_token(self) -> float:
        """What training its head costs, a token."""
        return 0.0

    @classmethod
    def cost(cls, config: Any, inputs: CostInputs) -> Cost:
        """What it adds to a run, before anything is loaded."""
        return Cost()

    @classmethod
    def memory_bytes(cls, config: Any, num_tokens: int, vocab_size: int) -> float:
        """What a pass over `num_tokens` tokens holds for it on top of the student's own activations."""
        return 0.0


def num_next_tokens(batch: Batch) -> Int64[Tensor, ""]:
    """Tokens that have one before them."""
    return torch.tensor(batch.windows.input_ids[:, 1:].numel())
