"""The configuration of `cocomix inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from cocomix.base.command import CommandConfig
from cocomix.base.compute import Compute, ComputeConfig
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.labels.config import AttributionConfig
from cocomix.steering.concept_names import require_concepts


@dataclass(frozen=True)
class InspectConfig(CommandConfig):
    """Which model or dictionary to inspect, on which text, and how much of each."""

    data: Path
    """Token dataset with the model's tokenizer. Its validation split is read; with --labels alone, the training split."""
    output: Path
    """Folder for the cards and the site."""
    model: Path | None = None
    """A model with a concept mixer: a training run, a folder of `save_pretrained` or a Hub name. Without it the cards are
    those of the latents of --sae."""
    labels: Path | None = None
    """Concept dataset of --data that the model was trained on: gives how often each concept is a label. Without --teacher
    and --sae its training windows are read, because only these have labels."""
    teacher: Path | None = None
    """Teacher of the labels: computes labels for held-out text, and finds contexts of the latents."""
    sae: Path | None = None
    """The teacher's autoencoder."""
    layer: int | None = None
    """0-based block of the teacher after which the autoencoder reads; by default the one that its files name."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    """How labels are chosen; with --labels, as in that dataset."""
    num_contexts: int = 8
    """Contexts of each concept and source."""
    num_tokens: int = 10
    """Tokens that a concept promotes, and the same number that it suppresses."""
    num_nearest: int = 8
    """Nearest concepts."""
    num_measured: int = 1024
    """Number of concepts whose effect on the next token is measured, the most often predicted ones."""
    max_windows: int | None = 2048
    """Number of evenly spaced windows to read."""
    num_probe_windows: int = 256
    """Number of windows for the causal probes; 0: no probes."""
    export: tuple[Literal["neuronpedia", "delphi"], ...] = ()
    """Formats to write as well, each into a folder of its name: batches for Neuronpedia's converter, and delphi's cache, for
    which the text is read once more. They hold the concepts of --model, without it the latents."""
    compute: Compute = field(default_factory=ComputeConfig)
    json: bool = False
    """Print the numbers of the whole model as JSON."""
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    example: ClassVar[str] = (
        "cocomix inspect --model runs/cocomix --data runs/data --labels runs/labels --output runs/inspection"
    )
    common: ClassVar[Sequence[str]] = (
        *("model", "data", "output", "labels", "teacher", "sae", "num_contexts", "num_measured", "max_windows"),
        *("export", "compute", "json", "overwrite"),
    )
    opens: ClassVar[str] = "index.html"

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_contexts", "num_tokens", "num_nearest", "max_windows")
        require_at_least(0, self, "num_measured", "num_probe_windows", "layer")
        if (self.teacher is None) != (self.sae is None):
            raise CocomixError("labels for held-out text need both --teacher and --sae")
        if self.model is None and (self.sae is None or self.labels is not None):
            raise CocomixError("cards need a --model, or of a dictionary alone --teacher and --sae without --labels")
        if self.sae is None and self.layer is not None:
            raise CocomixError("--layer is the autoencoder's: give --teacher and --sae")

    def settings(self) -> dict[str, Any]:
        names = ("num_contexts", "num_tokens", "num_nearest", "num_measured", "max_windows", "num_probe_windows")
        return {name: getattr(self, name) for name in names}

    def next_command(self) -> Sequence[object]:
        return ("studio", self.model, self.output) if self.model is not None else ()

    def check_files(self) -> None:
        if self.model is not None:
            require_concepts(self.model)
