"""A name on the Hugging Face Hub, where no local path has it."""

from __future__ import annotations

import re
from pathlib import Path

from cocomix.base.errors import CocomixError
from cocomix.base.hub import download
from cocomix.sae.formats.recognition import FILES

_HUB_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<inside>.+))?")


def local_path(path: Path | str) -> Path:
    """The path itself where something is there; else what was downloaded from the Hub under that name.

    `organisation/repository` is looked up at the repository's root, `organisation/repository/inside` in a folder or as a
    file of it. Only files of known formats are downloaded.
    """
    if Path(path).exists():
        return Path(path)
    match = _HUB_NAME.fullmatch(str(path))
    if match is None:
        raise CocomixError(f"{path} does not exist, and is no name on the Hugging Face Hub (organisation/repository)")
    repository, inside = match["repository"], match["inside"]
    names = sorted(set().union(*FILES.values()))
    patterns = [f"{inside}/{name}" for name in names] + [inside] if inside else names
    folder = download(str(path), repository, patterns)
    found = folder / inside if inside else folder
    if not found.exists():
        raise CocomixError(f"{repository} on the Hugging Face Hub has no dictionary at {inside}")
    return found
