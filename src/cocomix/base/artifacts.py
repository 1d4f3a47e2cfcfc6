"""Folders that describe themselves.

Every stage writes one folder. `settings.json` comes first and says what the folder is going to be; `manifest.json`
comes last and lists every file with its size and SHA-256, so a folder without a manifest is unfinished and a folder
with one can be checked. Settings hold what determines the content (options, seeds, fingerprints of the inputs), never
paths or times: two folders with equal fingerprints are interchangeable.

`config.yaml` beside them is what was asked for, paths included: for people and for `--config`, and no part of the content.

    begin()  -> new, or continue an unfinished folder with equal settings, or report a finished one; refuses the rest
    finish() -> writes the manifest
    read()   -> checks the kind, the version and every byte, and returns the manifest
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

FORMAT_VERSION = 1
SETTINGS_NAME = "settings.json"
MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.yaml"
LOCK_NAME = ".lock"
#: Metadata of concepts that people and `cocomix inspect` keep beside a model's weights: not part of a folder's content.
CONCEPT_METADATA_NAMES = ("concept_names.json", "concept_statistics.json", "concept_directions.safetensors")

#: Libraries whose version can change the content of an artefact.
_RECORDED_LIBRARIES = ("cocomix", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says about a finished folder."""

    path: Path
    kind: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    fingerprint: str


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A hidden path beside `path`: the file written there replaces `path` when the block ends, and is removed if it fails.

    Readers see the old file or the whole new one, and never a part, even after a power failure: the content is on the disk
    before the file gets its name.
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
    """Write a JSON file, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a configuration's fields as YAML, paths as text, atomically."""
    text = yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file of ours, or say which file is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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
    """Claim `output` for a stage; yields its checked manifest when it is finished already with equal settings.

    Args:
        output: folder to make, to continue or to recognise as finished.
        kind: what the folder holds, such as `token-dataset`.
        settings: everything that determines the content.
        overwrite: delete what a former run of the same kind left there.
        config: fields of the configuration in effect, to be saved before any work as `config.yaml`; but for `overwrite`,
            which who runs that file again has to say again.

    Raises:
        CocomixError: the folder holds something else, was made with other settings, or another process works on it.
    """
    wanted = json.loads(json.dumps(dict(settings)))
    if output.exists() and not output.is_dir():
        raise CocomixError(f"{output} is a file; --output takes a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except NotADirectoryError:
        raise CocomixError(f"{output} can't be made: something above it is a file, not a folder") from None
    except OSError as error:
        raise CocomixError(f"{output} can't be made: {error.strerror}") from None
    _settings_of(output, kind)  # refuses a folder that is not ours before anything is left in it
    with (output / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CocomixError(f"another process is writing {output}; wait for it or choose another --output") from None
        stored = _settings_of(output, kind)
        is_finished = (output / MANIFEST_NAME).exists()
        # A setting that is null is as one that does not exist: options come and go from version to version.
        differences = [] if stored is None else _differences(stored, wanted)
        # An unfinished folder with equal settings goes on even with --overwrite: it is the same command, started again.
        if stored is not None and overwrite and (is_finished or differences):
            _clear(output)
            stored = None
        if differences and stored is not None and not _has_content(output):
            stored = None  # what began it failed before it wrote anything
        if differences and stored is not None:
            raise CocomixError(
                f"{output} was made with other settings ({', '.join(differences)}); choose another --output, or --overwrite "
                "to replace it"
            )
        if stored is None:
            write_json(output / SETTINGS_NAME, {"kind": kind, "format_version": FORMAT_VERSION, "settings": wanted})
        is_finished = (output / MANIFEST_NAME).exists()
        if config is not None and not is_finished:
            write_yaml(output / CONFIG_NAME, {key: value for key, value in config.items() if key != "overwrite"})
        try:
            yield read(output, kind) if is_finished else None
        except CocomixError:
            if not _has_content(output):  # refused before anything was written: as if it had not been asked for
                for name in (CONFIG_NAME, SETTINGS_NAME, LOCK_NAME):
                    (output / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    output.rmdir()
            raise


def finish(output: Path, facts: Mapping[str, Any] | None = None, *, timed: Collection[str] = ()) -> Manifest:
    """Write the manifest of a folder begun with `begin`; what it returns is what `read` returns.

    Hidden files, checkpoints, concept metadata and folders with a manifest of their own are not part of the content.

    Args:
        output: the folder.
        facts: what was measured on the way; not part of the fingerprint.
        timed: files that hold times: checked like all others, and not part of the fingerprint either.
    """
    header = read_json(output / SETTINGS_NAME)
    files = {
        name: {"num_bytes": (output / name).stat().st_size, "sha256": sha256_of_file(output / name)}
        for name in _content_of(output)
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
        CocomixError: it is missing, unfinished, of another kind or version, or damaged; the message names the file.
    """
    if not path.is_dir():
        raise CocomixError(f"{path} is not a folder; expected a {kind} made by cocomix")
    if not (path / MANIFEST_NAME).exists():
        if (path / SETTINGS_NAME).exists():
            raise CocomixError(f"{path} is unfinished; run the command that makes it again and it will continue")
        raise CocomixError(f"{path} has no {MANIFEST_NAME}; expected a {kind} made by cocomix")
    found = _read_object(path / MANIFEST_NAME)
    if found.get("kind") != kind:
        raise CocomixError(f"{path} holds a {found.get('kind')}, not a {kind}")
    if found.get("format_version") != FORMAT_VERSION:
        raise CocomixError(
            f"{path} has format version {found.get('format_version')}; this cocomix reads {FORMAT_VERSION}; make it again"
        )
    for name, expected in found["files"].items():
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
    return _as_manifest(path, found)


def fingerprint_of_path(path: Path) -> str:
    """Fingerprint of a folder: its manifest's, every byte checked, if it has one, else a hash of its files; or of a file."""
    if path.is_file():
        return sha256_of_file(path)
    if not path.is_dir():
        raise CocomixError(f"{path} is neither a folder nor a file")
    if (path / MANIFEST_NAME).exists():
        return read(path, str(_read_object(path / MANIFEST_NAME).get("kind"))).fingerprint
    return fingerprint_of_json({name: sha256_of_file(path / name) for name in _content_of(path)})


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise CocomixError(
            f"{path} is damaged (no JSON object); delete {path.parent} and run the command that made it again"
        )
    return value


def _has_content(output: Path) -> bool:
    """Whether anything but settings and hidden files is there."""
    return any(
        not entry.name.startswith(".") and entry.name not in (SETTINGS_NAME, CONFIG_NAME) for entry in output.iterdir()
    )


def _plain(value: Any) -> Any:
    """As YAML knows it."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _as_manifest(path: Path, body: Mapping[str, Any]) -> Manifest:
    return Manifest(path, body["kind"], body["settings"], body["facts"], body["files"], body["fingerprint"])


def _settings_of(output: Path, kind: str) -> dict[str, Any] | None:
    """Settings of the folder as found; None for an empty one; refuses what is not ours to write in."""
    if not (output / SETTINGS_NAME).exists():
        if any(not entry.name.startswith(".") for entry in output.iterdir()):
            raise CocomixError(f"{output} holds files that are not a {kind} of cocomix; choose another --output")
        return None
    header = _read_object(output / SETTINGS_NAME)
    if header.get("kind") != kind:
        raise CocomixError(f"{output} holds a {header.get('kind')}, not a {kind}; choose another --output")
    if header.get("format_version") != FORMAT_VERSION:
        raise CocomixError(f"{output} was written by another version of cocomix; use --overwrite to replace it")
    return dict(header["settings"])


def _differences(found: Any, wanted: Any, prefix: str = "") -> list[str]:
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return [] if found == wanted else [f"{prefix}: {_short(found)} there, {_short(wanted)} now"]
    names: list[str] = []
    for key in sorted(found.keys() | wanted.keys()):
        names += _differences(found.get(key), wanted.get(key), f"{prefix}.{key}" if prefix else key)
    return names


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:12] + "…"


def _content_of(path: Path) -> list[str]:
    names = []
    # A folder of another origin may have a config.yaml that is content.
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
    # The manifest goes first and the settings last: whatever interrupts, what is left is an unfinished folder of ours.
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
    """Versions of Python and of the libraries that work depends on."""
    versions = {"python": platform.python_version()}
    for name in _RECORDED_LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
