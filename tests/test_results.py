"""Every table of the pages is what its command makes of the stored results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks import common, render
from benchmarks.evidence import page

from cocomix import CocomixError


@pytest.mark.parametrize("module", [render, page])
def test_the_committed_tables_are_those_of_the_stored_results(module: object) -> None:
    blocks = module.blocks()  # type: ignore[attr-defined]
    shown = set()
    for path in module.PAGES:  # type: ignore[attr-defined]
        text = path.read_text(encoding="utf-8")
        assert common.filled(text, blocks) == text, path.name
        shown |= set(re.findall("<!-- end of (.+?) -->", text))
    assert shown == set(blocks)


def test_a_table_is_put_between_its_marks_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Before.\n<!-- a -->\nold\n<!-- end of a -->\nBetween.\n<!-- b c -->\n<!-- end of b c -->\nAfter.\n"
    )
    common.fill(page, {"a": common.table(["x"], [["1"]]), "b c": "new"})
    between = "<!-- a -->\n| x |\n| --- |\n| 1 |\n<!-- end of a -->\nBetween.\n<!-- b c -->\nnew\n<!-- end of b c -->"
    assert page.read_text() == f"Before.\n{between}\nAfter.\n"
    with pytest.raises(CocomixError, match="no table is called 'b c'"):
        common.filled(page.read_text(), {"a": ""})
