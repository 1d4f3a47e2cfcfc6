"""Scoped edits: they nest, end, and do not leak into other threads or models."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from cocomix import CocomixError, steer
from cocomix.mixers.edits import current_edits
from tests.modeling.helpers import student, tokens


def test_edits_nest_in_order_and_end_with_their_block_even_on_errors() -> None:
    model, ids = student(), tokens()
    plain = model(input_ids=ids).logits
    with steer(model, {2: 3.0}, mode="set"):
        outer = model(input_ids=ids).logits
        with steer(model, {2: 0.5}, mode="scale"):
            assert len(current_edits(model)) == 2
            both = model(input_ids=ids).logits
        with pytest.raises(CocomixError), steer(model, {2: 0.5}, mode="set"):
            model(input_ids=torch.tensor([[-1]]))
        assert torch.equal(model(input_ids=ids).logits, outer)
    assert torch.equal(model(input_ids=ids).logits, plain)
    with steer(model, {2: 1.5}, mode="set"):
        torch.testing.assert_close(model(input_ids=ids).logits, both)
    assert not torch.equal(outer, plain)


def test_other_models_and_threads_are_not_touched() -> None:
    model, other, ids = student(), student(), tokens()
    plain = model(input_ids=ids).logits
    seen: dict[str, torch.Tensor] = {}

    def work(name: str, concept: int) -> None:
        with steer(model, {concept: 5.0}, mode="set"):
            barrier.wait()
            seen[name] = model(input_ids=ids).logits

    barrier = threading.Barrier(2, timeout=60)
    threads = [threading.Thread(target=work, args=(str(concept), concept)) for concept in (1, 2)]
    for thread in threads:
        thread.start()
    with steer(model, {3: 5.0}, mode="set"):
        assert torch.equal(other(input_ids=ids).logits, plain)
    for thread in threads:
        thread.join()
    for concept in (1, 2):
        with steer(model, {concept: 5.0}, mode="set"):
            assert torch.equal(seen[str(concept)], model(input_ids=ids).logits)


@pytest.mark.slow
def test_two_generations_at_once_equal_one_after_the_other() -> None:
    model, ids = student(mixing="interleave_residual"), tokens(1)
    jobs: list[dict[int, float]] = [{4: 50.0}, {7: 30.0}, {}]
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    barrier = threading.Barrier(len(jobs), timeout=60)
    found: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        with steer(model, jobs[number], positions="generated", mode="set"):
            barrier.wait()
            found[number] = model.generate(ids, **settings)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, strengths in enumerate(jobs):
        with steer(model, strengths, positions="generated", mode="set"):
            assert torch.equal(found[number], model.generate(ids, **settings))
    assert len({tuple(ids[0].tolist()) for ids in found.values()}) == len(jobs)


def test_a_wrapped_model_is_steered_all_the_same() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.module(input_ids=ids).logits

    model, ids = student(), tokens()
    with steer(model, {2: 3.0}, mode="set"):
        expected = model(input_ids=ids).logits
    wrapped = Wrapper(model)
    with steer(wrapped, {2: 3.0}, mode="set"):
        assert torch.equal(wrapped(ids), expected)
    assert not torch.equal(wrapped(ids), expected)
