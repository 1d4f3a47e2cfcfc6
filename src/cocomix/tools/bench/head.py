"""Concept head and compression alone, forward and backward through loss and vectors.

Peak memory is measured in one process per row, beyond parameters and their gradients, without an optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from cocomix.mixers.base import MixerInputs
from cocomix.mixers.concept import ConceptMixer
from cocomix.mixers.config import ConceptConfig
from cocomix.tools.bench.agreement import require_agreement
from cocomix.tools.bench.dense import DenseConceptMixer
from cocomix.tools.bench.memory import Work, peak_bytes
from cocomix.tools.bench.report import Section, memory, ratio, seconds
from cocomix.tools.bench.students import student_config
from cocomix.tools.bench.timing import interleaved, paired_ratio, spread_of

#: Tolerance for float32 sums of `width` or `num_concepts` products in another order, relative to the largest element.
TOLERANCE = 1e-5
#: If the last active and the first inactive logit are closer than this, rounding may swap them.
TIE = 1e-5


@dataclass(frozen=True)
class HeadShape:
    """Sizes of the measurement."""

    width: int = 512
    num_concepts: int = 32768
    num_active: int = 32
    num_labels: int = 4
    num_tokens: int = 1024
    """N = B * T."""
    larger_concepts: int = 131072
    """Second number of concepts."""
    larger_tokens: int = 4096
    """Second number of tokens, for memory only."""
    repetitions: int = 5


SIZES = {
    "default": HeadShape(),
    "smoke": HeadShape(
        width=16, num_concepts=64, num_active=4, num_tokens=63, larger_concepts=128, larger_tokens=130, repetitions=2
    ),
}

_MIXERS: dict[str, type[ConceptMixer]] = {"fast": ConceptMixer, "dense": DenseConceptMixer}


def measure(shape: HeadShape) -> dict[str, Any]:
    """Time and memory for two numbers of concepts, and memory for two numbers of tokens.

    Raises:
        CocomixError: the fast path disagrees with the dense reference.
    """
    concepts = (shape.num_concepts, shape.larger_concepts)
    timed = [replace(shape, num_concepts=C) for C in concepts]
    grown = [replace(shape, num_concepts=C, num_tokens=shape.larger_tokens) for C in concepts]
    rows = [_row(row) for row in timed] + [_facts(row) for row in grown]
    # The dense reference would need tens of gigabytes with the larger of both numbers.
    works = [(name, row) for row in [*timed, *grown] for name in _MIXERS if name == "fast" or row != grown[-1]]
    for (name, row), peak in zip(works, peak_bytes("head", works), strict=True):
        rows[[*timed, *grown].index(row)].setdefault("peak_bytes", {})[name] = peak
    return {"shape": asdict(shape), "tolerance": TOLERANCE, "rows": rows}


def _row(shape: HeadShape) -> dict[str, Any]:
    mixers = _mixers(shape)
    clear = _without_ties(shape, mixers["dense"])
    results = {name: _results(mixer, *clear) for name, mixer in mixers.items()}
    difference = require_agreement(results["fast"], results["dense"], TOLERANCE)
    contestants = {name: _step(mixer, *_draw(shape)) for name, mixer in mixers.items()}
    times = interleaved(contestants, shape.repetitions)
    return _facts(shape) | {
        "largest_difference": difference,
        "seconds": {name: asdict(spread_of(values)) for name, values in times.items()},
        "dense_over_fast": asdict(paired_ratio(times, "dense", "fast")),
    }


def _facts(shape: HeadShape) -> dict[str, Any]:
    return {"num_concepts": shape.num_concepts, "num_tokens": shape.num_tokens}


def work(variant: str, shape: HeadShape) -> Work:
    """Work that runs one of the mixers forward and backward; the parameters' gradients are exempt."""
    mixer = _mixers(shape)[variant]
    hidden, labels, upstream = _draw(shape)

    def run() -> int:
        _step(mixer, hidden, labels, upstream)()
        return sum(p.grad.nbytes for p in mixer.parameters() if p.grad is not None)

    return run


def _mixers(shape: HeadShape) -> dict[str, ConceptMixer]:
    """The fast and the dense mixer, sharing their parameters."""
    config = student_config(
        width=shape.width,
        num_blocks=1,
        num_heads=1,
        vocab_size=2,
        num_positions=1,
        mixer=ConceptConfig(
            mixing="add", layer=-1, num_concepts=shape.num_concepts, num_active_concepts=shape.num_active
        ),
    )
    torch.manual_seed(0)
    fast, dense = (mixer(cast(ConceptConfig, config.mixer), shape.width) for mixer in _MIXERS.values())
    fast.reset_parameters(config.initializer_range)
    for parameter, dense_parameter in zip(fast.parameters(), dense.parameters(), strict=True):
        dense_parameter.data = parameter.data  # shared, not copied
    return {"fast": fast, "dense": dense}


def _draw(shape: HeadShape) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden states, labels (the last token has none), and the upstream gradient."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, shape.num_tokens, shape.width, generator=generator)
    labels = torch.randint(shape.num_concepts, (1, shape.num_tokens, shape.num_labels), generator=generator)
    labels[:, -1] = -100
    return hidden, labels, torch.randn(hidden.shape, generator=generator)


@torch.no_grad()
def _without_ties(shape: HeadShape, mixer: ConceptMixer) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs from `_draw` without tokens whose choice of concepts is a tie, for which two results may both be right."""
    hidden, labels, upstream = _draw(shape)
    x, _, _ = mixer.normalize(hidden)
    z = torch.addmm(mixer.head_bias, x, mixer.head_weight.t())
    best = z.topk(min(shape.num_active + 1, shape.num_concepts), dim=-1).values
    clear = (best[:, :-1] - best[:, 1:]).min(-1).values > TIE
    return hidden[:, clear], labels[:, clear], upstream[:, clear]


def _step(mixer: ConceptMixer, hidden: Tensor, labels: Tensor, upstream: Tensor) -> Callable[[], dict[str, Tensor]]:
    """A function that runs forward and backward through the concept loss and the concept vectors."""

    def step() -> dict[str, Tensor]:
        mixer.zero_grad(set_to_none=True)
        leaf = hidden.clone().requires_grad_(True)
        out = mixer(leaf, MixerInputs(labels))
        assert out.concept_loss_sum is not None
        assert out.concept_count is not None
        loss = out.concept_loss_sum / out.concept_count
        torch.autograd.backward([loss, out.hidden], [torch.ones(()), upstream])
        assert leaf.grad is not None
        return {"loss": loss.detach(), "hidden": out.hidden.detach(), "the gradient of hidden": leaf.grad} | {
            name: tensor.detach()
            for name, tensor in (("indices", out.concept_indices), ("values", out.concept_values))
            if tensor is not None
        }

    return step


def _results(mixer: ConceptMixer, hidden: Tensor, labels: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """All outputs and gradients, by name."""
    results = _step(mixer, hidden, labels, upstream)()
    gradients = {
        f"the gradient of {name}": p.grad.clone() for name, p in mixer.named_parameters() if p.grad is not None
    }
    mixer.zero_grad(set_to_none=True)
    return results | gradients


def describe(result: dict[str, Any]) -> Section:
    """A section with a row for each number of concepts and tokens."""
    shape, rows = result["shape"], []
    for row in result["rows"]:
        peak = row["peak_bytes"]
        has_times = "seconds" in row
        rows.append(
            [
                f"{row['num_concepts']:,}",
                f"{row['num_tokens']:,}",
                seconds(row["seconds"]["fast"]) if has_times else "",
                seconds(row["seconds"]["dense"]) if has_times else "",
                ratio(row["dense_over_fast"]) if has_times else "",
                memory(peak["fast"]),
                memory(peak["dense"]) if "dense" in peak else "",
                f"{peak['fast'] / peak['dense']:.0%}" if peak.get("dense") else "",
            ]
        )
    largest = max(row["largest_difference"] for row in result["rows"] if "largest_difference" in row)
    return Section(
        "Concept head and compression",
        f"Width {shape['width']}, {shape['num_active']} active concepts, {shape['num_labels']} labels a token; forward and "
        "backward through loss and vectors. Memory is the peak beyond parameters and their gradients. Outputs and all "
        f"gradients equal the dense reference's to {largest:.0e} of the largest element, and the chosen concepts are the "
        f"same away from ties; up to {result['tolerance']:.0e} would have been accepted.",
        ["concepts", "tokens", "fast", "dense", "dense / fast", "memory, fast", "dense", "share"],
        rows,
    )
