"""What a failure is called: a sentence for what an input or the machine did, a file with the traceback for the rest."""

from __future__ import annotations

import errno
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator

from cocomix.base.errors import OUT_OF_MEMORY, CocomixError, reason_of, shortened
from cocomix.base.formats import format_bytes

#: Longest part of a library's message that is shown.
MAX_REASON = 300
_TOO_LARGE = re.compile(r"overflow|too large to convert|Maximum allowed dimension|array is too big", re.IGNORECASE)


def sentence_of(error: BaseException) -> str | None:
    """A sentence for a failure that is no fault of the program; None for any other.

    A library, or cocomix itself, may raise another error because of such a failure: all causes of an error are looked at.
    """
    causes = list(_causes(error, implicit=True))
    for each in causes:
        if _is_disk_full(each):
            return f"the disk is full ({_reason(each)}); free some space and run the same command again"
    if isinstance(error, CocomixError):
        return str(error)
    for each in causes:
        if isinstance(each, MemoryError) or OUT_OF_MEMORY.search(_text(each)):
            return f"there is not enough memory{_amount_asked_for(each)}; choose smaller sizes or batches"
    for each in _causes(error, implicit=False):
        if isinstance(each, CocomixError):
            return str(each)
        if isinstance(each, OSError) and each.filename is not None and each.strerror is not None:
            question = "; was it moved or deleted meanwhile?" if each.errno == errno.ENOENT else ""
            return f"{each.filename} can't be used: {each.strerror}{question}"
        if isinstance(each, OverflowError) or _TOO_LARGE.search(_text(each)):
            return f"a number is too large for this machine ({_reason(each)}); choose smaller sizes"
    return None


def unforeseen(error: BaseException) -> str:
    """A sentence for any other failure; its traceback is written to a file, or printed where there is no room for one."""
    text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace")
    try:
        with tempfile.NamedTemporaryFile(prefix="cocomix-", suffix=".txt", delete=False) as file:
            file.write(text)
        place = f"in {file.name}"
    except OSError:
        print(text.decode(), end="", file=sys.stderr)
        place = "above"
    return f"unexpected {type(error).__name__}: {_reason(error)}; its traceback is {place}"


def _causes(error: BaseException, *, implicit: bool) -> Iterator[BaseException]:
    """The error and what it was raised from; with `implicit` also what was being handled when it was raised."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        context = cause.__context__ if implicit and not cause.__suppress_context__ else None
        cause = cause.__cause__ or context


def _is_disk_full(error: BaseException) -> bool:
    """Whether the disk was full; libraries written in Rust report that in exceptions of their own."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in _text(error)


def _amount_asked_for(error: BaseException) -> str:
    found = re.search(r"allocate (?:(\d+) bytes|([\d.]+ \wiB))", _text(error))
    return f" ({format_bytes(int(found[1])) if found[1] else found[2]} were asked for)" if found else ""


def _text(error: BaseException) -> str:
    """The message of a library's error; our own sentences are not searched for words."""
    return "" if isinstance(error, CocomixError) else str(error)


def _reason(error: BaseException) -> str:
    return shortened(reason_of(error), MAX_REASON)
