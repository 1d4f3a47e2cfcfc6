"""Validation loss of the runs, against tokens, FLOPs and seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nicegui import ui

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.formats import format_count, format_flops, format_seconds
from cocomix.base.kinds import METRICS_NAME, read_metrics
from cocomix.studio.rendering import render
from cocomix.studio.runs import NamedFolder
from cocomix.studio.tasks import Coalesced
from cocomix.tools.compare.curves import series_of, validation_curve

if TYPE_CHECKING:
    from cocomix.studio.page import StudioPage

AXES = {"tokens": "Tokens", "flops": "FLOPs", "seconds": "Seconds"}
_FORMATS = {"tokens": format_count, "flops": format_flops, "seconds": format_seconds}
#: ECharts measures text before it draws it, so the font must have a name of its own.
FONT = "system-ui, sans-serif"
NUM_COLORS = 5
LINE_TYPES = ("solid", "dashed", "dotted")
#: The first part of each run is left out of the loss axis: it falls so steeply that it would flatten the rest.
CUT_SHARE = 0.05


def read_curves(runs: Sequence[NamedFolder]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The validation curve of each run, and a sentence for every run without one."""
    curves, problems = {}, []
    for run in runs:
        try:
            if (run.path / artifacts.MANIFEST_NAME).exists():
                artifacts.check(run.path, [METRICS_NAME])
            points = validation_curve(read_metrics(run.path))
        except CocomixError as error:
            problems.append(f"{error}.")
            continue
        if points:
            curves[run.name] = points
        else:
            problems.append(f"{run.name} has no validation loss yet.")
    return curves, problems


def chart_options(curves: dict[str, list[dict[str, Any]]], axis: str) -> dict[str, Any]:
    """Options of ECharts for one axis. Colours are CSS variables, so that light and dark reach into the chart."""
    series = [
        {
            "name": name,
            "type": "line",
            "showSymbol": len(points) < 40,
            "symbolSize": 5,
            "lineStyle": {"width": 2, "type": LINE_TYPES[index // NUM_COLORS % len(LINE_TYPES)]},
            "color": f"var(--series-{index % NUM_COLORS + 1})",
            "data": [[point[f"train_{axis}"], round(point["validation_loss"], 4)] for point in points],
        }
        for name, index in sorted(series_of(curves).items(), key=lambda item: item[1])
        for points in [curves[name]]
    ]
    key = f"train_{axis}"
    text = {"color": "var(--muted)", "fontFamily": FONT}
    line = {"lineStyle": {"color": "var(--rule)"}}
    shown = [
        p["validation_loss"] for points in curves.values() for p in points if p[key] >= CUT_SHARE * points[-1][key]
    ]
    return {
        "animation": False,
        "color": [item["color"] for item in series],
        "textStyle": {"fontFamily": FONT},
        "grid": {"left": 8, "right": 24, "top": 24, "bottom": 90, "containLabel": True},
        "legend": {
            "bottom": 0,
            "type": "scroll",
            "textStyle": {"color": "var(--ink)", "fontFamily": FONT},
            "inactiveColor": "var(--muted)",
        },
        "tooltip": {"trigger": "item", ":formatter": _TOOLTIP.replace("AXIS", AXES[axis])},
        "xAxis": {
            "type": "value",
            "max": max((points[-1][key] for points in curves.values()), default=1),
            "name": AXES[axis],
            "nameLocation": "middle",
            "nameGap": 30,
            "nameTextStyle": text,
            "axisLabel": {**text, ":formatter": _LABELS},
            "axisLine": line,
            "splitLine": {"show": False},
        },
        "yAxis": {
            "type": "value",
            "name": "Validation loss (nats a token)",
            "nameTextStyle": {**text, "align": "left"},
            "scale": True,
            "max": round(max(shown, default=1.0) + 0.05, 1),
            "axisLabel": text,
            "splitLine": line,
        },
        "series": series,
    }


# ECharts takes HTML in tooltips only; `textContent` escapes the name.
_TOOLTIP = """(point) => {
  const line = document.createElement("span");
  line.textContent = `${point.seriesName}: ${point.value[1].toFixed(3)} at ${point.value[0].toPrecision(4)} AXIS`;
  return line.outerHTML;
}"""
_LABELS = """(value) => {
  if (value === 0) return "0";
  const power = Math.min(6, Math.floor(Math.log10(Math.abs(value)) / 3));
  return power < 1 ? String(value) : `${+(value / 1000 ** power).toPrecision(3)}${["", "k", "M", "G", "T", "P", "E"][power]}`;
}"""


class CurvesPanel:
    """See the module."""

    def __init__(self, page: StudioPage) -> None:
        self._page = page
        self.draw = Coalesced(self._draw)
        self.actions: dict[str, Callable[[str], Any]] = {"axis": self._choose_axis}
        ui.html("Loss curves", sanitize=False, tag="h2")
        self._axes = ui.html("", sanitize=False)
        self._chart = ui.echart({}, renderer="svg").classes("chart")
        self._table = ui.html("", sanitize=False)

    def _choose_axis(self, axis: str) -> None:
        if axis in AXES:
            self._page.change(axis=axis)
            self.draw.request()

    async def _draw(self) -> None:
        """Read all runs again, since some may be in progress, and draw them."""
        axis = self._page.state.axis
        curves, problems = await self._page.off_loop(read_curves, self._page.models.runs.curves)
        self._axes.content = render("axes", axes=AXES, axis=axis)
        self._chart.options.clear()
        self._chart.options.update(chart_options(curves, axis))
        self._chart.update()
        ends = [(name, len(points), points[-1]) for name, points in curves.items()]
        self._table.content = render("curve_ends", ends=ends, problems=problems, formats=_FORMATS, axes=AXES)
