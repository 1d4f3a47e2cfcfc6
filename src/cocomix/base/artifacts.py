"""Folders that describe themselves.

Every stage writes one folder. `settings.json` is written first and says what the folder will hold. `manifest.json` is
written last and lists every file with its size and SHA-256, so a folder without a manifest is unfinished and a folder
with one can be checked. Both files carry a checksum of themselves. Settings hold what determines the content (options,
seeds, fingerprints of the inputs), never paths or times: two folders with equal fingerprints are interchangeable.

`config.yaml` records the options as given, paths included, for people and for `--config`; it is not part of the content.

    begin()  starts a new folder, continues an unfinished one with equal settings, or returns the manifest of a finished one
    finish() writes the manifest
    read()   checks the kind, the version and every byte, and returns the manifest
    check()  does the same for a folder of any kind, and lets a folder pass that cocomix did not make

Format 1, of cocomix 0.1, had no checksums: its fingerprint covers settings and files, but nothing covers its facts.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cocomix.base.errors import CocomixError, shortened
from cocomix.base.foreign import POINTER_SENTENCE, is_lfs_pointer
from cocomix.base.kinds import KINDS, METRICS_NAME, Kind, named_inside
from cocomix.base.parsing import parse_json

FORMAT_VERSION = 2
_READ_VERSIONS = (1, FORMAT_VERSION)
SETTINGS_NAME = "settings.json"
MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.yaml"
LOCK_NAME = ".lock"
#: In a folder of work that is not finished or can be made again: SHA-256 of its files, by name.
CHECKSUMS_NAME = "checksums.json"
#: Metadata of concepts, kept beside a model's weights by people and `cocomix inspect`; not part of a folder's content.
CONCEPT_METADATA_NAMES = ("concept_names.json", "concept_statistics.json", "concept_directions.safetensors")
#: The model card of a training run, for people to add to; not part of its content either.
CARD_NAME = "README.md"

#: Libraries whose version can change the content of an artefact.
_RECORDED_LIBRARIES = ("cocomix", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")

#: What the settings file and the manifest both say of a folder.
_HEADER = ("kind", "format_version", "settings")
_FILE_ENTRY = {"num_bytes", "sha256"}


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


def read_checksums(folder: Path) -> dict[str, str]:
    """The content of a folder's `checksums.json`; nothing if it is missing or damaged, so that the work is done again."""
    try:
        recorded = read_json(folder / CHECKSUMS_NAME)
    except (OSError, CocomixError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def checksums_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of some files of a folder, by name; a missing one is left out."""
    return {name: sha256_of_file(folder / name) for name in sorted(names) if (folder / name).is_file()}


def sealed(body: Mapping[str, Any], name: str = "checksum") -> dict[str, Any]:
    """A JSON object with a checksum of its other members, called `name`."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(body)))
    return {**plain, name: fingerprint_of_json(plain)}


def is_sealed(value: Any, name: str = "checksum") -> bool:
    """Whether a JSON value is an object that `sealed` made."""
    if not isinstance(value, dict):
        return False
    try:
        body = {key: member for key, member in value.items() if key != name}
        return bool(value.get(name) == fingerprint_of_json(body))
    except (ValueError, RecursionError):  # JSON that we never write: half a surrogate pair, nesting without end
        return False


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of_json(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def fingerprint_of_settings(settings: Mapping[str, Any]) -> str:
    """Fingerprint of settings, in which a null equals a missing one: options come and go between versions."""
    return fingerprint_of_json(_without_nulls(settings))


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
        CocomixError: the folder holds something else or was made with other settings, another process is writing it, or it
            was deleted while it was written.
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
        if stored is not None:
            _refuse(output, differences)
        is_begun = stored is not None
        try:
            if not is_begun:
                header = {"kind": kind, "format_version": FORMAT_VERSION, "settings": wanted}
                write_json(output / SETTINGS_NAME, sealed(header))
                is_begun = True
            is_finished = (output / MANIFEST_NAME).exists()
            if config is not None and not is_finished:
                write_yaml(output / CONFIG_NAME, {key: value for key, value in config.items() if key != "overwrite"})
            yield read(output, kind) if is_finished else None
        except BaseException as error:
            if is_begun and not (output / SETTINGS_NAME).exists():
                raise CocomixError(f"{output} was deleted while it was written; run the same command again") from error
            if not _has_content(output):  # it failed before anything was written: leave no trace
                for name in (CONFIG_NAME, SETTINGS_NAME, LOCK_NAME):
                    (output / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    output.rmdir()
            raise


def check_output(output: Path, kind: str, settings: Mapping[str, Any] | None = None) -> None:
    """Refuse a path at which no folder of this kind can be made; writes nothing.

    Args:
        output: the path.
        kind: what the folder is to hold.
        settings: some of its settings, to compare with those of a folder that is there; None: it may be replaced.

    Raises:
        CocomixError: it is a file, or below one, or a folder that holds something else or was made with other settings, or it
            can't be written.
    """
    if output.is_dir():
        stored = _stored_settings(output, kind)
        if stored is not None and settings is not None and _has_content(output):
            same = {name: stored.get(name) for name in settings}
            _refuse(output, _differences(same, json.loads(json.dumps(dict(settings)))))
        return
    if output.exists():
        raise CocomixError(f"{output} is a file; --output takes a folder")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise CocomixError(f"{output} can't be made: {above} above it is a file, not a folder")
    if not os.access(above, os.W_OK):
        raise CocomixError(f"{output} can't be made: {above} can't be written")


def finish(output: Path, facts: Mapping[str, Any] | None = None) -> Manifest:
    """Write and return the manifest of a folder begun with `begin`.

    Hidden files, checkpoints, model cards, concept metadata and nested folders that describe themselves are not part of the
    content.

    Args:
        output: the folder.
        facts: measurements; not part of the fingerprint.

    Raises:
        CocomixError: a file that such a folder must have is missing, or `settings.json` is damaged.
    """
    header = read_header(output) | {"format_version": FORMAT_VERSION}
    files = {
        name: {"num_bytes": (output / name).stat().st_size, "sha256": sha256_of_file(output / name)}
        for name in _content_files(output)
    }
    for pattern in KINDS.get(header["kind"], Kind()).required:
        if not fnmatch.filter(files, pattern):
            raise CocomixError(f"{output / pattern} is missing; run the same command again")
    body = {**header, "files": files}
    body |= {"facts": dict(facts or {}), "fingerprint": _identity(body), "versions": recorded_versions()}
    manifest = sealed(body)
    write_json(output / SETTINGS_NAME, sealed(header))  # in today's format, whatever it was begun in
    write_json(output / MANIFEST_NAME, manifest)
    return _as_manifest(output, manifest)


def read(path: Path, kind: str | None, files: Collection[str] | None = None) -> Manifest:
    """Open a finished folder, and check its manifest and every byte of its files.

    Args:
        path: the folder.
        kind: what it must hold; None: any kind.
        files: names of the files that are used, where hashing all of them would take too long; None: all; empty: the
            manifest alone is checked.

    Raises:
        CocomixError: the folder is missing, unfinished, of another kind or version, or damaged; the message names the file.
    """
    expected = f"a {kind}" if kind else "a folder"
    if not path.is_dir():
        raise CocomixError(f"{path} is not a folder; expected {expected} made by cocomix")
    if not (path / MANIFEST_NAME).exists():
        if (path / SETTINGS_NAME).exists():
            raise CocomixError(f"{path} is unfinished; run the command that made it again to continue")
        inside = named_inside(path, MANIFEST_NAME, kind)
        raise CocomixError(f"{path} has no {MANIFEST_NAME}; expected {expected} made by cocomix{inside}")
    manifest = parse_manifest((path / MANIFEST_NAME).read_bytes(), path, kind)
    if read_header(path) != {name: manifest[name] for name in _HEADER}:
        raise _damaged(path, f"{path / SETTINGS_NAME} does not match {MANIFEST_NAME}")
    for name in manifest["files"] if files is None else files:
        file, entry = path / name, manifest["files"].get(name)
        if entry is None:
            problem = f"is not in {MANIFEST_NAME}"
        elif not file.exists():
            problem = "is missing"
        elif file.is_file() and is_lfs_pointer(file):
            raise CocomixError(f"{file} {POINTER_SENTENCE}")
        elif file.stat().st_size != entry["num_bytes"]:
            problem = f"has {file.stat().st_size} bytes instead of {entry['num_bytes']}"
        elif sha256_of_file(file) != entry["sha256"]:
            problem = "does not match its checksum"
        else:
            continue
        raise _damaged(path, f"{file} {problem}")
    added = set(_content_files(path)) - manifest["files"].keys()
    for pattern in KINDS.get(manifest["kind"], Kind()).by_name:
        for name in fnmatch.filter(added, pattern):
            if name.count("/") == pattern.count("/"):
                raise CocomixError(
                    f"{path / name} was added to a finished folder, where it would be read; move it elsewhere"
                )
    return _as_manifest(path, manifest)


def check(path: Path, files: Collection[str] | None = None) -> Manifest | None:
    """The manifest of a folder of any kind, checked as by `read`; None for a folder or file that cocomix did not make.

    Raises:
        CocomixError: the folder is unfinished, of another version, or damaged.
    """
    return read(path, None, files) if (path / MANIFEST_NAME).exists() or _is_begun(path) else None


def parse_manifest(text: str | bytes, folder: Path | str, kind: str | None) -> dict[str, Any]:
    """The content of a `manifest.json`, which must be as it was written.

    Args:
        text: of the file.
        folder: its folder or address, for messages.
        kind: what the folder must hold; None: any kind.

    Raises:
        CocomixError: it is damaged, or of another kind or version.
    """
    place = f"{folder}/{MANIFEST_NAME}"
    try:
        manifest = parse_json(text, place)
    except CocomixError as error:
        raise _damaged(folder, str(error)) from error
    if not _has_shape(manifest):
        raise _damaged(folder, f"{place} is not as it was written")
    found, version = manifest["kind"], manifest["format_version"]
    if kind not in (None, found):
        raise CocomixError(f"{folder} holds a {found}, not a {kind}{named_inside(Path(folder), MANIFEST_NAME, kind)}")
    if version not in _READ_VERSIONS:
        raise CocomixError(
            f"{folder} has format version {_shown(version)}, but this cocomix reads 1 to {FORMAT_VERSION}; make it again"
        )
    if version != 1 and not is_sealed(manifest):
        raise _damaged(folder, f"{place} is not as it was written")
    if manifest["fingerprint"] != _identity(manifest):
        raise _damaged(folder, f"{place} does not match its fingerprint")
    return dict(manifest)


def read_header(folder: Path) -> dict[str, Any]:
    """`kind`, `format_version` and `settings` of a folder that was begun, finished or not.

    Raises:
        CocomixError: `settings.json` is missing, damaged or of another version.
    """
    file = folder / SETTINGS_NAME
    if not file.exists():
        raise _damaged(folder, f"{file} is missing")
    header = read_json(file)
    has_shape = _has_header(header)
    if has_shape and header["format_version"] not in _READ_VERSIONS:
        raise CocomixError(f"{folder} was written by another version of cocomix; use --overwrite to replace it")
    if not has_shape or (header["format_version"] != 1 and not is_sealed(header)):
        raise CocomixError(
            f"{file} is not as cocomix wrote it; choose another folder, or delete {folder} if cocomix made it, and run the "
            "command again"
        )
    return {name: header[name] for name in _HEADER}


def fingerprint_of_path(path: Path) -> str:
    """Fingerprint of a file, or of a folder: its manifest's, with every byte checked, or a hash of the files of a folder that
    cocomix did not make.
    """
    if path.is_file():
        return sha256_of_file(path)
    if not path.is_dir():
        raise CocomixError(f"{path} is neither a folder nor a file")
    manifest = check(path)
    if manifest is not None:
        return manifest.fingerprint
    return fingerprint_of_json({name: sha256_of_file(path / name) for name in _content_files(path)})


def _damaged(folder: Path | str, problem: str) -> CocomixError:
    return CocomixError(f"{problem}: {folder} is damaged; delete that folder and run the command again")


def _is_begun(path: Path) -> bool:
    """Whether the folder has settings of ours; other programs have a `settings.json` too."""
    try:
        header = read_json(path / SETTINGS_NAME) if (path / SETTINGS_NAME).exists() else None
    except CocomixError:
        return False
    return isinstance(header, dict) and str(header.get("kind")) in KINDS


def _identity(manifest: Mapping[str, Any]) -> str:
    """Fingerprint of what determines later results: the settings and the files, but those with times and measurements."""
    is_old = manifest["format_version"] == 1
    aside = (METRICS_NAME,) if is_old else KINDS.get(manifest["kind"], Kind()).aside
    files = {name: entry for name, entry in manifest["files"].items() if name not in aside}
    return fingerprint_of_json({**{name: manifest[name] for name in _HEADER}, "files": files})


def _has_header(value: Any) -> bool:
    types = (str, int, dict)
    return isinstance(value, dict) and all(isinstance(value.get(n), t) for n, t in zip(_HEADER, types, strict=True))


def _has_shape(manifest: Any) -> bool:
    """Whether a manifest has the entries that are read; in format 1 nothing else says so."""
    return (
        _has_header(manifest)
        and isinstance(manifest.get("fingerprint"), str)
        and all(isinstance(manifest.get(name), dict) for name in ("files", "facts"))
        and all(isinstance(entry, dict) and entry.keys() == _FILE_ENTRY for entry in manifest["files"].values())
    )


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
    header = read_header(output)
    if header["kind"] != kind:
        raise CocomixError(f"{output} holds a {header['kind']}, not a {kind}; choose another --output")
    return dict(header["settings"])


def _refuse(output: Path, differences: Sequence[str]) -> None:
    """Refuse a folder whose settings differ."""
    if differences:
        raise CocomixError(
            f"{output} was made with other settings ({', '.join(differences)}); choose another --output, or --overwrite to "
            "replace it"
        )


def _differences(stored: Any, wanted: Any, prefix: str = "") -> list[str]:
    if not (isinstance(stored, dict) and isinstance(wanted, dict)):
        return [] if stored == wanted else [f"{prefix}: {_shown(stored)} there, {_shown(wanted)} now"]
    differences: list[str] = []
    for key in sorted(stored.keys() | wanted.keys()):
        differences += _differences(stored.get(key), wanted.get(key), f"{prefix}.{key}" if prefix else key)
    return differences


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_nulls(item) for key, item in value.items() if item is not None}


def _shown(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False), 24)  # of a fingerprint enough to tell it from another


def _content_files(path: Path) -> list[str]:
    names = []
    # In a folder that cocomix did not make, config.yaml and README.md may be content.
    about = (
        SETTINGS_NAME,
        MANIFEST_NAME,
        *CONCEPT_METADATA_NAMES,
        *([CONFIG_NAME, CARD_NAME] if (path / SETTINGS_NAME).exists() else []),
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
