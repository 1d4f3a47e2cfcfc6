"""Time per generated token: with a cache at several lengths, without one, and for plain NTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.modeling.weight_order import order_for_single_tokens
from cocomix.tools.bench.report import Section, ratio, seconds
from cocomix.tools.bench.timing import interleaved, paired_ratio, spread_of
from cocomix.tools.bench.train import TrainShape, draw, student


@dataclass(frozen=True)
class GenerateShape:
    """Sizes of the measurement: the training case's model and one sequence."""

    lengths: tuple[int, ...] = (64, 256, 512, 1024)
    """Numbers of tokens in the cache."""
    uncached_length: int = 512
    """One of `lengths`, at which generation without a cache is timed too."""
    model: TrainShape = field(default_factory=TrainShape)
    device: str = "cpu"
    repetitions: int = 15


SIZES = {
    "default": GenerateShape(),
    "smoke": GenerateShape(
        lengths=(8, 16),
        uncached_length=8,
        model=TrainShape(width=16, num_blocks=3, num_heads=2, layer=0, vocab_size=50, num_concepts=64, num_active=4),
        repetitions=3,
    ),
    "69m": GenerateShape(),
    "386m": GenerateShape(model=TrainShape(width=1024, num_blocks=24, num_heads=16, layer=4)),
}


class Sequence:
    """A sequence that grows greedily by one token per call.

    Args:
        model: model that continues the sequence.
        prompt: token ids [1, T].
        use_cache: whether to keep keys and values; otherwise every call reads the whole sequence.
    """

    def __init__(self, model: CoCoMixForCausalLM, prompt: Tensor, *, use_cache: bool) -> None:
        self.model, self.ids, self.use_cache = model, prompt, use_cache
        self.cache = None
        if use_cache:
            self.cache = model(input_ids=prompt[:, :-1], use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def grow(self) -> None:
        """Append the likeliest next token."""
        ids = self.ids[:, -1:] if self.use_cache else self.ids
        out = self.model(input_ids=ids, past_key_values=self.cache, use_cache=self.use_cache, logits_to_keep=1)
        self.ids = torch.cat([self.ids, out.logits[:, -1:].argmax(-1)], dim=1)


def measure(shape: GenerateShape) -> dict[str, Any]:
    """Times per token.

    Raises:
        CocomixError: tokens with and without a cache differ.
    """
    num_positions = max(shape.lengths) + shape.repetitions + 1
    sized = replace(shape.model, context=num_positions, device=shape.device)
    cocomix, ntp = student(sized).eval(), student(sized, has_concepts=False).eval()
    for model in (cocomix, ntp):  # as `cocomix generate` does
        order_for_single_tokens(model)
    prompt = draw(replace(sized, batch=1, context=max(shape.lengths)), 0).ids
    with torch.inference_mode():
        sequences = {
            f"{name}_{length}": Sequence(model, prompt[:, :length], use_cache=True)
            for name, model in (("cached", cocomix), ("ntp", ntp))
            for length in shape.lengths
        }
        sequences["uncached"] = Sequence(cocomix, prompt[:, : shape.uncached_length], use_cache=False)
    growing: dict[str, Callable[[], object]] = {name: sequence.grow for name, sequence in sequences.items()}
    times = interleaved(growing, shape.repetitions)
    same = f"cached_{shape.uncached_length}"
    num_same = int((sequences["uncached"].ids == sequences[same].ids).sum())
    if num_same < sequences[same].ids.shape[1]:
        raise CocomixError(
            f"tokens with and without a cache differ after {num_same} of {sequences[same].ids.shape[1]}; nothing is reported"
        )
    medians = [spread_of(times[f"cached_{length}"]).median for length in shape.lengths]
    return {
        "shape": asdict(shape),
        "seconds": {name: asdict(spread_of(values)) for name, values in times.items()},
        "longest_over_shortest": asdict(
            paired_ratio(times, f"cached_{max(shape.lengths)}", f"cached_{min(shape.lengths)}")
        ),
        "slowest_over_fastest_length": max(medians) / min(medians),
        "uncached_over_cached": asdict(paired_ratio(times, "uncached", same)),
        "cached_over_ntp": {
            str(length): asdict(paired_ratio(times, f"cached_{length}", f"ntp_{length}")) for length in shape.lengths
        },
        "num_equal_tokens": shape.repetitions + 1,
    }


def describe(result: dict[str, Any]) -> Section:
    """A section with a row for each length."""
    shape, times = result["shape"], result["seconds"]
    model, at = shape["model"], shape["uncached_length"]
    rows = [
        [
            f"{length:,}",
            seconds(times[f"cached_{length}"]),
            seconds(times["uncached"]) if length == at else "",
            seconds(times[f"ntp_{length}"]),
            ratio(result["cached_over_ntp"][str(length)]),
        ]
        for length in shape["lengths"]
    ]
    first, last = min(shape["lengths"]), max(shape["lengths"])
    return Section(
        "Generation",
        f"One sequence, the training step's model ({model['num_blocks']} blocks, width {model['width']}, "
        f"{model['num_concepts']:,} concepts), greedy. A token after {last:,} tokens takes "
        f"**{ratio(result['longest_over_shortest'])}** times as long as after {first:,}; the slowest length "
        f"{result['slowest_over_fastest_length']:.2f} times the fastest. Without a cache a token after {at:,} takes "
        f"**{ratio(result['uncached_over_cached'])}** times as long; its {result['num_equal_tokens']} tokens are the same.",
        ["tokens before", "CoCoMix, cache", "CoCoMix, no cache", "NTP, cache", "CoCoMix / NTP"],
        rows,
    )
