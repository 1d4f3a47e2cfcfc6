"""What a dictionary is for: students of several, each read through its cards and steered.

    recommended                  the weak teacher's
    random dictionary            directions of random numbers in that teacher's residual stream
    a concept loss to the end    the weak teacher's, in place of a loss that ends half-way
    untrained teacher            a dictionary trained on a teacher of the same shape with its initial weights

**Reading.** A pattern of text is chosen, as names are (`cocomix.tools.inspect.naming`), from every other one of a
latent's strongest contexts. It should then be found in the strongest contexts that are left, in random occurrences of the
latent, where the student predicts it most, and seldom at random places of the text. Concepts without a pattern are counted.

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
from benchmarks.evidence.corpora import CORPORA, Places, text_option
from benchmarks.evidence.run import folders_of, inputs_of
from benchmarks.evidence.sizes import REGIMES
from benchmarks.evidence.tables import DICTIONARIES, Part, variant_cell
from cocomix import CardReader, InspectConfig, SteerEvalConfig, TokenDataset, inspect, steer_eval
from cocomix.base.artifacts import read_json, write_json
from cocomix.base.progress import say
from cocomix.tools.inspect.card_making import random_contexts
from cocomix.tools.inspect.cards import ConceptCard
from cocomix.tools.inspect.naming import ELLIPSIS, Namer, patterns
from cocomix.tools.steer_eval.command import RESULT_NAME

#: Contexts of a concept, random occurrences of it, and random places of the text.
NUM_CONTEXTS, NUM_PLACES = 16, 8192
#: Of `steer-eval`, besides its defaults.
STEERING: dict[str, Any] = {}
#: What is measured of a pattern, as the page names it.
READING = {
    "with_pattern": "with a pattern",
    "one_token": "of one token",
    "strongest": "strongest",
    "random": "at random",
    "predicted": "predicted",
    "elsewhere": "elsewhere",
}
#: A concept with fewer strongest contexts is left out.
MIN_CONTEXTS = 8


def result_file(size: str, corpus: str) -> Path:
    return cells_module.RESULTS / size / corpus / "dictionaries.json"


def read_students(part: Part, places: Places) -> None:
    """Read and steer the finished students, and write what was found to one file a corpus."""
    for corpus in dict(part.comparisons()):
        found = {name: read(variant_cell(part.size, corpus, name), places) for name in ("recommended", *DICTIONARIES)}
        command = (
            f"python -m benchmarks.evidence --dictionaries --size {part.size} --corpus {corpus}{text_option(corpus)}"
        )
        write_json(result_file(part.size, corpus), {"command": command, "dictionaries": found})


def read(cell: Cell, places: Places) -> dict[str, Any]:
    """One student's numbers; its cards and its score are kept in the work folder."""
    inputs = inputs_of(cell, places)
    model, evaluation = folders_of(cell, inputs)
    given: dict[str, Any] = {
        "model": model,
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
        "validation_loss": read_json(evaluation / "evaluation.json")["validation_loss"],
        "recall_at_8": reader.summary["prediction"]["recall_at"]["8"],
        "reading": detection(reader, TokenDataset(inputs.data, "validation")),
    }
    if cell.teacher == "untrained":
        return found
    say(steer_eval(SteerEvalConfig(**given, output=score, **STEERING)))
    result = read_json(score / RESULT_NAME)
    names = ("num_concepts", "max_fluency_cost", "share_rising", "share_rising_by_others")
    return found | {"steering": {name: result[name] for name in names}}


def detection(reader: CardReader, text: TokenDataset) -> dict[str, float]:
    """How many concepts have a pattern, and means over these of the shares of places at which it is found."""
    places = random_contexts(text, 2 * NUM_PLACES)
    namer, elsewhere = Namer(places[::2]), [patterns(place) for place in places[1::2]]
    cards = [card for card in map(reader.card, range(len(reader))) if len(card.contexts_of("sae")) >= MIN_CONTEXTS]
    shares = [found for card in cards if (found := detected(card, namer, elsewhere))]
    return {"num_concepts": len(cards), "with_pattern": len(shares) / len(cards)} | {
        where: statistics.fmean(each[where] for each in shares if where in each)
        for where in dict.fromkeys(where for each in shares for where in each)
    }


def detected(card: ConceptCard, namer: Namer, elsewhere: Sequence[set[str]]) -> dict[str, float]:
    """Shares of places that have the pattern of a concept, by kind of place; empty: it has none."""
    strongest = card.contexts_of("sae")
    pattern = namer.best([patterns(context) for context in strongest[::2]])
    if pattern is None:
        return {}
    chosen_from, kept = ({(c.window, c.position) for c in some} for some in (strongest[::2], strongest))
    held_out = {
        "strongest": strongest[1::2],
        "random": [context for context in card.random_contexts if (context.window, context.position) not in kept],
        "predicted": [c for c in card.contexts_of("prediction") if (c.window, c.position) not in chosen_from],
    }
    places = {where: [patterns(context) for context in some] for where, some in held_out.items()}
    is_token = any(pattern.strip(ELLIPSIS) == context.token.strip() for context in strongest[::2])
    return {"one_token": float(is_token)} | {
        where: share(pattern, some) for where, some in (places | {"elsewhere": list(elsewhere)}).items() if some
    }


def share(pattern: str, places: Sequence[set[str]]) -> float:
    """Share of places that have a pattern."""
    return statistics.fmean(pattern in place for place in places)


def dictionaries_table(size: str) -> str:
    """What reading and steering gave with each dictionary."""
    body = []
    for corpus in REGIMES[size].corpora:
        file = result_file(size, corpus)
        stored = read_json(file)["dictionaries"] if file.exists() else {}
        for dictionary in ("recommended", *DICTIONARIES) if stored else ():
            found = stored[dictionary]
            reading, steering = found["reading"], found.get("steering", {})
            shares = [
                found["recall_at_8"],
                *(reading.get(name) for name in READING),
                *(steering.get(name) for name in ("share_rising", "share_rising_by_others")),
            ]
            percents = ["" if share is None else f"{share:.{1 if share < 0.01 else 0}%}" for share in shares]
            body.append([CORPORA[corpus], dictionary, losses([found["validation_loss"]]), *percents])
    head = ["corpus", "dictionary", "loss", "recall at 8", *READING.values(), "steered", "by others"]
    return table(head, body) if body else ""
