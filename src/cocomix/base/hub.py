"""Names on the Hugging Face Hub, and downloads from it, made only when the user gives such a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.kinds import METRICS_NAME
from cocomix.base.remote_code import is_trusted

#: The metrics are part of a training run, and checked with it.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", METRICS_NAME)
#: Of a tokenizer, whatever its kind.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
#: A dictionary's repository, and a folder or file inside it.
HUB_PLACE = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<inside>.+))?")


def may_be_on_hub(name: str) -> bool:
    """Whether a name has the form of a Hub repository's, `organisation/name` or `name`."""
    return _HUB_NAME.fullmatch(name) is not None


def require_known_place(what: str, path: Path | str, file: str = "GGUF file") -> None:
    """Refuse a path that does not exist and can't be a Hub name, as `./name` can't.

    Raises:
        CocomixError: it is neither; the message begins with `what` it should be, and says which `file` it can be.
    """
    if not Path(path).exists() and not may_be_on_hub(str(path)):
        raise CocomixError(f"{what} {path} does not exist; give a folder, a {file} or a Hub name")


def local_model(path: Path) -> Path:
    """The path itself if it exists or can't be a Hub name; otherwise the folder of the model downloaded under that name.

    Raises:
        CocomixError: the download failed.
    """
    if path.exists() or not may_be_on_hub(str(path)):
        return path
    return download(str(path), str(path), (*MODEL_FILES, "*.py") if is_trusted() else MODEL_FILES)


def download(name: str, repository: str, patterns: Sequence[str], **options: Any) -> Path:
    """Download the files of a repository that match `patterns`, unless they are cached; returns their folder.

    Args:
        name: name that the user gave, for the error message.
        repository: `organisation/repository`, or `repository` alone for the oldest models.
        patterns: file names, with `*`.
        options: of `snapshot_download`, such as `revision`.

    Raises:
        CocomixError: the files can't be downloaded.
    """
    from huggingface_hub import errors, snapshot_download  # only when needed

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), **options))
    except Exception as error:  # the library raises a dozen types of its own
        found = f"did not give {repository}: {reason_of(error)}"
        if isinstance(error, errors.RepositoryNotFoundError):
            found = f"has no {repository}, or shows it only after a login"
        elif isinstance(error, errors.LocalEntryNotFoundError | ConnectionError):
            found = f"can't be reached for {repository}"
        raise CocomixError(f"there is no folder or file {name} here, and the Hugging Face Hub {found}") from error
