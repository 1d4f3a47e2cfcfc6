"""What there is to show: models with concepts, loss curves, and inspections, found in the folders that a user named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base.artifacts import MANIFEST_NAME, SETTINGS_NAME, read_json
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import INSPECTION, METRICS_NAME, TRAINING_RUN
from cocomix.mixers.config import MIXERS

DEFAULT_RUN = Path("runs/demo")
#: A folder of demos, such as `runs`, holds its runs two levels down.
SEARCHED_LEVELS = 2


@dataclass(frozen=True)
class Run:
    """One folder, under the name that the page shows."""

    name: str
    path: Path


@dataclass(frozen=True)
class Runs:
    """All that was found."""

    models: tuple[Run, ...]
    """Models with a concept mixer; trained."""
    curves: tuple[Run, ...]
    """Training runs, plain decoders too, and those still going on."""
    inspections: tuple[Path, ...]
    """Folders that `cocomix inspect` made."""


def find_runs(paths: Sequence[Path]) -> Runs:
    """Everything to show in some folders, each once, in order.

    Args:
        paths: training runs, models, inspections, demos, or folders of them; none: `runs/demo`.

    Raises:
        CocomixError: a folder does not exist or is none of these.
    """
    folders: dict[Path, str] = {}
    for path in paths or [DEFAULT_RUN]:
        found = list(_folders_of(path))
        if not found:
            raise CocomixError(_nothing_found(path, is_default=not paths))
        for folder, name in found:
            folders.setdefault(folder.resolve(), name)
    names = _distinct(folders)
    models = [Run(names[path], path) for path in folders if _has_concepts(path)]
    curves = [Run(names[path], path) for path in folders if (path / METRICS_NAME).is_file()]
    inspections = {path: None for path in folders if _kind_of(path) == INSPECTION}
    for path in folders:  # one beside a run that was named alone
        inspections |= dict.fromkeys(sibling.resolve() for sibling in _inspections_in(path.parent))
    return Runs(tuple(models), tuple(curves), tuple(inspections))


def _folders_of(path: Path) -> Iterator[tuple[Path, str]]:
    """Every folder of interest at a path or below it, with a name for it."""
    if _is_of_interest(path):
        yield path, path.resolve().name
        return
    for level in range(1, SEARCHED_LEVELS + 1):
        for folder in sorted(path.glob("/".join(["*"] * level))):
            if folder.is_dir() and not folder.name.startswith(".") and _is_of_interest(folder):
                yield folder, f"{path.resolve().name}/{folder.relative_to(path).as_posix()}"


def _is_of_interest(path: Path) -> bool:
    return _has_concepts(path) or (path / METRICS_NAME).is_file() or _kind_of(path) in (TRAINING_RUN, INSPECTION)


def _inspections_in(path: Path) -> Iterator[Path]:
    for settings in path.glob(f"*/{SETTINGS_NAME}"):
        if _kind_of(settings.parent) == INSPECTION and (settings.parent / MANIFEST_NAME).exists():
            yield settings.parent


def _has_concepts(path: Path) -> bool:
    config = _json_object(path / "config.json")
    is_trained = not (path / SETTINGS_NAME).exists() or (path / MANIFEST_NAME).exists()
    return is_trained and config.get("model_type") == "cocomix" and _predicts_concepts(config)


def _predicts_concepts(config: dict[str, Any]) -> bool:
    mixer = MIXERS.get(config.get("mixer", "concept"))
    return mixer is not None and mixer.has_concepts


def _kind_of(path: Path) -> Any:
    return _json_object(path / SETTINGS_NAME).get("kind")


def _json_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none to be read: what is not ours is passed over."""
    try:
        value = read_json(path) if path.is_file() else {}
    except (CocomixError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def _nothing_found(path: Path, *, is_default: bool) -> str:
    if is_default and not path.exists():
        return f"there is no {path} here; `make demo` makes it, or name your own: cocomix studio RUN"
    if not path.exists():
        return f"{path} does not exist; name the folder of a training run, of a demo or of an inspection"
    return f"{path} is not a run: it holds no training run, no model with a concept mixer and no inspection of one"


def _distinct(folders: dict[Path, str]) -> dict[Path, str]:
    """Names by path; where two are equal, both become the whole path."""
    names = list(folders.values())
    return {path: name if names.count(name) == 1 else str(path) for path, name in folders.items()}
