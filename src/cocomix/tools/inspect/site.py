"""The cards as a site that opens from disk and needs no network.

    index.html       the numbers of the whole model, and an empty frame for the cards
    inspect.js       fills the frame
    data/index.js    name, numbers and first promoted tokens of every concept, for the list
    data/00000.js    whole cards, `ROWS_PER_GROUP` per file, loaded when one of them is opened

A page opened from disk may not fetch data, but it may add a script, so each data file is a script that calls one function.
The content security policy allows only the page's own scripts, and text enters the page as `textContent` only.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cocomix.base.artifacts import atomic
from cocomix.base.drawing import MUTED, RULE, SERIES, Drawing, panel, save
from cocomix.base.formats import NARROW_SPACE, to_digits
from cocomix.base.page import page_environment, write_file
from cocomix.tools.inspect.cards import ROWS_PER_GROUP, SOURCES, ConceptCard, card_of, read_summary, row_groups
from cocomix.tools.inspect.summary import BINS_PER_DECADE, SMALL_NORM

PAGE_NAME = "index.html"
SCRIPT_NAME = "inspect.js"
DATA_NAME = "data"
LINES_NAME = "concepts.jsonl"
NUM_LISTED_TOKENS = 3
#: Digits of the numbers in a list.
LISTED_DIGITS = 4

#: Fields of a card that sort the list.
NUMBERS = (
    "prediction_rate",
    "label_rate",
    "sae_rate",
    "precision",
    "recall",
    "mean_probability",
    "evaluated_label_rate",
    "usual",
    "compress_norm",
    "measured_change",
)
PROBES = {
    "zero": "No concept is active.",
    "mean": "Every position gets the average concept vector.",
    "shuffle_batch": "Every sequence gets the concepts of another one.",
    "shuffle_position": "Every position gets the concepts of an earlier one of its own sequence.",
    "oracle": "The teacher’s labels replace the strongest predictions, whose values they take.",
}


def write_site(folder: Path, model_name: str) -> None:
    """Write the site, and `concepts.jsonl`, from the cards and the summary in a folder.

    The model's name, that of its folder, is in `index.html` alone: equal models get equal inspections.
    """
    summary = read_summary(folder)
    data = folder / DATA_NAME
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    index: dict[str, list[Any]] = {"name": [], "tokens": [], **{name: [] for name in NUMBERS}}
    with atomic(folder / LINES_NAME) as partial, partial.open("w", encoding="utf-8") as lines:
        for number, rows in enumerate(row_groups(folder)):
            for row in rows:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                index["name"].append(row["name"])
                index["tokens"].append([effect["token"] for effect in row["promoted"][:NUM_LISTED_TOKENS]])
                for name in NUMBERS:
                    index[name].append(_short(row[name]))
            _write_script(data / f"{number:05d}.js", "cocomixCards", number, [_compact(card_of(row)) for row in rows])
    _write_script(data / "index.js", "cocomixIndex", index | {"cards_per_file": ROWS_PER_GROUP})
    script = resources.files("cocomix.tools.inspect") / "templates" / SCRIPT_NAME
    write_file(folder / SCRIPT_NAME, script.read_bytes())
    write_file(folder / PAGE_NAME, page(summary, model_name).encode())


def page(summary: Mapping[str, Any], model_name: str) -> str:
    """`index.html`."""
    template = page_environment("cocomix.tools.inspect").get_template("inspection.html")
    norms = summary["compress_norm"]
    figure = None if norms is None else Markup(norm_figure(norms).svg)
    return template.render(
        s=summary, model=model_name, norms=figure, probes=PROBES, small_norm=SMALL_NORM, percent=percent
    )


def norm_figure(histogram: dict[str, Any]) -> Drawing:
    """Concepts by the length of their row of the compression."""
    edges, numbers = histogram["log10_edges"], histogram["num_concepts"]
    figure, axes = panel(4.2, 2.1, left=0.45, right=0.25, bottom=0.47, top=0.28)
    axes.bar(
        edges[:-1], numbers, width=1 / BINS_PER_DECADE, align="edge", color=SERIES[0], edgecolor=RULE, linewidth=0.4
    )
    axes.set_xlim(edges[0], edges[-1])
    decades = range(round(edges[0]), round(edges[-1]) + 1)
    axes.set_xticks(decades, [f"{10.0**exponent:g}" for exponent in decades])
    axes.set_xlabel("Length of a concept’s row of the compression (logarithmic)", loc="left")
    axes.set_title("Concepts", loc="left", fontsize=8.5, color=MUTED, pad=7)
    alt = (
        f"Concepts by the length of their row of the compression: the median is {histogram['median']:.3g}, "
        f"{histogram['num_small']:,} are shorter than {SMALL_NORM:g}."
    )
    return save(figure, "norms", alt)


def percent(share: float | None) -> str:
    """0.0123 as 1.23 %."""
    return "–" if share is None else f"{100 * share:.3g}{NARROW_SPACE}%"


def script_json(value: Any) -> str:
    """JSON that is safe inside any script: without `<` and without line ends that only JavaScript knows."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _write_script(path: Path, function: str, *arguments: Any) -> None:
    write_file(path, f"{function}({','.join(map(script_json, arguments))});\n".encode())


def _compact(card: ConceptCard) -> dict[str, Any]:
    """A card without the names of nested fields, which would be most of its size; activations at tokens are a digit each."""
    effects = {
        name: None if found is None else [[effect.token, _short(effect.change)] for effect in found]
        for name in ("promoted", "suppressed", "measured_promoted", "measured_suppressed")
        for found in [getattr(card, name)]
    }
    nearest = {
        name: [[neighbour.concept, _short(neighbour.similarity)] for neighbour in getattr(card, name)]
        for name in ("nearest", "nearest_predicted")
    }
    largest = {source: card.largest(source) for source in SOURCES}
    contexts = [
        [
            context.source,
            context.quarter or 0,
            context.activation,
            context.marked,
            "".join(map(str, context.shades(largest[context.source]))),
            context.parts,
        ]
        for context in (*card.contexts, *card.random_contexts)
    ]
    histograms = [[found.of, _short(found.start), _short(found.width), found.counts] for found in card.histograms]
    counts = {name: getattr(card, name) for name in ("num_labels", "num_predicted")}
    return {"contexts": contexts, "histograms": histograms, **counts, **effects, **nearest}


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else to_digits(value, LISTED_DIGITS)
