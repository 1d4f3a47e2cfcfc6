"""How many windows a teacher reads in one pass, unless a command says so: as many as fit and are faster together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cocomix.base import artifacts
from cocomix.base.devices import Machine, memory_bytes
from cocomix.base.formats import format_bytes
from cocomix.base.ledger import Ledger
from cocomix.base.progress import say
from cocomix.base.ranks import joined_ranks
from cocomix.labels.config import DistillTargetsConfig, ExtractConfig

#: Tokens beyond which a pass gains nothing: a CPU's caches hold less, an accelerator's kernels are long enough.
MAX_TOKENS_ON_CPU, MAX_TOKENS = 2**11, 2**16


def windows_per_pass(config: ExtractConfig | DistillTargetsConfig, choose: Callable[[], int]) -> int:
    """The command's option, or what its folder was begun with, which an interrupted run keeps, or what is chosen now.

    Args:
        config: of the command.
        choose: called on the first of the ranks.
    """

    def begun_or_chosen() -> int:
        is_begun = (config.output / artifacts.SETTINGS_NAME).exists() and not config.overwrite
        return int((is_begun and artifacts.read_header(config.output)["settings"].get("batch_size")) or choose())

    with joined_ranks() as ranks:
        return config.batch_size or ranks.on_first_rank(begun_or_chosen)


def most_windows(run: Callable[[Tensor], object], machine: Machine, context_length: int) -> int:
    """The largest power of two of windows for which a pass has the memory, and says so.

    Args:
        run: a pass of the teacher over token ids [windows, T]; it runs on tensors without numbers, which cost no time.
        machine: whose memory counts.
        context_length: T.
    """
    peaks: list[int] = []
    for num_windows in (1, 2):
        # An accelerator's backward runs in a thread of its own, which sees no modes.
        eager, alone = torch.compiler.set_stance("force_eager"), torch.autograd.set_multithreading_enabled(False)
        with FakeTensorMode(allow_non_fake_inputs=True), eager, alone, Ledger() as ledger, machine.products():
            run(torch.zeros(num_windows, context_length, dtype=torch.long, device=machine.device))
        peaks.append(ledger.peak_excluding())
    each, memory = max(1, peaks[1] - peaks[0]), memory_bytes(machine.device)
    most = (MAX_TOKENS_ON_CPU if machine.device.type == "cpu" else MAX_TOKENS) // context_length
    # A quarter of the memory: weights, and chunks of logits and latents, come on top.
    count = 1 << max(1, min(most, memory // (4 * each))).bit_length() - 1
    say(f"{count} windows in a pass of the teacher: each takes {format_bytes(each)} of {format_bytes(memory)}")
    return count
