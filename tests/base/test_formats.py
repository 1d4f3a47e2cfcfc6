"""Numbers for people."""

from __future__ import annotations

import pytest

from cocomix.base.formats import counted, format_count, format_flops, format_seconds, format_signed


def spaced(text: str) -> str:
    return text.replace("\u202f", " ")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (512, "512"), (65_536, "65.5k"), (999_999, "1.00M"), (1_001_472, "1.00M"), (24.7e9, "24.7B")],
)
def test_format_count(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "whole", "text"), [(741_089, 1_001_472, "0.74M"), (20_300, 32_768, "20.3k"), (3.1e6, 12.5e6, "3.1M")]
)
def test_format_count_of_a_part(value: float, whole: float, text: str) -> None:
    assert format_count(value, whole) == text


def test_one_is_no_plural() -> None:
    assert [counted(n, "model") for n in (0, 1, 2, 2000)] == ["0 models", "1 model", "2 models", "2,000 models"]
    assert [counted(n, "process", "es") for n in (1, 2)] == ["1 process", "2 processes"]


def test_other_formats() -> None:
    assert spaced(format_flops(6.796e12)) == "6.80 TFLOP"
    assert spaced(format_flops(5.4e6)) == "5.40 MFLOP"
    seconds = (8.42, 9.97, 42.4, 59.7, 84.2, 3599.8, 7260)
    words = ["8.4 s", "10 s", "42 s", "1 min 00 s", "1 min 24 s", "1 h 00 min", "2 h 01 min"]
    assert [spaced(format_seconds(value)) for value in seconds] == words
    assert format_signed(-0.0871) == "−0.087"
