"""Continuations that can be stopped."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from cocomix import CocomixError, steer
from cocomix.studio.generation import Continuation, Plan, Step, Workers
from cocomix.studio.links import MODES
from cocomix.studio.model import StudioModel
from cocomix.studio.writing_panel import _SIGNS, _Side, _written
from tests.studio.conftest import CONTEXT_LENGTH

PROMPT = "<b>def</b> read(self"


def run(model: StudioModel, plan: Plan) -> tuple[list[int | None], list[int | None]]:
    steps: list[Step] = []
    Continuation(model, plan).run(steps.append)
    return [step.original for step in steps], [step.steered for step in steps]


def test_both_are_what_generate_gives(model: StudioModel) -> None:
    ids = model.encode(PROMPT)
    original, steered = run(model, Plan(ids, {3: 3.0}, "set", 12))
    prompt = torch.tensor([ids])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert original == model.model.generate(prompt, **options)[0, len(ids) :].tolist()
    with steer(model.model, {3: 6.0}, "set"):
        assert steered == model.model.generate(prompt, **options)[0, len(ids) :].tolist()
    assert original != steered


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_a_title(model: StudioModel, mode: str) -> None:
    steps = [Step(1, 2), None]
    plan = Plan(model.encode(PROMPT), {3: -0.5}, mode, 1)
    sides = _Side(model, "original"), _Side(model, "steered")
    _, steered = _written(sides, steps, Continuation(model, plan), PROMPT, is_running=False)
    assert f"Steered: import statements {_SIGNS[mode]}−0.5".replace("+−", "−") in steered


def test_without_edits_both_are_equal_and_draws_are_repeatable(model: StudioModel) -> None:
    ids = model.encode(PROMPT)
    original, steered = run(model, Plan(ids, num_tokens=10, temperature=1.0, seed=1))
    assert original == steered
    assert run(model, Plan(ids, num_tokens=10, temperature=1.0, seed=1))[0] == original
    assert run(model, Plan(ids, num_tokens=10, temperature=1.0, seed=2))[0] != original


def test_the_end_of_the_text_ends_one_continuation(model: StudioModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = model.encode(PROMPT)
    original, steered = run(model, Plan(ids, {3: 3.0}, "set", 6))
    monkeypatch.setattr(model, "end_token_id", original[2])
    ended, other = run(model, Plan(ids, {3: 3.0}, "set", 6))
    assert ended == [*original[: original.index(original[2])], *[None] * (len(ended) - original.index(original[2]))]
    assert [token for token in other if token is not None] == steered[: len([t for t in other if t is not None])]


def test_the_context_bounds_the_length(model: StudioModel) -> None:
    ids = [1] * (CONTEXT_LENGTH - 3)
    assert len(run(model, Plan(ids, num_tokens=40))[0]) == 3
    with pytest.raises(CocomixError, match=f"{CONTEXT_LENGTH} tokens"):
        Continuation(model, Plan([1] * CONTEXT_LENGTH))
    with pytest.raises(CocomixError, match="prompt"):
        Continuation(model, Plan([]))


def test_two_at_once_keep_their_edits_apart(model: StudioModel) -> None:
    ids = model.encode(PROMPT)
    plans = [Plan(ids, {3: 3.0}, "set", 20), Plan(ids, {5: -3.0}, "add", 20)]
    alone = [run(model, plan) for plan in plans]
    workers = Workers()
    together: list[list[Step]] = [[], []]
    continuations = [Continuation(model, plan) for plan in plans]
    futures = [workers.start(c, steps.append) for c, steps in zip(continuations, together, strict=True)]
    for future in futures:
        future.result()
    workers.close()
    assert [([s.original for s in steps], [s.steered for s in steps]) for steps in together] == alone
    assert workers.num_running == 0


def test_stopping_ends_it_within_a_token(model: StudioModel) -> None:
    def wait(*_: object) -> None:
        time.sleep(0.2)

    hooks = [layer.register_forward_pre_hook(wait) for layer in model.model.backbone.model.layers]
    workers, steps = Workers(), list[Step]()
    continuation = Continuation(model, Plan(model.encode(PROMPT), {3: 3.0}, num_tokens=500))
    future = workers.start(continuation, steps.append)
    time.sleep(0.3)  # a token takes more than two seconds
    continuation.stop()
    future.result(timeout=1)
    assert workers.num_running == 0
    workers.close()
    for hook in hooks:
        hook.remove()
    assert not steps
    assert len(run(model, Plan(model.encode(PROMPT), num_tokens=2))[0]) == 2


def test_stopping_ends_it_before_the_next_token(model: StudioModel) -> None:
    workers, started, steps = Workers(), threading.Event(), []

    def report(step: Step) -> None:
        steps.append(step)
        started.set()

    continuation = Continuation(model, Plan(model.encode(PROMPT), num_tokens=500))
    future = workers.start(continuation, report)
    assert started.wait(20)
    assert workers.num_running == 1
    workers.close()
    assert future.done()
    assert len(steps) < 500
    assert continuation.is_stopped
