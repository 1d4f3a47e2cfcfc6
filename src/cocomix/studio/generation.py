"""Original and steered continuation of one prompt, token by token, in a thread of their own that can be stopped.

Both draw from generators of equal seeds, so that what differs between them is the edit's doing and not chance.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.studio.model import StudioModel

MAX_WORKERS = 16
NUM_COMPUTING = max(1, (os.cpu_count() or 2) - 1)
#: Continuations take turns, a token at a time, so that one processor is left for answering, however many are being written.
_TURNS = threading.Semaphore(NUM_COMPUTING)


@dataclass(frozen=True)
class Plan:
    """What to continue, and how."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    strengths: Mapping[int, float] = field(default_factory=dict)
    """Of the steered continuation, by concept."""
    mode: str = "add"
    num_tokens: int = 40
    """At most; fewer where the context ends or the model ends the text."""
    temperature: float = 0.0
    """0: the most probable token."""
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """The next token of both continuations; None where one has ended."""

    original: int | None
    steered: int | None


class Continuation:
    """One plan at work on one model.

    Args:
        model: reads and steers.
        plan: what to do.

    Raises:
        CocomixError: the prompt is empty or leaves no room in the context.
    """

    def __init__(self, model: StudioModel, plan: Plan) -> None:
        room = model.context_length - len(plan.prompt)
        if not plan.prompt:
            raise CocomixError("there is no prompt to continue: type some text first")
        if room < 1:
            raise CocomixError(
                f"the prompt has {len(plan.prompt)} tokens and fills the context of {model.context_length}: "
                "shorten it to leave room for a continuation"
            )
        self.model, self.plan = model, plan
        self.num_tokens = min(plan.num_tokens, room)
        self._stopped = threading.Event()

    @property
    def is_stopped(self) -> bool:
        """Whether it was told to end."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End before the next token; may be called at any time, from any thread."""
        self._stopped.set()

    @torch.no_grad()
    def run(self, report: Callable[[Step], None]) -> None:
        """Continue until the end or `stop`.

        Args:
            report: called in this thread after every token.
        """
        original = _Stream(self.model, self.plan, {})
        steered = _Stream(self.model, self.plan, self.plan.strengths)
        for _ in range(self.num_tokens):
            if self._stopped.is_set():
                return
            with _TURNS:
                first = original.next_token()
                step = Step(first, steered.next_token() if self.plan.strengths else first)
            if step == Step(None, None):
                return
            report(step)


class _Stream:
    """One continuation, with a cache of its own."""

    def __init__(self, model: StudioModel, plan: Plan, strengths: Mapping[int, float]) -> None:
        self._model, self._plan, self._strengths = model, plan, strengths
        self._generator = torch.Generator().manual_seed(plan.seed)
        self._cache = None
        self._input: Tensor | None = torch.tensor([list(plan.prompt)])

    def next_token(self) -> int | None:
        """The next token; None after the end of the text."""
        if self._input is None:
            return None
        with self._model.steered(self._strengths, self._plan.mode):
            output = self._model.model(
                input_ids=self._input, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        self._cache = output.past_key_values
        token = self._choose(output.logits[0, -1].float())
        if token == self._model.eos_token_id:
            self._input = None
            return None
        self._input = torch.tensor([[token]])
        return token

    def _choose(self, logits: Tensor) -> int:
        if self._plan.temperature == 0:
            return int(logits.argmax())
        probabilities = (logits / self._plan.temperature).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


class Workers:
    """Threads for whatever would hold up the page, and the continuations now running in them."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="studio")
        # Apart, so that questions are answered however many continuations are at work.
        self._continuations = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="studio-continuation")
        self._running: set[Continuation] = set()
        self._lock = threading.Lock()

    @property
    def num_running(self) -> int:
        """Continuations now at work."""
        return len(self._running)

    def start(self, continuation: Continuation, report: Callable[[Step], None]) -> Future[None]:
        """Run a continuation in a thread."""
        with self._lock:
            self._running.add(continuation)
        future = self._continuations.submit(continuation.run, report)
        future.add_done_callback(lambda _: self._forget(continuation))
        return future

    def close(self) -> None:
        """Stop all that runs, and wait for it."""
        with self._lock:
            for continuation in self._running:
                continuation.stop()
        for pool in (self._continuations, self.pool):
            pool.shutdown(wait=True, cancel_futures=True)

    def _forget(self, continuation: Continuation) -> None:
        with self._lock:
            self._running.discard(continuation)
