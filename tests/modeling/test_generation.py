"""Everything `generate` offers, on every family: caches of each kind, beams, drafts, padding, chunks, streams."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from cocomix import CocomixError
from cocomix.modeling.cache import GrowingLayer
from cocomix.modeling.model import CoCoMixForCausalLM
from tests.modeling.helpers import MIXERS, backbone_config, every_family_with, student, tokens

PROMPT_LENGTH = 5
NUM_NEW = 8


def settings(ids: torch.Tensor, **more: Any) -> dict[str, Any]:
    # No end of sequence, so that every sequence runs past the sliding windows.
    mask = torch.ones_like(ids)
    return {
        "max_new_tokens": NUM_NEW,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
        "attention_mask": mask,
    } | more


def prompt(B: int = 2) -> torch.Tensor:
    return tokens(B, PROMPT_LENGTH)


def uncached(model: PreTrainedModel, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    return model.generate(ids, **settings(ids, use_cache=False, **more))


@pytest.mark.parametrize(("family", "mixer", "mixing"), every_family_with(MIXERS, adapters_with_all=False))
def test_static_cache(family: str, mixer: str, mixing: str) -> None:
    model, ids = student(family, mixer, mixing), prompt()
    static = model.generate(ids, **settings(ids, cache_implementation="static"))
    assert torch.equal(static, uncached(model, ids))


@pytest.mark.slow
@pytest.mark.unchecked_shapes
def test_compiled_blocks_with_a_static_cache() -> None:
    model, ids = student("llama"), prompt()
    given = settings(ids, cache_implementation="static")
    expected = model.generate(ids, **given)
    model.compile_blocks()
    assert torch.equal(model.generate(ids, **given), expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(model.generate(ids, **given), expected)


@pytest.mark.parametrize(("family", "mixer", "mixing"), every_family_with(MIXERS, adapters_with_all=False))
def test_beams_equal_a_search_by_hand(family: str, mixer: str, mixing: str) -> None:
    model, ids = student(family, mixer, mixing), prompt(1)
    found = model.generate(ids, **settings(ids, num_beams=3, max_new_tokens=4))
    assert torch.equal(found, beam_search(model, ids, num_beams=3, num_new=4))


@pytest.mark.parametrize(
    ("family", "mixer", "mixing"),
    every_family_with(
        [("concept", "interleave"), ("concept", "interleave_residual"), ("concept", "add"), ("pause", "interleave")],
        adapters_with_all=False,
    ),
)
class TestEveryFamily:
    def test_sampling(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), prompt()
        drawn = []
        for use_cache in (True, False):
            torch.manual_seed(1)
            drawn.append(model.generate(ids, **settings(ids, do_sample=True, top_k=10, use_cache=use_cache)))
        assert torch.equal(*drawn)

    @pytest.mark.slow
    def test_left_padded_batch(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), prompt()
        short = ids[1:, 2:]
        padded, mask = ids.clone(), torch.ones_like(ids)
        padded[1, :2], mask[1, :2] = 0, 0
        for cache in ({}, {"cache_implementation": "static"}):
            together = model.generate(padded, **settings(ids, attention_mask=mask, **cache))
            assert torch.equal(together[:1], uncached(model, ids[:1]))
            assert torch.equal(together[1:, 2:], uncached(model, short))

    @pytest.mark.parametrize("cache", [pytest.param({}, marks=pytest.mark.slow), {"cache_implementation": "static"}])
    def test_chunked_prefill(self, family: str, mixer: str, mixing: str, cache: dict[str, str]) -> None:
        model, ids = student(family, mixer, mixing), tokens(2, 11)
        assert torch.equal(model.generate(ids, **settings(ids, prefill_chunk_size=3, **cache)), uncached(model, ids))

    @pytest.mark.slow
    def test_assisted_by_another_model(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), prompt(1)
        # A draft that is right at times: the model's own backbone weights under another mixer.
        draft = student(family, mixer, mixing, layer=-1)
        expected = uncached(model, ids, max_new_tokens=16)
        for assistant in (draft, AutoModelForCausalLM.from_config(backbone_config(family)).eval()):
            generated = model.generate(ids, **settings(ids, assistant_model=assistant, max_new_tokens=16))
            assert torch.equal(generated, expected)

    def test_drafts_from_the_prompt(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), prompt(1).repeat(1, 3)
        assert torch.equal(
            model.generate(ids, **settings(ids, prompt_lookup_num_tokens=3, max_new_tokens=12)),
            uncached(model, ids, max_new_tokens=12),
        )

    def test_cache_counts_tokens_and_continues(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), tokens(2, 11)
        expected = model(input_ids=ids).logits
        caches = [
            DynamicCache(),
            DynamicCache(config=model.config),
            StaticCache(config=model.config, max_cache_len=16),
        ]
        for cache in caches:
            for chunk in ids.split(4, dim=1):
                logits = model(input_ids=chunk, past_key_values=cache).logits
            assert int(cache.get_seq_length()) == 11
            torch.testing.assert_close(logits, expected[:, 8:], atol=1e-4, rtol=1e-4)

    def test_cropping_tokens(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), tokens(2, 11)
        cache = DynamicCache(config=model.config)
        cache.activate_past_recording()
        model(input_ids=ids[:, :7], past_key_values=cache)
        cache.crop(0)
        model(input_ids=tokens(2, 3), past_key_values=cache)
        cache.crop(-3)
        assert cache.get_seq_length() == 7
        logits = model(input_ids=ids[:, 7:], past_key_values=cache).logits
        torch.testing.assert_close(logits, model(input_ids=ids).logits[:, 7:], atol=1e-4, rtol=1e-4)

    @pytest.mark.slow
    def test_embeddings_in_place_of_ids(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), prompt()
        embeds = model.get_input_embeddings()(ids)
        assert torch.equal(model(inputs_embeds=embeds).logits, model(input_ids=ids).logits)
        new = model.generate(inputs_embeds=embeds, **settings(ids))
        assert torch.equal(new, uncached(model, ids)[:, PROMPT_LENGTH:])


@torch.no_grad()
def beam_search(model: CoCoMixForCausalLM, ids: torch.Tensor, num_beams: int, num_new: int) -> torch.Tensor:
    """The likeliest continuation among beams that all have the same length."""
    beams = [(0.0, ids)]
    for _ in range(num_new):
        grown = []
        for score, beam in beams:
            log_probabilities = model(input_ids=beam).logits[0, -1].log_softmax(-1)
            best = log_probabilities.topk(2 * num_beams)
            for value, token in zip(best.values, best.indices, strict=True):
                grown.append((score + float(value), torch.cat([beam, token.view(1, 1)], 1)))
        beams = sorted(grown, key=lambda pair: -pair[0])[:num_beams]
    return beams[0][1]


@pytest.mark.parametrize(
    ("family", "more"),
    every_family_with([{"layer": -1}, {"layer": 1}, {"position_mode": "sequential"}], adapters_with_all=False),
)
def test_any_insertion_and_either_positions(family: str, more: dict[str, Any]) -> None:
    model, ids = student(family, **more), prompt()
    padded, mask = torch.cat([torch.zeros(2, 2, dtype=torch.long), ids], 1), torch.ones(2, PROMPT_LENGTH + 2)
    mask[:, :2] = 0
    expected = uncached(model, ids)
    assert torch.equal(model.generate(ids, **settings(ids)), expected)
    assert torch.equal(model.generate(ids, **settings(ids, cache_implementation="static")), expected)
    assert torch.equal(model.generate(padded, **settings(ids, attention_mask=mask.long()))[:, 2:], expected)


def test_beams_with_sampling_and_several_results() -> None:
    model, ids = student("qwen3"), prompt()
    found = model.generate(ids, **settings(ids, num_beams=4, num_return_sequences=3, do_sample=True, top_k=5))
    assert found.shape == (6, PROMPT_LENGTH + NUM_NEW)
    assert len({tuple(row.tolist()) for row in found[:3]}) == 3


def test_stopping_criteria_and_end_of_sequence() -> None:
    class After(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= PROMPT_LENGTH + 3)

    model, ids = student(), prompt(1)
    full = uncached(model, ids)
    stopped = model.generate(ids, **settings(ids, stopping_criteria=StoppingCriteriaList([After()])))
    assert torch.equal(stopped, full[:, : PROMPT_LENGTH + 3])
    eos = int(full[0, PROMPT_LENGTH + 4])
    first = full[0, PROMPT_LENGTH:].tolist().index(eos)
    ended = model.generate(ids, **settings(ids, eos_token_id=eos))
    assert torch.equal(ended, full[:, : PROMPT_LENGTH + first + 1])


def test_streamer() -> None:
    class Collect(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    model, ids, streamer = student(), prompt(1), Collect()
    model.generate(ids, **settings(ids, streamer=streamer))
    assert streamer.ended
    assert streamer.tokens == uncached(model, ids)[0].tolist()


def test_static_cache_is_reused_after_a_reset() -> None:
    model, ids, other = student("gemma3_text"), prompt(), prompt()
    cache = StaticCache(config=model.config, max_cache_len=PROMPT_LENGTH + NUM_NEW)
    assert cache.get_max_length() == PROMPT_LENGTH + NUM_NEW
    for text in (ids, other):
        assert torch.equal(model.generate(text, **settings(text, past_key_values=cache)), uncached(model, text))
        assert cache.get_max_length() == PROMPT_LENGTH + NUM_NEW
        cache.reset()


def test_a_cache_of_another_model_is_refused() -> None:
    model, ids = student(), prompt()
    cache = model.backbone(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(CocomixError, match="cache"):
        model(input_ids=ids[:, :1], past_key_values=cache)
    for other in ({"layer": -1}, {"layer": 1}, {"concept_stride": 2}):
        cache = model(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(CocomixError, match="cache"):
            student(**other)(input_ids=ids[:, :1], past_key_values=cache)


def test_a_growing_cache_holds_what_a_dynamic_one_holds() -> None:
    """Also where others crop, repeat and reorder it, where modes change, and where a copy goes another way."""
    grown, plain = GrowingLayer(), DynamicLayer()

    def update(num_positions: int, *layers: DynamicLayer) -> None:
        states = torch.randn(2, 3, num_positions, 4), torch.randn(2, 3, num_positions, 5)
        kept = [(layer.keys, layer.keys.clone()) for layer in layers if layer.is_initialized and layer.get_seq_length()]
        (keys, values), (expected_keys, expected_values) = (layer.update(*states) for layer in layers)
        assert torch.equal(keys, expected_keys)
        assert torch.equal(values, expected_values)
        assert all(torch.equal(before, now) for before, now in kept)

    with torch.no_grad():
        for num_positions in (5, 1, 1, 2, 7, 1):
            update(num_positions, grown, plain)
        assert grown.rooms[0].shape[-2] < 2 * plain.get_seq_length() + 2
        room = grown.rooms[0].data_ptr()
        update(1, grown, plain)
        assert grown.keys.data_ptr() == room  # nothing was copied
        other_grown, other_plain = copy.deepcopy((grown, plain))
        update(1, other_grown, other_plain)
        update(1, grown, plain)
        for change in (lambda layer: layer.crop(-4), lambda layer: layer.reorder_cache(torch.tensor([1, 1]))):
            change(grown), change(plain)
            update(1, grown, plain)
    with torch.inference_mode():
        update(2, grown, plain)
        update(1, grown, plain)
    with torch.no_grad():
        update(1, grown, plain)
    update(1, grown, plain)
    states = torch.randn(2, 3, 1, 4, requires_grad=True)
    keys, _ = grown.update(states, torch.randn(2, 3, 1, 5))
    keys.sum().backward()
    assert states.grad is not None
    grown.reset(), plain.reset()
    with torch.no_grad():
        update(3, grown, plain)
