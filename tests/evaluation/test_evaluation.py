"""Evaluation: exact losses, and probes that do what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from cocomix import CocomixError, EvalConfig, TokenDataset, TrainConfig, evaluate, run_probes, train
from cocomix.evaluation import loss
from cocomix.evaluation.loss import validation_loss
from cocomix.evaluation.probes import Mean, Oracle, ShuffleBatch, ShufflePosition, Zero
from cocomix.mixers.edits import ConceptEdit, concept_edits
from cocomix.modeling.loading import load_causal_lm
from cocomix.steering.steer import steer
from tests.conftest import CONCEPT, Tiny
from tests.modeling.helpers import student, tokens


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("student") / "cocomix"
    concept = CONCEPT
    train(TrainConfig(data=tiny.data, output=output, labels=tiny.concepts, student=concept, num_tokens=4096))
    return output


def test_loss_is_the_mean_over_all_predicted_tokens(tiny: Tiny, run: Path) -> None:
    model, data = load_causal_lm(run), TokenDataset(tiny.data, "validation")
    ids = data.input_ids(range(data.num_windows))
    with torch.no_grad():
        expected = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    result = validation_loss(model, data, batch_size=7)
    assert result.loss == pytest.approx(float(expected), rel=1e-5)
    assert result.num_tokens == ids[:, 1:].numel()
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    facts = data.tokens_per_byte
    assert result.bits_per_byte(data) == pytest.approx(result.loss / math.log(2) * facts)
    assert not model.training


def test_logits_of_a_large_vocabulary_come_from_few_windows_at_a_time(
    tiny: Tiny, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = load_causal_lm(run), TokenDataset(tiny.data, "validation")
    expected, sizes = validation_loss(model, data).loss, []
    model.register_forward_pre_hook(lambda _, arguments, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    monkeypatch.setattr(loss, "LOGITS_BYTES", 3 * 4 * data.context_length * data.vocab_size)
    assert validation_loss(model, data).loss == pytest.approx(expected, rel=1e-6)
    assert max(sizes) == 3


def test_command_writes_and_recognises_its_result(tiny: Tiny, run: Path, tmp_path: Path) -> None:
    config = EvalConfig(
        model=run, data=tiny.data, output=tmp_path, probes=True, teacher=tiny.teacher, sae=tiny.sae, max_windows=20
    )
    result = evaluate(config)
    assert set(result["probes"]) == {"zero", "mean", "shuffle_batch", "shuffle_position", "oracle"}
    for probe in result["probes"].values():
        assert probe["loss_delta"] == pytest.approx(probe["loss"] - result["validation_loss"], abs=1e-5)
        assert probe["standard_error"] >= 0
    assert evaluate(config) == result


def test_bad_input_is_one_sentence(tiny: Tiny, run: Path, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=r"probes.*mixer"):
        evaluate(EvalConfig(model=tiny.teacher, data=tiny.data, output=tmp_path / "a", probes=True))
    with pytest.raises(CocomixError, match=r"--teacher.*--sae"):
        EvalConfig(model=run, data=tiny.data, output=tmp_path, teacher=tiny.teacher)
    with pytest.raises(CocomixError, match="nothing"):
        evaluate(EvalConfig(model=tmp_path / "nothing", data=tiny.data, output=tmp_path / "b"))
    with pytest.raises(CocomixError, match=r"config\.json"):
        load_causal_lm(tmp_path)
    with pytest.raises(CocomixError, match=r"mixing .none.*probes"):
        run_probes(student(mixing="none"), TokenDataset(tiny.data, "validation"))


def test_progress_says_which_probe(tiny: Tiny, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    batches = TokenDataset.batches

    def noted(data: TokenDataset, *given: Any, description: str, **options: Any) -> Iterator[Any]:
        said.append(description)
        return batches(data, *given, **options)

    monkeypatch.setattr(TokenDataset, "batches", noted)
    found = run_probes(load_causal_lm(run), TokenDataset(tiny.data, "validation"), max_windows=4)  # type: ignore[arg-type]
    assert said == ["loss without a probe", *(f"probe {name}" for name in found)]


class TestProbes:
    """Each probe's edit, on known streams."""

    indices = torch.tensor([[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]])
    values = torch.arange(12.0).view(2, 3, 2) + 1

    def test_zero_equals_steering_every_concept_to_nothing(self) -> None:
        model, ids = student(), tokens()
        with concept_edits(model, Zero()):
            expected = model(input_ids=ids).logits
        with steer(model, dict.fromkeys(range(24), 0.0), mode="zero"):
            assert torch.equal(model(input_ids=ids).logits, expected)

    def test_mean_gives_every_position_one_vector(self) -> None:
        assert torch.equal(Mean(torch.ones(4)).edit_vectors(torch.randn(2, 3, 4)), torch.ones(2, 3, 4))

    def test_shuffle_batch_exchanges_sequences(self) -> None:
        indices, values = ShuffleBatch().edit_active(self.indices, self.values)
        assert torch.equal(indices, self.indices.flip(0))
        assert torch.equal(values, self.values.flip(0))

    def test_shuffle_position_takes_earlier_positions_of_the_same_sequence(self) -> None:
        T = 50
        indices = torch.arange(T).view(1, T, 1).repeat(3, 1, 2) + torch.tensor([0, 100, 200]).view(3, 1, 1)
        shuffled, _ = ShufflePosition().edit_active(indices, torch.ones(3, T, 2))
        assert torch.equal(shuffled // 100, indices // 100)
        assert (shuffled[:, 1:] < indices[:, 1:]).all()
        assert torch.equal(shuffled[:, 0], indices[:, 0])

    def test_oracle_puts_labels_first_and_counts_none_twice(self) -> None:
        oracle = Oracle()
        oracle.labels = torch.tensor([[[1], [7], [-100]], [[6], [6], [6]]])
        indices, values = oracle.edit_active(self.indices, self.values)
        assert indices[0].tolist() == [[1, 1], [7, 3], [4, 5]]
        assert values[0].tolist() == [[1.0, 0.0], [3.0, 4.0], [5.0, 6.0]]
        assert indices[1].tolist() == [[6, 7], [6, 9], [6, 11]]

    def test_oracle_keeps_predictions_in_place_of_missing_labels(self) -> None:
        indices, values = torch.tensor([[[4, 7, 2]]]), torch.tensor([[[3.0, 2.0, 1.0]]])
        oracle = Oracle()
        for labels, expected_indices, expected_values in (
            ([2, -100], [2, 7, 2], [3.0, 2.0, 0.0]),
            ([7, -100], [7, 7, 2], [3.0, 0.0, 1.0]),
            ([-100, -100], [4, 7, 2], [3.0, 2.0, 1.0]),
        ):
            oracle.labels = torch.tensor([[labels]])
            found = oracle.edit_active(indices, values)
            assert found[0][0, 0].tolist() == expected_indices
            assert found[1][0, 0].tolist() == expected_values

    def test_an_unedited_stream_is_left_alone_bit_for_bit(self) -> None:
        model, ids = student(), tokens()
        expected = model(input_ids=ids).logits
        with concept_edits(model, ConceptEdit()):
            assert torch.equal(model(input_ids=ids).logits, expected)
