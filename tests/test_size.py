"""The package stays small: no part has more lines of code than its bound. Raising one is a decision."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts.count_lines import CORE, count, parts, table, total

BOUNDS = {"core": 12_020, "tools": 5_670, "experiment": 620, "studio": 1_720, "beside them": 200}


def test_no_part_outgrows_its_bound() -> None:
    counts = parts()
    print("\n" + table(counts))
    found = {
        "core": total(counts, CORE).code,
        "tools": counts["tools"].code,
        "experiment": counts["experiment"].code,
        "studio": counts["studio"].code,
        "beside them": counts["."].code,
    }
    assert sum(found.values()) == total(counts).code, "a folder of the package belongs to no part"
    assert not {name: code for name, code in found.items() if code > BOUNDS[name]}


SOURCE = '''"""A docstring

of three lines."""

# a comment
def function(x):  # beside code
    """One line."""
    return """two lines

    and a blank one"""


class Settings:
    size: int
    """Documents the attribute."""
    ...
'''


def test_code_is_what_is_no_docstring_comment_or_blank_line() -> None:
    found = count(SOURCE)
    assert (found.code, found.docstring, found.comment, found.blank) == (6, 5, 1, 4)
    assert found.total == len(SOURCE.splitlines())


def test_the_first_read_is_as_long_as_it_says() -> None:
    """Of docs/design.md; a file that grows makes the hour longer."""
    root = Path(__file__).parents[1]
    rows = re.findall(
        r"\| `((?:examples|src)/[\w/.]+)` \| (\d+) \|", (root / "docs" / "design.md").read_text(encoding="utf-8")
    )
    assert len(rows) > 5
    for name, said in rows:
        assert len((root / name).read_text(encoding="utf-8").splitlines()) == pytest.approx(int(said), rel=0.1), name
