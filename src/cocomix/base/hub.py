"""Files from the Hugging Face Hub, only when a name on it was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cocomix.base.errors import CocomixError, reason_of


def download(name: str, repository: str, patterns: Sequence[str]) -> Path:
    """Download what matches `patterns` of a repository, or find it in the cache; the folder with its files.

    Args:
        name: what the user gave, for the message.
        repository: `organisation/repository`, or `repository` alone for the oldest models.
        patterns: file names, with `*`.

    Raises:
        CocomixError: it can't be downloaded.
    """
    from huggingface_hub import snapshot_download  # not before a name needs it

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as error:  # the library below raises a dozen kinds of its own
        raise CocomixError(
            f"{name} does not exist here, and {repository} could not be downloaded from the Hugging Face Hub: "
            f"{reason_of(error)}"
        ) from error
