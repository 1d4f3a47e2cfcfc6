"""Fewer concept positions than tokens: equal to the plain definition, cached or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from cocomix import CocomixError
from cocomix.mixers.base import MixerInputs
from cocomix.mixers.layout import Layout
from cocomix.modeling.model import CoCoMixForCausalLM
from tests.modeling.helpers import every_family_with, student, tokens

APPROXIMATE: tuple[dict[str, Any], ...] = (
    {"concept_stride": 2},
    {"concept_stride": 3, "position_mode": "sequential"},
)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("num_past", [0, 1, 2, 7])
def test_positions_are_those_of_a_row_written_out(stride: int, num_past: int) -> None:
    layout, T = Layout(stride), 8
    row = []  # (token, whether it is the concept)
    for token in range(num_past + T):
        row += [(token, False)] + ([(token, True)] if token % stride == stride - 1 else [])
    assert layout.num_positions(num_past + T) == len(row)
    assert layout.num_tokens(len(row)) == num_past + T
    span, new = layout.span(torch.tensor(num_past), T), row[layout.num_positions(num_past) :]
    assert [(int(t) + num_past, bool(c)) for t, c in zip(span.token, span.is_concept, strict=True)] == new
    indices = torch.arange(len(new))
    assert span.num_tokens == T
    last = [max(i for i, (token, _) in enumerate(new) if token == num_past + t) for t in range(T)]
    assert indices[span.read].tolist() == last
    assert sorted(last + indices[span.unread].tolist()) == indices.tolist()
    ids = num_past + torch.arange(T).unsqueeze(0)
    assert span.positions(ids, "shared")[0].tolist() == [token for token, _ in new]
    assert span.positions(ids, "sequential")[0].tolist() == list(range(len(row) - len(new), len(row)))


def by_hand(model: CoCoMixForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a model of the family llama from every concept position, the unwanted ones hidden by a mask."""
    layout, adapter = model.mixer.config.layout, model.adapter
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    insert, T = model.config.mixer.insertion, ids.shape[1]
    hidden = adapter.run_blocks(adapter.token_embeddings(ids), 0, insert, position_ids=positions)
    hidden = model.mixer(hidden, MixerInputs()).hidden  # a concept after every token
    mask = torch.zeros(2 * T, 2 * T, dtype=torch.bool)
    for query in range(2 * T):
        for key in range(query + 1):
            is_there = key % 2 == 0 or (key // 2) % layout.stride == layout.stride - 1
            mask[query, key] = is_there or key == query
    masks = {"full_attention": mask.expand(len(ids), 1, -1, -1)}
    double = positions.repeat_interleave(2, 1)
    hidden = adapter.run_blocks(hidden, insert, adapter.num_blocks, position_ids=double, attention_mask=masks)
    read = [2 * t + (t % layout.stride == layout.stride - 1) for t in range(T)]
    return adapter.logits(hidden[:, read])


@pytest.mark.parametrize("more", [{"concept_stride": 2}, {"concept_stride": 4}])
def test_logits_equal_those_of_a_mask_written_out(more: dict[str, int]) -> None:
    model, ids = student("llama", **more).double(), tokens(2, 9)
    torch.testing.assert_close(model(ids).logits, by_hand(model, ids), rtol=1e-5, atol=1e-6)  # norms are in float32


@pytest.mark.parametrize(("family", "more"), every_family_with(APPROXIMATE), ids=str)
class TestEveryFamily:
    def test_chunks_with_a_cache_equal_the_whole(self, family: str, more: dict[str, Any]) -> None:
        model, ids = student(family, **more), tokens(2, 11)
        expected = model(ids).logits
        for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=16)):
            parts = [model(chunk, past_key_values=cache).logits for chunk in ids.split([4, 1, 1, 3, 2], dim=1)]
            assert int(cache.get_seq_length()) == 11
            torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)

    def test_cropped_tokens_leave_no_trace(self, family: str, more: dict[str, Any]) -> None:
        model, ids = student(family, **more), tokens(2, 11)
        cache = DynamicCache(config=model.config)
        cache.activate_past_recording()
        model(ids[:, :7], past_key_values=cache)
        cache.crop(0)
        model(tokens(2, 3), past_key_values=cache)
        cache.crop(-3)
        assert cache.get_seq_length() == 7
        logits = model(ids[:, 7:], past_key_values=cache).logits
        torch.testing.assert_close(logits, model(ids).logits[:, 7:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("more", APPROXIMATE, ids=str)
def test_generation_does_not_depend_on_the_cache(more: dict[str, Any]) -> None:
    model, ids = student("gemma3_text", **more), tokens(2, 5)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    given = settings | {"attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, **given, use_cache=False)
    assert torch.equal(model.generate(ids, **given), expected)
    assert torch.equal(model.generate(ids, **given, cache_implementation="static"), expected)
    draft = student("gemma3_text", **more, layer=-1)
    one = settings | {"attention_mask": torch.ones_like(ids[:1])}
    assert torch.equal(model.generate(ids[:1], **one, assistant_model=draft), model.generate(ids[:1], **one))


@pytest.mark.parametrize("more", APPROXIMATE, ids=str)
def test_padded_rows(more: dict[str, Any]) -> None:
    model, ids = student("llama", **more), tokens(2, 7)
    right, left = torch.ones_like(ids), torch.ones_like(ids)
    right[1, 4:], left[1, :3] = 0, 0
    torch.testing.assert_close(
        model(ids, attention_mask=right).logits[1:, :4], model(ids[1:, :4]).logits, atol=1e-4, rtol=1e-4
    )
    with pytest.raises(CocomixError, match="left-padded"):
        model(ids, attention_mask=left)


@pytest.mark.parametrize("more", [{"concept_stride": 2, "position_mode": "sequential"}], ids=str)
def test_packed_documents_do_not_see_each_other(more: dict[str, Any]) -> None:
    model, ids = student("llama", **more), tokens(1, 9)
    positions = torch.cat([torch.arange(4), torch.arange(5)]).unsqueeze(0)  # concepts stand alike in both
    packed = model(ids, position_ids=positions).logits
    for part in (slice(0, 4), slice(4, 9)):
        torch.testing.assert_close(packed[:, part], model(ids[:, part]).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("mixing", "more", "message"),
    [
        ("interleave", {"concept_stride": 0}, r"concept_stride.*0"),
        ("add", {"concept_stride": 2}, r"concept_stride.*2.*'add'"),
        ("interleave", {"concept_window": 2}, "concept_window"),
        ("interleave", {"concept_groups": 8}, "concept_groups"),
    ],
)
def test_settings_that_make_no_sense_are_refused(mixing: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        student("llama", mixing=mixing, **more)
