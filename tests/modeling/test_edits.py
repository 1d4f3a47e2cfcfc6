"""Scoped edits: they act where they should, nest, end, and do not leak into other threads or models."""

from __future__ import annotations

import threading

import pytest
import torch

from cocomix import CocomixError, steer
from cocomix.modeling.edits import Steer, edits_of
from tests.modeling.helpers import student, tokens

INDICES = torch.tensor([[[3, 1], [2, 0]]])
VALUES = torch.tensor([[[2.0, 1.0], [5.0, 4.0]]])


def dense(indices: torch.Tensor, values: torch.Tensor) -> list[list[float]]:
    return torch.zeros(1, 2, 4).scatter_add(-1, indices, values)[0].tolist()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("scale", [[0, 1, 0, 20], [4, 0, 5, 0]]),
        ("set", [[0, 1, 0, 10], [4, 0, 5, 10]]),
        ("add", [[0, 1, 0, 12], [4, 0, 5, 10]]),
        ("zero", [[0, 1, 0, 0], [4, 0, 5, 0]]),
    ],
)
def test_modes(mode: str, expected: list[list[float]]) -> None:
    assert dense(*Steer(3, 10.0, mode).edit_active(INDICES, VALUES)) == expected


def test_edits_nest_in_order_and_end_with_their_block_even_on_errors() -> None:
    model, ids = student(), tokens()
    plain = model(input_ids=ids).logits
    with steer(model, {2: 3.0}):
        outer = model(input_ids=ids).logits
        with steer(model, {2: 0.5}, mode="scale"):
            assert len(edits_of(model)) == 2
            both = model(input_ids=ids).logits
        with pytest.raises(CocomixError), steer(model, {2: 0.5}):
            model(input_ids=torch.tensor([[-1]]))
        assert torch.equal(model(input_ids=ids).logits, outer)
    assert torch.equal(model(input_ids=ids).logits, plain)
    with steer(model, {2: 1.5}):
        torch.testing.assert_close(model(input_ids=ids).logits, both)
    assert not torch.equal(outer, plain)


def test_other_models_and_threads_are_not_touched() -> None:
    model, other, ids = student(), student(), tokens()
    plain = model(input_ids=ids).logits
    seen: dict[str, torch.Tensor] = {}

    def work(name: str, concept: int) -> None:
        with steer(model, {concept: 5.0}):
            barrier.wait()
            seen[name] = model(input_ids=ids).logits

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(str(concept), concept)) for concept in (1, 2)]
    for thread in threads:
        thread.start()
    with steer(model, {3: 5.0}):
        assert torch.equal(other(input_ids=ids).logits, plain)
    for thread in threads:
        thread.join()
    for concept in (1, 2):
        with steer(model, {concept: 5.0}):
            assert torch.equal(seen[str(concept)], model(input_ids=ids).logits)


def test_steering_acts_in_cached_generation() -> None:
    model, ids = student(mixing="interleave_residual"), tokens()
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    with steer(model, {4: 50.0}):
        steered = model.generate(ids, **settings)
        assert torch.equal(steered, model.generate(ids, use_cache=False, **settings))
    assert not torch.equal(steered, model.generate(ids, **settings))


def test_a_wrapped_model_is_steered_all_the_same() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.module(input_ids=ids).logits

    model, ids = student(), tokens()
    with steer(model, {2: 3.0}):
        expected = model(input_ids=ids).logits
    wrapped = Wrapper(model)
    with steer(wrapped, {2: 3.0}):
        assert torch.equal(wrapped(ids), expected)
    assert not torch.equal(wrapped(ids), expected)


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(CocomixError, match="concept '7' is no index"), steer(student(), {"7": 1.0}):
        pass
    with (
        pytest.raises(CocomixError, match="only a model with a concept mixer"),
        steer(student(mixer="pause"), {1: 1.0}),
    ):
        pass
    with (
        pytest.raises(CocomixError, match="concept 24 does not exist; the model has concepts 0 to 23"),
        steer(student(), {24: 1}),
    ):
        pass
    with pytest.raises(CocomixError, match="mode is 'double'"), steer(student(), {1: 1.0}, mode="double"):
        pass
