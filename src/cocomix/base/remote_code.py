"""Python code that comes with a model or a tokenizer: it runs only where `cocomix --trust-remote-code` says so.

`transformers` asks on standard input where nobody told it, so every loader here passes `trust_remote_code=is_trusted()`.
"""

from __future__ import annotations

from pathlib import Path

from cocomix.base.errors import reason_of
from cocomix.base.foreign import require_content

OPTION = "--trust-remote-code"

_trusted = False


def trust_remote_code() -> None:
    """From now on, let this process run the code of the models and tokenizers that it loads."""
    global _trusted
    _trusted = True


def is_trusted() -> bool:
    """Whether this process runs the code of the models and tokenizers that it loads."""
    return _trusted


def loading_reason(error: Exception, source: Path | str) -> str:
    """Why a library could not load something from a folder or file, or under a Hub name; to end an error message with.

    Raises:
        CocomixError: a file is a pointer of Git LFS, which says all.
    """
    require_content(Path(source))
    if "trust_remote_code" in str(error):
        return f"it needs Python code that comes with it, which runs only with `cocomix {OPTION} COMMAND`"
    files = [Path(source) / name for name in ("config.json", "tokenizer_config.json")]
    names_code = any(
        "auto_map" in file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()
    )
    hint = f"; it names Python code, which runs only with `cocomix {OPTION} COMMAND`"
    return reason_of(error) + (hint if names_code and not _trusted else "")
