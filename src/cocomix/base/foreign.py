"""What files that others wrote can hold in place of what their names say."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cocomix.base.errors import CocomixError

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
#: Of a pointer, after the file's name.
POINTER_SENTENCE = "is a pointer of Git LFS, not the file itself; run `git lfs pull` in its repository"


def is_lfs_pointer(file: Path) -> bool:
    """Whether the file only says where Git LFS has the real one."""
    with file.open("rb") as opened:
        return opened.read(len(LFS_POINTER)) == LFS_POINTER


def require_content(path: Path) -> None:
    """Refuse a file that is a pointer of Git LFS, or a folder with one.

    Raises:
        CocomixError: a file is one; the message names it.
    """
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file() and is_lfs_pointer(file):
            raise CocomixError(f"{file} {POINTER_SENTENCE}")


def require_uncompiled(names: Iterable[str], place: object) -> None:
    """Refuse weights with the names that `torch.compile` gives them.

    Args:
        names: of the weights.
        place: their folder or file, for the message.

    Raises:
        CocomixError: a name is one of a compiled model.
    """
    if any("_orig_mod." in name for name in names):
        raise CocomixError(
            f"the names of the weights in {place} hold `_orig_mod.`, so they were saved from a compiled model; save its "
            "`_orig_mod` instead, or take that part out of the names"
        )
