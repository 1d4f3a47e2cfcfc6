"""Downloads from the Hugging Face Hub, made only when the user gives a name on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError, reason_of


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
    from huggingface_hub import snapshot_download  # only when needed

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), **options))
    except Exception as error:  # the library raises a dozen types of its own
        raise CocomixError(
            f"{name} does not exist here, and {repository} could not be downloaded from the Hugging Face Hub: "
            f"{reason_of(error)}"
        ) from error
