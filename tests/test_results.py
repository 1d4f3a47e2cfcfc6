"""The page of results holds the stored results and nothing typed by hand."""

from __future__ import annotations

from benchmarks.render import PAGE, page


def test_the_page_is_what_the_stored_results_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
