"""What a run will cost: parameters, FLOPs, memory, storage and time.

A plan is computed from a training configuration, which may be incomplete, and the devices to run it on. No weights are
loaded, and only shapes are computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cocomix.base.accelerators import DeviceSpec
from cocomix.base.compute import Precision
from cocomix.base.errors import CocomixError, nearest
from cocomix.base.formats import counted
from cocomix.base.numbers import parse_count
from cocomix.modeling.flops import forward_flops_per_token, key_width, training_flops_per_token
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.objectives.base import Cost
from cocomix.tools.plan.config import PlanConfig
from cocomix.tools.plan.costs import objectives_cost
from cocomix.tools.plan.inputs import Inputs, PlannedText, read_inputs
from cocomix.tools.plan.memory import BFLOAT16_BYTES, FLOAT32_BYTES, Memory, device_memory
from cocomix.tools.plan.teachers import planned_teacher
from cocomix.training.config import NOT_NEEDED, TrainConfig, flat
from cocomix.training.recipes import find_recipe
from cocomix.training.renamed import renamed
from cocomix.training.students import num_learning_parameters, settled, with_num_concepts
from cocomix.training.widths import (
    MatchedWidth,
    equal_flops_width,
    equal_parameters_width,
    meta_model,
    num_active_parameters,
)


@dataclass(frozen=True)
class Flops:
    """FLOPs per token of text, by one of the two counts."""

    training: float
    """FLOPs of the student's forward and backward pass."""
    inference: float
    """FLOPs of the student's forward pass."""


@dataclass(frozen=True)
class Duration:
    """Time on all devices together."""

    student_hours: float
    teacher_hours: float
    """Hours of a teacher that runs during training."""
    labels_hours: float
    """Hours of extracting stored labels, before training."""
    labels_precision: str
    """Of the teacher and its autoencoder: the run's, unless the labels exist already."""
    targets_hours: float
    """Hours of drawing stored distillation targets, before training."""
    targets_precision: str
    """Of the teacher: the run's, unless the targets exist already."""
    num_devices: int

    @property
    def hours(self) -> float:
        """Hours of training."""
        return self.student_hours + self.teacher_hours

    @property
    def device_hours(self) -> float:
        """Device-hours of training, labels and targets."""
        return self.num_devices * (self.hours + self.labels_hours + self.targets_hours)


@dataclass(frozen=True)
class Plan:
    """What a run will cost."""

    config: PlanConfig
    num_tokens: int
    num_stored_tokens: int
    """Number of tokens for which labels or draws are stored: each window counts once."""
    num_parameters: int
    num_active_parameters: int
    num_learning_parameters: int
    """Number of parameters that are not frozen."""
    vocab_size: int
    context_length: int
    num_concepts: int | None
    flops: Mapping[str, Flops]
    """FLOPs by the name of the count: algorithmic, counter."""
    cost: Cost
    """Cost of the objectives."""
    teacher_name: str | None
    """Name of the teacher whose cost is counted; None: there is none."""
    num_teacher_parameters: int | None
    """Number of the teacher's parameters; None: there is none, or its cost is recorded with the labels or targets."""
    is_teacher_online: bool
    device: DeviceSpec
    windows_per_pass: int
    memory: Memory
    kv_cache_bytes_per_token: int
    label_bytes_per_token: int
    target_bytes_per_token: int
    """Bytes per token of stored distillation targets."""
    equal_parameters: MatchedWidth | None
    """Plain decoder with as many active parameters; None if the run trains a plain decoder, or a pretrained one."""
    equal_flops: MatchedWidth | None
    """Plain decoder with as many training FLOPs per token; None as for equal parameters."""
    duration: Duration

    def as_dict(self) -> dict[str, Any]:
        """The plan as a dictionary for JSON."""
        config = self.config
        return {
            "recipe": config.recipe,
            "student": {key: str(v) if isinstance(v, Path) else v for key, v in flat(config.run.student).items()},
            "num_tokens": self.num_tokens,
            "vocab_size": self.vocab_size,
            "context_length": self.context_length,
            "num_concepts": self.num_concepts,
            "num_parameters": self.num_parameters,
            "num_active_parameters": self.num_active_parameters,
            "num_learning_parameters": self.num_learning_parameters,
            "flops_per_token": {
                **{count: dataclasses.asdict(flops) for count, flops in self.flops.items()},
                "teacher": {name: getattr(self.cost, name) for name in ("labels", "targets", "stored_targets")},
                "training_with_teacher": self.flops["algorithmic"].training + self.cost.teacher,
            },
            "teacher": {
                "name": self.teacher_name,
                "num_parameters": self.num_teacher_parameters,
                "runs_along": self.is_teacher_online,
            },
            "memory_bytes_per_device": {
                **dataclasses.asdict(self.memory),
                "total": self.memory.total,
                "available": self.device.memory_bytes,
                "windows_per_pass": self.windows_per_pass,
                "strategy": config.run.parallel.strategy,
            },
            "kv_cache_bytes_per_token": self.kv_cache_bytes_per_token,
            "label_bytes_per_token": self.label_bytes_per_token,
            "label_bytes": self.label_bytes_per_token * self.num_stored_tokens,
            "target_bytes_per_token": self.target_bytes_per_token,
            "target_bytes": self.target_bytes_per_token * self.num_stored_tokens,
            "num_stored_tokens": self.num_stored_tokens,
            "equal_ntp": {
                name: None if width is None else {**dataclasses.asdict(width), "difference": width.difference}
                for name, width in (("parameters", self.equal_parameters), ("flops", self.equal_flops))
            },
            "duration": {
                **dataclasses.asdict(self.duration),
                "hours": self.duration.hours,
                "device_hours": self.duration.device_hours,
                "device": self.device.name,
                "peak_flops": peak_flops(self.device, config.run.parallel.precision),
                "utilisation": config.utilisation,
            },
        }


def plan(recipe: str, **options: Any) -> Plan:
    """The plan of a recipe.

    Args:
        recipe: name of the recipe.
        options: fields of `PlanConfig`, such as `tokens="200B"`, `devices=64`, `device="h100"`, and of `TrainConfig`.

    Raises:
        CocomixError: the recipe or an option is unknown, or a value is wrong.
    """
    plan_fields = {each.name for each in dataclasses.fields(PlanConfig)} - {"run", "recipe"}
    run_fields = {each.name for each in dataclasses.fields(TrainConfig)}
    run = replace(find_recipe(recipe).config(), data=NOT_NEEDED, output=NOT_NEEDED)
    options = renamed(run, options)
    for key in options:
        if key not in plan_fields | run_fields:
            raise CocomixError(f"plan has no option {key!r}{nearest(key, plan_fields | run_fields)}")
    run = replace(run, **{key: value for key, value in options.items() if key not in plan_fields})
    return make_plan(PlanConfig(run, recipe, **{key: value for key, value in options.items() if key in plan_fields}))


def make_plan(config: PlanConfig) -> Plan:
    """The plan of a configuration.

    Raises:
        CocomixError: a number, a name or a shape is wrong, or the batch can't be shared by the devices.
    """
    if config.strategy is not None:
        parallel = replace(config.run.parallel, strategy=config.strategy)
        config = replace(config, run=replace(config.run, parallel=parallel))
    if config.run.parallel.precision == "auto":
        spec = config.device_spec
        taken: Precision = "bfloat16" if spec.bfloat16_flops > spec.float32_flops else "float32"
        parallel = replace(config.run.parallel, precision=taken)
        config = replace(config, run=replace(config.run, parallel=parallel))
    run = settled(config.run, downloads=False)
    config = replace(config, run=run)
    num_tokens = run.num_tokens if config.tokens is None else parse_count(config.tokens, "--tokens")
    device, windows_per_pass = config.device_spec, _windows_per_pass(config)
    inputs = read_inputs(run, config.recipe, config.vocab_size, config.context_length)
    text, num_concepts = inputs.text, inputs.num_concepts
    if num_concepts is not None:  # labels may have another number than the recipe
        run = replace(run, student=replace(run.student, mixer=with_num_concepts(run, num_concepts)))
        config = replace(config, run=run)
    size = find_recipe(config.recipe).size if config.recipe is not None else None
    model, teacher = meta_model(run, text), planned_teacher(run, size, text)
    cost = objectives_cost(
        run,
        teacher,
        num_concepts or 1,
        text.context_length,
        labels_flops=inputs.labels_flops,
        draws_flops=inputs.draws_flops,
    )
    share = run.concept_loss.end
    flops = {count: _flops(model, text, count, share, cost.student) for count in ("algorithmic", "counter")}
    is_online = bool(cost.targets) or bool(cost.labels and run.sae)
    is_counted = is_online or bool(cost.labels and inputs.labels_flops is None)
    is_counted = is_counted or bool(cost.stored_targets and inputs.draws_flops is None)
    held = teacher.num_parameters
    if run.sae is not None and num_concepts is not None:
        held += 2 * num_concepts * teacher.model.config.hidden_size
    has_equals = run.student.mixer.inserts and run.student.pretrained is None
    num_stored_tokens = inputs.stored_tokens(num_tokens)
    return Plan(
        config=config,
        num_tokens=num_tokens,
        num_stored_tokens=num_stored_tokens,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_active_parameters=num_active_parameters(model),
        num_learning_parameters=num_learning_parameters(model.parameters()),
        vocab_size=text.vocab_size,
        context_length=text.context_length,
        num_concepts=num_concepts,
        flops=flops,
        cost=cost,
        teacher_name=(teacher.name if is_counted else "that of the stored labels or targets") if cost.teacher else None,
        num_teacher_parameters=teacher.num_parameters if is_counted else None,
        is_teacher_online=is_online,
        device=device,
        windows_per_pass=windows_per_pass,
        memory=device_memory(
            run,
            text,
            num_concepts,
            config.devices,
            run.parallel.num_shares(config.devices, config.devices_per_node),
            windows_per_pass,
            FLOAT32_BYTES * held if is_online else 0,
        ),
        kv_cache_bytes_per_token=kv_cache_bytes(model, run.parallel.precision),
        label_bytes_per_token=_label_bytes(inputs) if cost.labels and run.sae is None else 0,
        target_bytes_per_token=_target_bytes(inputs) if cost.stored_targets else 0,
        equal_parameters=equal_parameters_width(run, text) if has_equals else None,
        equal_flops=equal_flops_width(run, text) if has_equals else None,
        duration=_duration(config, num_tokens, num_stored_tokens, flops["algorithmic"], cost, device, inputs),
    )


def kv_cache_bytes(model: CoCoMixForCausalLM, precision: str) -> int:
    """Bytes per token in the cache: a key and a value in each block, for each of the token's positions there."""
    mixer = model.config.mixer
    below, above = mixer.insertion, model.adapter.num_blocks - mixer.insertion
    positions: float = below + mixer.layout.positions_per_token * above
    num_bytes = BFLOAT16_BYTES if precision == "bfloat16" else FLOAT32_BYTES
    return round(2 * key_width(model.backbone) * positions * num_bytes)


def peak_flops(device: DeviceSpec, precision: str) -> float:
    """Peak FLOP/s of one device."""
    return device.bfloat16_flops if precision == "bfloat16" else device.float32_flops


def _flops(model: CoCoMixForCausalLM, text: PlannedText, count: Any, share: float, head: float) -> Flops:
    return Flops(
        training_flops_per_token(model, text.context_length, count, share) + head,
        forward_flops_per_token(model, text.context_length, count),
    )


def _label_bytes(inputs: Inputs) -> int:
    """Bytes per token of stored labels, before compression: two bytes per label if C fits."""
    assert inputs.num_concepts is not None
    return inputs.num_labels * (2 if inputs.num_concepts < 2**16 else 4)


def _target_bytes(inputs: Inputs) -> int:
    """Bytes per token of stored targets, before compression: two bytes per draw if V fits, and a float32 entropy."""
    return inputs.num_draws * (2 if inputs.text.vocab_size <= 2**16 else 4) + 4


def _windows_per_pass(config: PlanConfig) -> int:
    batch_size, micro_batch_size = config.run.batch_size, config.run.micro_batch_size
    divisor = config.devices * (micro_batch_size or 1)
    if batch_size % divisor:
        of_size = "" if micro_batch_size is None else f" of micro_batch_size {micro_batch_size}"
        raise CocomixError(
            f"batch_size {batch_size} can't be shared equally by {counted(config.devices, 'device')}{of_size}; "
            f"make it a multiple of {divisor}"
        )
    return micro_batch_size or batch_size // config.devices


def _duration(
    config: PlanConfig,
    num_tokens: int,
    num_stored_tokens: int,
    flops: Flops,
    cost: Cost,
    device: DeviceSpec,
    inputs: Inputs,
) -> Duration:

    def hours(count: int, flops_per_token: float, precision: str) -> float:
        rate = config.devices * peak_flops(device, precision) * config.utilisation
        return count * flops_per_token / rate / 3600

    run = config.run
    precision, is_online = run.parallel.precision, run.sae is not None
    labels_precision, targets_precision = inputs.labels_precision or precision, inputs.draws_precision or precision
    return Duration(
        student_hours=hours(num_tokens, flops.training, precision),
        teacher_hours=hours(num_tokens, cost.targets + (cost.labels if is_online else 0.0), precision),
        # Labels and targets are stored for all windows, also for those of steps after the objective has ended.
        labels_hours=hours(0 if is_online else num_stored_tokens, cost.labels / run.concept_loss.end, labels_precision),
        labels_precision=labels_precision,
        targets_hours=hours(num_stored_tokens, cost.stored_targets / run.distillation.end, targets_precision),
        targets_precision=targets_precision,
        num_devices=config.devices,
    )
