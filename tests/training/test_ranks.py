"""Several ranks: the numbers of one, whatever the strategy; checkpoints pass between them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from cocomix import CocomixError, ParallelConfig, TrainConfig, train
from cocomix.base.stopping import Stopped
from cocomix.cli.main import main
from cocomix.data.order import windows_of_step
from cocomix.training.batches import Batch, Batches
from tests.conftest import Tiny
from tests.training.helpers import (
    config,
    equal_weights,
    forked,
    full_disk,
    in_step,
    on_ranks,
    terminate,
    untimed,
    weights,
)

STRATEGIES = ("ddp", "fsdp")
RUNS = (("ddp", "cocomix"), ("fsdp", "cocomix"), ("fsdp", "kd"))
#: Loss only leaves parameters without a gradient; the regression has a head of its own, which an end leaves without one.
SLOW_RUNS = (("ddp", "loss only"), ("fsdp", "hidden"), ("ddp", "ending"), ("fsdp", "ending"))
#: What is sharded is the harder case.
FSDP_FIRST = ("fsdp", pytest.param("ddp", marks=pytest.mark.slow))
NUM_STEPS = 8
#: Two passes a rank in each step, and an epoch that ends within the fourth.
SHARED: dict[str, object] = {"micro_batch_size": 2, "num_windows": 30, "num_tokens": 128 * NUM_STEPS}
SHARED |= {"num_evaluations": 2, "checkpoint_every_steps": 100}
#: Ranks sum float32 numbers in another order; AdamW's first, sign-like steps magnify what that rounds, 3e-3 each at most.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


def shared(tiny: Tiny, output: Path, kind: str, strategy: str = "ddp", **settings: object) -> TrainConfig:
    parallel = ParallelConfig(strategy=strategy)  # type: ignore[arg-type]
    return config(tiny, output, kind, **{"parallel": parallel} | SHARED | settings)


def on_two(tiny: Tiny, root: Path, runs: Sequence[tuple[str, str]], stopped: Sequence[str] = ()) -> None:
    """Runs on one rank and on two, and runs on two that stop after four steps."""
    for kind in sorted({kind for _, kind in runs}):
        train(shared(tiny, root / f"one {kind}", kind))

    def work(rank: int) -> None:
        seen: list[list[int]] = []
        read = Batches.at

        def noted(self: Batches, windows: np.ndarray, *when: int) -> Batch:
            seen.append(windows.tolist())
            return read(self, windows, *when)

        for strategy, kind in runs:
            seen.clear()
            with mock.patch.object(Batches, "at", noted):
                train(shared(tiny, root / f"{strategy} {kind}", kind, strategy))
            (root / f"{strategy} {kind}" / f".seen-{rank}").write_text(json.dumps(seen))
        for strategy in stopped:
            # One rank gets the signal, and all stop.
            with in_step(3, terminate if rank else lambda: None), pytest.raises(Stopped) as stop:
                train(shared(tiny, root / f"{strategy} stopped", "cocomix", strategy))
            assert stop.value.exit_code == 128 + signal.SIGTERM

    on_ranks(2, root, work)


def continued_on_two(tiny: Tiny, root: Path, passages: Sequence[tuple[str, str]]) -> None:
    """Copies of runs that stopped, under one strategy or on one rank, continued on two ranks."""
    for first, then in passages:
        shutil.copytree(root / f"{first} stopped", root / f"from {first} to {then}")

    def work(_rank: int) -> None:
        for first, then in passages:
            train(shared(tiny, root / f"from {first} to {then}", "cocomix", then))

    on_ranks(2, root, work)


@pytest.fixture(scope="module")
def few_runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight runs on two ranks: each strategy, and what a test needs of them."""
    root = tmp_path_factory.mktemp("ranks")
    with in_step(3, terminate), pytest.raises(Stopped):
        train(shared(tiny, root / "one stopped", "cocomix"))
    on_two(tiny, root, RUNS, STRATEGIES)
    continued_on_two(tiny, root, [("one", "fsdp"), ("fsdp", "fsdp"), ("ddp", "fsdp")])
    return root


@pytest.fixture(scope="module")
def all_runs(tiny: Tiny, few_runs: Path) -> Path:
    """The other combinations as well."""
    on_two(tiny, few_runs, SLOW_RUNS)
    continued_on_two(tiny, few_runs, [("one", "ddp"), ("ddp", "ddp"), ("fsdp", "ddp")])
    return few_runs


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> Path:
    slow = request.node.get_closest_marker("slow") is not None
    folder: Path = request.getfixturevalue("all_runs" if slow else "few_runs")
    return folder


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


@pytest.mark.parametrize(
    ("strategy", "kind"), [*RUNS, *(pytest.param(*run, marks=pytest.mark.slow) for run in SLOW_RUNS)]
)
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


@pytest.mark.parametrize("strategy", FSDP_FIRST)
def test_a_run_on_one_rank_continues_on_two(runs: Path, strategy: str) -> None:
    assert_as_one(runs, f"from one to {strategy}")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_on_two_ranks_continues_on_one(runs: Path, tiny: Tiny, strategy: str) -> None:
    shutil.copytree(runs / f"{strategy} stopped", runs / f"from {strategy} to one")
    train(shared(tiny, runs / f"from {strategy} to one", "cocomix"))
    assert_as_one(runs, f"from {strategy} to one")


@pytest.mark.parametrize("strategy", FSDP_FIRST)
def test_two_ranks_continue_to_the_bit(runs: Path, strategy: str) -> None:
    continued, whole = runs / f"from {strategy} to {strategy}", runs / f"{strategy} cocomix"
    assert equal_weights(continued, whole)
    assert untimed(continued) == untimed(whole)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_ddp_and_fsdp_continue_one_another(runs: Path, strategy: str) -> None:
    other = STRATEGIES[strategy == "ddp"]
    assert_as_one(runs, f"from {strategy} to {other}")


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("fsdp", "cocomix"),
        pytest.param("ddp", "cocomix", marks=pytest.mark.slow),
        pytest.param("fsdp", "hidden", marks=pytest.mark.slow),  # its head is a group of shards of its own
    ],
)
def test_saving_memory_and_products_in_bfloat16(tiny: Tiny, tmp_path: Path, strategy: str, kind: str) -> None:
    """Activation checkpointing, mixed precision and accumulation together, sharded and not."""
    plain = train(shared(tiny, tmp_path / "plain", kind))
    parallel = ParallelConfig(strategy=strategy, precision="bfloat16", activation_checkpointing=True)  # type: ignore[arg-type]
    on_ranks(2, tmp_path, lambda _rank: train(shared(tiny, tmp_path / "two", kind, parallel=parallel)))
    expected = untimed(plain.path)[-1]["validation_loss"]
    # Products of 8 bits; the loss is a mean over many.
    assert untimed(tmp_path / "two")[-1]["validation_loss"] == pytest.approx(expected, rel=0.01)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "two").values())


def test_what_one_rank_meets_ends_both(tiny: Tiny, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        full = full_disk() if rank else full_disk(after=100)
        with full, pytest.raises(CocomixError, match=r"step-000000002.*No space left on device"):
            train(shared(tiny, tmp_path / "full", "cocomix", "fsdp", checkpoint_every_steps=2))
        with pytest.raises(CocomixError, match=r"batch_size.*6.*2.*micro_batch_size.*2"):
            train(shared(tiny, tmp_path / "refused", "cocomix", batch_size=6))

    on_ranks(2, tmp_path, work)
    assert not (tmp_path / "refused").exists()
    assert not list((tmp_path / "full" / "checkpoints").iterdir())


@pytest.mark.unchecked_shapes
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


def test_a_killed_rank_is_one_sentence_of_the_other(tiny: Tiny, tmp_path: Path) -> None:
    argv = ["train", "--data", str(tiny.data), "--output", str(tmp_path / "run"), "--student.hidden-size", "16"]
    argv += ["--student.num-layers", "2", "--student.num-heads", "2", "--num-tokens", "2560"]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]

    def work(rank: int) -> None:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in group.items()})
        sys.stderr = (tmp_path / f"said-{rank}").open("w", buffering=1)
        with in_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL) if rank else None):
            (tmp_path / "code").write_text(str(main(argv)))

    for process in forked(work, (), 2, join=False).processes:
        process.join()
    said = (tmp_path / "said-0").read_text().splitlines()
    errors = [line for line in said if line.startswith("error")]
    assert (tmp_path / "code").read_text() == "1"
    assert len(errors) == 1
    assert len(said) == 2  # and how much there is to train on
    assert errors[0].startswith("error: another process of this run has ended")
