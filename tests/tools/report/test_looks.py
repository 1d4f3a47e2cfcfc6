"""Pages in a real browser, wide and narrow, light and dark: nothing overflows, overlaps or is too faint to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cocomix import CompareConfig, compare
from cocomix.tools.report.report import write_report
from tests.tools.compare.test_comparison import make_run
from tests.tools.report.test_report import curve, make_summary

#: Of text; names in a figure have the colours of their curves, the greenest of which has 3.4 on white.
MIN_CONTRAST = 3.0
#: What a reader would stumble over, in words. Grid and target are no curves, and a curve ends where its panel does.
LOOK = """(minContrast) => {
  const said = [];
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  if (document.documentElement.scrollWidth > innerWidth) said.push("the page scrolls sideways");
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([text, box], i) => {
      for (const [other, place] of texts.slice(i + 1)) if (meet(box, place)) said.push(`${text} overlaps ${other}`);
      for (const line of svg.querySelectorAll("path[clip-path][style*='--series'][style*='fill: none']")) {
        const [length, matrix] = [line.getTotalLength(), line.getScreenCTM()];
        const clip = svg.querySelector(line.getAttribute("clip-path").match(/#[^")]+/)[0] + " *").getBBox();
        for (let i = 0; i <= 400; i++) {
          const place = line.getPointAtLength(length * i / 400);
          const point = place.matrixTransform(matrix);
          const isInside = point.x > box.left && point.x < box.right && point.y > box.top + 2 && point.y < box.bottom - 2;
          if (isInside && place.y > clip.y) {
            said.push(`a curve crosses ${text}`);
            break;
          }
        }
      }
    });
  }
  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  const mixed = (colors) => {
    pen.clearRect(0, 0, 1, 1);
    for (const color of colors) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (color) => color.map((v) => v / 255).map((v) => (v <= 0.04 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.getClientRects().length) continue;
    const papers = [];
    for (let at = element; at; at = at.parentElement) papers.unshift(getComputedStyle(at).backgroundColor);
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(mixed(papers)), light(mixed([...papers, ink]))].sort((x, y) => x - y);
    if (b / a < minContrast) said.push(`${element.textContent.trim().slice(0, 30)} has a contrast of ${(b / a).toFixed(1)}`);
  }
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth && box.tabIndex !== 0) said.push("a table can't be scrolled by keyboard");
  }
  return said;
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The report of a small and of a large experiment, and a comparison in which NTP is not named first."""
    root = tmp_path_factory.mktemp("looks")
    for name in ("small", "large"):
        (root / name).mkdir()
        write_report(root / name, make_summary(large=name == "large", cocomix_loss=4.2))
    losses = {"cocomix": 4.2, "pause": 4.5, "ntp": 4.62}
    runs = [
        make_run(root / name, [point["validation_loss"] for point in curve(final, 1, 1)], recipe=name)
        for name, final in losses.items()
    ]
    compare(CompareConfig(tuple(map(str, runs)), baseline="ntp", output=root / "comparison"))
    return [root / "small" / "report.html", root / "large" / "report.html", root / "comparison" / "comparison.html"]


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_overlaps_or_is_faint(browser: Any, pages: list[Path], width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for path in pages:
        page = context.new_page()
        page.goto(f"file://{path}")
        said = page.evaluate(LOOK, MIN_CONTRAST)
        assert said == [], path
    context.close()
