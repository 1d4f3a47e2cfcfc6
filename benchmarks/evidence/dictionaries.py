"""What a dictionary is for: students of several, each read through its cards and steered.

    recommended                  the weak teacher's
    random dictionary            directions of random numbers in that teacher's residual stream
    a concept loss to the end    the weak teacher's, in place of a loss that ends half-way
    untrained teacher            a dictionary trained on a teacher of the same shape with its initial weights

**Reading.** A pattern of text is chosen, as names are (`cocomix.tools.inspect.naming`), from every other one of the
concept's strongest contexts. It should then be found in the strongest contexts that are left, in random occurrences of the
concept, and seldom at random places of the text. A concept without a pattern is found nowhere.

**Steering.** `cocomix steer-eval`; each student's own dictionary reads what it writes. The untrained teacher's loss
says nothing about a text, so its student is not steered.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import losses, table
from benchmarks.evidence import cells as cells_module
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.corpora import CORPORA, Places
from benchmarks.evidence.run import inputs_of, train_config
from benchmarks.evidence.sizes import REGIMES
from benchmarks.evidence.tables import DICTIONARIES, Part, variant_cell
from cocomix import CardReader, InspectConfig, SteerEvalConfig, TokenDataset, inspect, steer_eval
from cocomix.base.artifacts import read_json, write_json
from cocomix.base.progress import say
from cocomix.tools.inspect.card_making import random_contexts
from cocomix.tools.inspect.cards import ConceptCard
from cocomix.tools.inspect.naming import Namer, patterns
from cocomix.tools.steer_eval.command import RESULT_NAME

#: Contexts of a concept, random occurrences of it, and random places of the text.
NUM_CONTEXTS, NUM_PLACES = 16, 8192
#: Of `steer-eval`, besides its defaults.
STEERING: dict[str, Any] = {}
#: A concept with fewer strongest contexts is left out.
MIN_CONTEXTS = 8
#: Of what the cards show: the teacher's latents, and what the student predicts.
SOURCES = {"sae": "latents", "prediction": "predictions"}


def result_file(size: str, corpus: str) -> Path:
    return cells_module.RESULTS / size / corpus / "dictionaries.json"


def read_students(part: Part, places: Places) -> None:
    """Read and steer the finished students, and write what was found to one file a corpus."""
    for corpus in dict(part.comparisons()):
        found = {name: read(variant_cell(part.size, corpus, name), places) for name in ("recommended", *DICTIONARIES)}
        prose = " --prose FILE..." if corpus == "prose" else ""
        command = f"python -m benchmarks.evidence --dictionaries --size {part.size} --corpus {corpus}{prose}"
        write_json(result_file(part.size, corpus), {"command": command, "dictionaries": found})


def read(cell: Cell, places: Places) -> dict[str, Any]:
    """One student's numbers; its cards and its score are kept in the work folder."""
    inputs = inputs_of(cell, places)
    given: dict[str, Any] = {
        "model": train_config(cell, inputs).output,
        "data": inputs.data,
        "teacher": inputs.teacher,
        "sae": inputs.random_sae if cell.row == "random" else inputs.sae,
        "layer": cell.regime.teachers[cell.teacher].layer,
    }
    cards, score = (inputs.folder / f"{cell.stem}-{name}" for name in ("cards", "score"))
    labels = replace(cell.config.attribution, control="none")  # the random dictionary is given as such
    inspect(InspectConfig(**given, attribution=labels, output=cards, num_contexts=NUM_CONTEXTS, num_measured=0))
    reader = CardReader(cards)
    found = {
        "cell": cell.name,
        "validation_loss": (cell.result() or {})["validation_loss"],
        "recall_at_8": reader.summary["prediction"]["recall_at"]["8"],
        "patterns": detection(reader, TokenDataset(inputs.data, "validation")),
    }
    if cell.teacher == "untrained":
        return found
    say(steer_eval(SteerEvalConfig(**given, output=score, **STEERING)))
    result = read_json(score / RESULT_NAME)
    names = ("num_concepts", "max_fluency_cost", "share_rising", "share_rising_by_others")
    return found | {"steering": {name: result[name] for name in names}}


def detection(reader: CardReader, text: TokenDataset) -> dict[str, dict[str, float]]:
    """For latents and predictions, means over concepts of the shares of places at which a concept's pattern is found."""
    places = random_contexts(text, 2 * NUM_PLACES)
    namer, elsewhere = Namer(places[::2]), [patterns(place) for place in places[1::2]]
    cards = list(map(reader.card, range(len(reader))))
    means = {}
    for source, name in SOURCES.items():
        shares = [found for card in cards if (found := detected(card, source, namer, elsewhere))]
        means[name] = {"num_concepts": len(shares)} | {
            where: statistics.fmean(each[where] for each in shares if where in each)
            for where in dict.fromkeys(where for each in shares for where in each)
        }
    return means


def detected(card: ConceptCard, source: str, namer: Namer, elsewhere: Sequence[set[str]]) -> dict[str, float]:
    """Shares of places that have the pattern of a concept, by kind of place; empty: too few contexts."""
    strongest = card.contexts_of(source)
    if len(strongest) < MIN_CONTEXTS:
        return {}
    chosen_from = strongest[::2]
    pattern = namer.best([patterns(context) for context in chosen_from])
    seen = {(context.window, context.position) for context in chosen_from}
    random = [context for context in card.random_contexts if context.source == source]
    unseen = [context for context in random if (context.window, context.position) not in seen]
    held_out = {
        "strongest": [patterns(context) for context in strongest[1::2]],
        "random": [patterns(context) for context in unseen],
        "elsewhere": elsewhere,
    }
    return {where: share(pattern, some) for where, some in held_out.items() if some}


def share(pattern: str | None, places: Sequence[set[str]]) -> float:
    """Share of places that have a pattern."""
    return statistics.fmean(pattern in place for place in places)


def dictionaries_table(size: str) -> str:
    """What reading and steering gave with each dictionary."""
    body = []
    for corpus in REGIMES[size].corpora:
        file = result_file(size, corpus)
        for dictionary, found in (read_json(file)["dictionaries"] if file.exists() else {}).items():
            latents, predictions = (found["patterns"][name] for name in SOURCES.values())
            steering = found.get("steering", {})
            shares = [
                found["recall_at_8"],
                *(latents.get(name) for name in ("strongest", "random", "elsewhere")),
                *(predictions.get(name) for name in ("strongest", "elsewhere")),
                *(steering.get(name) for name in ("share_rising", "share_rising_by_others")),
            ]
            percents = ["" if share is None else f"{share:.0%}" for share in shares]
            counts = [f"{each['num_concepts']:,}" for each in (latents, predictions)]
            loss, (recall, *others) = losses([found["validation_loss"]]), percents
            body.append([CORPORA[corpus], dictionary, loss, recall, counts[0], *others[:3], counts[1], *others[3:]])
    latents = ["latents", "strongest", "at random", "elsewhere"]
    head = ["corpus", "dictionary", "loss", "recall at 8", *latents, "predictions", "strongest", "elsewhere"]
    return table([*head, "steered", "by others"], body) if body else ""
