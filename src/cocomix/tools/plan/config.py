"""The configuration of `cocomix plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import tyro

from cocomix.base.accelerators import DeviceSpec, known_devices
from cocomix.base.command import CommandConfig
from cocomix.base.errors import MAX_SIZE, CocomixError, nearest, require_at_least
from cocomix.training.config import TrainConfig


@dataclass(frozen=True)
class PlanConfig(CommandConfig):
    """A training run to plan, and the devices for it. Takes every option of `cocomix train`."""

    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """The run, which may be incomplete."""
    recipe: str | None = None
    """Recipe to plan; `cocomix recipes` lists them. Other options change it."""
    tokens: str | None = None
    """Tokens to train on, such as 64M, 200B or 1.5T; by default num_tokens."""
    devices: int = 1
    """Number of devices."""
    devices_per_node: int = 8
    """Devices of one machine, which strategy hsdp shards within."""
    device: str = "h100"
    """Type of the devices: h100, a100, l40s, mi300x, rtx-4090 and others; or any name, such as cpu, with --peak-tflops and
    --memory-gb."""
    strategy: Literal["ddp", "fsdp", "hsdp"] | None = None
    """How the model is spread over the devices; by default parallel.strategy."""
    utilisation: float = 0.4
    """Share of the devices' peak that the algorithmic FLOPs are expected to reach."""
    peak_tflops: float | None = None
    """Peak of one device in the run's precision, in TFLOP/s; by default from the table."""
    memory_gb: float | None = None
    """Memory of one device, in GB; by default from the table."""
    vocab_size: int | None = None
    """V; by default from --data or the recipe."""
    context_length: int | None = None
    """T; by default from --data or the recipe."""
    json: bool = False
    """Print JSON instead of a table."""

    example: ClassVar[str] = "cocomix plan --recipe gpt2-69m-recommended --tokens 20B --devices 8 --device h100"
    common: ClassVar[Sequence[str]] = (
        *("recipe", "tokens", "devices", "device", "strategy", "utilisation", "peak_tflops", "memory_gb"),
        *("vocab_size", "context_length", "json"),
    )

    def __post_init__(self) -> None:
        require_at_least(1, self, "devices", "devices_per_node", "vocab_size", maximum=MAX_SIZE)
        require_at_least(2, self, "context_length", maximum=MAX_SIZE)
        if not 0 < self.utilisation <= 1:
            raise CocomixError(f"utilisation is {self.utilisation}; it must be above 0 and at most 1")
        for name in ("peak_tflops", "memory_gb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise CocomixError(f"{name} is {value}; it must be a number above 0")
        _ = self.device_spec  # refuses an unknown device

    def check_files(self) -> None:
        self.run.student.check_family()

    @property
    def device_spec(self) -> DeviceSpec:
        """The device from the table, with the given figures replaced."""
        name = self.device.strip().lower().replace(" ", "-").replace("_", "-")
        known = known_devices().get(name)
        if known is None and (self.peak_tflops is None or self.memory_gb is None):
            raise CocomixError(
                f"the device {self.device!r} is not in the table{nearest(self.device, known_devices())}; for another, give "
                "--peak-tflops and --memory-gb"
            )
        spec = known or DeviceSpec(self.device, 0.0, 0.0, 0)
        if self.peak_tflops is not None:
            peak = self.peak_tflops * 1e12
            spec = replace(spec, bfloat16_flops=peak, float32_flops=spec.float32_flops if known else peak)
            if self.run.parallel.precision == "float32":
                spec = replace(spec, float32_flops=peak)
        if self.memory_gb is not None:
            spec = replace(spec, memory_bytes=round(self.memory_gb * 1e9))
        return spec
