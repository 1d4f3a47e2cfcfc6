"""What the configurations of all commands have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar


class CommandConfig:
    """The configuration of a command, which knows what can be said before anything is computed and torch is loaded."""

    example: ClassVar[str] = ""
    """A command line that people type, for `--help`."""
    common: ClassVar[Sequence[str]] = ()
    """The fields that `--help` shows, in order; of a nested configuration, those that it names itself."""
    opens: ClassVar[str] = ""
    """The file in `output` that a person opens when the command has ended; empty if there is none."""

    def settings(self) -> dict[str, Any]:
        """The options that determine what is in the output folder; its settings hold these and the inputs' fingerprints."""
        return {}

    def check_files(self) -> None:
        """Refuse options that contradict the files that others name; those exist and are of the right kind.

        Raises:
            CocomixError: an option asks for what a file does not hold.
        """

    def shown(self, result: Any) -> str:
        """What a command that returns no text prints on standard output: its folder, unless it has numbers to show."""
        return str(getattr(self, "output", ""))

    def next_command(self) -> Sequence[object]:
        """The words of the command to type when this one has ended; none if nothing follows."""
        return ()


def beside(folder: Path, name: str) -> Path:
    """A folder's neighbour, under which the next command would write."""
    return folder.parent / name
