"""Finds models with concepts, loss curves and inspections in the folders that a user names."""

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
class NamedFolder:
    """A folder and its name on the page."""

    name: str
    path: Path


@dataclass(frozen=True)
class Runs:
    """All models, curves and inspections in the named folders."""

    models: tuple[NamedFolder, ...]
    """Trained models with a concept mixer."""
    curves: tuple[NamedFolder, ...]
    """Training runs, including plain decoders and unfinished runs."""
    inspections: tuple[Path, ...]
    """Folders made by `cocomix inspect`."""


def find_runs(paths: Sequence[Path]) -> Runs:
    """All models, curves and inspections in some folders, each once, in order.

    Args:
        paths: training runs, models, inspections, demos, or folders of them; none: `runs/demo`.

    Raises:
        CocomixError: a folder does not exist, or holds none of these.
    """
    folders: dict[Path, str] = {}
    for path in paths or [DEFAULT_RUN]:
        named = list(_folders_of(path))
        if not named:
            raise CocomixError(_nothing_found(path, is_default=not paths))
        for folder, name in named:
            folders.setdefault(folder.resolve(), name)
    names = _distinct(folders)
    models = [NamedFolder(names[path], path) for path in folders if _has_concepts(path)]
    curves = [NamedFolder(names[path], path) for path in folders if (path / METRICS_NAME).is_file()]
    inspections = {path: None for path in folders if _kind_of(path) == INSPECTION}
    for path in folders:  # also an inspection beside a run that was named alone
        inspections |= dict.fromkeys(sibling.resolve() for sibling in _inspections_in(path.parent))
    if not models and not curves:
        folder = next(iter(inspections))
        raise CocomixError(f"{folder} is an inspection without its model; open {folder / 'index.html'}")
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
    """A JSON object; empty if the file has none: files of other programs are skipped."""
    try:
        value = read_json(path) if path.is_file() else {}
    except (CocomixError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def _nothing_found(path: Path, *, is_default: bool) -> str:
    if is_default and not path.exists():
        return f"{path} does not exist; run `make demo` to make it, or name a run: cocomix studio RUN"
    if not path.exists():
        return f"{path} does not exist; name the folder of a training run, of a demo or of an inspection"
    return f"{path} is not a run: it holds no training run, no model with a concept mixer and no inspection"


def _distinct(folders: dict[Path, str]) -> dict[Path, str]:
    """Names by path; two equal names are both replaced by the whole path."""
    names = list(folders.values())
    return {path: name if names.count(name) == 1 else str(path) for path, name in folders.items()}
