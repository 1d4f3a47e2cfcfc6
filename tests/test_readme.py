"""The README is a door: short, with links that point somewhere."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_links_point_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXT)
    assert links
    for link in links:
        assert (README.parent / link).exists(), link


def test_it_is_read_in_a_minute() -> None:
    assert len(TEXT.split()) <= 900
    assert len(TEXT.splitlines()) < 120
    assert len(re.findall(r"\d[\d.,]*", TEXT)) < 25
