"""The page of results, and the README's, hold the stored results and nothing typed by hand."""

from __future__ import annotations

from benchmarks.render import END, PAGE, README, START, page, readme_block


def test_the_page_is_what_the_stored_results_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
    assert START + readme_block() + END in README.read_text(encoding="utf-8")
