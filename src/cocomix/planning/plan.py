"""What a run costs before it starts: parameters, FLOPs, memory, storage and time.

A plan is made of a training configuration, as complete as it is, and of the devices it is to run on. Nothing is loaded,
downloaded or computed but shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, PreTrainedModel

from cocomix.base import artifacts
from cocomix.base.devices import DeviceSpec, known_devices
from cocomix.base.errors import CocomixError, reason_of, require_at_least
from cocomix.data import concept_dataset, token_dataset
from cocomix.modeling.flops import forward_flops_per_token, training_flops_per_token
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.planning.costs import TeacherCost, teacher_cost
from cocomix.planning.drafts import fields_of, nearest
from cocomix.planning.memory import BFLOAT16_BYTES, FLOAT32_BYTES, Memory, device_memory
from cocomix.planning.numbers import parse_count
from cocomix.planning.recipes import find_recipe
from cocomix.planning.widths import (
    Width,
    equal_flops_width,
    equal_parameters_width,
    meta_model,
    num_active_parameters,
)
from cocomix.training.config import TrainConfig

#: Shapes that need no file.
_KNOWN_TEACHERS = {"gpt2": GPT2Config}


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """A training run that is still to be decided on, and the devices for it. Takes every option of `cocomix train`."""

    data: Path | None = None  # type: ignore[assignment]
    """Token dataset, for its vocabulary and context; by default the recipe's."""
    output: Path | None = None  # type: ignore[assignment]
    """Not used: a plan writes nothing."""
    recipe: str | None = None
    """Plan this recipe; `cocomix recipes` lists them. Other options change it."""
    tokens: str | None = None
    """Tokens to train on, such as 64M, 200B or 1.5T; by default num_tokens."""
    devices: int = 1
    """How many."""
    device: str = "h100"
    """Of which kind: h100, a100, l40s, mi300x, rtx-4090 and others; or any name, such as cpu, with --peak-tflops and
    --memory-gb."""
    strategy: Literal["ddp", "fsdp"] | None = None
    """How the model is spread over them; by default parallel.strategy."""
    utilisation: float = 0.4
    """Share of the devices' peak that the algorithmic FLOPs are expected to reach."""
    peak_tflops: float | None = None
    """Peak of one device in the run's precision, in place of the table's."""
    memory_gb: float | None = None
    """Memory of one device, in place of the table's."""
    vocab_size: int | None = None
    """V; by default that of --data, or the recipe's."""
    context_length: int | None = None
    """T, likewise."""
    json: bool = False
    """Print JSON in place of a table."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "devices", "vocab_size", "num_concepts", "batch_size", "micro_batch_size")
        require_at_least(2, self, "context_length")
        if not 0 < self.utilisation <= 1:
            raise CocomixError(f"utilisation is {self.utilisation}; it must lie above 0 and at most at 1")
        for name in ("peak_tflops", "memory_gb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise CocomixError(f"{name} is {value}; it must be a number above 0")


@dataclass(frozen=True)
class Flops:
    """FLOPs a token of text, by one of the two counts."""

    training: float
    """Forward and backward of the student."""
    inference: float
    """Its forward pass."""


@dataclass(frozen=True)
class Duration:
    """Time on all devices together."""

    student_hours: float
    teacher_hours: float
    """Of the teacher where it runs along."""
    labels_hours: float
    """Of the labels' extraction, before training, where they are stored."""
    num_devices: int

    @property
    def hours(self) -> float:
        """Of training."""
        return self.student_hours + self.teacher_hours

    @property
    def device_hours(self) -> float:
        """Of everything."""
        return self.num_devices * (self.hours + self.labels_hours)


@dataclass(frozen=True)
class Plan:
    """Everything there is to know of a run before it starts."""

    config: PlanConfig
    num_tokens: int
    num_parameters: int
    num_active_parameters: int
    vocab_size: int
    context_length: int
    num_concepts: int | None
    flops: Mapping[str, Flops]
    """By the name of the count: algorithmic, counter."""
    teacher: TeacherCost
    num_teacher_parameters: int
    is_teacher_online: bool
    device: DeviceSpec
    windows_per_pass: int
    memory: Memory
    kv_cache_bytes_per_token: int
    label_bytes_per_token: int
    equal_parameters: Width | None
    """A plain decoder of as many active parameters; None where the run's is one."""
    equal_flops: Width | None
    duration: Duration

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        config = self.config
        return {
            "recipe": config.recipe,
            "student": dataclasses.asdict(config.student),
            "num_tokens": self.num_tokens,
            "vocab_size": self.vocab_size,
            "context_length": self.context_length,
            "num_concepts": self.num_concepts,
            "num_parameters": self.num_parameters,
            "num_active_parameters": self.num_active_parameters,
            "flops_per_token": {
                **{count: dataclasses.asdict(flops) for count, flops in self.flops.items()},
                "teacher": dataclasses.asdict(self.teacher),
                "training_with_teacher": self.flops["algorithmic"].training + self.teacher.total,
            },
            "teacher": {"num_parameters": self.num_teacher_parameters, "runs_along": self.is_teacher_online},
            "memory_bytes_per_device": {
                **dataclasses.asdict(self.memory),
                "total": self.memory.total,
                "available": self.device.memory_bytes,
                "windows_per_pass": self.windows_per_pass,
                "strategy": config.parallel.strategy,
            },
            "kv_cache_bytes_per_token": self.kv_cache_bytes_per_token,
            "label_bytes_per_token": self.label_bytes_per_token,
            "label_bytes": self.label_bytes_per_token * self.num_tokens,
            "equal_ntp": {
                name: None if width is None else {**dataclasses.asdict(width), "difference": width.difference}
                for name, width in (("parameters", self.equal_parameters), ("flops", self.equal_flops))
            },
            "duration": {
                **dataclasses.asdict(self.duration),
                "hours": self.duration.hours,
                "device_hours": self.duration.device_hours,
                "device": self.device.name,
                "peak_flops": peak_flops(self.device, config.parallel.precision),
                "utilisation": config.utilisation,
            },
        }


def plan(recipe: str, **options: Any) -> Plan:
    """The plan of a recipe.

    Args:
        recipe: its name.
        options: fields of `PlanConfig`, such as `tokens="200B"`, `devices=64`, `device="h100"`, and any of `TrainConfig`.
    """
    names = [field.name for field in dataclasses.fields(PlanConfig)]
    for key in options:
        if key not in names:
            raise CocomixError(f"plan has no option {key!r}{nearest(key, names)}")
    fields = fields_of(find_recipe(recipe).draft()) | {"data": None, "output": None, "recipe": recipe}
    return make_plan(PlanConfig(**(fields | options)))


def make_plan(config: PlanConfig) -> Plan:
    """The plan of a configuration.

    Raises:
        CocomixError: a number, a name or a shape is wrong, or the batch can't be shared by the devices.
    """
    if config.strategy is not None:
        config = replace(config, parallel=replace(config.parallel, strategy=config.strategy))
    num_tokens = config.num_tokens if config.tokens is None else parse_count(config.tokens, "--tokens")
    device, text, num_concepts = _device(config), _text(config), _num_concepts(config)
    windows_per_pass = _windows_per_pass(config)
    model = meta_model(config, text, num_concepts)
    teacher, layer = _teacher(config, text)
    cost = teacher_cost(config, teacher, layer, num_concepts or config.student.num_active_concepts, text.context_length)
    is_online = bool(cost.targets and config.distillation.targets is None) or bool(cost.labels and config.sae)
    num_teacher_parameters = sum(parameter.numel() for parameter in teacher.parameters())
    held = num_teacher_parameters
    if config.sae is not None and num_concepts is not None:
        held += 2 * num_concepts * teacher.config.hidden_size
    is_plain = config.student.mixer == "none"
    flops = {
        "algorithmic": _flops(model, text, "algorithmic"),
        "counter": _flops(model, text, "counter"),
    }
    return Plan(
        config=config,
        num_tokens=num_tokens,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_active_parameters=num_active_parameters(model),
        vocab_size=text.vocab_size,
        context_length=text.context_length,
        num_concepts=num_concepts,
        flops=flops,
        teacher=cost,
        num_teacher_parameters=num_teacher_parameters if cost.total else 0,
        is_teacher_online=is_online,
        device=device,
        windows_per_pass=windows_per_pass,
        memory=device_memory(
            config, text, num_concepts, config.devices, windows_per_pass, FLOAT32_BYTES * held if is_online else 0
        ),
        kv_cache_bytes_per_token=kv_cache_bytes(model, config.parallel.precision),
        label_bytes_per_token=_label_bytes(config, cost, num_concepts),
        equal_parameters=None if is_plain else equal_parameters_width(config, text),
        equal_flops=None if is_plain else equal_flops_width(config, text),
        duration=_duration(config, num_tokens, flops["algorithmic"], cost, device),
    )


def kv_cache_bytes(model: CoCoMixForCausalLM, precision: str) -> int:
    """Bytes that a token leaves in the cache: a key and a value in each block, for each position it has there."""
    config = model.config.backbone_config
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_blocks = model.adapter.num_blocks
    positions = num_blocks
    if model.mixer is not None:
        rate = model.mixer.mixing.positions_per_token
        positions = model.config.insert_layer + rate * (num_blocks - model.config.insert_layer)
    return 2 * int(num_heads * head_size) * positions * (BFLOAT16_BYTES if precision == "bfloat16" else FLOAT32_BYTES)


def peak_flops(device: DeviceSpec, precision: str) -> float:
    """FLOP/s of one device at best."""
    return device.bfloat16_flops if precision == "bfloat16" else device.float32_flops


@dataclass(frozen=True)
class _Text:
    vocab_size: int
    context_length: int
    eos_token_id: int = 0


def _flops(model: CoCoMixForCausalLM, text: _Text, count: Any) -> Flops:
    return Flops(
        training_flops_per_token(model, text.context_length, count),
        forward_flops_per_token(model, text.context_length, count),
    )


def _device(config: PlanConfig) -> DeviceSpec:
    """From the table, with what was given in place of its figures."""
    name = config.device.strip().lower().replace(" ", "-").replace("_", "-")
    found = known_devices().get(name)
    if found is None and (config.peak_tflops is None or config.memory_gb is None):
        close = nearest(config.device, known_devices())
        raise CocomixError(
            f"nothing is known of a device {config.device!r}{close}; for another, give --peak-tflops and --memory-gb"
        )
    spec = found or DeviceSpec(config.device, 0.0, 0.0, 0)
    if config.peak_tflops is not None:
        peak = config.peak_tflops * 1e12
        spec = replace(spec, bfloat16_flops=peak, float32_flops=spec.float32_flops if found else peak)
        if config.parallel.precision == "float32":
            spec = replace(spec, float32_flops=peak)
    if config.memory_gb is not None:
        spec = replace(spec, memory_bytes=round(config.memory_gb * 1e9))
    return spec


def _text(config: PlanConfig) -> _Text:
    """Vocabulary and context: as given, of the dataset, or the recipe's."""
    facts: dict[str, Any] = {}
    if config.data is not None:
        facts = artifacts.read(config.data, token_dataset.KIND).facts
    elif config.recipe is not None:
        facts = fields_of(find_recipe(config.recipe).size)
    values = {}
    for name in ("vocab_size", "context_length"):
        value = getattr(config, name) or facts.get(name)
        if value is None:
            raise CocomixError(f"a plan without a recipe needs --data, or --{name.replace('_', '-')}")
        values[name] = int(value)
    return _Text(**values)


def _num_concepts(config: PlanConfig) -> int | None:
    """C: of the labels, or as given."""
    if config.student.mixer != "concept":
        return None
    if config.labels is not None:
        return int(artifacts.read(config.labels, concept_dataset.KIND).facts["num_concepts"])
    if config.num_concepts is None:
        raise CocomixError("the number of concepts is not known: give --num-concepts, or --labels")
    return config.num_concepts


def _windows_per_pass(config: PlanConfig) -> int:
    wanted = config.devices * (config.micro_batch_size or 1)
    if config.batch_size % wanted:
        of_size = "" if config.micro_batch_size is None else f" of micro_batch_size {config.micro_batch_size}"
        raise CocomixError(
            f"batch_size {config.batch_size} can't be shared equally by {config.devices} devices{of_size}; "
            f"make it a multiple of {wanted}"
        )
    return config.micro_batch_size or config.batch_size // config.devices


def _teacher(config: PlanConfig, text: _Text) -> tuple[PreTrainedModel, int]:
    """The teacher's shape on the meta device, and the block after which its dictionary reads."""
    size = find_recipe(config.recipe).size if config.recipe is not None else None
    if config.teacher is None and size is not None:
        draft = replace(config, student=size.teacher)
        return meta_model(draft, text).backbone.requires_grad_(False), config.layer or size.teacher_layer
    name = str(config.teacher or "gpt2")
    try:
        shape = _KNOWN_TEACHERS[name]() if name in _KNOWN_TEACHERS else AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape).requires_grad_(False)
    except Exception as error:  # transformers raises a dozen kinds of its own for what is no model
        raise CocomixError(f"the shape of the teacher {name} could not be read: {reason_of(error)}") from error
    middle = (shape.num_hidden_layers - 1) // 2
    return model, middle if config.layer is None else config.layer


def _label_bytes(config: PlanConfig, cost: TeacherCost, num_concepts: int | None) -> int:
    """As a concept dataset stores them, before compression: two bytes a label while C fits."""
    if not cost.labels or num_concepts is None or config.sae is not None:
        return 0
    return config.attribution.num_labels * (2 if num_concepts < 2**16 else 4)


def _duration(config: PlanConfig, num_tokens: int, flops: Flops, cost: TeacherCost, device: DeviceSpec) -> Duration:
    """The teacher's labels are computed in float32, its targets in the run's precision."""

    def hours(flops_per_token: float, precision: str) -> float:
        rate = config.devices * peak_flops(device, precision) * config.utilisation
        return num_tokens * flops_per_token / rate / 3600

    precision = config.parallel.precision
    labels = hours(cost.labels, "float32")
    targets = 0.0 if config.distillation.targets is not None else hours(cost.targets, precision)
    is_online = config.sae is not None
    return Duration(
        student_hours=hours(flops.training, precision),
        teacher_hours=targets + (labels if is_online else 0.0),
        labels_hours=0.0 if is_online else labels,
        num_devices=config.devices,
    )
