"""Times, memory and agreement, as cases measure them."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
import torch

from cocomix import CocomixError
from cocomix.tools.bench import head, memory, startup, timing
from cocomix.tools.bench.agreement import require_agreement
from cocomix.tools.bench.report import Section, seconds


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    contestants = {name: lambda name=name: calls.append(name) for name in "abc"}
    taken = timing.interleaved(contestants, 3)
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(values) for name, values in taken.items()} == {"a": 3, "b": 3, "c": 3}


def test_spreads_and_paired_ratios() -> None:
    assert timing.spread_of([4.0]) == timing.Spread(4.0, 4.0, 4.0)
    assert timing.spread_of([1.0, 2.0, 3.0, 4.0, 5.0]) == timing.Spread(3.0, 2.0, 4.0)
    # Within each round: a machine that is slow for a round is slow for both.
    assert timing.paired_ratio({"a": [2.0, 20.0, 4.0], "b": [1.0, 10.0, 2.0]}, "a", "b").median == 2.0


def test_disagreement_is_named() -> None:
    expected = {"the loss": torch.tensor(2.0), "a gradient": torch.tensor([1.0, -4.0])}
    found = {"the loss": torch.tensor(2.0), "a gradient": torch.tensor([1.0, -4.04])}
    assert require_agreement(found, expected, 0.02) == pytest.approx(0.01)
    with pytest.raises(CocomixError, match=r"a gradient.*1\.0e-02"):
        require_agreement(found, expected, 1e-3)
    with pytest.raises(CocomixError, match=r"the loss.*nan"):
        require_agreement(found | {"the loss": torch.tensor(torch.nan)}, expected, 1e-3)


@pytest.mark.slow
def test_peak_memory_is_that_of_the_work() -> None:
    shape = replace(head.SIZES["smoke"], num_concepts=2000, num_tokens=2000)
    fast, dense = memory.peak_bytes("head", [("fast", shape), ("dense", shape)])
    table = 4 * 2000 * 2000  # bytes of one [tokens, concepts] tensor
    assert 4 * table < dense < 40 * table  # logits, mask, product and a softmax for each label, at least
    assert fast < 0.9 * dense


def test_memory_that_can_not_be_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = head.SIZES["smoke"]

    def fail(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 1, "", "Traceback\nwork 'fast' ended with -9\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(CocomixError, match=r"'head'.*'fast'.*-9"):
        memory.peak_bytes("head", [("fast", shape)])
    monkeypatch.setattr(memory, "_RESET", memory._STATUS / "missing")
    with pytest.raises(CocomixError, match="Linux"):
        memory.peak_bytes("head", [("fast", shape)])


def test_start_up_takes_processor_time() -> None:
    taken = startup.measure(1)["cpu_seconds"]
    assert set(taken) == set(startup.NAMES)
    assert 0 < taken["cocomix --help"]["median"] < 60


def test_sections_for_terminal_and_page() -> None:
    section = Section("Title", "Text.", ["", "a step"], [["fast", seconds({"median": 1.5, "low": 1.25, "high": 2})]])
    assert section.as_text().splitlines()[-1].split() == ["fast", "1.5", "(1.25", "to", "2)", "s"]
    assert section.as_markdown().endswith("| fast | 1.5 (1.25 to 2) s |")
    assert seconds({"median": 0.0123, "low": 0.01, "high": 1.5}) == "12.3 (10 to 1,500) ms"
