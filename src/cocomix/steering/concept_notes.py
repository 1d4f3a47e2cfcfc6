"""What is known about a model's concepts, kept beside its weights: their names, and how strongly they are active.

DIR/concept_names.json               {"7": "import statements", ...}: the one file to edit by hand
DIR/concept_statistics.json          how often and how strongly each concept is active, measured on text
DIR/concept_directions.safetensors   in which to shift the mixture so that a concept comes about

`cocomix inspect` writes them, and never over a name that is there. They are no part of the model, whose manifest and
fingerprint stay what they were. So names and units work with nothing but the model: `notes_of` finds the folder it came from.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cocomix.base.artifacts import NOTE_NAMES, write_json
from cocomix.base.errors import CocomixError, reason_of

# Shapes: C concepts.

NAMES_NAME, STATISTICS_NAME, DIRECTIONS_NAME = NOTE_NAMES
NUM_NEAREST_NAMES = 3


@dataclass(frozen=True)
class ActivationStatistics:
    """How concepts are active in the mixture on some text; values are top-k values, raw logits of the concept head."""

    num_tokens: int
    """Tokens that were looked at."""
    share: Float[Tensor, " C"]
    """Share of the tokens where each concept is active."""
    mean: Float[Tensor, " C"]
    """Mean value where it is active; 0 where it never is. Can be negative."""
    std: Float[Tensor, " C"]
    """Standard deviation of the value where it is active."""
    largest: Float[Tensor, " C"]
    """Largest value; 0 where it is never active."""
    usual: Float[Tensor, " C"]
    """The unit that strengths are measured in: the mean size |value| where the concept is active, so that it is positive even
    where values are negative. A concept that was never active takes the median of the others."""
    directions: Float[Tensor, "C D"] | None = None
    """In which to shift W_compress @ TopK(z) to steer toward each concept (`steering/directions.py`); 0 for a concept
    that was never among a token's strongest. None: not measured."""


@dataclass(frozen=True)
class ConceptNotes:
    """Names and statistics of a model's concepts, as far as there are any."""

    num_concepts: int
    names: Mapping[int, str] = field(default_factory=dict)
    """By concept; no two are equal."""
    statistics: ActivationStatistics | None = None

    def title(self, concept: int) -> str:
        """A concept for people: `1234 (import statements)`, or `1234` without a name."""
        return f"{concept} ({self.names[concept]})" if concept in self.names else str(concept)

    def resolve(self, concept: Any) -> int:
        """The concept that an index, its digits, or a name means; upper and lower case count only where they must.

        Raises:
            CocomixError: there is no such concept or name (the nearest names are offered), or a name fits several.
        """
        if isinstance(concept, str):
            exact = [key for key, name in self.names.items() if name == concept]
            folded = [key for key, name in self.names.items() if name.casefold() == concept.casefold().strip()]
            found = exact or folded
            if len(found) > 1:
                titles = " and ".join(self.title(key) for key in found)
                raise CocomixError(f"the concept name {concept!r} fits {titles}; give the index")
            if found:
                return found[0]
            if not _is_whole_number(concept):
                raise CocomixError(f"no concept is called {concept!r}; {self._advice(concept)}")
            concept = int(concept)
        if not isinstance(concept, int) or isinstance(concept, bool):
            raise CocomixError(f"concept {concept!r} is neither an index nor a name; {self._range()}")
        if not 0 <= concept < self.num_concepts:
            raise CocomixError(f"concept {concept} does not exist; {self._range()}")
        return concept

    def _advice(self, name: str) -> str:
        if not self.names:
            return f"this model's concepts have no names yet (`cocomix inspect` makes them); {self._range()}"
        by_folded = {known.casefold(): known for known in self.names.values()}
        nearest = difflib.get_close_matches(name.casefold(), by_folded, NUM_NEAREST_NAMES, cutoff=0.3)
        if not nearest:
            nearest = sorted(by_folded)[:NUM_NEAREST_NAMES]
        return f"the nearest names are {', '.join(repr(by_folded[folded]) for folded in nearest)}"

    def _range(self) -> str:
        return f"the model has concepts 0 to {self.num_concepts - 1}"


def notes_of(model: nn.Module) -> ConceptNotes:
    """The notes in the folder that a model was loaded from; empty ones where there is none, or nothing in it.

    Files are read when they are first needed, and again when they have changed.

    Args:
        model: one with concepts.

    Raises:
        CocomixError: a file is damaged; see `read_notes`.
    """
    config: Any = model.config
    source = getattr(config, "_name_or_path", "")
    return read_notes(Path(source), config.num_concepts) if source else ConceptNotes(config.num_concepts)


def read_notes(folder: Path, num_concepts: int) -> ConceptNotes:
    """The notes of a model's folder.

    Args:
        folder: of the model; need not be there.
        num_concepts: C of the model.

    Raises:
        CocomixError: a file is no JSON of the expected form, two concepts have one name, or a concept does not exist.
    """
    folder = folder.absolute()
    return _read_notes(folder, num_concepts, tuple(_stamp(folder / name) for name in NOTE_NAMES))


def write_names(folder: Path, names: Mapping[int, str], num_concepts: int) -> None:
    """Write the names of a model's concepts in place of those that are there.

    Raises:
        CocomixError: a name is empty, a number, of several lines, or taken twice, or a concept does not exist.
    """
    path = folder / NAMES_NAME
    _checked_names(path, names.items(), num_concepts)
    write_json(path, {str(concept): name for concept, name in names.items()})


def add_names(folder: Path, names: Mapping[int, str], num_concepts: int) -> dict[int, str]:
    """Name the concepts that have no name yet; a name that is taken gets the concept's index behind it.

    Returns:
        all names, those that were there first.
    """
    merged = dict(read_notes(folder, num_concepts).names)
    taken = set(merged.values())
    for concept, name in names.items():
        if concept not in merged:
            merged[concept] = name if name not in taken else f"{name} ({concept})"
            taken.add(merged[concept])
    write_names(folder, merged, num_concepts)
    return merged


def write_statistics(folder: Path, statistics: ActivationStatistics) -> None:
    """Write the statistics of a model's concepts in place of those that are there."""
    columns = {name: getattr(statistics, name).tolist() for name in _column_names()}
    path = folder / DIRECTIONS_NAME
    if statistics.directions is None:
        path.unlink(missing_ok=True)
    else:
        partial = path.with_name(f".{path.name}.partial")
        save_file({"directions": statistics.directions.contiguous()}, partial)
        partial.replace(path)
    write_json(folder / STATISTICS_NAME, {"num_tokens": statistics.num_tokens, **columns})


@lru_cache(maxsize=4)
def _read_notes(folder: Path, num_concepts: int, stamps: tuple[object, ...]) -> ConceptNotes:
    has_names, has_statistics, has_directions = (stamp is not None for stamp in stamps)
    path, names, statistics = folder / NAMES_NAME, {}, None
    if has_names:
        names = _checked_names(path, _pairs(path), num_concepts)
    if has_statistics:
        directions = _read_directions(folder / DIRECTIONS_NAME, num_concepts) if has_directions else None
        statistics = _read_statistics(folder / STATISTICS_NAME, num_concepts, directions)
    return ConceptNotes(num_concepts, names, statistics)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes with a file's content; None: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _pairs(path: Path) -> list[tuple[Any, Any]]:
    """Keys and values of a JSON object, repeated keys and all."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
    except (ValueError, OSError) as error:
        raise CocomixError(f"{path} is no JSON file ({reason_of(error)}); mend it or delete it") from error
    # An empty array looks like an empty object here, and means as much.
    if not isinstance(found, list) or not all(isinstance(pair, tuple) for pair in found):
        raise CocomixError(f"{path} holds no JSON object; mend it or delete it")
    return found


def _checked_names(path: Path, pairs: Any, num_concepts: int) -> dict[int, str]:
    names: dict[int, str] = {}
    owners: dict[str, int] = {}
    for key, name in pairs:
        if not _is_whole_number(str(key)) or not 0 <= int(key) < num_concepts:
            raise CocomixError(f"{path} names concept {key!r}; the model has concepts 0 to {num_concepts - 1}")
        concept = int(key)
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or _is_whole_number(name):
            raise CocomixError(f"{path} calls concept {concept} {name!r}; a name is one line of text, and no number")
        if concept in names:
            raise CocomixError(f"{path} names concept {concept} twice: {names[concept]!r} and {name!r}")
        if name in owners:
            raise CocomixError(f"{path} calls both concept {owners[name]} and concept {concept} {name!r}; rename one")
        names[concept], owners[name] = name, concept
    return names


def _read_directions(path: Path, num_concepts: int) -> Tensor:
    try:
        found: Tensor = load_file(path)["directions"]
    except (SafetensorError, KeyError, OSError) as error:
        raise CocomixError(
            f"{path} is damaged ({reason_of(error)}); delete it and run `cocomix inspect` again"
        ) from error
    if found.ndim != 2 or len(found) != num_concepts or not bool(found.isfinite().all()):
        raise CocomixError(
            f"{path} does not hold the directions of {num_concepts} concepts; delete it and run `cocomix inspect` again"
        )
    return found


def _read_statistics(path: Path, num_concepts: int, directions: Tensor | None) -> ActivationStatistics:
    found = dict(_pairs(path))
    damaged = f"{path} does not hold the statistics of {num_concepts} concepts"
    advice = "delete it and run `cocomix inspect` again"
    if found.keys() != {"num_tokens", *_column_names()} or not isinstance(found["num_tokens"], int):
        raise CocomixError(f"{damaged}; {advice}")
    for name in _column_names():
        column = found[name]
        is_column = isinstance(column, list) and len(column) == num_concepts
        if not is_column or not all(isinstance(value, int | float) and math.isfinite(value) for value in column):
            raise CocomixError(f"{damaged}: {name} is no list of {num_concepts} numbers; {advice}")
    columns = {name: torch.tensor(found[name], dtype=torch.float32) for name in _column_names()}
    if not bool((columns["usual"] > 0).all()):
        raise CocomixError(f"{damaged}: a usual activation is not positive; {advice}")
    return ActivationStatistics(found["num_tokens"], **columns, directions=directions)


def _column_names() -> list[str]:
    others = ("num_tokens", "directions")
    return [column.name for column in dataclasses.fields(ActivationStatistics) if column.name not in others]


def _is_whole_number(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()
