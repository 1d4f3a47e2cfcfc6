"""A whole training step (forward, backward, clipping, AdamW) of CoCoMix, its dense reference and plain NTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.flop_counter import FlopCounterMode

from cocomix.base.devices import device_spec
from cocomix.base.errors import CocomixError
from cocomix.base.formats import format_flops
from cocomix.mixers.config import ConceptConfig, NoMixerConfig
from cocomix.modeling.flops import training_flops_per_token
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.tools.bench.agreement import require_agreement
from cocomix.tools.bench.dense import DenseStudent
from cocomix.tools.bench.memory import Work, peak_bytes
from cocomix.tools.bench.report import Section, memory, ratio, seconds
from cocomix.tools.bench.students import student_config
from cocomix.tools.bench.timing import interleaved, paired_ratio, spread_of
from cocomix.training.config import OptimizerConfig
from cocomix.training.optimizer import adamw, clip_in_step

Precision = Literal["float32", "bfloat16"]

#: Tolerance for float32 sums in another order through all blocks and back, relative to each gradient's largest element.
TOLERANCE = 1e-4
#: Maximum number of batches to draw, because rounding can swap two tied concepts among a thousand tokens'.
MAX_DRAWS = 8


@dataclass(frozen=True)
class TrainShape:
    """Sizes of the measurement; the defaults are the paper's smallest model, with shorter windows."""

    width: int = 512
    num_blocks: int = 8
    num_heads: int = 8
    layer: int = 2
    vocab_size: int = 50257
    num_concepts: int = 32768
    num_active: int = 32
    num_labels: int = 4
    context: int = 256
    """T."""
    batch: int = 4
    """B."""
    precision: Precision = "float32"
    """Of the products that are timed; results are compared in float32."""
    device: str = "cpu"
    repetitions: int = 7


SIZES = {
    "default": TrainShape(),
    "smoke": TrainShape(
        width=16,
        num_blocks=3,
        num_heads=2,
        layer=0,
        vocab_size=50,
        num_concepts=64,
        num_active=4,
        context=9,
        batch=2,
        repetitions=2,
    ),
    "69m": TrainShape(context=1024, batch=8, precision="bfloat16"),
    "386m": TrainShape(
        width=1024, num_blocks=24, num_heads=16, layer=4, context=1024, batch=4, precision="bfloat16", repetitions=3
    ),
}


@dataclass(frozen=True)
class Batch:
    """Random token ids [B, T] and concept labels [B, T, A]."""

    ids: Tensor
    labels: Tensor


def measure(shape: TrainShape) -> dict[str, Any]:
    """Times, FLOPs and memory of all three.

    Raises:
        CocomixError: CoCoMix's loss, a gradient or its choice of concepts differs from the dense reference's.
    """
    fast = student(shape)
    modules: dict[str, nn.Module] = {
        "fast": fast,
        "dense": DenseStudent(fast),
        "ntp": student(shape, has_concepts=False),
    }
    batch, difference = _agreeing_batch(shape, modules)
    flops = {name: _flops(name, shape) for name in modules}
    steps = {name: step_of(module, batch, shape.precision) for name, module in modules.items()}
    times = interleaved(steps, shape.repetitions)
    time_over_ntp, peak = paired_ratio(times, "fast", "ntp"), _peak_flops(shape)
    algorithmic = {name: training_flops_per_token(modules[name], shape.context) for name in ("fast", "ntp")}  # type: ignore[arg-type]
    flop_ratio = flops["dense"] / flops["ntp"]
    num_tokens = shape.batch * shape.context
    return {
        "shape": asdict(shape),
        "optimizer": "AdamW, gradients clipped to a norm of 1",
        "tolerance": TOLERANCE,
        "largest_difference": difference,
        "seconds": {name: asdict(spread_of(values)) for name, values in times.items()},
        "tokens_per_second": {name: num_tokens / spread_of(values).median for name, values in times.items()},
        # None where the device's peak is unknown.
        "model_flops_utilization": {
            name: peak and num_tokens / spread_of(times[name]).median * count / peak
            for name, count in algorithmic.items()
        },
        "dense_over_fast": asdict(paired_ratio(times, "dense", "fast")),
        "fast_over_ntp": asdict(time_over_ntp),
        "flops_per_token": {name: count / num_tokens for name, count in flops.items()},
        "flop_ratio": flop_ratio,
        "time_ratio_over_flop_ratio": time_over_ntp.median / flop_ratio,
        "peak_bytes": dict(zip(modules, peak_bytes("train", [(name, shape) for name in modules]), strict=True)),
    }


def student(shape: TrainShape, *, has_concepts: bool = True) -> CoCoMixForCausalLM:
    """CoCoMix, or the plain decoder of the same width, with the same weights in every call."""
    concepts = ConceptConfig(layer=shape.layer, num_concepts=shape.num_concepts, num_active_concepts=shape.num_active)
    config = student_config(
        width=shape.width,
        num_blocks=shape.num_blocks,
        num_heads=shape.num_heads,
        vocab_size=shape.vocab_size,
        num_positions=shape.context,
        mixer=concepts if has_concepts else NoMixerConfig(),
    )
    torch.manual_seed(0)
    model: CoCoMixForCausalLM = CoCoMixForCausalLM(config).train().to(shape.device)
    return model


def draw(shape: TrainShape, seed: int) -> Batch:
    """Random tokens and labels; a window's last position has no label."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(shape.vocab_size, (shape.batch, shape.context), generator=generator)
    labels = torch.randint(shape.num_concepts, (*ids.shape, shape.num_labels), generator=generator)
    labels[:, -1] = -100
    return Batch(ids.to(shape.device), labels.to(shape.device))


def loss_of(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The training loss, and the chosen concepts if there are any."""
    if isinstance(module, CoCoMixForCausalLM):
        labels = batch.labels if module.config.mixer.has_concepts else None
        out = module(input_ids=batch.ids, labels=batch.ids, concept_labels=labels)
    else:
        out = module(batch.ids, batch.labels)
    return out.loss, getattr(out, "concept_indices", None)


def step_of(module: nn.Module, batch: Batch, precision: Precision = "float32") -> Callable[[], None]:
    """A function that runs one training step, as `cocomix train` does."""
    config = OptimizerConfig(learning_rate=6e-4)
    optimizer = adamw(module, config)

    def step() -> None:
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss, _ = loss_of(module, batch)
        loss.backward()
        norm = get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        clip_in_step(optimizer, norm, config.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def work(variant: str, shape: TrainShape) -> Work:
    """Work that builds one of the three and takes two steps, because the first creates the optimizer's state."""

    def run() -> int:
        module: nn.Module = student(shape, has_concepts=variant != "ntp")
        if variant == "dense":
            module = DenseStudent(module)  # type: ignore[arg-type]
        step = step_of(module, draw(shape, 0), shape.precision)
        step()
        step()
        return 0

    return run


def _agreeing_batch(shape: TrainShape, modules: dict[str, nn.Module]) -> tuple[Batch, float]:
    """A batch without swapped ties on which loss and gradients agree, and their largest difference."""
    for seed in range(MAX_DRAWS):
        batch = draw(shape, seed)
        results: dict[str, dict[str, Tensor]] = {}
        chosen = []
        for name in ("fast", "dense"):
            loss, indices = loss_of(modules[name], batch)
            loss.backward()
            assert indices is not None
            chosen.append(indices.sort(-1).values)
            results[name] = {"the loss": loss.detach()}
            for key, p in modules[name].named_parameters():
                assert p.grad is not None
                results[name][f"the gradient of {key.removeprefix('model.')}"] = p.grad
            modules[name].zero_grad(set_to_none=True)
        if torch.equal(*chosen):
            return batch, require_agreement(results["fast"], results["dense"], TOLERANCE)
    raise CocomixError(
        f"the fast path disagrees with its reference: on each of {MAX_DRAWS} batches it chose other concepts, which ties "
        "do not explain; nothing is reported"
    )


def _peak_flops(shape: TrainShape) -> float | None:
    """The device's peak in FLOP/s, if it is known."""
    spec = device_spec(torch.device(shape.device))
    if spec is None:
        return None
    return spec.bfloat16_flops if shape.precision == "bfloat16" else spec.float32_flops


def _flops(name: str, shape: TrainShape) -> int:
    """FLOPs of forward and backward by torch's counter, on the meta device, where it also counts attention's products."""
    with torch.device("meta"):
        module: nn.Module = student(replace(shape, device="meta"), has_concepts=name != "ntp")
        if name == "dense":
            module = DenseStudent(module)  # type: ignore[arg-type]
        batch = Batch(
            torch.zeros(shape.batch, shape.context, dtype=torch.long),
            torch.zeros(shape.batch, shape.context, shape.num_labels, dtype=torch.long),
        )
    with FlopCounterMode(display=False) as counter:
        loss_of(module, batch)[0].backward()
    return int(counter.get_total_flops())


def describe(result: dict[str, Any]) -> Section:
    """A section with a row for each contestant."""
    shape = result["shape"]
    names = {"fast": "CoCoMix", "dense": "CoCoMix, dense reference", "ntp": "NTP of the same width"}
    rows = [
        [
            label,
            seconds(result["seconds"][name]),
            f"{result['tokens_per_second'][name]:.0f}",
            format_flops(result["flops_per_token"][name]),
            memory(result["peak_bytes"][name]),
        ]
        for name, label in names.items()
    ]
    return Section(
        "Training step",
        f"GPT-2 of {shape['num_blocks']} blocks, width {shape['width']}, {shape['num_heads']} heads and "
        f"{shape['vocab_size']:,} tokens; concepts inserted after block {_layer(shape)}, {shape['num_concepts']:,} "
        f"of them, {shape['num_active']} active, {shape['num_labels']} labels a token; {shape['batch']} windows of "
        f"{shape['context']} tokens, {shape.get('precision', 'float32')}. Forward, backward, clipping and AdamW. CoCoMix is "
        f"**{ratio(result['dense_over_fast'])}** times as fast as its dense reference. It takes "
        f"{ratio(result['fast_over_ntp'])} times NTP's time, where the dense formulation's FLOPs (torch's count) are "
        f"{result['flop_ratio']:.2f} times NTP's: **{result['time_ratio_over_flop_ratio']:.2f}** of that ratio. Memory is "
        "the peak of a process of its own, parameters and optimizer included. Loss and all gradients equal the dense "
        f"reference's to {result['largest_difference']:.0e} of the largest element.",
        ["", "a step", "tokens a second", "FLOPs a token", "memory"],
        rows,
    )


def _layer(shape: Mapping[str, Any]) -> int:
    """The 0-based block after which concepts are inserted; results of version 0.1 name the block before which they are."""
    return int(shape["layer"] if "layer" in shape else shape["insert_layer"] - 1)
