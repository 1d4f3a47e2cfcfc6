"""Folders that describe themselves.

Every stage writes one folder. `settings.json` is written first and says what the folder will hold. `manifest.json` is
written last and lists every file with its size and SHA-256, so a folder without a manifest is unfinished and a folder
with one can be checked. Settings hold what determines the content (options, seeds, fingerprints of the inputs), never
paths or times: two folders with equal fingerprints are interchangeable.

`config.yaml` records the options as given, paths included, for people and for `--config`; it is not part of the content.

    begin()  starts a new folder, continues an unfinished one with equal settings, or returns the manifest of a finished one
    finish() writes the manifest
    read()   checks the kind, the version and every byte, and returns the manifest
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cocomix.base.errors import CocomixError
from cocomix.base.parsing import parse_json

FORMAT_VERSION = 1
SETTINGS_NAME = "settings.json"
MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.yaml"
LOCK_NAME = ".lock"
#: Metadata of concepts, kept beside a model's weights by people and `cocomix inspect`; not part of a folder's content.
CONCEPT_METADATA_NAMES = ("concept_names.json", "concept_statistics.json", "concept_directions.safetensors")

#: Libraries whose version can change the content of an artefact.
_RECORDED_LIBRARIES = ("cocomix", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json` in a finished folder."""

    path: Path
    kind: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    fingerprint: str


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A hidden path beside `path`; the file written there replaces `path` when the block ends, or is removed if it fails.

    Readers see the old file or the whole new one, even after a power failure: the content is synced to disk before the
    file gets its name.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a configuration's fields as YAML atomically, with paths as strings."""
    text = yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file written by cocomix.

    Raises:
        CocomixError: the file is damaged.
    """
    try:
        return parse_json(path.read_bytes(), str(path))
    except CocomixError as error:
        raise CocomixError(
            f"{path} is damaged ({error}); delete {path.parent} and run the command that made it again"
        ) from error


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of_json(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextlib.contextmanager
def begin(
    output: Path,
    kind: str,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Iterator[Manifest | None]:
    """Claim `output` for a stage; yields its checked manifest if it is already finished with equal settings, else None.

    Args:
        output: folder to create or continue.
        kind: what the folder holds, such as `token-dataset`.
        settings: everything that determines the content.
        overwrite: delete what an earlier run of the same kind left there.
        config: fields of the configuration, saved as `config.yaml` before any work starts. `overwrite` is left out: it
            must be given again.

    Raises:
        CocomixError: the folder holds something else or was made with other settings, or another process is writing it.
    """
    wanted = json.loads(json.dumps(dict(settings)))
    check_output(output, kind)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CocomixError(f"{output} can't be made: {error.strerror}") from None
    with (output / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CocomixError(f"another process is writing {output}; wait for it or choose another --output") from None
        stored = _stored_settings(output, kind)
        is_finished = (output / MANIFEST_NAME).exists()
        # A null setting equals a missing one: options come and go between versions.
        differences = [] if stored is None else _differences(stored, wanted)
        # An unfinished folder with equal settings is continued even with --overwrite: it is the same command, run again.
        if stored is not None and overwrite and (is_finished or differences):
            _clear(output)
            stored = None
        if differences and stored is not None and not _has_content(output):
            stored = None  # the command that began it failed before it wrote anything
        if differences and stored is not None:
            raise CocomixError(
                f"{output} was made with other settings ({', '.join(differences)}); choose another --output, or --overwrite "
                "to replace it"
            )
        try:
            if stored is None:
                write_json(output / SETTINGS_NAME, {"kind": kind, "format_version": FORMAT_VERSION, "settings": wanted})
            is_finished = (output / MANIFEST_NAME).exists()
            if config is not None and not is_finished:
                write_yaml(output / CONFIG_NAME, {key: value for key, value in config.items() if key != "overwrite"})
            yield read(output, kind) if is_finished else None
        except BaseException:
            if output.is_dir() and not _has_content(output):  # it failed before anything was written: leave no trace
                for name in (CONFIG_NAME, SETTINGS_NAME, LOCK_NAME):
                    (output / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    output.rmdir()
            raise


def check_output(output: Path, kind: str) -> None:
    """Refuse a path at which no folder of this kind can be made; writes nothing.

    Raises:
        CocomixError: it is a file, or below one, or a folder that holds something else, or it can't be written.
    """
    if output.is_dir():
        _stored_settings(output, kind)
        return
    if output.exists():
        raise CocomixError(f"{output} is a file; --output takes a folder")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise CocomixError(f"{output} can't be made: {above} above it is a file, not a folder")
    if not os.access(above, os.W_OK):
        raise CocomixError(f"{output} can't be made: {above} can't be written")


def finish(output: Path, facts: Mapping[str, Any] | None = None, *, timed: Collection[str] = ()) -> Manifest:
    """Write and return the manifest of a folder begun with `begin`.

    Hidden files, checkpoints, concept metadata and nested folders that describe themselves are not part of the content.

    Args:
        output: the folder.
        facts: measurements; not part of the fingerprint.
        timed: files that hold times: checked like all others, but not part of the fingerprint.
    """
    header = read_json(output / SETTINGS_NAME)
    files = {
        name: {"num_bytes": (output / name).stat().st_size, "sha256": sha256_of_file(output / name)}
        for name in _content_files(output)
    }
    body = {**header, "files": files}
    manifest = {
        **body,
        "facts": dict(facts or {}),
        "fingerprint": fingerprint_of_json(
            {**header, "files": {name: files[name] for name in files if name not in timed}}
        ),
        "versions": recorded_versions(),
    }
    write_json(output / MANIFEST_NAME, manifest)
    return _as_manifest(output, manifest)


def read(path: Path, kind: str) -> Manifest:
    """Open a finished folder and check every byte of it.

    Raises:
        CocomixError: the folder is missing, unfinished, of another kind or version, or damaged; the message names the file.
    """
    manifest = require_finished(path, kind)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.exists():
            problem = "is missing"
        elif file.stat().st_size != expected["num_bytes"]:
            problem = f"has {file.stat().st_size} bytes instead of {expected['num_bytes']}"
        elif sha256_of_file(file) != expected["sha256"]:
            problem = "does not match its checksum"
        else:
            continue
        raise CocomixError(f"{file} {problem}: {path} is damaged; delete that folder and run the command again")
    return _as_manifest(path, manifest)


def require_finished(path: Path, kind: str) -> dict[str, Any]:
    """Refuse a path that is no finished folder of this kind; returns its manifest, whose files are not checked yet.

    Raises:
        CocomixError: the folder is missing, unfinished, or of another kind or version.
    """
    if not path.is_dir():
        raise CocomixError(f"{path} is not a folder; expected a {kind} made by cocomix")
    if not (path / MANIFEST_NAME).exists():
        if (path / SETTINGS_NAME).exists():
            raise CocomixError(f"{path} is unfinished; run the command that made it again to continue")
        raise CocomixError(f"{path} has no {MANIFEST_NAME}; expected a {kind} made by cocomix")
    manifest = _read_object(path / MANIFEST_NAME)
    if manifest.get("kind") != kind:
        raise CocomixError(f"{path} holds a {manifest.get('kind')}, not a {kind}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CocomixError(
            f"{path} has format version {manifest.get('format_version')}, but this cocomix reads {FORMAT_VERSION}; make it "
            "again"
        )
    return manifest


def fingerprint_of_path(path: Path) -> str:
    """Fingerprint of a file, or of a folder: its manifest's, with every byte checked, or without one a hash of its files."""
    if path.is_file():
        return sha256_of_file(path)
    if not path.is_dir():
        raise CocomixError(f"{path} is neither a folder nor a file")
    if (path / MANIFEST_NAME).exists():
        return read(path, str(_read_object(path / MANIFEST_NAME).get("kind"))).fingerprint
    return fingerprint_of_json({name: sha256_of_file(path / name) for name in _content_files(path)})


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise CocomixError(
            f"{path} is damaged (not a JSON object); delete {path.parent} and run the command that made it again"
        )
    return value


def _has_content(output: Path) -> bool:
    """Whether the folder holds anything besides settings and hidden files."""
    return any(
        not entry.name.startswith(".") and entry.name not in (SETTINGS_NAME, CONFIG_NAME) for entry in output.iterdir()
    )


def _plain(value: Any) -> Any:
    """The value in types that YAML knows."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _as_manifest(path: Path, body: Mapping[str, Any]) -> Manifest:
    return Manifest(path, body["kind"], body["settings"], body["facts"], body["files"], body["fingerprint"])


def _stored_settings(output: Path, kind: str) -> dict[str, Any] | None:
    """Settings in the folder, None if it is empty; refuses a folder that is not ours to write in."""
    if not (output / SETTINGS_NAME).exists():
        if any(not entry.name.startswith(".") for entry in output.iterdir()):
            raise CocomixError(f"{output} holds files that are not a cocomix {kind}; choose another --output")
        return None
    header = _read_object(output / SETTINGS_NAME)
    if header.get("kind") != kind:
        raise CocomixError(f"{output} holds a {header.get('kind')}, not a {kind}; choose another --output")
    if header.get("format_version") != FORMAT_VERSION:
        raise CocomixError(f"{output} was written by another version of cocomix; use --overwrite to replace it")
    return dict(header["settings"])


def _differences(stored: Any, wanted: Any, prefix: str = "") -> list[str]:
    if not (isinstance(stored, dict) and isinstance(wanted, dict)):
        return [] if stored == wanted else [f"{prefix}: {_short(stored)} there, {_short(wanted)} now"]
    differences: list[str] = []
    for key in sorted(stored.keys() | wanted.keys()):
        differences += _differences(stored.get(key), wanted.get(key), f"{prefix}.{key}" if prefix else key)
    return differences


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:12] + "…"


def _content_files(path: Path) -> list[str]:
    names = []
    # In a folder that cocomix did not make, config.yaml may be content.
    about = (
        SETTINGS_NAME,
        MANIFEST_NAME,
        *CONCEPT_METADATA_NAMES,
        *([CONFIG_NAME] if (path / SETTINGS_NAME).exists() else []),
    )
    for root, folders, files in os.walk(path):
        here = Path(root)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "checkpoints" and not (here / name / SETTINGS_NAME).exists()
        ]
        names += [
            (here / name).relative_to(path).as_posix()
            for name in files
            if not name.startswith(".") and not (here == path and name in about)
        ]
    return sorted(names)


def _clear(output: Path) -> None:
    # The manifest goes first and the settings last, so that an interruption leaves an unfinished folder of ours.
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    for entry in output.iterdir():
        if entry.name in (LOCK_NAME, SETTINGS_NAME):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (output / SETTINGS_NAME).unlink()


def recorded_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change the content."""
    versions = {"python": platform.python_version()}
    for name in _RECORDED_LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
