"""How many windows a teacher reads in one pass, unless a command says so: as many as fit and are faster together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cocomix.base import artifacts
from cocomix.base.devices import Machine, free_bytes
from cocomix.base.formats import format_bytes
from cocomix.base.ledger import Ledger
from cocomix.base.progress import say
from cocomix.base.ranks import joined_ranks

# Shapes: B windows, T tokens.

#: Of the memory that is free a pass takes this much; chunks of logits and of latents come on top, and are small.
SHARE_OF_MEMORY = 0.25
#: Tokens beyond which a pass gains nothing: a CPU's caches hold less, an accelerator's kernels are long enough.
MAX_TOKENS_ON_CPU, MAX_TOKENS = 2**11, 2**16


def windows_per_pass(given: int | None, output: Path, choose: Callable[[], int], *, overwrite: bool) -> int:
    """What was asked for, or what the folder was begun with, which an interrupted run keeps, or what is chosen now.

    Args:
        given: the command's option.
        output: the folder that the command writes.
        choose: called on the first of the ranks.
        overwrite: whether the folder is to be replaced.
    """

    def begun_or_chosen() -> int:
        is_begun = (output / artifacts.SETTINGS_NAME).exists() and not overwrite
        stored = artifacts.read_header(output)["settings"].get("batch_size") if is_begun else None
        return int(stored or choose())

    with joined_ranks() as ranks:
        return given or ranks.on_first_rank(begun_or_chosen)


def windows_that_fit(run: Callable[[Int64[Tensor, "B T"]], object], machine: Machine, context_length: int) -> int:
    """The largest power of two of windows for which a pass has the memory, and says so.

    Args:
        run: a pass of the teacher; it runs on tensors without numbers, which cost no time.
        machine: whose memory counts. A CPU's is shared by the ranks on it.
        context_length: T.
    """
    peaks = []
    for num_windows in (1, 2):
        ids = torch.zeros(num_windows, context_length, dtype=torch.long, device=machine.device)
        eager = torch.compiler.set_stance("force_eager")
        with FakeTensorMode(allow_non_fake_inputs=True), eager, Ledger() as ledger, machine.products():
            run(ids)
        peaks.append(ledger.peak_excluding())
    each, free = max(1, peaks[1] - peaks[0]), free_bytes(machine.device)
    most = MAX_TOKENS_ON_CPU if machine.device.type == "cpu" else MAX_TOKENS
    count = min(int(SHARE_OF_MEMORY * free) // each, most // context_length)
    count = 1 << max(1, count).bit_length() - 1
    say(f"windows in a pass of the teacher: {count}, at {format_bytes(each)} each; {format_bytes(free)} are free")
    return count
