"""Work on a token dataset that is done once, window by window, and written as shards beside it.

A shard's content depends on nothing but its windows and the settings. So it does not matter which process writes which shard:
interrupted work goes on at the first missing one, `torchrun` deals shards out to its ranks, on any number of machines with a
common file system, and all end with the same bytes. Beside each finished shard lies a note with its checksum and the
settings it was made with; a shard without a note that holds is made again.
"""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.progress import ProgressLine, say
from cocomix.base.ranks import Ranks, joined_ranks
from cocomix.data.shards import shard_name


class ShardWork(abc.ABC):
    """The shards of one dataset, and the notes beside them.

    Args:
        folder: where they are.
        settings: of the whole dataset; a shard made with others is not taken. `num_windows` is among them.
        windows_per_shard: windows in one file.
        batch_size: windows in one pass.
        context_length: tokens of a window.
    """

    description: str

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], windows_per_shard: int, batch_size: int, context_length: int
    ) -> None:
        self.folder, self.num_windows = folder, int(settings["num_windows"])
        self.windows_per_shard, self.batch_size, self.context_length = windows_per_shard, batch_size, context_length
        self.made_with = artifacts.fingerprint_of_json(dict(settings))
        self.num_shards = -(-self.num_windows // windows_per_shard)

    @abc.abstractmethod
    def write(self, index: int, batches: Iterator[range]) -> dict[str, Any]:
        """Write the shard `index` from its windows, taken batch by batch; returns what its note says besides."""

    @abc.abstractmethod
    def facts(self, notes: list[dict[str, Any]]) -> dict[str, Any]:
        """What the manifest says besides, from the notes of all shards."""

    def write_missing(self, ranks: Ranks) -> None:
        """This rank's part of the shards that are not there: every `size`-th shard."""
        mine = range(ranks.rank, self.num_shards, ranks.size)
        missing = [index for index in mine if self._note(index) is None]
        done = sum(len(self._windows(index)) for index in mine) - sum(len(self._windows(index)) for index in missing)
        T = self.context_length
        description = self.description + (f", rank 0 of {ranks.size}" if ranks.size > 1 else "")
        total = sum(len(self._windows(index)) for index in mine) * T
        with ProgressLine(description, total, completed=done * T, shown=ranks.is_first) as progress:
            for index in missing:
                started = time.perf_counter()
                note = self.write(index, self._batches(index, progress))
                note |= {
                    "made_with": self.made_with,
                    "sha256": artifacts.sha256_of_file(self.folder / shard_name(index)),
                    "seconds": time.perf_counter() - started,
                }
                artifacts.write_json(self._note_path(index), note)

    def finish(self) -> artifacts.Manifest:
        """The manifest, if every shard is there."""
        notes = []
        for index in range(self.num_shards):
            note = self._note(index)
            if note is None:
                raise CocomixError(
                    f"{self.folder / shard_name(index)} was not written whole; run the same command again"
                )
            notes.append(note)
        facts = {"num_shards": self.num_shards, "seconds": round(sum(note["seconds"] for note in notes), 3)}
        return artifacts.finish(self.folder, facts | self.facts(notes))

    def _batches(self, index: int, progress: ProgressLine) -> Iterator[range]:
        windows = self._windows(index)
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            yield batch
            progress.advance(len(batch) * self.context_length)

    def _windows(self, index: int) -> range:
        size = self.windows_per_shard
        return range(index * size, min((index + 1) * size, self.num_windows))

    def _note(self, index: int) -> dict[str, Any] | None:
        """The note of a shard if it holds: the shard is whole, and made with these settings."""
        shard, path = self.folder / shard_name(index), self._note_path(index)
        try:
            note: dict[str, Any] = artifacts.read_json(path)
            holds = note["made_with"] == self.made_with and note["sha256"] == artifacts.sha256_of_file(shard)
        except (OSError, CocomixError, KeyError, TypeError):
            return None
        return note if holds else None

    def _note_path(self, index: int) -> Path:
        return self.folder / f".{shard_name(index)}.json"


def finish_work(
    output: Path, kind: str, settings: Mapping[str, Any], work: Callable[[], ShardWork], *, overwrite: bool
) -> artifacts.Manifest:
    """Make a dataset of shards, continue an interrupted one, or recognise a finished one; alone or under `torchrun`.

    Args:
        output: its folder.
        kind: what it holds, such as `concept-dataset`.
        settings: everything that determines the content.
        work: makes the shards; called where there is something to do.
        overwrite: replace what a former run left in the folder.
    """
    with joined_ranks() as ranks, contextlib.ExitStack() as stack:
        begun = artifacts.begin(output, kind, settings, overwrite=overwrite)
        finished = ranks.from_first(lambda: stack.enter_context(begun))
        if finished:
            if ranks.is_first:
                say(f"{output}: the {kind.replace('-', ' ')} is there already")
            return finished
        shards = work()
        shards.write_missing(ranks)
        ranks.wait()
        return ranks.from_first(shards.finish)
