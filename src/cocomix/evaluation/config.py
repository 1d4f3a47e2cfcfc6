"""The configuration of `cocomix eval`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from cocomix.base.command import CommandConfig
from cocomix.base.compute import Compute, ComputeConfig
from cocomix.base.errors import MAX_SIZE, CocomixError, require_at_least
from cocomix.evaluation.task_files import check_names, find_task_files
from cocomix.labels.config import AttributionConfig
from cocomix.steering.concept_names import require_concepts


@dataclass(frozen=True)
class EvalConfig(CommandConfig):
    """A model, and the data and benchmarks to evaluate it on."""

    model: Path
    """Any causal LM: a training run, a folder of `save_pretrained`, a GGUF file or a Hub name."""
    output: Path
    """Folder for `evaluation.json`."""
    data: Path | None = None
    """Token dataset with the model's tokenizer, for the loss on its validation split. Required without --tasks."""
    probes: bool = False
    """Also run the causal probes; needs a model with a concept mixer, and --data."""
    teacher: Path | None = None
    """Teacher for the `oracle` probe."""
    sae: Path | None = None
    """The teacher's autoencoder for the `oracle` probe, from `train-sae` or elsewhere."""
    layer: int | None = None
    """0-based block of the teacher after which the autoencoder reads; by default the one that its files name."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    """How the `oracle` probe's labels are chosen."""
    max_windows: int | None = None
    """Evaluate on N evenly spaced validation windows; by default on all."""
    tasks: tuple[str, ...] = ()
    """Benchmarks to run through lm-eval, such as lambada or blimp; docs/evaluation.md lists them all."""
    task_data: Path | None = None
    """Folder with the benchmarks' own published files, directly or in folders named after the benchmarks."""
    limit: int | None = None
    """Score the first N items of each benchmark (of each paradigm of blimp); by default all."""
    batch_size: int = 16
    """Maximum number of a benchmark's texts per forward pass; fewer if they are long."""
    compute: Compute = field(default_factory=ComputeConfig)
    json: bool = False
    """Print the result as JSON instead of lines."""
    overwrite: bool = False
    """Replace what an earlier run left in the output folder."""

    example: ClassVar[str] = "cocomix eval --model runs/cocomix --data runs/data --probes --output runs/evaluation"
    common: ClassVar[Sequence[str]] = (
        *("model", "output", "data", "probes", "teacher", "sae", "max_windows", "tasks", "task_data", "limit"),
        *("batch_size", "compute", "json", "overwrite"),
    )
    opens: ClassVar[str] = "evaluation.json"

    def __post_init__(self) -> None:
        require_at_least(1, self, "max_windows", "limit")
        require_at_least(1, self, "batch_size", maximum=MAX_SIZE)
        require_at_least(0, self, "layer")
        check_names(self.tasks)
        if self.data is None and not self.tasks:
            raise CocomixError("nothing to evaluate on: give --data, a token dataset, or --tasks, or both")
        if (self.task_data is None) != (not self.tasks):
            raise CocomixError("benchmarks need both --tasks, their names, and --task-data, the folder of their files")
        if self.limit is not None and not self.tasks:
            raise CocomixError("--limit applies to the items of --tasks; for --data use --max-windows")
        if self.max_windows is not None and self.data is None:
            raise CocomixError("--max-windows applies to the windows of --data; for --tasks use --limit")
        if self.sae is not None and not self.probes:
            raise CocomixError("--teacher and --sae are for the oracle probe: add --probes")
        if self.probes and self.data is None:
            raise CocomixError("--probes need --data, a token dataset")
        if (self.teacher is None) != (self.sae is None):
            raise CocomixError("the oracle probe needs both --teacher and --sae")

    def settings(self) -> dict[str, Any]:
        settings = {"probes": self.probes, "attribution": asdict(self.attribution), "max_windows": self.max_windows}
        return settings | ({"limit": self.limit} if self.tasks else {})

    def shown(self, result: Any) -> str:
        return "\n".join(f"{name:<40}{value:>14.6g}" for name, value in _numbers(result))

    def check_files(self) -> None:
        if self.probes:
            require_concepts(self.model, "leave out --probes")
        for name in self.tasks:
            assert self.task_data is not None
            find_task_files(name, self.task_data)
        if self.tasks and find_spec("lm_eval") is None:
            raise CocomixError("--tasks needs lm_eval; install it with `pip install lm-eval accelerate`")


def _numbers(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a result, with the names of what they stand in; its own come first."""
    for name, value in sorted(result.items(), key=lambda item: isinstance(item[1], dict)):
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name} ")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}".replace("_", " "), value
