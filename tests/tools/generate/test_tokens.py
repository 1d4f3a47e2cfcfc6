"""The generation loop gives the tokens of `generate` of transformers, one at a time, and keeps each caller's edits apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig

from cocomix import CoCoMixForCausalLM, steer
from cocomix.tools.generate.tokens import Sampling, next_tokens
from tests.modeling.helpers import VOCAB_SIZE, backbone_config, student, tokens

N = 8


def continued(model: Any, prompts: torch.Tensor, sampling: Sampling | None = None, **more: Any) -> torch.Tensor:
    return torch.stack(list(next_tokens(model, prompts, N, sampling, **more)), dim=1)


def expected(model: Any, prompts: torch.Tensor, **more: Any) -> torch.Tensor:
    options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": N, "pad_token_id": 0, "do_sample": False}
    ids: torch.Tensor = model.generate(prompts, **options | {"eos_token_id": None} | more)
    return ids[:, prompts.shape[1] :]


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_the_likeliest_tokens_are_those_of_generate(family: str) -> None:
    prompts = tokens(3, 5)
    for model in (student(family), AutoModelForCausalLM.from_config(backbone_config(family)).eval()):
        assert torch.equal(continued(model, prompts), expected(model, prompts))


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.5}], ids=str)
def test_samples_are_those_of_generate_with_the_same_seed(options: dict[str, Any]) -> None:
    model, prompts = student(), tokens(3, 5)
    state = torch.get_rng_state()
    drawn = continued(model, prompts, Sampling(0.8, seed=3, **options))
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    torch.manual_seed(3)
    more = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0} | options
    assert torch.equal(drawn, expected(model, prompts, **more))


def test_a_row_that_ends_repeats_the_end_and_the_last_end_is_not_returned() -> None:
    model, prompts = student(), tokens(4, 5)
    free = continued(model, prompts)
    end = int(free[1, 2])
    ended = continued(model, prompts, end_token_id=end)
    lengths = [row.index(end) if end in row else N for row in free.tolist()]
    assert ended.shape[1] == max(lengths)
    for row, length in enumerate(lengths):
        assert torch.equal(ended[row, :length], free[row, :length])
        assert bool((ended[row, length:] == end).all())
    never = continued(model, prompts, end_token_id=end, ends=False)
    assert never.shape[1] == N
    assert not bool((never == end).any())


@pytest.mark.parametrize("positions", [None, "prompt", "generated", slice(4, None)])
def test_edits_around_a_step_apply_to_that_step_alone(positions: Any) -> None:
    model, prompts = student(), tokens(2, 5)
    rows: list[dict[int, float]] = [{4: 40.0}, {7: -30.0}]
    plain, steered = next_tokens(model, prompts, N), next_tokens(model, prompts, N)
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for _ in range(N):
        found[0].append(next(plain))
        with steer(model, rows, positions=positions, mode="set"):
            found[1].append(next(steered))
    assert torch.equal(torch.stack(found[0], 1), expected(model, prompts))
    with steer(model, rows, positions=positions, mode="set"):
        assert torch.equal(torch.stack(found[1], 1), expected(model, prompts))
    assert not torch.equal(torch.stack(found[0], 1), torch.stack(found[1], 1))


def test_nothing_is_computed_beyond_the_token_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, lengths = student(), []
    forward = CoCoMixForCausalLM.forward

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        lengths.append(options["input_ids"].shape[1])
        return forward(self, *arguments, **options)

    monkeypatch.setattr(CoCoMixForCausalLM, "__call__", counted)
    steps = next_tokens(model, tokens(1, 5), N)
    assert lengths == []
    next(steps)
    next(steps)
    assert lengths == [5, 1], "the prompt once, then one token"


def test_models_without_keys_and_values_read_the_whole_row() -> None:
    config = MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=2, state_size=4)
    torch.manual_seed(0)
    model, prompts = AutoModelForCausalLM.from_config(config).eval(), tokens(2, 5)
    assert torch.equal(continued(model, prompts), expected(model, prompts))
