"""Original and steered continuation of one prompt, token by token, in a thread that can be stopped.

Both sample with the same seed, so every difference between them comes from the edit and not from chance.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.steering.modes import DEFAULT_MODE
from cocomix.studio.model import StudioModel, UnwantedError
from cocomix.tools.generate.tokens import Sampling, next_tokens

MAX_WORKERS = 16
NUM_COMPUTING = max(1, (os.cpu_count() or 2) - 1)
#: Continuations take turns, a token at a time, so that one core stays free to answer requests.
_TURNS = threading.Semaphore(NUM_COMPUTING)


@dataclass(frozen=True)
class Plan:
    """A prompt, and how to continue it."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    strengths: Mapping[int, float] = field(default_factory=dict)
    """Of the steered continuation, by concept."""
    mode: str = DEFAULT_MODE
    num_tokens: int = 40
    """At most; fewer if the context is full or the model ends the text."""
    temperature: float = 0.0
    """0: always the likeliest token."""
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """The next token of both continuations; None if that one has ended."""

    original: int | None
    steered: int | None


class Continuation:
    """One plan, carried out on one model.

    Args:
        model: continues the prompt.
        plan: the prompt, and how to continue it.

    Raises:
        CocomixError: the prompt is empty or fills the context.
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
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End at once, within a token; any thread may call this at any time."""
        self._stopped.set()

    def run(self, report: Callable[[Step], None]) -> None:
        """Continue until both texts end, `num_tokens` are written, or `stop` is called.

        Args:
            report: called in this thread after every token.
        """
        interruptible, products = self.model.interruptible(self._stopped.is_set), self.model.machine.products()
        with contextlib.suppress(UnwantedError), interruptible, products:
            original, steered = self._tokens(), self._tokens()
            for _ in range(self.num_tokens):
                with _TURNS:
                    step = self._step(original, steered)
                if step == Step(None, None) or self._stopped.is_set():
                    return
                report(step)

    def _tokens(self) -> Iterator[Tensor]:
        sampling = Sampling(self.plan.temperature, seed=self.plan.seed)
        prompt = torch.tensor([list(self.plan.prompt)])
        return next_tokens(self.model.model, prompt, self.num_tokens, sampling, end_token_id=self.model.end_token_id)

    def _step(self, original: Iterator[Tensor], steered: Iterator[Tensor]) -> Step:
        first = _next(original)
        if not self.plan.strengths:
            return Step(first, first)
        with self.model.steered(self.plan.strengths, self.plan.mode):
            return Step(first, _next(steered))


def _next(tokens: Iterator[Tensor]) -> int | None:
    """The next token of the only row; None after its end."""
    token = next(tokens, None)
    return None if token is None else int(token)


class Workers:
    """Threads for slow work, so that the page stays responsive, and the continuations that run in them."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="studio")
        # A pool of their own, so that continuations never delay an answer.
        self._continuations = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="studio-continuation")
        self._running: set[Continuation] = set()
        self._lock = threading.Lock()

    @property
    def num_running(self) -> int:
        """Number of running continuations."""
        return len(self._running)

    def start(self, continuation: Continuation, report: Callable[[Step], None]) -> Future[None]:
        """Run a continuation in a thread."""
        with self._lock:
            self._running.add(continuation)
        future = self._continuations.submit(continuation.run, report)
        future.add_done_callback(lambda _: self._forget(continuation))
        return future

    def close(self) -> None:
        """Stop all continuations and wait until they end."""
        with self._lock:
            for continuation in self._running:
                continuation.stop()
        for pool in (self._continuations, self.pool):
            pool.shutdown(wait=True, cancel_futures=True)

    def _forget(self, continuation: Continuation) -> None:
        with self._lock:
            self._running.discard(continuation)
