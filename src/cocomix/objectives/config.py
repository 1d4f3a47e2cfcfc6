"""Settings of each objective, and what follows from them before anything is loaded: checks, inputs, fingerprint.

This file does not import torch, so that command lines are checked at once. The objectives themselves are in
`next_token.py`, `concept_loss.py`, `distillation.py`, `hidden_regression.py` and `multi_token.py`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, cast, runtime_checkable

from cocomix.base.compute import PrecisionChoice
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.formats import counted
from cocomix.labels.config import AttributionConfig
from cocomix.mixers.config import MixerConfig

if TYPE_CHECKING:
    from cocomix.data.token_dataset import TokenDataset
    from cocomix.objectives.base import Objective, WindowData

Schedule = Literal["constant", "linear", "cosine"]


@runtime_checkable
class StudentSettings(Protocol):
    """The student's settings that objectives read."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def mixer(self) -> MixerConfig: ...


@runtime_checkable
class RunSettings(Protocol):
    """The run's settings that objectives read; `TrainConfig` has them."""

    @property
    def student(self) -> StudentSettings: ...
    @property
    def labels(self) -> Path | None: ...
    @property
    def teacher(self) -> Path | None: ...
    @property
    def sae(self) -> Path | None: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def attribution(self) -> AttributionConfig: ...
    @property
    def precision(self) -> PrecisionChoice: ...
    @property
    def seed(self) -> int: ...


def steps_until(end: float, num_steps: int) -> int:
    """Number of first steps, at least one, that a share `end` of a run's steps makes."""
    return max(1, round(end * num_steps))


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of an objective. To write your own, subclass this and override what differs."""

    weight: float = 0.0
    """Factor in the loss; 0: off."""
    schedule: Schedule = "constant"
    """Course of the weight up to `end`: constant, or falling to zero linearly or along a cosine."""
    end: float = 1.0
    """Share of the run's steps after which the objective has ended: its weight is 0, its loss is not computed, and no
    teacher runs for it."""

    name: ClassVar[str]
    """Name of these settings in a run's configuration."""
    objective: ClassVar[Any]
    """The objective's class; `register_objective` sets it."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "weight")
        if not 0 < self.end <= 1:
            raise CocomixError(f"{self.name}.end is {self.end}; it must be above 0 and at most 1")

    def check(self, run: RunSettings) -> None:
        """Refuse settings that contradict the rest of the run."""

    def is_on(self, run: RunSettings) -> bool:
        """Whether the run minimises this objective."""
        return bool(self.weight)

    def uses_teacher(self, run: RunSettings) -> bool:
        """Whether the objective reads the run's teacher."""
        return False

    def open(self, run: RunSettings, data: TokenDataset) -> WindowData | None:
        """The data that the objective reads for every training window besides the tokens; loads no models yet."""
        return None

    def settings(self, run: RunSettings) -> dict[str, Any]:
        """The settings that enter the run's fingerprint, without paths: `open` returns fingerprints of their content."""
        return {self.name: self._values()} if self.weight else {}

    def _values(self, *later: str) -> dict[str, Any]:
        """All settings but paths. `end` and those named `later`, which came after version 0.1, only where they are not at
        their default, so that former runs keep their fingerprints."""
        values = dataclasses.asdict(self)
        defaults = {each.name: each.default for each in dataclasses.fields(self) if each.name in ("end", *later)}
        return {
            name: value
            for name, value in values.items()
            if not isinstance(value, Path) and (name not in defaults or value != defaults[name])
        }

    def implementation(self) -> type[Objective]:
        """The objective's class, registered with these settings."""
        registered: type[Objective] | None = vars(type(self)).get("objective")
        return registered if registered is not None else self._built_in()

    def _built_in(self) -> type[Objective]:
        """The class of a built-in objective, imported when needed."""
        raise CocomixError(
            f"no class is registered for the objective {self.name!r}; pass it to cocomix.register_objective"
        )

    def weight_at(self, step: int, num_steps: int) -> float:
        """The weight at a 0-based step; unless it is constant, it is zero at the last of the objective's steps.

        linear: 1 - x;  cosine: (1 + cos(pi x)) / 2;  x = step / (steps up to the end - 1)
        """
        last = steps_until(self.end, num_steps) - 1
        if step > last:
            return 0.0
        if self.schedule == "constant":
            return self.weight
        x = step / max(1, last)
        return self.weight * (1 - x if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * x)))


@dataclass(frozen=True)
class NextTokenConfig(ObjectiveConfig):
    """Settings of next-token prediction, which is always on."""

    weight: float = 1.0

    name: ClassVar[str] = "next_token"

    def settings(self, run: RunSettings) -> dict[str, Any]:
        return {}

    def _built_in(self) -> type[Objective]:
        from cocomix.objectives.next_token import NextToken

        return NextToken


@dataclass(frozen=True)
class ConceptLossConfig(ObjectiveConfig):
    """Settings of the loss of predicting labelled concepts; the weight is the paper's lambda."""

    weight: float = 0.1

    name: ClassVar[str] = "concept_loss"

    def is_on(self, run: RunSettings) -> bool:
        return bool(self.weight) and run.student.mixer.has_concepts

    def uses_teacher(self, run: RunSettings) -> bool:
        return run.sae is not None

    def check(self, run: RunSettings) -> None:
        mixer, has_labels = run.student.mixer, run.labels is not None or run.sae is not None
        if has_labels and not mixer.has_concepts:
            raise CocomixError(
                f"labels are given but the mixer is {mixer.mixer!r}, which learns nothing from them; leave them out, or use "
                "mixer 'concept'"
            )
        if mixer.has_concepts and not has_labels and self.weight:
            raise CocomixError(
                f"mixer {mixer.mixer!r} learns from labels: give --labels, or --teacher and --sae, or set "
                "concept_loss.weight to 0"
            )

    def open(self, run: RunSettings, data: TokenDataset) -> WindowData | None:
        from cocomix.objectives.concept_loss import open_labels

        return open_labels(run, data)

    def settings(self, run: RunSettings) -> dict[str, Any]:
        course = {"concept_loss_weight": self.weight, "concept_loss_schedule": self.schedule}
        return course if self.end == 1 else course | {"concept_loss_end": self.end}

    def _built_in(self) -> type[Objective]:
        from cocomix.objectives.concept_loss import ConceptLoss

        return ConceptLoss


@dataclass(frozen=True)
class DistillationConfig(ObjectiveConfig):
    """Settings of distillation from the teacher's next-token distributions."""

    temperature: float = 1.0
    """Divisor of both models' logits."""
    targets: Path | None = None
    """Folder of `distill-targets`: stored draws for the same windows, instead of running the teacher."""

    name: ClassVar[str] = "distillation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf:
            raise CocomixError(f"distillation.temperature is {self.temperature}; it must be above 0 and finite")

    def check(self, run: RunSettings) -> None:
        if self.weight and run.teacher is None and self.targets is None:
            raise CocomixError(
                "distillation.weight is set but no teacher is given; give --teacher, or --distillation.targets"
            )
        if self.targets is not None and not self.weight:
            raise CocomixError(
                "distillation.targets is given but distillation.weight is 0; set a weight or leave it out"
            )

    def uses_teacher(self, run: RunSettings) -> bool:
        return bool(self.weight)

    def open(self, run: RunSettings, data: TokenDataset) -> WindowData | None:
        from cocomix.objectives.distillation import open_targets

        return None if self.targets is None else open_targets(self, run, data)

    def settings(self, run: RunSettings) -> dict[str, Any]:
        values = self._values()
        values.pop("targets", None)  # absent; a folder is among the inputs
        return {"distillation": values}

    def _built_in(self) -> type[Objective]:
        from cocomix.objectives.distillation import Distillation, SampledDistillation

        return Distillation if self.targets is None else SampledDistillation


@dataclass(frozen=True)
class HiddenRegressionConfig(ObjectiveConfig):
    """Settings of regression from the student's hidden states onto the teacher's."""

    loss: Literal["squared_error", "cosine"] = "squared_error"
    """Squared error of states that are normalised per token, or cosine distance (layer alignment as in LET)."""
    layer: int | None = None
    """0-based block of the student whose output is projected; by default the mixer's `layer`."""
    teacher_layer: int | None = None
    """0-based block of the teacher whose output is the target; by default the middle one, with `cosine` the last one. With
    `cosine` the last block's output is taken after the final norm, as the teacher's head reads it."""

    name: ClassVar[str] = "hidden_regression"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, self, "layer", "teacher_layer")

    def check(self, run: RunSettings) -> None:
        if self.weight and run.teacher is None:
            raise CocomixError("hidden_regression.weight is set but no teacher is given; give --teacher")
        num_layers: int | None = run.student.num_layers  # not known before a pretrained student's files are read
        if self.layer is not None and num_layers is not None and self.layer >= num_layers:
            raise CocomixError(
                f"hidden_regression.layer is {self.layer}; with {counted(num_layers, 'block')} it must be 0 to "
                f"{num_layers - 1}"
            )

    def uses_teacher(self, run: RunSettings) -> bool:
        return bool(self.weight)

    def student_layer(self, student: StudentSettings) -> int:
        """The 0-based block after which the student's residual stream is read."""
        if self.layer is not None:
            return self.layer
        return max(0, min(student.mixer.insertion, student.num_layers) - 1)

    def settings(self, run: RunSettings) -> dict[str, Any]:
        values = self._values("loss")
        if self.weight:
            values["layer"] = self.student_layer(run.student)
        return {"hidden_regression": values}

    def _built_in(self) -> type[Objective]:
        from cocomix.objectives.hidden_regression import HiddenRegression

        return HiddenRegression


@dataclass(frozen=True)
class MultiTokenConfig(ObjectiveConfig):
    """Settings of the prediction of tokens after the next one, without a teacher and without parameters."""

    num_more_tokens: int = 2
    """Tokens after the next one that each position predicts; each counts half of the one before it."""

    name: ClassVar[str] = "multi_token"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "num_more_tokens")

    def _built_in(self) -> type[Objective]:
        from cocomix.objectives.multi_token import MultiToken

        return MultiToken


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    config.name: config
    for config in (NextTokenConfig, ConceptLossConfig, DistillationConfig, HiddenRegressionConfig, MultiTokenConfig)
}
#: Objectives that have their own field in a run's configuration; others come after them.
BUILT_IN = tuple(OBJECTIVES)
ObjectiveClass = TypeVar("ObjectiveClass")


def register_objective(objective: ObjectiveClass) -> ObjectiveClass:
    """Register an objective under the name in its `Config`; usable as a decorator.

    Raises:
        CocomixError: another objective has that name.
    """
    config = cast(Any, objective).Config
    if OBJECTIVES.get(config.name, config) is not config:
        raise CocomixError(f"an objective called {config.name!r} is already registered")
    config.objective = objective
    OBJECTIVES[config.name] = config
    return objective
