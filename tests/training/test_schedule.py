"""The learning rate: linear up, cosine down to a tenth."""

from __future__ import annotations

import pytest

from cocomix.training.config import OptimizerConfig
from cocomix.training.schedule import learning_rate


def test_shape_of_the_schedule() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_fraction=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(config, 0, 1) == 1.0
