"""Concept cards, and the folder that holds them.

    concepts.parquet   one row per concept, in order of their ids; contexts, tokens and neighbours nested
    summary.json       numbers of the whole model, and the settings of the inspection

Reading one card reads only its group of `ROWS_PER_GROUP` rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import INSPECTION

CARDS_NAME = "concepts.parquet"
SUMMARY_NAME = "summary.json"
ROWS_PER_GROUP = 128
#: An excerpt of the text around an occurrence.
TOKENS_BEFORE = 20
TOKENS_AFTER = 10
MAX_SHADE = 9

#: Where an occurrence of a concept comes from: the teacher's autoencoder, a label, or the model itself.
SOURCES = ("sae", "label", "prediction")


@dataclass(frozen=True)
class Context:
    """A token at which a concept occurs, and the text around it."""

    source: str
    """`sae`, `label` or `prediction`."""
    before: str
    token: str
    after: str
    activation: float
    """Activation of the latent (`sae`), score of the label (`label`; 1 without scores) or raw logit (`prediction`)."""
    window: int
    """Of the inspected split."""
    position: int
    """Of the token in its window, from 0."""
    pieces: tuple[str, ...] = ()
    """The text of each token of the excerpt; empty in inspections of version 0.1."""
    activations: tuple[float, ...] = ()
    """Of the concept at each of these tokens; 0 where it does not occur."""
    quarter: int | None = None
    """Of random occurrences: by activation, the 1st quarter of them, ... or the 4th, the strongest."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The excerpt in parts: `pieces`, or only `before`, `token` and `after`."""
        return self.pieces or (self.before, self.token, self.after)

    @property
    def marked(self) -> int:
        """The part that is the token."""
        return min(self.position, TOKENS_BEFORE) if self.pieces else 1

    def shades(self, largest: float) -> tuple[int, ...]:
        """The activation at each part as a share of the largest, in `MAX_SHADE` steps; none where it is negative."""
        values = self.activations or (0.0, self.activation, 0.0)
        return tuple(
            min(MAX_SHADE, math.ceil(MAX_SHADE * value / largest)) if value > 0 and largest > 0 else 0
            for value in values
        )


@dataclass(frozen=True)
class TokenEffect:
    """The effect of a concept on one token of the vocabulary."""

    token_id: int
    token: str
    change: float
    """Of its logit (direct), or of its mean probability (measured)."""


@dataclass(frozen=True)
class Histogram:
    """How some numbers of a concept are distributed, in bins of equal width."""

    of: str
    """`sae`, `label` or `prediction`: its activations in that source, where it occurs; `logits`: its direct effects."""
    start: float
    """Lower edge of the first bin."""
    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Neighbour:
    """A similar concept."""

    concept: int
    similarity: float
    """Cosine."""


@dataclass(frozen=True)
class ConceptCard:
    """One concept; a number is None if it was not requested or cannot be computed."""

    concept: int
    name: str
    """From `concept_names.json`, where a person may have edited it."""
    made_name: str
    """Made from contexts and promoted tokens."""
    label_rate: float | None
    """Share of labelled tokens that have it among their labels."""
    num_labels: int | None
    prediction_rate: float | None
    """Share of tokens at which it is active in the mixture; None: an inspection of a dictionary without a model."""
    num_predicted: int | None
    sae_rate: float | None
    """Share of tokens at which the autoencoder's latent is active."""
    usual: float | None
    """Its usual activation, a raw logit: the unit of steering; None if never active."""
    precision: float | None
    """Share of the tokens where it is active that have it as label."""
    recall: float | None
    """Share of the tokens with this label where it is active."""
    mean_probability: float | None
    """The model's own probability that it is a label, averaged over tokens: calibrated where it equals their share."""
    evaluated_label_rate: float | None
    """Share of the evaluated tokens that have it as label: what `mean_probability` should be."""
    compress_norm: float | None
    """Length of its row of the compression."""
    promoted: tuple[TokenEffect, ...]
    """Largest change of logits through what it writes and the output head, best first."""
    suppressed: tuple[TokenEffect, ...]
    measured_promoted: tuple[TokenEffect, ...] | None
    """Largest mean change of the next token's probability when it is set; None: not measured."""
    measured_suppressed: tuple[TokenEffect, ...] | None
    measured_change: float | None
    """Share of probability that moves when it is set: mean total variation distance."""
    nearest: tuple[Neighbour, ...]
    """By what they write: rows of the compression, or of the dictionary's decoder."""
    nearest_predicted: tuple[Neighbour, ...]
    """By when they are active: rows of the concept head, or of the dictionary's encoder."""
    contexts: tuple[Context, ...]
    """By source in the order of `SOURCES`, strongest first, at most one per window and source."""
    random_contexts: tuple[Context, ...] = ()
    """Random occurrences of the first of these sources, strongest first, at most one per window."""
    histograms: tuple[Histogram, ...] = ()

    def contexts_of(self, source: str) -> tuple[Context, ...]:
        return tuple(context for context in self.contexts if context.source == source)

    def largest(self, source: str) -> float:
        """The largest activation in a source that is shown; 0 without any."""
        shown = (*self.contexts, *self.random_contexts)
        return max((context.activation for context in shown if context.source == source), default=0.0)


#: Stored in 32 bits; all other integers in 64.
_SHORT_INTEGERS = ("concept", "token_id", "position", "quarter")
#: Items of lists that are no structures.
_NUMBERS_AND_TEXT = {str: pa.string(), float: pa.float64(), int: pa.int64()}


def _item_class(hint: Any) -> Any:
    """X of `tuple[X, ...]` or `tuple[X, ...] | None`; None for other types."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) is tuple:
            return get_args(part)[0]
    return None


def _schema(dataclass: type[Any]) -> list[tuple[str, pa.DataType]]:
    """Columns of a card, or fields of an item of it, from their annotations."""
    columns = []
    for name, hint in get_type_hints(dataclass).items():
        item, kinds = _item_class(hint), (hint, *get_args(hint))
        if item in _NUMBERS_AND_TEXT:
            column = pa.list_(_NUMBERS_AND_TEXT[item])
        elif item is not None:
            column = pa.list_(pa.struct(_schema(item)))
        elif int in kinds:
            column = pa.int32() if name in _SHORT_INTEGERS else pa.int64()
        else:
            column = pa.float64() if float in kinds else pa.string()
        columns.append((name, column))
    return columns


SCHEMA = pa.schema(_schema(ConceptCard))
_ITEM_CLASSES = {name: _item_class(hint) for name, hint in get_type_hints(ConceptCard).items() if _item_class(hint)}


def write_cards(folder: Path, cards: Iterable[ConceptCard]) -> None:
    """Write `concepts.parquet` from cards in order of their ids, a group of rows at a time, atomically."""
    with (
        artifacts.atomic(folder / CARDS_NAME) as partial,
        pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer,
    ):
        for group in _groups(cards):
            rows = [dataclasses.asdict(card) for card in group]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=ROWS_PER_GROUP)


def rename(folder: Path, names: Sequence[str]) -> None:
    """Give the concepts these names, in order of their ids, atomically."""
    with (
        _open(folder) as file,
        artifacts.atomic(folder / CARDS_NAME) as partial,
        pq.ParquetWriter(partial, file.schema_arrow, compression="zstd") as writer,
    ):
        start = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            own = pa.array(names[start : start + len(table)], pa.string())
            writer.write_table(table.set_column(table.schema.get_field_index("name"), "name", own))
            start += len(table)


class CardReader:
    """The cards of a finished inspection, read one by one.

    Safe to use from several threads: every call opens the file anew.

    Args:
        folder: made by `cocomix inspect`.

    Raises:
        CocomixError: the folder is not a finished inspection.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = artifacts.read(self.folder, INSPECTION)
        self.summary = read_summary(self.folder)
        self.num_concepts = int(self.summary["num_concepts"])

    def __len__(self) -> int:
        return self.num_concepts

    def card(self, concept: int) -> ConceptCard:
        """One card; reads one group of rows."""
        return read_card(self.folder, concept)

    def columns(self, *names: str) -> dict[str, list[Any]]:
        """Some fields of all concepts, such as `name`, in order of their ids."""
        return read_columns(self.folder, *names)

    def find(self, text: str, limit: int = 50) -> list[int]:
        """Concepts whose name, contexts or promoted tokens contain a text, ignoring case.

        Args:
            text: to search; in contexts it may span the marked token.
            limit: number of concepts at most.

        Returns:
            ids: first those whose name contains it, then by the number of contexts and tokens that do.
        """
        counts = dict.fromkeys(range(self.num_concepts), 0)
        table = pq.read_table(self.folder / CARDS_NAME, columns=["name", "promoted", "contexts"])
        names = pc.match_substring(table.column("name"), text, ignore_case=True).to_pylist()
        contexts = table.column("contexts").combine_chunks()
        parts = [pc.struct_field(contexts.flatten(), part) for part in ("before", "token", "after")]
        _count(counts, contexts, pc.match_substring(pc.binary_join_element_wise(*parts, ""), text, ignore_case=True))
        promoted = table.column("promoted").combine_chunks()
        tokens = pc.struct_field(promoted.flatten(), "token")
        _count(counts, promoted, pc.match_substring(tokens, text, ignore_case=True))
        hits = [concept for concept, count in counts.items() if count or names[concept]]
        return sorted(hits, key=lambda concept: (not names[concept], -counts[concept], concept))[:limit]


def _count(counts: dict[int, int], lists: Any, hits: Any) -> None:
    """Add the number of hits among each concept's list items."""
    for concept in pc.filter(pc.list_parent_indices(lists), hits).to_pylist():
        counts[concept] += 1


def read_summary(folder: Path | str) -> dict[str, Any]:
    """Numbers of the whole model; see `docs/inspecting.md`."""
    path = Path(folder) / SUMMARY_NAME
    if not path.exists():
        raise CocomixError(f"{folder} holds no {SUMMARY_NAME}; expected a folder made by `cocomix inspect`")
    summary: dict[str, Any] = artifacts.read_json(path)
    return summary


def read_columns(folder: Path | str, *names: str) -> dict[str, list[Any]]:
    """Some fields of all concepts, such as `name`, in order of their ids; reads only those."""
    with _open(folder) as file:
        table = file.read(columns=list(names))
    return {name: table.column(name).to_pylist() for name in names}


def read_cards(folder: Path | str, concepts: Sequence[int] | None = None) -> list[ConceptCard]:
    """Cards of some concepts in the given order, or of all."""
    if concepts is not None:
        return [read_card(folder, concept) for concept in concepts]
    return [card_of(row) for row in iter_rows(folder)]


def iter_rows(folder: Path | str) -> Iterator[dict[str, Any]]:
    """All cards as dictionaries, in order of their ids, a group of rows in memory at a time."""
    return itertools.chain.from_iterable(row_groups(folder))


def row_groups(folder: Path | str) -> Iterator[list[dict[str, Any]]]:
    """The same by `ROWS_PER_GROUP`."""
    with _open(folder) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group).to_pylist()


def read_card(folder: Path | str, concept: int) -> ConceptCard:
    """One card; reads one group of rows.

    Raises:
        CocomixError: the folder holds no inspection, or the concept does not exist.
    """
    with _open(folder) as file:
        num_concepts = file.metadata.num_rows
        if not 0 <= concept < num_concepts:
            raise CocomixError(f"concept {concept} does not exist; {folder} has concepts 0 to {num_concepts - 1}")
        group = file.read_row_group(concept // ROWS_PER_GROUP)
    return card_of(group.slice(concept % ROWS_PER_GROUP, 1).to_pylist()[0])


def _open(folder: Path | str) -> Any:
    path = Path(folder) / CARDS_NAME
    if not path.exists():
        raise CocomixError(f"{folder} holds no {CARDS_NAME}; expected a folder made by `cocomix inspect`")
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise CocomixError(f"{path} is damaged; delete {folder} and run `cocomix inspect` again") from error


def card_of(row: dict[str, Any]) -> ConceptCard:
    """The card of a row of `iter_rows`."""
    built = {
        name: None if row[name] is None else tuple(item_class(**_tuples(item)) for item in row[name])
        for name, item_class in _ITEM_CLASSES.items()
        if name in row  # inspections of version 0.1 have fewer columns
    }
    return ConceptCard(**(row | built))


def _tuples(item: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in item.items()}


def _groups(cards: Iterable[ConceptCard]) -> Iterator[list[ConceptCard]]:
    rest = iter(cards)
    while group := list(itertools.islice(rest, ROWS_PER_GROUP)):
        yield group
