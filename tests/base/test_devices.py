"""Devices: which one a process takes, and what is known of it."""

from __future__ import annotations

import pytest
import torch

from cocomix import CocomixError
from cocomix.base.accelerators import known_devices
from cocomix.base.devices import device_spec, this_device


def with_cuda(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)


def test_each_process_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cuda(monkeypatch, 0)
    assert this_device() == torch.device("cpu")
    with pytest.raises(CocomixError, match=r"(?i)cuda.*cpu.*auto"):
        this_device("cuda")
    with_cuda(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert this_device() == torch.device("cuda", 1)
    assert this_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(CocomixError, match="--nproc-per-node 2"):
        this_device()


@pytest.mark.parametrize(
    ("driver_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA RTX A4000", None),
    ],
)
def test_devices_are_known_by_their_drivers_names(
    monkeypatch: pytest.MonkeyPatch, driver_name: str, name: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: driver_name)
    spec = device_spec(torch.device("cuda", 0))
    assert spec == (None if name is None else known_devices()[name])
    assert device_spec(torch.device("cpu")) is None
