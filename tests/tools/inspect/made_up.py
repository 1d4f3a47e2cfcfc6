"""A made-up inspection, and the browser that opens its site."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cocomix.base.artifacts import begin, finish, write_json
from cocomix.base.kinds import INSPECTION
from cocomix.tools.inspect.cards import (
    SOURCES,
    SUMMARY_NAME,
    ConceptCard,
    Context,
    Histogram,
    Neighbour,
    TokenEffect,
    write_cards,
)
from cocomix.tools.inspect.site import write_site
from cocomix.tools.inspect.summary import norm_histogram, usage

WORDS = ("def", "return", "import", "self", "value", "None", "True", "for", "in", "range", "class", "yield", "lambda")


def wait_until(page: Any, condition: str, timeout_seconds: float = 300.0) -> None:
    """Until a JavaScript expression is true; asked from here, as the page's policy lets nobody evaluate in it."""
    deadline = time.monotonic() + timeout_seconds
    while not page.evaluate(condition):
        if time.monotonic() > deadline:
            raise TimeoutError(condition)
        time.sleep(0.02)


def make_inspection(
    folder: Path, num_concepts: int, num_contexts: int = 8, text: str = "", model: str = "made up"
) -> None:
    """Write an inspection with made-up cards; `text` is in every name, token and context."""
    with begin(folder, INSPECTION, {"synthetic": num_concepts}) as finished:
        if finished:
            return
        write_json(folder / SUMMARY_NAME, _summary(num_concepts))
        write_cards(folder, _cards(num_concepts, num_contexts, text))
        write_site(folder, model)
        finish(folder)


def _cards(num_concepts: int, num_contexts: int, text: str) -> Iterator[ConceptCard]:
    rng = random.Random(0)
    for concept in range(num_concepts):

        def words(count: int) -> str:
            return " ".join(rng.choice(WORDS) for _ in range(count)) + text

        def context(source: str, window: int, quarter: int | None = None, concept: int = concept) -> Context:
            pieces = (*(f" {rng.choice(WORDS)}" for _ in range(20)), f" token{concept}{text}", words(6))
            activations = (*(0.0 if i % 3 else 0.3 for i in range(20)), rng.random(), 0.0)
            before, token, after = "".join(pieces[:20]), pieces[20], pieces[21]
            return Context(source, before, token, after, activations[20], window, 20, pieces, activations, quarter)

        contexts = [context(source, i) for source in SOURCES for i in range(num_contexts)]
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
            random_contexts=tuple(context("sae", i, 4 - i) for i in range(4)),
            histograms=(
                Histogram("sae", 0.0, 0.25, tuple(2000 // 2**i for i in range(10))),
                Histogram("logits", -1.0, 0.1, tuple(range(1, 11)) + tuple(range(10, 0, -1))),
            ),
            **rates,
        )


def _summary(num_concepts: int) -> dict[str, Any]:
    even = usage(torch.ones(num_concepts, dtype=torch.long))
    return {
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
