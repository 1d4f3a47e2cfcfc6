"""Names of a model's concepts, kept beside its weights in `concept_names.json`; this file loads no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocomix.base.artifacts import CONCEPT_METADATA_NAMES, write_json
from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.hub import local_model
from cocomix.base.parsing import parse_json
from cocomix.mixers.config import MIXERS

NAMES_NAME = CONCEPT_METADATA_NAMES[0]
NUM_NEAREST_NAMES = 3
NOT_MEASURED = (
    "the directions toward this model's concepts are not measured yet; run `cocomix inspect`, or use mode 'set'"
)


@dataclass(frozen=True)
class ConceptNames:
    """The concepts of a model, and their names as far as they have any."""

    num_concepts: int
    names: Mapping[int, str] = field(default_factory=dict)
    """By concept; no two are equal."""

    def title(self, concept: int) -> str:
        """A concept as shown to people: `1234 (import statements)`, or `1234` if it has no name."""
        return f"{concept} ({self.names[concept]})" if concept in self.names else str(concept)

    def resolve(self, concept: Any) -> int:
        """The concept with an index (a number or its digits) or a name; case matters only if names differ in nothing else.

        Raises:
            CocomixError: there is no such concept or name (the error suggests the nearest names), or a name fits several.
        """
        if isinstance(concept, str):
            exact = [key for key, name in self.names.items() if name == concept]
            folded = [key for key, name in self.names.items() if name.casefold() == concept.casefold().strip()]
            matches = exact or folded
            if len(matches) > 1:
                titles = " and ".join(self.title(key) for key in matches)
                raise CocomixError(f"the concept name {concept!r} fits {titles}; give the index")
            if matches:
                return matches[0]
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
            return f"this model's concepts have no names yet (`cocomix inspect` writes them); {self._range()}"
        by_folded = {known.casefold(): known for known in self.names.values()}
        nearest = difflib.get_close_matches(name.casefold(), by_folded, NUM_NEAREST_NAMES, cutoff=0.3)
        if not nearest:
            nearest = sorted(by_folded)[:NUM_NEAREST_NAMES]
        return f"the nearest names are {', '.join(repr(by_folded[folded]) for folded in nearest)}"

    def _range(self) -> str:
        return f"the model has concepts 0 to {self.num_concepts - 1}"


def require_concepts(model: Path, advice: str = "give a model with a concept mixer") -> ConceptNames:
    """The names of a model's concepts, from its folder's `config.json`; what else is wrong there is left to its loader.

    Raises:
        CocomixError: the model has none, and the message ends with `advice`; or the file of their names is damaged.
    """
    folder = local_model(model)
    file = folder / "config.json"
    config = parse_json(file.read_bytes(), str(file)) if file.is_file() else {}
    settings = config if isinstance(config, dict) and config.get("model_type") == "cocomix" else {}
    mixer = MIXERS.get(str(settings.get("mixer", "none")))
    if mixer is not None and not mixer.has_concepts:
        what = mixer().unsteerable if settings else "is a plain decoder, which has no concepts"
        raise CocomixError(f"{model} {what}; {advice}")
    num_concepts = settings.get("num_concepts")
    if type(num_concepts) is not int:
        raise CocomixError(f"{file} does not say how many concepts the model has; make or get the model again")
    return ConceptNames(num_concepts, read_names(folder, num_concepts))


def require_directions(model: Path, mode: str) -> None:
    """Refuse mode `toward` for a model whose folder holds no directions."""
    if mode == "toward" and not (local_model(model) / CONCEPT_METADATA_NAMES[2]).exists():
        raise CocomixError(NOT_MEASURED)


def read_names(folder: Path, num_concepts: int) -> dict[int, str]:
    """The names in a model's folder, which may have none.

    Raises:
        CocomixError: the file is not JSON of the expected form, two concepts have the same name, or a concept does not exist.
    """
    path = folder / NAMES_NAME
    return _checked_names(path, json_members(path), num_concepts) if path.exists() else {}


def write_names(folder: Path, names: Mapping[int, str], num_concepts: int) -> None:
    """Write the names of a model's concepts, replacing the old file.

    Raises:
        CocomixError: a name is empty, a number, longer than a line, or used twice, or a concept does not exist.
    """
    path = folder / NAMES_NAME
    _checked_names(path, names.items(), num_concepts)
    write_json(path, {str(concept): name for concept, name in names.items()})


def add_names(folder: Path, names: Mapping[int, str], num_concepts: int) -> dict[int, str]:
    """Name the concepts that have no name yet; a name that is already used gets the concept's index after it.

    Returns:
        all names, old and new.
    """
    merged = dict(read_names(folder, num_concepts))
    used = set(merged.values())
    for concept, name in names.items():
        if concept not in merged:
            merged[concept] = name if name not in used else f"{name} ({concept})"
            used.add(merged[concept])
    write_names(folder, merged, num_concepts)
    return merged


def rename_concept(folder: Path, concept: int, name: str, num_concepts: int) -> None:
    """Give one concept another name; those that are written beside it are read again and kept.

    Raises:
        CocomixError: see `write_names`.
    """
    write_names(folder, {**read_names(folder, num_concepts), concept: name}, num_concepts)


def json_members(path: Path) -> list[tuple[Any, Any]]:
    """Keys and values of a JSON object, repeated keys included."""
    try:
        pairs = parse_json(path.read_bytes(), str(path), pairs=list)
    except (CocomixError, OSError) as error:
        raise CocomixError(f"{reason_of(error)}; correct {path.name} or delete it") from error
    # An empty array and an empty object look the same here, and mean the same.
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise CocomixError(f"{path} does not hold a JSON object; correct it or delete it")
    return pairs


def _checked_names(path: Path, pairs: Any, num_concepts: int) -> dict[int, str]:
    names: dict[int, str] = {}
    owners: dict[str, int] = {}
    for key, name in pairs:
        if not _is_whole_number(str(key)) or not 0 <= int(key) < num_concepts:
            raise CocomixError(f"{path} names concept {key!r}; the model has concepts 0 to {num_concepts - 1}")
        concept = int(key)
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or _is_whole_number(name):
            raise CocomixError(f"{path} calls concept {concept} {name!r}; a name is one line of text and not a number")
        if concept in names:
            raise CocomixError(f"{path} names concept {concept} twice: {names[concept]!r} and {name!r}")
        if name in owners:
            raise CocomixError(f"{path} calls both concept {owners[name]} and concept {concept} {name!r}; rename one")
        names[concept], owners[name] = name, concept
    return names


def _is_whole_number(text: str) -> bool:
    digits = text.strip().removeprefix("-")
    return digits.isdecimal() and len(digits) < 20  # Python reads no number of thousands of digits
