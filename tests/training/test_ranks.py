"""Several ranks: the numbers of one, whatever the strategy; checkpoints pass between them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cocomix import CocomixError, ParallelConfig, TrainConfig, train
from cocomix.base.stopping import Stopped
from cocomix.data.order import windows_of_step
from cocomix.training.batches import Batch, Batches
from tests.conftest import Tiny
from tests.training.helpers import config, equal_weights, full_disk, in_step, on_ranks, terminate, untimed, weights

STRATEGIES = ("ddp", "fsdp")
#: Loss only leaves parameters without a gradient; the regression has a head of its own.
RUNS = (("ddp", "cocomix"), ("ddp", "loss only"), ("fsdp", "cocomix"), ("fsdp", "kd"), ("fsdp", "hidden"))
NUM_STEPS = 8
#: Two passes a rank in each step, and an epoch that ends within the fourth.
SHARED: dict[str, object] = {"micro_batch_size": 2, "num_windows": 30, "num_tokens": 128 * NUM_STEPS}
SHARED |= {"num_evaluations": 2, "checkpoint_every_steps": 100}
#: Ranks sum float32 numbers in another order; AdamW's first, sign-like steps magnify what that rounds, 3e-3 each at most.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


def shared(tiny: Tiny, output: Path, kind: str, strategy: str = "ddp", **settings: object) -> TrainConfig:
    parallel = ParallelConfig(strategy=strategy)  # type: ignore[arg-type]
    return config(tiny, output, kind, **{"parallel": parallel} | SHARED | settings)


@pytest.fixture(scope="module")
def runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one rank and on two, and runs that passed from one to two after four steps, or stopped there."""
    root = tmp_path_factory.mktemp("ranks")
    for kind in sorted({kind for _, kind in RUNS}):
        train(shared(tiny, root / f"one {kind}", kind))
    for strategy in STRATEGIES:
        with in_step(3, terminate), pytest.raises(Stopped):
            train(shared(tiny, root / f"from one to {strategy}", "cocomix"))

    def work(rank: int) -> None:
        seen: list[list[int]] = []
        read = Batches.at

        def noted(self: Batches, windows: np.ndarray) -> Batch:
            seen.append(windows.tolist())
            return read(self, windows)

        for strategy, kind in RUNS:
            seen.clear()
            with mock.patch.object(Batches, "at", noted):
                train(shared(tiny, root / f"{strategy} {kind}", kind, strategy))
            (root / f"{strategy} {kind}" / f".seen-{rank}").write_text(json.dumps(seen))
        for strategy, other in zip(STRATEGIES, reversed(STRATEGIES), strict=True):
            train(shared(tiny, root / f"from one to {strategy}", "cocomix", strategy))
            for name in (f"{strategy} stopped", f"{strategy} continued", f"from {strategy} to {other}"):
                # One rank gets the signal, and all stop.
                with in_step(3, terminate if rank else lambda: None), pytest.raises(Stopped) as stopped:
                    train(shared(tiny, root / name, "cocomix", strategy))
                assert stopped.value.exit_code == 128 + signal.SIGTERM
            train(shared(tiny, root / f"{strategy} continued", "cocomix", strategy))
            train(shared(tiny, root / f"from {strategy} to {other}", "cocomix", other))

    on_ranks(2, root, work)
    return root


def assert_as_one(runs: Path, name: str, kind: str = "cocomix") -> None:
    """Every line of the metrics and all weights are those of one rank, to rounding."""
    one, other = untimed(runs / f"one {kind}"), untimed(runs / name)
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for line, expected in zip(other, one, strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6), line["step"]
    found, expected_weights = weights(runs / name), weights(runs / f"one {kind}")
    assert found.keys() == expected_weights.keys()
    for tensor_name, tensor in found.items():
        torch.testing.assert_close(tensor, expected_weights[tensor_name], **TOLERANCE)


@pytest.mark.parametrize(("strategy", "kind"), RUNS)
def test_two_ranks_equal_one(runs: Path, strategy: str, kind: str) -> None:
    assert_as_one(runs, f"{strategy} {kind}", kind)
    one, two = runs / f"one {kind}", runs / f"{strategy} {kind}"
    assert sorted(p.name for p in one.iterdir() if p.name[0] != ".") == sorted(
        p.name for p in two.iterdir() if p.name[0] != "."
    )
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    # Rank after rank, pass after pass, they read each step's windows once, whatever the world size.
    seen = [json.loads((two / f".seen-{rank}").read_text()) for rank in (0, 1)]
    for step in range(NUM_STEPS):
        passes = [part for rank in (0, 1) for part in seen[rank][2 * step : 2 * step + 2]]
        assert [window for part in passes for window in part] == windows_of_step(0, step, 8, 30).tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_on_one_rank_continues_on_two(runs: Path, strategy: str) -> None:
    assert_as_one(runs, f"from one to {strategy}")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_on_two_ranks_continues_on_one(runs: Path, tiny: Tiny, strategy: str) -> None:
    train(shared(tiny, runs / f"{strategy} stopped", "cocomix"))
    assert_as_one(runs, f"{strategy} stopped")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_continue_to_the_bit(runs: Path, strategy: str) -> None:
    assert equal_weights(runs / f"{strategy} continued", runs / f"{strategy} cocomix")
    assert untimed(runs / f"{strategy} continued") == untimed(runs / f"{strategy} cocomix")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ddp_and_fsdp_continue_one_another(runs: Path, strategy: str) -> None:
    other = STRATEGIES[strategy == "ddp"]
    assert_as_one(runs, f"from {strategy} to {other}")


def test_saving_memory_and_products_in_bfloat16(tiny: Tiny, tmp_path: Path) -> None:
    """Activation checkpointing, mixed precision and accumulation together, sharded and not."""
    plain = train(shared(tiny, tmp_path / "plain", "cocomix"))

    def parallel(strategy: str) -> ParallelConfig:
        return ParallelConfig(strategy=strategy, precision="bfloat16", activation_checkpointing=True)  # type: ignore[arg-type]

    def work(rank: int) -> None:
        for strategy in STRATEGIES:
            train(shared(tiny, tmp_path / strategy, "cocomix", parallel=parallel(strategy)))
        # The regression's head is a group of shards of its own.
        train(shared(tiny, tmp_path / "hidden", "hidden", parallel=parallel("fsdp")))
        full = full_disk() if rank else full_disk(after=100)
        with full, pytest.raises(CocomixError, match=r"step-000000002 can't be written \(.*No space left on device\)"):
            train(shared(tiny, tmp_path / "full", "cocomix", "fsdp", checkpoint_every_steps=2))
        with pytest.raises(
            CocomixError, match="batch_size 6 can't be shared equally by 2 processes of micro_batch_size 2"
        ):
            train(shared(tiny, tmp_path / "refused", "cocomix", batch_size=6))

    on_ranks(2, tmp_path, work)
    assert not (tmp_path / "refused").exists()
    assert not list((tmp_path / "full" / "checkpoints").iterdir())
    expected = untimed(plain.path)[-1]["validation_loss"]
    for strategy in STRATEGIES:
        # Products of 8 bits; the loss is a mean over many.
        assert untimed(tmp_path / strategy)[-1]["validation_loss"] == pytest.approx(expected, rel=0.01)
        assert all(
            tensor.dtype == torch.float32 for tensor in load_file(tmp_path / strategy / "model.safetensors").values()
        )
    assert untimed(tmp_path / "hidden")


@pytest.mark.slow
def test_compiled_blocks_on_two_ranks(tiny: Tiny, tmp_path: Path) -> None:
    train(shared(tiny, tmp_path / "one cocomix", "cocomix"))

    def work(_rank: int) -> None:
        for strategy in STRATEGIES:
            parallel = ParallelConfig(strategy=strategy, compile=True, activation_checkpointing=True)  # type: ignore[arg-type]
            train(shared(tiny, tmp_path / strategy, "cocomix", parallel=parallel))

    on_ranks(2, tmp_path, work)
    for strategy in STRATEGIES:
        assert_as_one(tmp_path, strategy)
