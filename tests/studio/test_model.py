"""What the page asks of a model."""

from __future__ import annotations

import itertools

import pytest
import torch

from cocomix import CocomixError, steer
from cocomix.studio.model import StudioModel, prompt_before
from cocomix.studio.writing_panel import changed_tokens
from cocomix.tools.inspect.cards import Context
from tests.studio.conftest import ATTACK, CONTEXT_LENGTH

PROMPT = "<b>def</b> read(self, naïve ☕): return path\n"


def test_reading_tells_the_active_concepts_of_every_token(model: StudioModel) -> None:
    reading = model.read(PROMPT)
    assert "".join(reading.pieces) == PROMPT
    ids = model.encode(PROMPT)
    assert len(reading) == len(ids)
    output = model.model(input_ids=torch.tensor([ids]))
    found = reading.at(4)
    assert {item.concept for item in found} == set(output.concept_indices[0, 4].tolist())
    values = dict(zip(output.concept_indices[0, 4].tolist(), output.concept_values[0, 4].tolist(), strict=True))
    assert [item.strength for item in found] == pytest.approx(
        [values[item.concept] / 2 for item in found]
    )  # usual is 2
    assert [item.strength for item in found] == sorted((item.strength for item in found), reverse=True)
    assert len(model.read("")) == 0


def test_names_are_found_by_part_by_index_and_by_what_is_on_their_cards(model: StudioModel) -> None:
    assert [item.concept for item in model.search_names("IMPORT")][:2] == [3, 11]
    assert [item.name for item in model.search_names("#5")] == ["string formatting"]
    assert model.search_names("onerror")[0].name == ATTACK
    assert model.search_names("  ") == []


def test_an_unknown_name_offers_the_nearest(model: StudioModel) -> None:
    with pytest.raises(CocomixError, match=r"'improt statemnts'.* 'import statements'"):
        model.search_names("improt statemnts")
    with pytest.raises(CocomixError, match=r"concept 99 .* 0 to 23"):
        model.search_names("99")


def test_an_example_finds_what_is_predicted_there_more_than_usually(model: StudioModel) -> None:
    output = model.model(input_ids=torch.tensor([model.encode(PROMPT)]))
    means = torch.full((model.num_concepts,), -0.2)  # active at a fifth of the tokens, at its usual strength
    for concept, value in zip(output.concept_indices.flatten(), output.concept_values.flatten(), strict=True):
        means[concept] += value / 2 / output.concept_indices.shape[1]
    found = model.search_example(PROMPT)
    assert [item.concept for item in found] == means.topk(len(found)).indices.tolist()
    assert [item.strength for item in found] == pytest.approx(means.topk(len(found)).values.tolist())
    assert 0 < len(found) == min(12, int((means > 0).sum()))
    assert model.search_example("") == []


@torch.no_grad()
def test_the_next_token_without_and_with_an_edit(model: StudioModel) -> None:
    tokens = model.next_tokens(PROMPT, {3: 4.0}, "add")
    ids = torch.tensor([model.encode(PROMPT)])
    before = model.model(input_ids=ids).logits[0, -1].softmax(-1)
    with steer(model.model, {3: 8.0}, "add"):  # four usual activations of 2
        after = model.model(input_ids=ids).logits[0, -1].softmax(-1)
    assert not torch.equal(before, after)
    # Passes of other threads may add in another order: float32's rounding, not more.
    assert float((before - tokens[0].before).abs().min()) < 1e-6
    likeliest = max(max(token.before, token.after) for token in tokens)
    assert likeliest == pytest.approx(float(torch.maximum(before, after).max()), rel=1e-5)
    assert all(token.before == token.after for token in model.next_tokens(PROMPT, {}, "add"))
    assert model.next_tokens("", {}, "add") == []


def test_what_is_promoted_most_is_shown_however_unlikely(model: StudioModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.tensor([*[0.12] * 8, 0.039, 1e-4, 0.0, 0.0])
    after = torch.tensor([*[0.115] * 8, 0.059, 0.02, 0.0, 1e-3])
    passes = [before, after, before]
    monkeypatch.setattr(model, "_next_probabilities", lambda _: passes.pop(0))
    edited = model.next_tokens(PROMPT, {3: 4.0}, "add")
    assert (edited[-1].before, edited[-1].after) == pytest.approx((1e-4, 0.02))
    assert [token.after for token in edited[:-1]] == pytest.approx([0.115] * 7)
    assert [token.after for token in model.next_tokens(PROMPT, {}, "add")] == pytest.approx([0.12] * 8)


def test_a_prompt_longer_than_the_context_tells_both_lengths(model: StudioModel) -> None:
    message = rf"\d+ tokens.* demo/cocomix .*{CONTEXT_LENGTH}"
    with pytest.raises(CocomixError, match=message):
        model.read("def " * 800)


def test_the_opening_is_not_a_text_that_repeats_itself(model: StudioModel, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = model.opening()
    assert usual is not None
    # Concepts 0 to 3 are tried, in this order.
    tried = itertools.count()
    monkeypatch.setattr(model, "_continued", lambda ids: [7] * 24 if next(tried) == usual.concept else list(range(24)))
    other = model.opening()
    assert other is not None
    assert other.concept != usual.concept


def test_the_opening_prompt_is_short_and_of_whole_words() -> None:
    def prompt(before: str, token: str) -> str:
        return prompt_before(Context("sae", before, token, "", 1.0, 0, 0), "<end>")

    assert prompt("ize the size of a bro", "ken") == "the size of a"
    assert prompt("ize the size of a broken ", "vase") == "the size of a broken"
    assert prompt("x a\nb\n\n  c", "(") == "b\n\n  c"
    assert prompt("word", "s") == "word"
    assert prompt("of another.<end>It was ", "big") == "was"
    assert prompt("of another.<end>", "It") == ""


def test_what_differs_is_what_is_not_shared_in_order() -> None:
    assert changed_tokens([1, 2, 3], [1, 9, 3, 4]) == ([False, True, False], [False, True, False, True])
    assert changed_tokens([], []) == ([], [])
