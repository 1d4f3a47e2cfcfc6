"""Work on a token dataset that is done once, window by window, and written as shards beside it.

A shard's content depends on its windows and the settings alone, so it does not matter which process writes it. Interrupted
work continues at the first missing shard; `torchrun` shares the shards among its ranks, on any number of machines with a
common file system; the bytes at the end are the same. Beside each finished shard lies its receipt, with the checksum of the
shard, a fingerprint of the settings and a checksum of the receipt itself; a shard without a valid receipt is made again.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.compute import ComputeConfig
from cocomix.base.devices import Machine, chosen_precision, this_device
from cocomix.base.errors import CocomixError
from cocomix.base.progress import ProgressLine, say
from cocomix.base.ranks import Ranks, joined_ranks
from cocomix.data.shards import shard_name


class ShardWork(abc.ABC):
    """The shards of one dataset, and their receipts.

    Args:
        folder: of the dataset.
        settings: of the whole dataset; a shard that was made with other settings is made again. `num_windows` of it are
            in all, `windows_per_shard` in one file, and `batch_size` in one pass and, without the former, in one file.
        context_length: tokens of a window.
    """

    description: str
    extension = "parquet"

    def __init__(self, folder: Path, settings: Mapping[str, Any], context_length: int) -> None:
        self.folder, self.context_length = folder, context_length
        self.num_windows, self.batch_size = int(settings["num_windows"]), int(settings["batch_size"])
        self.windows_per_shard = int(settings.get("windows_per_shard", self.batch_size))
        self.made_with = artifacts.fingerprint_of_json(dict(settings))
        self.num_shards = -(-self.num_windows // self.windows_per_shard)

    @abc.abstractmethod
    def make(self, batches: Iterator[range]) -> Any:
        """What one shard holds, of its windows batch by batch, in this machine's memory."""

    @abc.abstractmethod
    def write(self, index: int, content: Any) -> dict[str, Any]:
        """Write the shard `index` from what `make` made; returns further entries of its receipt. Runs in a thread."""

    @abc.abstractmethod
    def facts(self, receipts: list[dict[str, Any]]) -> dict[str, Any]:
        """Further facts of the manifest, from the receipts of all shards."""

    def path(self, index: int) -> Path:
        """File of a shard."""
        return self.folder / shard_name(index, self.extension)

    def write_missing(self, ranks: Ranks) -> None:
        """Write this rank's part of the missing shards: every `size`-th shard is its own."""
        mine = range(ranks.rank, self.num_shards, ranks.size)
        missing = [index for index in mine if self._receipt(index) is None]
        done = sum(len(self._windows(index)) for index in mine) - sum(len(self._windows(index)) for index in missing)
        T = self.context_length
        description = self.description + (f", rank 0 of {ranks.size}" if ranks.size > 1 else "")
        total = sum(len(self._windows(index)) for index in mine) * T
        line = ProgressLine(description, total, completed=done * T, shown=ranks.is_first)
        # A shard is written while the next one is made: on an accelerator, writing takes a quarter as long.
        with line as progress, ThreadPoolExecutor(1) as writer:
            written: Future[None] | None = None
            for index in missing:
                started = time.perf_counter()
                content = self.make(self._batches(index, progress))
                seconds = time.perf_counter() - started
                if written is not None:
                    written.result()
                written = writer.submit(self._write, index, content, seconds)
            if written is not None:
                written.result()

    def _write(self, index: int, content: Any, seconds: float) -> None:
        """Write a shard that took some seconds to make, and then its receipt."""
        started = time.perf_counter()
        receipt = self.write(index, content)
        receipt |= {
            "made_with": self.made_with,
            "sha256": artifacts.sha256_of_file(self.path(index)),
            "seconds": seconds + time.perf_counter() - started,
        }
        artifacts.write_json(self._receipt_path(index), artifacts.sealed(receipt))

    def finish(self) -> artifacts.Manifest:
        """Write the manifest, if every shard is complete."""
        receipts = []
        for index in range(self.num_shards):
            receipt = self._receipt(index)
            if receipt is None:
                raise CocomixError(f"{self.path(index)} was not written whole; run the same command again")
            receipts.append(receipt)
        seconds = sum(receipt["seconds"] for receipt in receipts)
        facts = {"num_shards": self.num_shards, "seconds": round(seconds, 3)}
        return artifacts.finish(self.folder, facts | self.facts(receipts))

    def _batches(self, index: int, progress: ProgressLine) -> Iterator[range]:
        windows = self._windows(index)
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            yield batch
            progress.advance(len(batch) * self.context_length)

    def _windows(self, index: int) -> range:
        size = self.windows_per_shard
        return range(index * size, min((index + 1) * size, self.num_windows))

    def _receipt(self, index: int) -> dict[str, Any] | None:
        """The receipt of a shard if it is valid: the shard is whole, and made with these settings."""
        shard, path = self.path(index), self._receipt_path(index)
        try:
            receipt: dict[str, Any] = artifacts.read_json(path)
            is_valid = artifacts.is_sealed(receipt) and receipt["made_with"] == self.made_with
            return receipt if is_valid and receipt["sha256"] == artifacts.sha256_of_file(shard) else None
        except (OSError, CocomixError):
            return None

    def _receipt_path(self, index: int) -> Path:
        path = self.path(index)
        return path.with_name(f".{path.name}.json")


@contextlib.contextmanager
def machine_of_ranks(compute: ComputeConfig, size: Callable[[], tuple[int, int]], output: Path) -> Iterator[Machine]:
    """This rank's machine, with the same precision on every rank; the ranks are joined meanwhile.

    The arguments are those of `this_machine`.
    """
    device = this_device(compute.device)
    with joined_ranks(device) as ranks:
        choose = functools.partial(chosen_precision, compute.precision, device, size, output)
        yield Machine(device, ranks.on_first_rank(choose))


def finish_work(
    output: Path, kind: str, settings: Mapping[str, Any], work: Callable[[], ShardWork], *, overwrite: bool
) -> artifacts.Manifest:
    """Make a dataset of shards, continue an interrupted one, or recognise a finished one; alone or under `torchrun`.

    Args:
        output: its folder.
        kind: what it holds, such as `concept-dataset`.
        settings: everything that determines the content.
        work: makes the shards; called if any work is left.
        overwrite: replace what an earlier run left in the folder.
    """
    with joined_ranks() as ranks, contextlib.ExitStack() as stack:
        begun = artifacts.begin(output, kind, settings, overwrite=overwrite)
        finished = ranks.on_first_rank(lambda: stack.enter_context(begun))
        if finished:
            if ranks.is_first:
                say(f"{output}: the {kind.replace('-', ' ')} already exists")
            return finished
        shards = work()
        shards.write_missing(ranks)
        ranks.wait()
        return ranks.on_first_rank(shards.finish)
