"""Steering: each mode equals its definition, on the rows and tokens it should, however the tokens reach the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cocomix import CocomixError, CoCoMixForCausalLM, steer
from cocomix.evaluation.probes import Zero
from cocomix.mixers.concept import STD_EPSILON, ConceptMixer
from cocomix.mixers.edits import concept_edits
from cocomix.steering.concept_metadata import ActivationStatistics, ConceptMetadata, write_statistics
from cocomix.steering.concept_names import write_names
from tests.modeling.helpers import NUM_CONCEPTS, student, tokens
from tests.reference.steering import steered_mixture

B, T = 3, 7
MODES = ("scale", "set", "add", "zero", "scale_logits")  # and `toward`, which acts on vectors


def dense(output: Any) -> torch.Tensor:
    """What is active, [B, T, C]; repeated concepts add up."""
    shape = (*output.concept_indices.shape[:2], NUM_CONCEPTS)
    return torch.zeros(shape).scatter_add(-1, output.concept_indices, output.concept_values)


def logits_of_concepts(model: CoCoMixForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """z, [B, T, C], by the paper's formula."""
    states = []
    hook = model.mixer.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0]))
    model(input_ids=ids)
    hook.remove()
    (h,) = states
    mixer = model.mixer
    assert isinstance(mixer, ConceptMixer)
    x = (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + STD_EPSILON) - mixer.pre_bias
    return x @ mixer.head_weight.T + mixer.head_bias


@pytest.fixture
def model() -> CoCoMixForCausalLM:
    return student()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strength", [-3.0, 0.0, 0.2, 1.0, 8.0])
@torch.no_grad()
def test_each_mode_equals_its_definition(model: CoCoMixForCausalLM, mode: str, strength: float) -> None:
    ids = tokens(B, T)
    z = logits_of_concepts(model, ids)
    strengths = {1: strength, 9: 2 * strength, 20: 1.0}
    with steer(model, strengths, mode=mode):
        output = model(input_ids=ids)
    expected = steered_mixture(z, 5, [(mode, [strengths] * B)])
    torch.testing.assert_close(dense(output), expected, atol=1e-4, rtol=1e-4)
    with concept_edits(model, _Mixture(expected)):
        torch.testing.assert_close(model(input_ids=ids).logits, output.logits, atol=1e-4, rtol=1e-4)


class _Mixture(Zero):
    """Puts a given mixture in place of the model's."""

    def __init__(self, mixture: torch.Tensor) -> None:
        self.mixture = mixture

    def edit_active(self, indices: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(NUM_CONCEPTS).expand_as(self.mixture), self.mixture


@torch.no_grad()
def test_scaled_logits_make_concepts_enter_and_leave_the_active_ones(model: CoCoMixForCausalLM) -> None:
    ids = tokens(B, T)
    plain = dense(model(input_ids=ids)) != 0
    with steer(model, {3: 40.0, 4: 0.0}, mode="scale_logits"):
        steered = dense(model(input_ids=ids)) != 0
    assert bool((steered[..., 3] & ~plain[..., 3]).any())
    assert bool((plain[..., 4] & ~steered[..., 4]).any())
    assert bool((steered.sum(-1) == 5).all())


@torch.no_grad()
def test_the_strongest_are_those_of_the_edited_logits() -> None:
    model, ids = student(), tokens(B, T)
    edited = logits_of_concepts(model, ids)
    rows = [{1: -40.0, 7: 3.0, 9: 0.0}, {3: 0.1, 20: 25.0}, {}]
    for b, row in enumerate(rows):
        for concept, strength in (*row.items(), (2, -5.0)):
            edited[b, :, concept] *= strength
    values, indices = edited.topk(5, dim=-1)
    expected = torch.zeros_like(edited).scatter(-1, indices, values)
    with steer(model, rows, mode="scale_logits"), steer(model, {2: -5.0}, mode="scale_logits"):
        torch.testing.assert_close(dense(model(input_ids=ids)), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_nested_blocks_equal_their_composition(model: CoCoMixForCausalLM) -> None:
    ids = tokens(B, T)
    z = logits_of_concepts(model, ids)
    blocks: list[tuple[str, dict[int, float]]] = [
        ("scale_logits", {2: 0.1, 5: 3.0}),
        ("set", {2: 4.0, 3: 1.0}),
        ("scale_logits", {2: 50.0}),
        ("add", {2: 1.0, 6: -2.0}),
        ("set", {3: -1.5}),
        ("scale", {2: 2.0, 6: 2.0}),
        ("zero", {5: 0.0}),
    ]
    for count in range(1, len(blocks) + 1):
        output = _nested(model, ids, blocks[:count])
        expected = steered_mixture(z, 5, [(mode, [strengths] * B) for mode, strengths in blocks[:count]])
        torch.testing.assert_close(dense(output), expected, atol=1e-4, rtol=1e-4)


def _nested(model: CoCoMixForCausalLM, ids: torch.Tensor, blocks: list[tuple[str, dict[int, float]]]) -> Any:
    if not blocks:
        return model(input_ids=ids)
    (mode, strengths), *rest = blocks
    with steer(model, strengths, mode=mode):
        return _nested(model, ids, rest)


@torch.no_grad()
def test_no_edit_changes_nothing_and_zero_equals_the_probe(model: CoCoMixForCausalLM) -> None:
    ids = tokens(B, T)
    plain = model(input_ids=ids).logits
    for mode in MODES:
        for edits in ({}, [{}] * B):
            with steer(model, edits, mode=mode):
                assert torch.equal(model(input_ids=ids).logits, plain)
        for positions in (slice(T, None), "generated"):
            with steer(model, {1: 5.0, 2: -3.0}, mode=mode, positions=positions):
                assert torch.equal(model(input_ids=ids).logits, plain)
    with steer(model, {1: 1.0, 2: 1.0}, mode="scale_logits"):
        assert torch.equal(model(input_ids=ids).logits, plain)
    with concept_edits(model, Zero()):
        probed = model(input_ids=ids).logits
    with steer(model, dict.fromkeys(range(NUM_CONCEPTS), 0.0), mode="zero"):
        assert torch.equal(model(input_ids=ids).logits, probed)
    assert not torch.equal(probed, plain)


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_every_row_has_its_own_edit(model: CoCoMixForCausalLM, mode: str) -> None:
    ids = tokens(4, T)
    plain = model(input_ids=ids).logits
    rows = [{1: 4.0}, {}, {2: 3.0, 8: -2.0}, {8: 5.0}]
    with steer(model, rows, mode=mode):
        together = model(input_ids=ids)
    assert torch.equal(together.logits[1], plain[1])
    torch.testing.assert_close(
        dense(together), steered_mixture(logits_of_concepts(model, ids), 5, [(mode, rows)]), atol=1e-4, rtol=1e-4
    )
    with (
        pytest.raises(CocomixError, match=r"3 rows.* 4"),
        steer(model, rows[:3], mode=mode),
    ):
        model(input_ids=ids)


def generation(ids: torch.Tensor, **more: Any) -> dict[str, Any]:
    mask = torch.ones_like(ids)
    return {
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
        "attention_mask": mask,
    } | more


ROWS: list[dict[int, float]] = [{4: 40.0}, {}, {7: -30.0, 2: 10.0}]
POSITIONS = (None, "prompt", "generated", slice(2, 8), range(1, 12, 2), slice(4, None))


def combinations() -> list[Any]:
    """Every rule of positions with one mixing and mode, two rules with the others; all of them are slow."""
    found = []
    for mixing, mode in (("interleave", "set"), ("interleave", "scale_logits"), ("add", "set")):
        for positions in POSITIONS:
            fast = (mixing, mode) == ("interleave", "set") or positions in ("prompt", slice(4, None))
            found.append(pytest.param(mixing, mode, positions, marks=() if fast else pytest.mark.slow))
    return found


@pytest.mark.parametrize(("mixing", "mode", "positions"), combinations(), ids=repr)
class TestGeneration:
    """Rows of a batch get what each gets alone, whatever `generate` does with the rows and the cache."""

    def alone(
        self, model: CoCoMixForCausalLM, ids: torch.Tensor, row: int, mode: str, positions: Any, **more: Any
    ) -> Any:
        with steer(model, ROWS[row], mode=mode, positions=positions):
            return model.generate(ids, **generation(ids, use_cache=False, **more))

    def test_caches_chunks_and_left_padding(self, mixing: str, mode: str, positions: Any) -> None:
        model, ids = student(mixing=mixing), tokens(B, 5)
        padded, mask = ids.clone(), torch.ones_like(ids)
        padded[2, :2], mask[2, :2] = 0, 0
        expected = [self.alone(model, ids[row : row + 1], row, mode, positions) for row in range(2)]
        expected.append(self.alone(model, ids[2:, 2:], 2, mode, positions))
        for more in ({}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}):
            with steer(model, ROWS, mode=mode, positions=positions):
                found = model.generate(padded, **generation(ids, attention_mask=mask, **more))
            for row in range(2):
                assert torch.equal(found[row : row + 1], expected[row]), (more, row)
            assert torch.equal(found[2:, 2:], expected[2]), more

    @pytest.mark.slow
    def test_beams(self, mixing: str, mode: str, positions: Any) -> None:
        model, ids = student(mixing=mixing), tokens(B, 5)
        with steer(model, ROWS, mode=mode, positions=positions):
            found = model.generate(ids, **generation(ids, num_beams=3, num_return_sequences=2))
        for row in range(B):
            expected = self.alone(model, ids[row : row + 1], row, mode, positions, num_beams=3, num_return_sequences=2)
            assert torch.equal(found[2 * row : 2 * row + 2], expected)


def test_samples_of_a_prompt_share_its_edit() -> None:
    model, ids = student("qwen3"), tokens(2, 5)
    with steer(model, [{4: 1e4}, {}], mode="set"):
        found = model.generate(ids, **generation(ids, do_sample=True, num_return_sequences=3, top_k=5))
        expected = model.generate(ids[:1].repeat(2, 1), **generation(ids))
    steered, plain = found[:3, 5:].unique(), found[3:, 5:].unique()
    assert len(steered) < len(plain)
    assert set(steered.tolist()) >= set(expected[0, 5:].tolist())


def test_drafts_and_embeddings_keep_the_positions() -> None:
    model, ids = student(mixing="interleave_residual"), tokens(1, 5).repeat(1, 3)
    for positions in ("generated", slice(17, 20)):
        with steer(model, {4: 20.0}, positions=positions, mode="set"):
            expected = model.generate(ids, **generation(ids, use_cache=False))
            assert torch.equal(model.generate(ids, **generation(ids, prompt_lookup_num_tokens=3)), expected)
            embeds = model.get_input_embeddings()(ids)
            new = model.generate(inputs_embeds=embeds, **generation(ids))
            assert torch.equal(new, expected[:, ids.shape[1] :])


@torch.no_grad()
def test_positions_by_a_function_see_absolute_positions_through_a_cache() -> None:
    model, ids = student(), tokens(2, 9)
    seen = []

    def rule(positions: torch.Tensor) -> torch.Tensor:
        seen.append(positions.flatten().tolist())
        return positions % 3 == 1

    with steer(model, {4: 20.0}, positions=rule, mode="set"):
        whole = model(input_ids=ids).logits
        cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
        rest = model(input_ids=ids[:, 4:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 4:], atol=1e-4, rtol=1e-4)
    assert seen == [list(range(9)), list(range(4)), list(range(4, 9))]
    z = logits_of_concepts(model, ids)
    mask = torch.tensor([position % 3 == 1 for position in range(9)]).expand(2, 9)
    with steer(model, {4: 20.0}, positions=rule, mode="set"):
        found = dense(model(input_ids=ids))
    torch.testing.assert_close(found, steered_mixture(z, 5, [("set", [{4: 20.0}] * 2)], mask), atol=1e-4, rtol=1e-4)


def metadata_with_directions() -> ConceptMetadata:
    columns = {
        name: torch.rand(NUM_CONCEPTS) + 0.5 for name in ("activation_rate", "mean", "std", "largest", "mean_abs")
    }
    directions = torch.randn(NUM_CONCEPTS, 16)
    directions[20] = 0
    return ConceptMetadata(NUM_CONCEPTS, {4: "imports"}, ActivationStatistics(100, **columns, directions=directions))


class _Shift(Zero):
    """Adds to the vectors of each token."""

    def __init__(self, shifts: torch.Tensor) -> None:
        self.shifts = shifts

    def edit_active(self, indices: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return indices, values

    def edit_vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors + self.shifts


@torch.no_grad()
def test_toward_shifts_the_mixture_of_each_row(model: CoCoMixForCausalLM) -> None:
    ids, metadata = tokens(B, T), metadata_with_directions()
    assert metadata.statistics is not None
    assert metadata.statistics.directions is not None
    rows: list[dict[Any, float]] = [{"imports": 2.0, 1: -1.0}, {}, {7: 0.5}]
    shifts = torch.zeros(B, T, 16)
    for row, strengths in enumerate([{4: 2.0, 1: -1.0}, {}, {7: 0.5}]):
        for concept, strength in strengths.items():
            shifts[row, 2:5] += strength * metadata.statistics.directions[concept]
    with concept_edits(model, _Shift(shifts)):
        expected = model(input_ids=ids)
    with steer(model, rows, mode="toward", positions=slice(2, 5), unit="usual", metadata=metadata):
        found = model(input_ids=ids)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    plain = model(input_ids=ids)
    assert torch.equal(found.logits[1], plain.logits[1])
    assert torch.equal(found.concept_values, plain.concept_values)
    cached = generation(ids)
    with steer(model, rows, mode="toward", positions="generated", metadata=metadata):
        assert torch.equal(model.generate(ids, **cached), model.generate(ids, **cached | {"use_cache": False}))


def test_toward_needs_directions(model: CoCoMixForCausalLM) -> None:
    with (
        pytest.raises(CocomixError, match="cocomix inspect"),
        steer(model, {1: 1.0}, mode="toward"),
    ):
        pass
    with (
        pytest.raises(CocomixError, match="concept 20"),
        steer(model, {20: 1.0}, mode="toward", metadata=metadata_with_directions()),
    ):
        pass


def test_gradients_pass_through_edits(model: CoCoMixForCausalLM) -> None:
    ids = tokens(B, T)
    for mode in MODES:
        model.zero_grad()
        with steer(model, {1: 2.0}, mode=mode):
            model(input_ids=ids, labels=ids).loss.backward()
        assert bool(model.mixer.head_weight.grad.isfinite().all())
        assert bool((model.mixer.head_weight.grad != 0).any())


@torch.no_grad()
def test_names_and_units_come_from_the_models_folder(tmp_path: Any) -> None:
    student().save_pretrained(tmp_path)
    model, ids = CoCoMixForCausalLM.from_pretrained(tmp_path).eval(), tokens()
    with pytest.raises(CocomixError, match="cocomix inspect"), steer(model, {"imports": 1.0}, mode="set"):
        pass
    with (
        pytest.raises(CocomixError, match="cocomix inspect"),
        steer(model, {4: 1.0}, "set", unit="usual"),
    ):
        pass
    columns = {
        name: torch.rand(NUM_CONCEPTS) + 0.5 for name in ("activation_rate", "mean", "std", "largest", "mean_abs")
    }
    write_names(tmp_path, {4: "imports"}, NUM_CONCEPTS)
    write_statistics(tmp_path, ActivationStatistics(100, **columns))
    usual = float(columns["mean_abs"][4])
    for mode, raw in (("set", 3 * usual), ("add", 3 * usual), ("scale", 3.0), ("scale_logits", 3.0)):
        with steer(model, {4: raw}, mode=mode):
            expected = model(input_ids=ids).logits
        with steer(model, {"imports": 3.0}, mode=mode, unit="usual"):
            assert torch.equal(model(input_ids=ids).logits, expected)
    with steer(model, {"other": np.float32(2.0)}, metadata=ConceptMetadata(NUM_CONCEPTS, {4: "other"}), mode="set"):
        given = model(input_ids=ids).logits
    with steer(model, {"4": 2}, mode="set"):
        assert torch.equal(model(input_ids=ids).logits, given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strengths": {24: 1}}, r"concept 24 .* 0 to 23"),
        ({"strengths": {1.5: 1}}, r"concept 1\.5"),
        ({"strengths": {1: 1, "1": 2}}, "concept 1 .*twice"),
        ({"strengths": {1: "2"}}, "concept 1 is '2'"),
        ({"strengths": {1: float("nan")}}, "is nan"),
        ({"strengths": {1: 1e39}}, r"is 1e\+39"),
        ({"strengths": {1: True}}, "is True"),
        ({"strengths": 3}, "strengths is 3"),
        ({"strengths": []}, r"strengths is \[\]"),
        ({"strengths": [1]}, r"strengths is \[1\]"),
        ({"strengths": {1: 1}, "mode": "double"}, "mode is 'double'.* scale, set"),
        ({"strengths": {1: 1}, "unit": "nats"}, "unit is 'nats'.* raw, usual"),
        ({"strengths": {1: 1}, "positions": "last"}, "positions is 'last'"),
        ({"strengths": {1: 1}, "positions": slice(-2, None)}, r"positions is slice\(-2, None"),
        ({"strengths": {1: 1}, "positions": lambda _: 3}, r"3; .*mask \(bool\)"),
    ],
)
def test_bad_input_is_one_sentence(model: CoCoMixForCausalLM, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CocomixError, match=message), steer(model, **{"mode": "set"} | arguments):
        model(input_ids=tokens())


@torch.no_grad()
def test_the_old_name_of_metadata_still_works(model: CoCoMixForCausalLM) -> None:
    ids, metadata = tokens(), ConceptMetadata(NUM_CONCEPTS, {4: "imports"})
    with steer(model, {"imports": 3.0}, metadata=metadata, mode="set"):
        expected = model(input_ids=ids).logits
    with pytest.warns(DeprecationWarning, match="metadata"), steer(model, {"imports": 3.0}, notes=metadata, mode="set"):
        assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mixer": "pause"}, "mixer 'pause'"), ({"mixing": "none"}, "mixing 'none'")],
)
def test_models_that_cannot_be_steered(settings: dict[str, str], message: str) -> None:
    with pytest.raises(CocomixError, match=message), steer(student(**settings), {1: 1.0}, mode="set"):
        pass
