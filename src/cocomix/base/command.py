"""What the configurations of all commands have in common."""

from __future__ import annotations

from typing import Any


class CommandConfig:
    """The configuration of a command, which knows what can be said before anything is computed and torch is loaded."""

    def settings(self) -> dict[str, Any]:
        """The options that determine what is in the output folder; its settings hold these and the inputs' fingerprints."""
        return {}

    def check_files(self) -> None:
        """Refuse options that contradict the files that others name; those exist and are of the right kind.

        Raises:
            CocomixError: an option asks for what a file does not hold.
        """
