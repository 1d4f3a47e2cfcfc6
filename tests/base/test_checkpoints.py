"""Checkpoints: the newest whole one is found, whatever happened to the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cocomix.base.checkpoints import Checkpoints, restore_state, state_of


def test_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": torch.full((2,), float(step))}, {"seconds": step})
    latest = checkpoints.latest()
    assert latest is not None
    assert latest[0]["x"].tolist() == [3.0, 3.0]
    assert latest[1]["step"] == latest[1]["seconds"] == 3
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000000002", "step-000000003"]
    checkpoints.clear()
    assert checkpoints.latest() is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "no meta", "half meta", "half written"])
def test_a_damaged_checkpoint_costs_only_its_steps(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"x": torch.full((64,), float(step))}, {})
    newest = checkpoints.folder / "step-000000002"
    tensors, meta = newest / "state.safetensors", newest / "meta.json"
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-7])
    elif damage == "flip":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "no meta":
        meta.unlink()
    elif damage == "half meta":
        meta.write_text(meta.read_text()[:10])
    else:
        newest.rename(checkpoints.folder / ".step-000000002.partial")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest[1]["step"] == 1
    checkpoints.save(2, {"x": torch.ones(1)}, {})
    again = checkpoints.latest()
    assert again is not None
    assert again[1]["step"] == 2


def test_state_round_trip_continues_bit_for_bit() -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make()
    step(model, optimizer, 1)
    saved = {name: tensor.clone() for name, tensor in state_of(model, optimizer).items()}
    step(model, optimizer, 2)
    other, other_optimizer = make()
    restore_state(other, other_optimizer, saved)
    step(other, other_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
