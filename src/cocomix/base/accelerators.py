"""Peak rates and memory of known accelerators, by the manufacturers' data sheets; importing this file loads no torch.

Peaks are for dense products (no structured sparsity), in FLOP/s.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceSpec:
    """An accelerator's data sheet."""

    name: str
    """Name on the command line."""
    bfloat16_flops: float
    """Peak of dense bfloat16 products, in FLOP/s."""
    float32_flops: float
    """Peak of float32 products without TF32, torch's default, in FLOP/s."""
    memory_bytes: int
    """Memory of the device."""


def _spec(name: str, bfloat16_tflops: float, float32_tflops: float, memory_gb: int) -> DeviceSpec:
    return DeviceSpec(name, bfloat16_tflops * 1e12, float32_tflops * 1e12, memory_gb * 10**9)


#: Keys are words in the driver's name of the device; the first that matches counts.
SPECS = {
    "B200": _spec("b200", 2250, 75, 180),
    "GH200": _spec("gh200", 989, 67, 96),
    "H200": _spec("h200", 989, 67, 141),
    "H100 NVL": _spec("h100-nvl", 835, 60, 94),
    "H100 PCIe": _spec("h100-pcie", 756, 51, 80),
    "H100": _spec("h100", 989, 67, 80),
    "A100-SXM4-40GB": _spec("a100-40gb", 312, 19.5, 40),
    "A100-PCIE-40GB": _spec("a100-40gb", 312, 19.5, 40),
    "A100": _spec("a100", 312, 19.5, 80),
    "L40S": _spec("l40s", 362, 91.6, 48),
    "L40": _spec("l40", 181, 90.5, 48),
    "L4": _spec("l4", 121, 30.3, 24),
    "A40": _spec("a40", 149.7, 37.4, 48),
    "A10G": _spec("a10g", 70, 31.5, 24),
    "A10": _spec("a10", 125, 31.2, 24),
    "RTX 4090": _spec("rtx-4090", 165.2, 82.6, 24),
    "RTX 3090": _spec("rtx-3090", 71, 35.6, 24),
    "MI300X": _spec("mi300x", 1307, 163.4, 192),
}


def known_devices() -> dict[str, DeviceSpec]:
    """Every accelerator in the table, by name."""
    return {spec.name: spec for spec in SPECS.values()}
