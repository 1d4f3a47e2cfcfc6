"""Figures for pages: the house look, and one way to save them.

A figure is saved twice: as PNG on white, and as SVG for the page. The SVG keeps text as text and names its colours by CSS
variables, so that it follows the page's font and its light or dark mode. Neither file depends on the time, the process or
pyplot's global state: equal input gives equal bytes.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, RULE = "#1f2328", "#5c6570", "#dcdfe4"
#: Okabe and Ito's palette without yellow, black and sky blue: distinct with any colour vision, and on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0598f", "#b07900")
CSS_COLORS = {INK: "--ink", MUTED: "--muted", RULE: "--rule"} | {
    color: f"--series-{number}" for number, color in enumerate(SERIES, start=1)
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure."""

    name: str
    """Name of the PNG file, and prefix of every id in the SVG."""
    alt: str
    """What it shows, in words."""
    svg: str
    png: bytes


def panel(width: float, height: float, *, left: float, right: float, bottom: float, top: float) -> tuple[Figure, Axes]:
    """An empty panel in the house look; size and margins in inches."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=8, length=0, pad=4)
    axes.xaxis.label.set(color=MUTED, fontsize=8.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=4))
    return figure, axes


def save(figure: Figure, name: str, alt: str) -> Drawing:
    """Save a figure as PNG and as an SVG element for a page.

    Args:
        figure: figure made with `panel`.
        name: name of the drawing.
        alt: what it shows, in words.
    """
    figure.patch.set_facecolor("white")
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    png, svg = io.BytesIO(), io.BytesIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    return Drawing(name, alt, _for_page(svg.getvalue().decode(), name, alt), png.getvalue())


def _for_page(svg: str, name: str, alt: str) -> str:
    """An SVG file as an element of an HTML page: no prologue or namespaces, unique ids, the page's colours."""
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    assert view_box is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    # The SVG's style sheet selects `*`, which would affect the whole page; the page has the same rule for figures only.
    body = re.sub(r"<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    for color, variable in CSS_COLORS.items():
        body = body.replace(color, f"var({variable})")
    return f'<svg viewBox="{view_box[1]}" role="img" aria-label="{escape(alt)}">{body.strip()}'
