"""Checkpoints: the newest whole one is found, whatever happened to the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cocomix import CocomixError
from cocomix.base import checkpoints as module
from cocomix.base.checkpoints import (
    META_NAME,
    Checkpoint,
    Checkpoints,
    clear_checkpoints,
    restore_state,
    training_state,
    write_state,
)
from cocomix.base.ranks import Ranks
from tests.training.helpers import full_disk

SETTINGS = {"seed": 0, "optimizer": {"rate": 0.1}}


def read(checkpoint: Checkpoint | None, name: str = "x") -> list[float]:
    """One tensor of a checkpoint."""
    assert checkpoint is not None
    tensor = torch.empty(checkpoint.shapes[name])
    checkpoint.read_into({name: tensor})
    return tensor.tolist()


def test_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, SETTINGS, keep=2)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": torch.full((2,), float(step))}, {"seconds": step})
    latest = checkpoints.latest()
    assert read(latest) == [3.0, 3.0]
    assert latest is not None
    assert latest.meta["step"] == latest.meta["seconds"] == 3
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000000002", "step-000000003"]
    clear_checkpoints(tmp_path)
    assert checkpoints.latest() is None


@pytest.mark.parametrize(
    "damage",
    [
        *("truncate", "flip", "no tensors", "no meta", "half meta", "other meta", "no checksums", "half written"),
        *("deep meta", "digits", "half a pair", "edited"),
    ],
)
def test_a_damaged_checkpoint_costs_only_its_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    for step in (1, 2):
        checkpoints.save(step, {"x": torch.full((64,), float(step))}, {})
    newest = checkpoints.folder / "step-000000002"
    (tensors,), meta = newest.glob("*.safetensors"), newest / META_NAME
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-7])
    elif damage == "flip":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "no meta":
        meta.unlink()
    elif damage == "half meta":
        meta.write_text(meta.read_text()[:10])
    elif damage == "other meta":
        meta.write_text("[]")
    elif damage == "no checksums":
        meta.write_text('{"sha256": {}}')
    elif damage == "deep meta":
        meta.write_text('{"step": ' * 10**5)
    elif damage == "digits":
        meta.write_text('{"step": ' + "9" * 5000 + "}")
    elif damage == "half a pair":
        meta.write_text('{"step": "\\ud800", "fingerprint": ""}')
    elif damage == "edited":
        meta.write_text(meta.read_text().replace('"step": 2', '"step": 3'))
    else:
        newest.rename(checkpoints.folder / ".step-000000002.partial")
    latest = checkpoints.latest()
    assert read(latest) == [1.0] * 64
    assert latest is not None
    assert latest.meta["step"] == 1
    assert (f"{newest} is damaged; trying the checkpoint before it" in capsys.readouterr().err) == newest.exists()
    checkpoints.save(2, {"x": torch.ones(1)}, {})
    assert read(checkpoints.latest()) == [1.0]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, SETTINGS).save(1, {"x": torch.ones(1)}, {})
    same = {"optimizer": {"rate": 0.1, "option of a later version": None}, "seed": 0}
    assert read(Checkpoints(tmp_path, same).latest()) == [1.0]
    for other in (SETTINGS | {"seed": 9}, {"seed": 0}):
        with pytest.raises(CocomixError, match=r"step-000000001.*settings"):
            Checkpoints(tmp_path, other).latest()
    # Version 0.1 did not record them.
    write_state(tmp_path / "checkpoints" / "step-000000002", {"x": torch.zeros(1)}, {"step": 2}, Ranks())
    assert read(Checkpoints(tmp_path, SETTINGS | {"seed": 9}).latest()) == [0.0]


def test_damaged_checkpoints_do_not_count_among_those_kept(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        Checkpoints(tmp_path, SETTINGS, keep=3).save(step, {"x": torch.ones(1)}, {})
    checkpoints = Checkpoints(tmp_path, SETTINGS, keep=1)
    for step in (8, 12):
        (checkpoints.folder / f"step-{step:09d}" / META_NAME).unlink()
    checkpoints.latest()
    checkpoints.save(6, {"x": torch.full((1,), 6.0)}, {})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-000000006"]


def test_nothing_is_pickled_and_odd_tensors_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, integers, views of one storage, and more than a file takes."""
    whole = torch.arange(12.0).view(4, 3)
    tensors = {"number": torch.tensor(2.5), "count": torch.tensor(7), "view": whole[1:3], "column": whole[:, 1]}
    tensors |= {"whole": whole, "empty": torch.empty(0, 3), "half": torch.ones(5, dtype=torch.bfloat16)}
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 64)
    write_state(tmp_path / "state", tensors, {"note": "x"}, Ranks())
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names[0] == META_NAME
    assert len(names) == 3
    assert all(name.endswith(".safetensors") for name in names[1:])
    assert set(json.loads((tmp_path / "state" / META_NAME).read_text())["sha256"]) == set(names[1:])
    checkpoint = Checkpoint(tmp_path / "state", {}, Ranks())
    found = {name: torch.full_like(tensor, 9) for name, tensor in tensors.items()}
    checkpoint.read_into(found)
    assert checkpoint.shapes == {name: tensor.shape for name, tensor in tensors.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    checkpoints.save(1, {"x": torch.ones(2)}, {})
    with (
        full_disk(),
        pytest.raises(CocomixError, match=r"step-000000002.*No space left on device"),
    ):
        checkpoints.save(2, {"x": torch.zeros(2)}, {})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-000000001"]
    assert read(checkpoints.latest()) == [1.0, 1.0]
    (tmp_path / "file").touch()
    with pytest.raises(CocomixError, match=r"state.*Not a directory"):
        write_state(tmp_path / "file" / "state", {"x": torch.zeros(2)}, {}, Ranks())


def test_state_round_trip_continues_bit_for_bit(tmp_path: Path) -> None:
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
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    checkpoints.save(1, training_state(model, optimizer) | {"extra": torch.tensor([3])}, {})
    step(model, optimizer, 2)
    other, other_optimizer = make()
    latest, extra = checkpoints.latest(), torch.tensor([0])
    assert latest is not None
    restore_state(other, other_optimizer, latest, {"extra": extra})
    assert extra.tolist() == [3]
    step(other, other_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
