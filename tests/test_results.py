"""The page of results, and the README's, hold the stored results and nothing typed by hand."""

from __future__ import annotations

from benchmarks import bench_page, speed_blocks
from benchmarks.render import (
    DATA_PAGE,
    END,
    PAGE,
    PREPARE_END,
    PREPARE_START,
    README,
    START,
    STEERING_END,
    STEERING_PAGE,
    STEERING_START,
    page,
    prepare_block,
    readme_block,
    steering_block,
)


def test_the_page_is_what_the_stored_results_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
    assert START + readme_block() + END in README.read_text(encoding="utf-8")
    assert PREPARE_START + prepare_block() + PREPARE_END in DATA_PAGE.read_text(encoding="utf-8")
    assert STEERING_START + steering_block() + STEERING_END in STEERING_PAGE.read_text(encoding="utf-8")
    latency = speed_blocks.STUDIO_START + speed_blocks.studio_block() + speed_blocks.STUDIO_END
    assert latency in speed_blocks.STUDIO_PAGE.read_text(encoding="utf-8")
    site = speed_blocks.SITE_START + speed_blocks.site_block() + speed_blocks.SITE_END
    assert site in speed_blocks.INSPECTING_PAGE.read_text(encoding="utf-8")
    assert bench_page.START + bench_page.block() + bench_page.END in bench_page.PAGE.read_text(encoding="utf-8")
    assert bench_page.SHORT_START + bench_page.short_block() + bench_page.SHORT_END in README.read_text(
        encoding="utf-8"
    )
