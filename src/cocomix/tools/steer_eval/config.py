"""The configuration of `cocomix steer-eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cocomix.base.command import CommandConfig
from cocomix.base.compute import Compute, ComputeConfig
from cocomix.base.errors import MAX_SIZE, CocomixError, require_at_least
from cocomix.steering.concept_names import require_concepts
from cocomix.steering.modes import DEFAULT_MODE, SteerMode

#: Strengths tried by default: multiples of the usual activation for `set` and `add`, factors for the other modes.
STRENGTHS = {
    "toward": (0.15, 0.25, 0.35, 0.5),
    "set": (0.5, 1.0, 2.0, 4.0),
    "add": (0.5, 1.0, 2.0, 4.0),
    "scale": (2.0, 3.0, 5.0, 10.0),
    "scale_logits": (2.0, 3.0, 5.0, 10.0),
}

#: No p value of a sign-flip test is below 2^-prompts, and adjusting for the number of concepts multiplies it.
MIN_PROMPTS = 10


@dataclass(frozen=True)
class SteerEvalConfig(CommandConfig):
    """What to steer, and how to measure the effect."""

    model: Path
    """Student with a concept mixer: a training run, or a folder of `save_pretrained`."""
    teacher: Path
    """The teacher of its labels, which reads the text back."""
    sae: Path
    """The teacher's autoencoder: concept i of the model is its latent i."""
    data: Path
    """Token dataset: prompts come from its validation split, usual activations and directions from its training split."""
    output: Path
    """Folder for the score."""
    layer: int | None = None
    """0-based block of the teacher after which the autoencoder reads; by default the one that its files name."""
    mode: SteerMode = DEFAULT_MODE
    """How to steer; see `cocomix generate`."""
    strengths: tuple[float, ...] = ()
    """Strengths to try, for set and add in units of the usual activation; by default four per mode."""
    concepts: tuple[int, ...] = ()
    """The sample; by default the most used concepts."""
    num_concepts: int = 100
    """Size of the sample without --concepts: the concepts most often among the four strongest of a token."""
    num_prompts: int = 64
    """Prompts that each concept is steered on, at each strength."""
    num_prompt_tokens: int = 16
    """Tokens of each prompt."""
    num_new_tokens: int = 32
    """Tokens of each continuation."""
    temperature: float = 1.0
    """Of sampling; 0: always the likeliest token."""
    steer_prompt: bool = True
    """Whether all tokens of the prompt are edited; if not, edits start at its last token, which decides the first new one."""
    max_fluency_cost: float = 0.5
    """Nats per token that steering may add to the teacher's loss."""
    num_windows: int = 512
    """Training windows that measure which concepts are used, usual activations and directions."""
    batch_size: int = 256
    """Continuations in a batch."""
    seed: int = 0
    """Of sampling and of the controls."""
    compute: Compute = field(default_factory=ComputeConfig)
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    example: ClassVar[str] = (
        "cocomix steer-eval --model runs/cocomix --teacher gpt2 --sae runs/sae --data runs/data --output runs/score"
    )
    common: ClassVar[Sequence[str]] = (
        *("model", "teacher", "sae", "data", "output", "mode", "strengths", "concepts", "num_concepts"),
        *("num_prompts", "num_new_tokens", "temperature", "compute", "overwrite"),
    )
    opens: ClassVar[str] = "steering.md"

    def __post_init__(self) -> None:
        require_at_least(MIN_PROMPTS, self, "num_prompts")
        require_at_least(2, self, "num_concepts")
        require_at_least(1, self, "num_prompt_tokens", "num_new_tokens", "num_windows")
        require_at_least(1, self, "batch_size", maximum=MAX_SIZE)
        require_at_least(0, self, "layer", "seed")
        if self.mode not in STRENGTHS:
            raise CocomixError(f"mode is {self.mode!r}; it must be one with strengths to try: {', '.join(STRENGTHS)}")
        if len(set(self.concepts)) != len(self.concepts) or len(self.concepts) == 1:
            raise CocomixError("--concepts takes two or more different concepts, because each is compared with another")

    def settings(self) -> dict[str, Any]:
        left_out = ("model", "teacher", "sae", "data", "output", "overwrite", "layer", "compute")
        settings = {name: value for name, value in asdict(self).items() if name not in left_out}
        return settings | {"strengths": self.strengths or STRENGTHS[self.mode], "test": "largest t"}

    def next_command(self) -> Sequence[object]:
        return ("studio", self.model)

    def check_files(self) -> None:
        names = require_concepts(self.model)
        for concept in self.concepts:
            names.resolve(concept)
