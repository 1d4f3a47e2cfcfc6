"""Numbers formatted for people, the same way in text and in figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

NARROW_SPACE = "\u202f"
COUNT_PREFIXES = ("", "k", "M", "B", "T")
FLOP_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
BYTE_PREFIXES = FLOP_PREFIXES


def format_count(value: float | int, whole: float | int | None = None) -> str:
    """1,001,472 as 1.00M, with three digits; a part of `whole` in its unit and decimals, so 741,000 of it as 0.74M."""
    digits, prefix = _scaled(value if whole is None else whole, COUNT_PREFIXES)
    if whole is not None:
        num_decimals = len(digits.partition(".")[2])
        digits = f"{value / 1000 ** COUNT_PREFIXES.index(prefix):.{num_decimals}f}"
    return digits + prefix


def counted(number: int, noun: str, end: str = "s") -> str:
    """1 model, 2,000 models: a number and its noun, whose plural has one more `end`."""
    return f"{number:,} {noun}{end * (number != 1)}"


def format_flops(value: float | int) -> str:
    """6.796e12 as 6.80 TFLOP."""
    digits, prefix = _scaled(value, FLOP_PREFIXES)
    return f"{digits}{NARROW_SPACE}{prefix}FLOP"


def format_bytes(value: float | int) -> str:
    """3.4e9 as 3.4 GB: two or three digits."""
    power = 0
    while value >= 999.5 and power < len(BYTE_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    digits = f"{value:.0f}" if power == 0 or value >= 99.95 else f"{value:.1f}"
    return f"{digits}{NARROW_SPACE}{BYTE_PREFIXES[power]}B"


def format_hours(value: float) -> str:
    """1234.56 hours as 1,234.6 h; less than an hour in minutes or seconds."""
    for unit, size in (("h", 1.0), ("min", 1 / 60)):
        if value >= size:
            return f"{value / size:,.1f}{NARROW_SPACE}{unit}"
    return f"{3600 * value:,.1f}{NARROW_SPACE}s"


def format_seconds(value: float | int) -> str:
    """84.2 as 1 min 24 s."""
    whole = round(value)
    if value < 9.95:
        return f"{value:.1f}{NARROW_SPACE}s"
    if whole < 60:
        return f"{whole}{NARROW_SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{NARROW_SPACE}min {whole % 60:02d}{NARROW_SPACE}s"
    minutes = round(value / 60)
    return f"{minutes // 60}{NARROW_SPACE}h {minutes % 60:02d}{NARROW_SPACE}min"


def format_signed(value: float | int) -> str:
    """-0.1 as −0.100, with a true minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def to_digits(value: float, digits: int = 6) -> float:
    """A number with so many significant digits: further ones are rounding errors, or take room."""
    return float(f"{value:.{digits}g}")


def _scaled(value: float | int, prefixes: Sequence[str]) -> tuple[str, str]:
    """The value to three digits, and the prefix for its power of a thousand."""
    rounded = to_digits(value, 3)
    power = min(max(int(math.log10(rounded) // 3), 0), len(prefixes) - 1) if rounded else 0
    scaled = rounded / 1000**power
    if power == 0 and scaled == int(scaled):
        return str(int(scaled)), prefixes[power]
    return f"{scaled:#.3g}".rstrip("."), prefixes[power]
