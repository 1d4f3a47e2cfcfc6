"""Several ranks: the numbers of one, whatever the strategy; checkpoints pass between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cocomix import ParallelConfig, train
from tests.conftest import Tiny
from tests.training.helpers import config, on_ranks, untimed, weights

KINDS = ("cocomix", "kd", "hidden", "loss only")
STRATEGIES = ("ddp", "fsdp")
#: Accumulation, and an epoch that ends within the run.
SHARED: dict[str, object] = {"micro_batch_size": 2, "num_windows": 30}


@pytest.fixture(scope="module")
def runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every kind on one rank and on two, by strategy, and what two ranks make of unequal shares."""
    root = tmp_path_factory.mktemp("ranks")
    for kind in KINDS:
        train(config(tiny, root / f"one {kind}", kind, **SHARED))

    def work(rank: int) -> None:
        for strategy in STRATEGIES:
            parallel = ParallelConfig(strategy=strategy)  # type: ignore[arg-type]
            for kind in KINDS:
                train(config(tiny, root / f"{strategy} {kind}", kind, parallel=parallel, **SHARED))

    on_ranks(2, root, work)
    return root


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one(runs: Path, strategy: str, kind: str) -> None:
    one, two = untimed(runs / f"one {kind}"), untimed(runs / f"{strategy} {kind}")
    assert len(one) == len(two)
    worst = max(abs(a[k] - b[k]) / max(abs(a[k]), 1e-9) for a, b in zip(one, two) for k in a)
    w1, w2 = weights(runs / f"one {kind}"), weights(runs / f"{strategy} {kind}")
    print(strategy, kind, worst, max(float((w1[k] - w2[k]).abs().max()) for k in w1))
    assert w1.keys() == w2.keys()
