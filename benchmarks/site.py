"""How fast the site of an inspection opens from disk in Chromium.

    python -m benchmarks.site --work runs/site --output benchmarks/results/site.json

A made-up inspection of 32,768 concepts with 24 contexts each is written and opened from `file://`, each time in a browser
started afresh: seconds until the list can be seen, until one concept can be, and until all contexts have been searched; and
the processor's seconds that the page's process took for each, which say what a busy machine hides.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cocomix.base.artifacts import begin, finish, write_json
from cocomix.base.host import tune_process
from cocomix.base.kinds import INSPECTION
from cocomix.tools.inspect.cards import (
    SOURCES,
    SUMMARY_NAME,
    ConceptCard,
    Context,
    Neighbour,
    TokenEffect,
    write_cards,
)
from cocomix.tools.inspect.site import write_site
from cocomix.tools.inspect.summary import norm_histogram, usage

NUM_CONCEPTS = 32_768
NUM_RUNS = 5
WORDS = ("def", "return", "import", "self", "value", "None", "True", "for", "in", "range", "class", "yield", "lambda")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the result")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of the made-up inspection; kept, and used again"
    )
    arguments = parser.parse_args()
    tune_process()
    site = arguments.work.resolve()
    make_inspection(site, NUM_CONCEPTS)
    data = [file.stat().st_size for file in (site / "data").iterdir()]
    runs = [open_once(site) for _ in range(NUM_RUNS)]
    write_json(
        arguments.output,
        {
            "command": "python -m benchmarks.site --work runs/site --output benchmarks/results/site.json",
            "num_cpus": os.cpu_count(),
            "num_concepts": NUM_CONCEPTS,
            "num_contexts": 8 * len(SOURCES),
            "megabytes": round(sum(data) / 1e6, 1),
            "index_megabytes": round((site / "data" / "index.js").stat().st_size / 1e6, 1),
            "num_runs": NUM_RUNS,
            "load_average": round(os.getloadavg()[0], 1),
            **{name: summarized([run[name] for run in runs]) for name in runs[0]},
        },
    )


def summarized(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 3), "slowest": round(max(seconds), 3)}


def open_once(site: Path) -> dict[str, float]:
    """Seconds in one new browser."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS).new_page()
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        page.set_default_timeout(300_000)
        found: dict[str, float] = {}

        def measure(name: str, action: Callable[[], None]) -> None:
            start, busy = time.perf_counter(), processor_seconds(session)
            action()
            found[f"{name}_seconds"] = time.perf_counter() - start
            found[f"{name}_processor_seconds"] = processor_seconds(session) - busy

        def open_list() -> None:
            page.goto(f"file://{site}/index.html")
            page.wait_for_selector(".row[aria-selected]")

        def open_concept() -> None:
            page.evaluate(f"location.hash = '#/concept/{NUM_CONCEPTS - 1}'")
            page.wait_for_selector("#concept .facts")

        def search() -> None:
            page.fill("#search", "yield lambda range")
            is_done = "location.hash.includes('q=') && / concepts$/.test(document.getElementById('status').textContent)"
            wait_until(page, is_done)

        measure("first_view", open_list)
        measure("concept", open_concept)
        page.evaluate("location.hash = '#/'")
        measure("search", search)
        return found


def processor_seconds(session: Any) -> float:
    """Of the page's process so far."""
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    return float(metrics["ProcessTime"])


def wait_until(page: Any, condition: str, timeout_seconds: float = 300.0) -> None:
    """Until a JavaScript expression is true; asked from here, as the page's policy lets nobody evaluate in it."""
    deadline = time.monotonic() + timeout_seconds
    while not page.evaluate(condition):
        if time.monotonic() > deadline:
            raise TimeoutError(condition)
        time.sleep(0.02)


def make_inspection(folder: Path, num_concepts: int, num_contexts: int = 8, text: str = "") -> None:
    """Write an inspection with made-up cards; `text` is in every name, token and context."""
    with begin(folder, INSPECTION, {"synthetic": num_concepts}) as finished:
        if finished:
            return
        write_json(folder / SUMMARY_NAME, _summary(num_concepts))
        write_cards(folder, _cards(num_concepts, num_contexts, text))
        write_site(folder)
        finish(folder)


def _cards(num_concepts: int, num_contexts: int, text: str) -> Iterator[ConceptCard]:
    rng = random.Random(0)
    for concept in range(num_concepts):

        def words(count: int) -> str:
            return " ".join(rng.choice(WORDS) for _ in range(count)) + text

        contexts = [
            Context(source, words(12), f" token{concept}{text}", words(6), rng.random(), i, 20)
            for source in SOURCES
            for i in range(num_contexts)
        ]
        effects = tuple(TokenEffect(i, f" {rng.choice(WORDS)}{text}", 1 - i / 10) for i in range(10))
        near = tuple(Neighbour(rng.randrange(num_concepts), 0.5) for _ in range(8))
        name = f"{rng.choice(WORDS)} {concept}{text}"
        rates = {name: rng.random() for name in ("label_rate", "prediction_rate", "sae_rate", "precision", "recall")}
        yield ConceptCard(
            concept=concept,
            name=name,
            made_name=name,
            num_labels=concept,
            num_predicted=concept,
            usual=3 * rng.random(),
            mean_probability=rng.random(),
            evaluated_label_rate=rng.random(),
            compress_norm=rng.random(),
            promoted=effects,
            suppressed=effects,
            measured_promoted=effects,
            measured_suppressed=effects,
            measured_change=rng.random(),
            nearest=near,
            nearest_predicted=near,
            contexts=tuple(contexts),
            **rates,
        )


def _summary(num_concepts: int) -> dict[str, Any]:
    even = usage(torch.ones(num_concepts, dtype=torch.long))
    return {
        "model": "made up",
        "num_concepts": num_concepts,
        "num_active_concepts": 32,
        "num_tokens": 1,
        "num_windows": 1,
        "num_labelled_tokens": 1,
        "split": "validation",
        "sources": list(SOURCES),
        "mixing": "interleave",
        "has_label_dataset": True,
        "usage": dict.fromkeys(SOURCES, even),
        "prediction": None,
        "compress_norm": norm_histogram(torch.ones(num_concepts)),
        "probes": None,
        "num_probe_windows": 0,
        "num_measured": num_concepts,
    }


if __name__ == "__main__":
    main()
