"""Fragments of the page, without a browser."""

from __future__ import annotations

from pathlib import Path

from cocomix.studio.curves_panel import AXES, chart_options, read_curves
from cocomix.studio.rendering import format_percent, format_points, format_signed_short, page_style, render
from cocomix.studio.runs import NamedFolder
from tests.studio.conftest import ATTACK, Demo


def test_the_style_holds_the_house_colours_for_both_themes() -> None:
    style = page_style()
    assert style.count("--paper: #fdfdfb") == 1
    assert "body.body--dark { color-scheme: dark;" in style
    assert style.split("body.body--dark {")[1].split("}")[0].count("--paper: #14171a") == 1
    assert style.count("{") == style.count("}")


def test_templates_escape() -> None:
    assert "<img" not in render("problem", problem=ATTACK)
    assert "&lt;img" in render("pin_head", concept=1, name=ATTACK)


def test_numbers_are_short() -> None:
    assert (format_percent(0.1234), format_percent(0.00123), format_percent(0)) == (
        "12.3\u202f%",
        "0.12\u202f%",
        "0.0\u202f%",
    )
    assert (format_points(-1.26), format_points(0.04)) == ("−1.3", "+0.0")
    assert (format_signed_short(-1.25), format_signed_short(0.012)) == ("−1.2", "0.012")


def test_curves_of_all_runs_and_a_sentence_for_those_without(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lm_loss": 2.0}\n')
    runs = [NamedFolder("cocomix", demo.model), NamedFolder("new", tmp_path), NamedFolder("gone", tmp_path / "gone")]
    curves, problems = read_curves(runs)
    assert [point["validation_loss"] for point in curves["cocomix"]] == [4.25, 3.75, 3.5]
    assert problems[0] == "new has no validation loss yet."
    assert "gone" in problems[1]
    for axis, last in zip(AXES, (4000, 4e9, 8.0), strict=True):
        options = chart_options(curves, axis)
        assert options["series"][0]["data"][-1] == [last, 3.5]
        assert options["xAxis"]["max"] == last
    colors = {
        series["name"]: series["color"]
        for series in chart_options(
            dict.fromkeys(["demo/pause", "demo/cocomix", "demo/ntp"], curves["cocomix"]), "tokens"
        )["series"]
    }
    assert list(colors) == ["demo/ntp", "demo/cocomix", "demo/pause"]
    assert colors["demo/ntp"] == "var(--series-1)"
    assert options["series"][0]["color"] == colors["demo/cocomix"] == "var(--series-2)"
    assert chart_options({}, "tokens")["series"] == []
