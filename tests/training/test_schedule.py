"""Rates and weights as functions of the step."""

from __future__ import annotations

import pytest

from cocomix.objectives.config import ObjectiveConfig, Schedule
from cocomix.training.config import OptimizerConfig
from cocomix.training.optimizer import learning_rate

KINDS: tuple[Schedule, ...] = ("constant", "linear")


def test_shape_of_the_schedule() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_fraction=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(config, 0, 1) == 1.0


def test_weights_are_constant_or_go_down_to_zero() -> None:
    constant, linear, cosine = (
        [ObjectiveConfig(0.5, schedule).weight_at(step, 5) for step in range(5)]
        for schedule in ("constant", "linear", "cosine")
    )
    assert constant == [0.5] * 5
    assert linear == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0])
    # Half a period: 0.25 * (1 + cos(k pi / 4))
    assert cosine == pytest.approx([0.5, 0.25 + 0.125 * 2**0.5, 0.25, 0.25 - 0.125 * 2**0.5, 0.0])
    assert ObjectiveConfig(0.5, "linear").weight_at(0, 1) == 0.5


def test_weights_end_before_the_run_does() -> None:
    constant, linear = ([ObjectiveConfig(0.5, kind, 0.6).weight_at(step, 5) for step in range(5)] for kind in KINDS)
    assert constant == [0.5, 0.5, 0.5, 0.0, 0.0]
    assert linear == pytest.approx([0.5, 0.25, 0.0, 0.0, 0.0])
    assert ObjectiveConfig(0.5, end=0.01).weight_at(0, 5) == 0.5  # at least one step
