"""Progress in a log: plain lines with rate and time left."""

from __future__ import annotations

import pytest

from cocomix.base import progress


def test_plain_lines_show_done_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 10.0, 30.0, 30.0, 30.0, 40.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.ProgressLine("training", 1000, completed=500) as line:
        line.advance(100, loss=2.5)
        line.advance(100, loss=2.25)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 700/1,000 tokens, 7 tokens/s, 0:45 left  loss 2.250",
        "training: 700/1,000 tokens, 5 tokens/s, 1:00 left  loss 2.250",
    ]


def test_durations_are_readable() -> None:
    assert progress._duration(59.6) == "1:00"
    assert progress._duration(3723) == "1:02:03"
