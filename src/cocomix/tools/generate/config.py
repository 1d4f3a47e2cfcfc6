"""The configuration of `cocomix generate`, and strengths as written on the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tyro

from cocomix.base.command import CommandConfig
from cocomix.base.compute import Compute, ComputeConfig
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.steering.concept_names import require_concepts, require_directions
from cocomix.steering.modes import SteerMode, Unit


@dataclass(frozen=True)
class GenerateConfig(CommandConfig):
    """What to continue, and what to steer."""

    model: Path
    """Any causal LM: a training run, a folder of `save_pretrained`, a GGUF file or a Hub name."""
    prompt: str
    """Text to continue."""
    steer: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """CONCEPT=STRENGTH, once for each concept to steer: `--steer 1234=4 --steer "import statements=2"`."""
    mode: SteerMode = "set"
    """What a strength does: scale (multiplies the value where active), set and add (also where not active), zero (removes;
    needs no strength), scale_logits (multiplies the logit before the strongest concepts are chosen), toward (brings the
    concept about in what follows)."""
    unit: Unit = "raw"
    """Of the strengths of set and add: raw values, or multiples of the concept's usual activation."""
    max_new_tokens: int | None = None
    """Generate at most N tokens; by default 64, or as many as the context has room for."""
    temperature: float = 0.0
    """Sample at this temperature; 0: always take the likeliest token."""
    top_k: int | None = None
    """Sample from the K likeliest tokens; by default from all."""
    top_p: float | None = None
    """Sample from the likeliest tokens that together have this probability; by default from all."""
    seed: int = 0
    """Of sampling."""
    compute: Compute = field(default_factory=ComputeConfig)
    compare: bool = False
    """Also continue without steering, from the same seed."""
    json: bool = False
    """Print one JSON object, which includes the meaning of the edits."""

    example: ClassVar[str] = 'cocomix generate --model runs/cocomix --prompt "def main():" --steer 7=0.4 --mode toward'
    common: ClassVar[Sequence[str]] = (
        *("model", "prompt", "steer", "mode", "unit", "max_new_tokens", "temperature", "top_k", "top_p", "seed"),
        *("compute", "compare", "json"),
    )

    def __post_init__(self) -> None:
        require_at_least(1, self, "max_new_tokens", "top_k")
        require_at_least(0, self, "seed")
        if not 0 <= self.temperature < math.inf:
            raise CocomixError(f"temperature is {self.temperature}; it must be a number of at least 0")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise CocomixError(f"top_p is {self.top_p}; it must lie above 0 and be at most 1")
        if not self.temperature and (self.top_k is not None or self.top_p is not None):
            raise CocomixError("top_k and top_p restrict sampling; give a temperature above 0")
        if self.compare and not self.steer:
            raise CocomixError("--compare shows what steering changes; give --steer")
        parse_strengths(self.steer, self.mode)  # refuses what has another form

    def check_files(self) -> None:
        if self.steer:
            names = require_concepts(self.model, "leave out --steer")
            for concept in parse_strengths(self.steer, self.mode):
                names.resolve(concept)
            require_directions(self.model, self.mode)


def parse_strengths(edits: Iterable[str], mode: str) -> dict[str, float]:
    """`1234=4` and `name=2` as a mapping for `steer`; mode `zero` needs no strength.

    Raises:
        CocomixError: an edit has another form, a strength is not a number, or a concept is given twice.
    """
    strengths: dict[str, float] = {}
    for edit in edits:
        concept, equals, text = edit.rpartition("=")
        if not equals and mode == "zero":
            concept, text = edit, "0"
        concept = concept.strip()
        if not concept:
            raise CocomixError(f"--steer takes CONCEPT=STRENGTH, such as 1234=4 or 'a name=2', not {edit!r}")
        try:
            strength = float(text)
        except ValueError:
            raise CocomixError(f"the strength of --steer {edit!r} is {text!r}; it must be a number") from None
        if concept in strengths:
            raise CocomixError(f"--steer names concept {concept!r} twice")
        strengths[concept] = strength
    return strengths
