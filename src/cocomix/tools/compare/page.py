"""Page and figures of a comparison: one self-contained HTML file and PNG files. Loads matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cocomix.base.drawing import Drawing
from cocomix.base.page import page_environment, write_file
from cocomix.tools.compare.curves import series_of
from cocomix.tools.compare.figures import AXES, Axis, Line, Target, draw_curves
from cocomix.tools.compare.text import NOTHING, headline, tables

PAGE_NAME = "comparison.html"


def write_page(folder: Path, result: Mapping[str, Any]) -> None:
    """Write `comparison.html` and the figures.

    Args:
        folder: of the comparison.
        result: as `compare_groups` returns it.
    """
    drawings = [_figure(result, axis) for axis in AXES]
    for drawing in drawings:
        write_file(folder / f"{drawing.name}.png", drawing.png)
    page = page_environment("cocomix.tools.compare").get_template(PAGE_NAME)
    text = page.render(
        result=result,
        headline=headline(result),
        tables=tables(result),
        nothing=NOTHING,
        figures=[Markup(drawing.svg) for drawing in drawings],
        has_seeds=any(len(facts["runs"]) > 1 for facts in result["groups"].values()),
        unfinished=[name for name, facts in result["groups"].items() if not facts["is_finished"]],
    )
    write_file(folder / PAGE_NAME, text.encode())


def _figure(result: Mapping[str, Any], axis: Axis) -> Drawing:
    """The curve of every run; without seeds, rings mark where a run reaches the baseline's final loss."""
    groups, baseline = result["groups"], result["baseline"]
    is_single = all(len(facts["runs"]) == 1 for facts in groups.values())
    lines, series = [], series_of(groups)
    for name, facts in groups.items():
        reached = facts["to_reach"].get(baseline) if is_single else None
        crossing = None if reached is None else {key: value["amount"] for key, value in reached.items()}
        lines += [Line(name, run["curve"], series[name], crossing) for run in facts["runs"] if run["curve"]]
    loss = groups[baseline]["validation_loss"]["mean"]
    target = None if loss is None else Target(baseline, loss)
    return draw_curves(lines, target, axis, _alt(result, axis))


def _alt(result: Mapping[str, Any], axis: Axis) -> str:
    ends = "; ".join(
        f"{name}, seed {run['seed']}, is at {run['validation_loss']:.3f} after {axis.text(run[axis.key], run[axis.key])}"
        for name, facts in result["groups"].items()
        for run in facts["runs"]
        if run["curve"]
    )
    return f"Validation loss against {axis.name}: {ends}."
