"""What `docs/studio.md` and `docs/inspecting.md` say of how fast their pages are, from the stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cocomix.base.artifacts import read_json

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
STUDIO_PAGE, INSPECTING_PAGE = DOCS / "studio.md", DOCS / "inspecting.md"
STUDIO_START, STUDIO_END = "<!-- latency -->", "<!-- end of latency -->"
SITE_START, SITE_END = "<!-- site -->", "<!-- end of site -->"

QUESTIONS = {
    "status": "status",
    "new page": "a whole new page",
    "concepts of a token": "concepts of a token, from the pointer's movement until a browser shows them",
}
WRITERS = {"0 writers": "nobody writes", "1 writers": "one browser writes", "4 writers": "four write"}
SITE_STEPS = {"first_view": "the list", "concept": "one concept", "search": "all contexts searched"}


def studio_block() -> str:
    """Median answers of the studio, while continuations are written."""
    result = read_json(RESULTS / "studio_latency.json")
    models, load = result["models"], _load(result["load_average_at_end"], result)
    rows = [
        f"| {words} | "
        + " | ".join(
            ", ".join(f"{models[model][writers][question]['median']:,.0f}" for model in ("demo", "69m"))
            for writers in WRITERS
        )
        + " |"
        for question, words in QUESTIONS.items()
    ]
    return "\n".join(
        [
            "",
            "Median answers in milliseconds, of the model of the demo named below and of one of the paper's smallest size "
            f"(`{result['command']}`). Other work went on: {load}. The last row has the browser's own work in it, "
            "which that slows down as much.",
            "",
            "| | " + " | ".join(WRITERS.values()) + " |",
            "|---" * (1 + len(WRITERS)) + "|",
            *rows,
            "",
        ]
    )


def site_block() -> str:
    """How fast the site of an inspection opens from disk."""
    result = read_json(RESULTS / "site.json")
    load = _load(result["load_average"], result)
    rows = [
        f"| {words} | {_seconds(result[f'{step}_seconds'])} | {_seconds(result[f'{step}_processor_seconds'])} |"
        for step, words in SITE_STEPS.items()
    ]
    return "\n".join(
        [
            "",
            f"`{result['command']}`",
            "",
            f"The site of {result['num_concepts']:,} concepts with {result['num_contexts']} contexts each "
            f"({result['megabytes']:,.0f} MB), opened from disk in a browser started afresh, {result['num_runs']} times. "
            f"Other work went on ({load}), so the processor time of the page's process says more than the clock. Seconds "
            "until it can be seen:",
            "",
            "| | median (slowest) | processor time |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _seconds(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['slowest']:.2f})"


def _load(load: float, result: dict[str, Any]) -> str:
    return f"the machine's load average was {load:g} on {result['num_cpus']} cores"
