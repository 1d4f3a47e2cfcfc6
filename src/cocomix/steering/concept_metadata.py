"""Metadata of a model's concepts, kept beside its weights: their names, and how often and how strongly they are active.

DIR/concept_names.json               {"7": "import statements", ...}: the file to edit by hand
DIR/concept_statistics.json          how often and how strongly each concept is active, measured on text
DIR/concept_directions.safetensors   directions that shift the mixture toward each concept

`cocomix inspect` writes these files and keeps every name that already exists. They are not part of the model: its manifest
and fingerprint do not change. Steering by name needs only the model, because `metadata_of` finds the folder it was loaded
from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cocomix.base.artifacts import CONCEPT_METADATA_NAMES, atomic, is_sealed, sealed, sha256_of_file, write_json
from cocomix.base.errors import CocomixError, reason_of
from cocomix.steering.concept_names import ConceptNames, json_members, read_names

# Shapes: C concepts.

_, STATISTICS_NAME, DIRECTIONS_NAME = CONCEPT_METADATA_NAMES
MAX_FLOAT32 = torch.finfo(torch.float32).max


#: Columns of the statistics file, and the field that holds each.
_COLUMNS = {"share": "activation_rate", "mean": "mean", "std": "std", "largest": "largest", "usual": "mean_abs"}


@dataclass(frozen=True)
class ActivationStatistics:
    """How often and how strongly each concept is active on some text; an activation is a raw logit of the concept head."""

    num_tokens: int
    """Tokens measured on."""
    activation_rate: Float[Tensor, " C"]
    """Share of the tokens at which each concept is active."""
    mean: Float[Tensor, " C"]
    """Mean activation where it is active; 0 if it never is. Can be negative."""
    std: Float[Tensor, " C"]
    """Standard deviation of the activation where it is active."""
    largest: Float[Tensor, " C"]
    """Largest activation; 0 if it is never active."""
    mean_abs: Float[Tensor, " C"]
    """Mean |activation| where it is active: the unit `usual` of steering, positive also for concepts whose activations are
    negative. A concept that is never active takes the median of the others."""
    directions: Float[Tensor, "C D"] | None = None
    """Shift of W_compress @ TopK(z) toward each concept (`steering/directions.py`); 0 for a concept that was never among the
    strongest of a token. None: not measured, or the model does not mix its concepts in."""


@dataclass(frozen=True)
class ConceptMetadata(ConceptNames):
    """Names and statistics of a model's concepts, as far as they are known."""

    statistics: ActivationStatistics | None = None


def metadata_of(model: nn.Module) -> ConceptMetadata:
    """The metadata in the folder that a model was loaded from; empty if the folder has none.

    Looks at the files on every call, and reads those that changed since the last one.

    Args:
        model: one with concepts.

    Raises:
        CocomixError: a file is damaged; see `read_metadata`.
    """
    config: Any = model.config
    source = getattr(config, "_name_or_path", "")
    return read_metadata(Path(source), config.num_concepts) if source else ConceptMetadata(config.num_concepts)


def read_metadata(folder: Path, num_concepts: int) -> ConceptMetadata:
    """The metadata in a model's folder.

    Args:
        folder: of the model; need not exist.
        num_concepts: C of the model.

    Raises:
        CocomixError: a file is not JSON of the expected form, two concepts have the same name, or a concept does not exist.
    """
    folder = folder.absolute()
    return _read_metadata(folder, num_concepts, tuple(_stamp(folder / name) for name in CONCEPT_METADATA_NAMES))


def write_statistics(folder: Path, statistics: ActivationStatistics) -> None:
    """Write the statistics of a model's concepts, replacing the old files; without directions their file is removed."""
    path = folder / DIRECTIONS_NAME
    if statistics.directions is None:
        path.unlink(missing_ok=True)
    else:
        with atomic(path) as partial:
            save_file({"directions": statistics.directions.contiguous()}, partial)
    columns = {column: getattr(statistics, name).tolist() for column, name in _COLUMNS.items()}
    checksum = None if statistics.directions is None else sha256_of_file(path)
    measured = {"num_tokens": statistics.num_tokens, DIRECTIONS_NAME: checksum, **columns}
    write_json(folder / STATISTICS_NAME, sealed(measured))


@lru_cache(maxsize=4)
def _read_metadata(folder: Path, num_concepts: int, stamps: tuple[object, ...]) -> ConceptMetadata:
    _, has_statistics, has_directions = (stamp is not None for stamp in stamps)
    statistics = None
    if has_statistics:
        statistics = _read_statistics(folder / STATISTICS_NAME, num_concepts, has_directions=has_directions)
    return ConceptMetadata(num_concepts, read_names(folder, num_concepts), statistics)


def _stamp(path: Path) -> tuple[int, int] | None:
    """A value that changes when the file does; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _read_directions(path: Path, num_concepts: int) -> Tensor:
    try:
        directions: Tensor = load_file(path)["directions"]
    except (SafetensorError, KeyError, OSError) as error:
        raise CocomixError(
            f"{path} is damaged ({reason_of(error)}); delete it and run `cocomix inspect` again"
        ) from error
    if directions.ndim != 2 or len(directions) != num_concepts or not bool(directions.isfinite().all()):
        raise CocomixError(
            f"{path} does not hold the directions of {num_concepts} concepts; delete it and run `cocomix inspect` again"
        )
    return directions


def _read_statistics(path: Path, num_concepts: int, *, has_directions: bool) -> ActivationStatistics:
    values = dict(json_members(path))
    damaged = f"{path} does not hold the statistics of {num_concepts} concepts"
    advice = "delete it and run `cocomix inspect` again"
    is_of_0_1 = values.keys() == {"num_tokens", *_COLUMNS}  # which recorded no checksums
    is_whole = is_of_0_1 or (
        values.keys() == {"num_tokens", DIRECTIONS_NAME, *_COLUMNS, "checksum"} and is_sealed(values)
    )
    if not is_whole or not isinstance(values["num_tokens"], int):
        raise CocomixError(f"{damaged}; {advice}")
    for name in _COLUMNS:
        column = values[name]
        is_column = isinstance(column, list) and len(column) == num_concepts
        if not is_column or not all(isinstance(value, int | float) and abs(value) <= MAX_FLOAT32 for value in column):
            raise CocomixError(f"{damaged}: {name} is not a list of {num_concepts} numbers; {advice}")
    columns = {name: torch.tensor(values[column], dtype=torch.float32) for column, name in _COLUMNS.items()}
    if not bool((columns["mean_abs"] > 0).all()):
        raise CocomixError(f"{damaged}: a usual activation is not positive; {advice}")
    file = path.with_name(DIRECTIONS_NAME)
    if not is_of_0_1 and values[DIRECTIONS_NAME] != (sha256_of_file(file) if has_directions else None):
        raise CocomixError(
            f"{file} is not what was measured with {path.name}; delete both and run `cocomix inspect` again"
        )
    directions = _read_directions(file, num_concepts) if has_directions else None
    return ActivationStatistics(values["num_tokens"], **columns, directions=directions)
