"""The steering score: its statistics, its choices, and the command on a tiny pipeline."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cocomix import (
    AttributionConfig,
    CocomixError,
    SparseAutoencoder,
    SparseAutoencoderConfig,
    TokenDataset,
    steer,
)
from cocomix.cli.main import main
from cocomix.labels.live import load_extractor
from cocomix.modeling.loading import load_causal_lm
from cocomix.modeling.losses import next_token_losses
from cocomix.modeling.teacher import Teacher
from cocomix.sae.config import ExcludedPositions
from cocomix.steering.activations import concept_activations
from cocomix.steering.concept_metadata import ConceptMetadata
from cocomix.steering.concept_names import write_names
from cocomix.tools.generate.continuations import GenerationSettings, continue_all
from cocomix.tools.steer_eval.command import steer_eval
from cocomix.tools.steer_eval.config import SteerEvalConfig
from cocomix.tools.steer_eval.reading import TextReader, most_used_latents
from cocomix.tools.steer_eval.score import (
    Measurements,
    benjamini_hochberg,
    random_others,
    score_steering,
    sign_flip_p_values,
)
from tests.conftest import Tiny
from tests.modeling.helpers import FAMILIES, backbone_config, tokens
from tests.reference import steering_score as reference


def test_p_values_equal_their_definition() -> None:
    differences = torch.randn(5, 2, 8) + 0.3
    differences[1, 0, 2:7] = 0.0
    expected = [reference.sign_flip_p_value(rows) for rows in differences.tolist()]
    assert sign_flip_p_values(differences).tolist() == pytest.approx(expected)
    risen = differences.abs() * torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 0.0]]).unsqueeze(-1)
    expected = [*(reference.sign_flip_p_value(rows[:1]) for rows in risen[:4].tolist()), 1.0]
    assert sign_flip_p_values(risen).tolist() == pytest.approx(expected)


def test_choosing_among_strengths_is_paid_for() -> None:
    """Activations are mostly 0 and sometimes large, and a draw is compared with a mean of eight, as in the command."""
    draws = torch.rand(100, 12, 40).log().neg() * (torch.rand(100, 12, 40) < 0.5)
    idle = draws[:, :4] - draws[:, 4:].mean(1, keepdim=True)
    assert float((sign_flip_p_values(idle) <= 0.05).float().mean()) < 0.08
    risen = 3 * draws[:, :4] - draws[:, 4:].mean(1, keepdim=True)
    assert float((sign_flip_p_values(risen) <= 0.05).float().mean()) > 0.9


def test_adjusted_p_values_equal_their_definition() -> None:
    p_values = torch.rand(30) ** 3
    p_values[4] = p_values[5]
    assert benjamini_hochberg(p_values).tolist() == pytest.approx(reference.benjamini_hochberg(p_values.tolist()))


def test_random_others_are_others() -> None:
    others = random_others(7, seed=3)
    assert sorted(others) == list(range(7))
    assert all(other != place for place, other in enumerate(others))
    assert others != random_others(7, seed=4)


def measurements(rise: list[list[float]], cost: list[list[float]], P: int = 40) -> Measurements:
    """Two concepts, two strengths: a given mean rise of the steered concept alone, at a given cost, with little noise."""
    N, S = 2, 2
    activations = 1 + 0.1 * torch.randn(N, S, P, N)
    losses = 4 + 0.1 * torch.randn(N, S, P)
    for n in range(N):
        for s in range(S):
            activations[n, s, :, n] += rise[n][s]
            losses[n, s] += cost[n][s]
    return Measurements(
        (1.0, 2.0),
        activations,
        losses,
        torch.full((N, S, P), 0.5),
        torch.ones(P, N),
        torch.full((P,), 4.0),
        torch.zeros(P),
    )


def test_the_surest_affordable_strength_is_scored() -> None:
    measured = measurements(rise=[[0.5, 2.0], [0.5, 2.0]], cost=[[0.1, 0.2], [0.1, 0.9]])
    first, second = score_steering(measured, [10, 11], [0, 1], max_cost=0.5)
    assert (first.concept, first.steered, first.strength, first.rises) == (10, 10, 2.0, True)
    assert first.steered_activation == pytest.approx(3.0, abs=0.1)
    assert first.unsteered_activation == pytest.approx(1.0)
    assert first.fluency_cost == pytest.approx(0.2, abs=0.1)
    assert first.repetition_change == pytest.approx(0.5)
    assert (second.strength, second.rises) == (1.0, True)
    others = score_steering(measured, [10, 11], [1, 0], max_cost=0.5)
    assert [score.steered for score in others] == [11, 10]
    assert not any(score.rises for score in others)


def test_nothing_rises_where_every_strength_costs_too_much_or_does_nothing() -> None:
    measured = measurements(rise=[[2.0, 2.0], [0.0, 0.0]], cost=[[0.6, 0.7], [0.1, 0.1]])
    dear, idle = score_steering(measured, [10, 11], [0, 1], max_cost=0.5)
    assert (dear.strength, dear.steered_activation, dear.rises) == (None, None, False)
    assert not idle.rises


def test_readings_equal_teacher_and_autoencoder(tiny: Tiny) -> None:
    extractor = load_extractor(tiny.teacher, tiny.sae, AttributionConfig())
    data = TokenDataset(tiny.data, "validation")
    ids = data.input_ids(range(6))
    ids[0, 5:] = ids[0, 5]
    latents = [7, 3, 30]
    read = TextReader(extractor.teacher, extractor.sae, latents).read(ids.unflatten(0, (2, 3)), 5)
    assert read.losses.shape == (2, 3)
    active = extractor.sae.encode(extractor.teacher.residual(ids))
    for place, latent in enumerate(latents):
        expected = (active.values * (active.indices == latent)).sum(-1)[:, 5:].mean(-1)
        torch.testing.assert_close(read.activations[..., place].flatten(), expected)
    with torch.no_grad():
        log_probabilities = extractor.teacher.model(ids).logits.log_softmax(-1)
    expected = -log_probabilities[:, 4:-1].gather(-1, ids[:, 5:, None]).squeeze(-1).mean(-1)
    torch.testing.assert_close(read.losses.flatten(), expected, atol=1e-4, rtol=1e-4)
    repeated = [reference.repetition(row) for row in ids[:, 5:].tolist()]
    assert read.repetition.flatten().tolist() == pytest.approx(repeated)
    assert repeated[0] > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_one_prompt_are_read_as_if_each_stood_alone(family: str) -> None:
    """Their prompt runs once, for every kind of keys: positions that are learned, windows that slide over the prompt."""
    decoder = AutoModelForCausalLM.from_config(backbone_config(family)).eval().requires_grad_(False)
    sae = SparseAutoencoder(SparseAutoencoderConfig(16, 24, 4, excluded=ExcludedPositions(tokens=(1, 2, 3))))
    teacher, ids = Teacher(decoder, 0), tokens(6, 9)
    ids[2:4, :5] = ids[0, :5]
    found = TextReader(teacher, sae, range(24)).read(ids, 5)
    h = teacher.residual(ids)
    active = sae.read(h, ids)
    expected = h.new_zeros(6, 9, 24).scatter_add(-1, active.indices, active.values)[:, 5:].mean(1)
    torch.testing.assert_close(found.activations, expected, atol=1e-5, rtol=1e-4)
    losses = next_token_losses(teacher.logits(h), ids)[:, 4:].mean(1)
    torch.testing.assert_close(found.losses, losses, atol=1e-5, rtol=1e-4)


def test_most_used_latents_are_the_most_frequent_labels(tiny: Tiny) -> None:
    extractor = load_extractor(tiny.teacher, tiny.sae, AttributionConfig())
    data = TokenDataset(tiny.data)
    (windows,) = data.batches(20, 20)
    labels = extractor(**windows.inputs())
    counts = torch.bincount(labels[labels >= 0], minlength=32)
    used = most_used_latents(extractor.teacher, extractor.sae, data, 4, 20)
    # Labels leave out the last token of each window.
    assert abs(int(counts[used[0]]) - int(counts.max())) <= 20
    assert set(used) >= set(counts.nonzero().flatten().tolist())


def test_every_prompt_gets_every_edit(tiny: Tiny, student: Path) -> None:
    model, data = load_causal_lm(student), TokenDataset(tiny.data, "validation")
    prompts = data.input_ids(range(3))[:, :6]
    metadata = ConceptMetadata(32, {}, concept_activations(model, data, 16))
    settings = GenerationSettings(
        num_new_tokens=5, end_token_id=data.eos_token_id, mode="set", unit="usual", metadata=metadata, batch_size=6
    )
    edits = [{5: 30.0}, {}, {7: -30.0}, {5: 10.0, 9: 20.0}, {1: 4.0}]
    found = list(continue_all(model, prompts, edits, settings))
    assert [len(part) for part in found] == [2, 2, 1]
    for edit, ids in zip(edits, torch.cat(found), strict=True):
        with steer(model, edit, unit="usual", metadata=metadata, mode="set"):
            expected = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=5,
                min_new_tokens=5,
                do_sample=False,
                pad_token_id=0,
            )
        assert torch.equal(ids, expected)
    sampled = dataclasses.replace(settings, temperature=1.0)
    draws = [torch.cat(list(continue_all(model, prompts, edits, sampled, seed=seed))) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


SMALL: dict[str, Any] = {
    "num_concepts": 4,
    "num_prompts": 10,
    "num_prompt_tokens": 6,
    "num_new_tokens": 6,
    "num_windows": 32,
}


def config(tiny: Tiny, student: Path, output: Path, **more: Any) -> SteerEvalConfig:
    paths = {"model": student, "teacher": tiny.teacher, "sae": tiny.sae, "data": tiny.data, "output": output}
    return SteerEvalConfig(**paths | SMALL | more)


@pytest.mark.parametrize("mode", ["toward", "set", "scale_logits"])
def test_the_command_writes_scores_tables_and_curves(tiny: Tiny, student: Path, tmp_path: Path, mode: str) -> None:
    said = steer_eval(config(tiny, student, tmp_path, mode=mode))
    assert f"steered by mode {mode}, " in said
    result = json.loads((tmp_path / "steering.json").read_text())
    assert len(result["concepts"]) == len(result["others"]) == 4
    assert len(result["strengths"]) == 4
    assert result["share_rising"] == sum(concept["rises"] for concept in result["concepts"]) / 4
    assert {path.name for path in tmp_path.glob("[!.]*")} >= {"steering.json", "steering.md", "rise.png", "cost.png"}
    stamp = (tmp_path / "steering.json").stat().st_mtime_ns
    assert steer_eval(config(tiny, student, tmp_path, mode=mode)) == said
    assert (tmp_path / "steering.json").stat().st_mtime_ns == stamp
    with pytest.raises(CocomixError, match="seed"):
        steer_eval(config(tiny, student, tmp_path, mode=mode, seed=1))


def test_names_are_escaped_and_concepts_can_be_chosen(
    tiny: Tiny, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(student, tmp_path / "model"))
    write_names(model, {3: "<b>|`x`"}, 32)
    output = tmp_path / "score"
    paths = {"model": model, "teacher": tiny.teacher, "sae": tiny.sae, "data": tiny.data, "output": output}
    settings = paths | SMALL | {"strengths": 0.5, "temperature": 0}
    words = [str(word) for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert main(["steer-eval", *words, "--concepts", "3", "9"]) == 0
    assert str(output) in capsys.readouterr().out
    table = (output / "steering.md").read_text()
    assert r"| 3 | &lt;b>\|\`x\` | " in table
    assert "<b>" not in table


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "zero"}, "mode is 'zero'.* toward, set"),
        ({"concepts": (3,)}, "--concepts"),
        ({"concepts": (3, 3)}, "--concepts"),
        ({"concepts": (3, 99)}, "concept 99 "),
        ({"num_prompts": 10_000}, "10000.* validation windows"),
        ({"num_new_tokens": 11}, "context is 16"),
        ({"num_prompts": 2}, "num_prompts is 2.* 10"),
    ],
)
def test_mistakes_are_one_sentence(
    tiny: Tiny, student: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CocomixError, match=message):
        steer_eval(config(tiny, student, tmp_path, **settings))


def test_a_plain_decoder_cannot_be_scored(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="no concepts"):
        steer_eval(config(tiny, tiny.teacher, tmp_path))
