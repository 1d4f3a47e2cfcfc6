"""On which device and in which precision a command runs its models: the same two options everywhere; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

DeviceChoice = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["float32", "bfloat16", "auto"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Device and precision."""

    precision: PrecisionChoice = "float32"
    """Of the matrix products; sums, norms, losses, scores and their order stay in float32. `auto` is bfloat16 where the
    device multiplies it faster."""
    device: DeviceChoice = "auto"
    """Where models run; `auto` is CUDA if there is any."""

    common: ClassVar[tuple[str, ...]] = ("precision", "device")


#: The type of a command's field `compute`: on the command line `--precision` and `--device`.
Compute = Annotated[ComputeConfig, tyro.conf.arg(name="")]
