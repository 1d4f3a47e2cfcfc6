"""Positions that a dictionary leaves out: found, not trained on, not measured, and without labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import (
    AttributionConfig,
    CocomixError,
    ConceptDataset,
    ExtractConfig,
    SparseAutoencoder,
    SparseAutoencoderConfig,
    TokenDataset,
    extract,
)
from cocomix.data import IGNORED_LABEL
from cocomix.labels.attribution import ConceptExtractor
from cocomix.modeling.teacher import Teacher, load_teacher
from cocomix.sae.config import ExcludedPositions
from cocomix.sae.outliers import excluded_positions
from cocomix.sae.quality import measure_sae, reconstruction_fvu
from cocomix.sae.train import train_autoencoders
from cocomix.tools.steer_eval.reading import TextReader, most_used_latents
from tests.conftest import Tiny
from tests.sae.test_train import config

#: A token whose embedding makes it a sink wherever it stands.
SINK = 32


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A decoder with a residual stream that is a hundred times as large at first positions and at one token."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=16, n_embd=12, n_layer=2, n_head=2))
    with torch.no_grad():
        for rows, index in ((model.transformer.wpe.weight, 0), (model.transformer.wte.weight, SINK)):
            rows[index] = 10 * torch.randn(12)
    model.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def is_large(ids: torch.Tensor) -> torch.Tensor:
    return (ids == SINK) | (torch.arange(ids.shape[1]) == 0)


def test_outliers_are_found_left_out_and_have_no_labels(
    tiny: Tiny, tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (manifest,) = train_autoencoders(config(tiny, tmp_path / "sae", teacher=teacher, num_tokens=512))
    assert "times the median (" in capsys.readouterr().err
    assert manifest.settings["exclude"] == ["outliers"]
    sae, data = SparseAutoencoder.from_pretrained(tmp_path / "sae"), TokenDataset(tiny.data, "validation")
    ids = data.input_ids(range(data.num_windows))
    large = is_large(ids)
    kept = sae.kept(Teacher(load_teacher(teacher), 0).residual(ids), ids)
    assert torch.equal(kept, ~large)
    quality = manifest.facts["quality"]
    assert (quality["num_tokens"], quality["num_excluded"]) == (int((~large).sum()), int(large.sum()))
    extract(ExtractConfig(teacher=teacher, sae=tmp_path / "sae", data=tiny.data, output=tmp_path / "labels"))
    train = TokenDataset(tiny.data)
    ids = train.input_ids(range(train.num_windows))
    has_label = (ConceptDataset(tmp_path / "labels", train).labels(range(train.num_windows)) != IGNORED_LABEL).any(-1)
    expected = ~is_large(ids)
    expected[:, -1] = False
    assert torch.equal(has_label, expected)


def test_quality_without_the_large_positions_equals_its_definition(tiny: Tiny, teacher: Path) -> None:
    model, data = Teacher(load_teacher(teacher), 0), TokenDataset(tiny.data, "validation")
    sae = SparseAutoencoder(
        SparseAutoencoderConfig(12, 32, 6, excluded=ExcludedPositions(first=True, tokens=(SINK,)))
    ).requires_grad_(False)
    quality, counts = measure_sae(model, sae, data, further=[data.windows(range(3))])
    ids = data.input_ids(range(data.num_windows))
    h, large = model.residual(ids), is_large(ids)
    own = h[~large]
    assert quality.fvu == pytest.approx(
        float((own - sae(own)).pow(2).sum() / (own - own.mean(0)).pow(2).sum()), rel=1e-4
    )
    assert quality.l0 == pytest.approx(6)
    assert quality.num_counted_tokens == int((~large).sum() + (~is_large(ids[:3])).sum())
    assert int(counts.sum()) == 6 * quality.num_counted_tokens
    losses = []
    for stand_in in (h, sae(h), own.mean(0).expand_as(h)):
        spliced = torch.where(large.unsqueeze(-1), h, stand_in)
        losses.append(float(F.cross_entropy(model.logits(spliced)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())))
    assert (quality.loss, quality.spliced_loss, quality.mean_ablated_loss) == pytest.approx(losses, rel=1e-5)


def test_positions_of_every_kind() -> None:
    h, ids = torch.ones(1, 6, 4), torch.tensor([[7, 3, 5, 7, 3, 5]])
    h[0, 4] = 100.0
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])

    def kept(position_ids: torch.Tensor | None = None, **rule: object) -> list[bool]:
        sae = SparseAutoencoder(SparseAutoencoderConfig(4, 8, 2, excluded=ExcludedPositions(**rule)))  # type: ignore[arg-type]
        found: list[bool] = sae.kept(h, ids, position_ids)[0].tolist()
        active = (sae.read(h, ids, position_ids).values > 0).any(-1)[0].tolist()
        assert not any(a and not f for a, f in zip(active, found, strict=True))
        return found

    assert kept() == [True] * 6
    assert kept(first=True) == [False] + [True] * 5
    assert kept(positions, first=True) == [False, True, True, False, True, True]
    assert kept(tokens=(3,)) == [True, False, True, True, False, True]
    assert kept(max_norm=2.0) == [True] * 4 + [False, True]  # a norm of 2 is not above it


def test_special_tokens_are_those_of_the_tokenizer(tiny: Tiny) -> None:
    data = TokenDataset(tiny.data)
    found = excluded_positions(["special", "first"], torch.ones(1, 4, 3), data)
    assert found == ExcludedPositions(first=True, tokens=(data.eos_token_id,))


def test_the_rule_is_stored_with_the_dictionary(tmp_path: Path) -> None:
    rule = ExcludedPositions(True, (3, 5), 1 / 3)
    SparseAutoencoder(SparseAutoencoderConfig(4, 8, 2, excluded=rule)).save_pretrained(tmp_path)
    assert SparseAutoencoder.from_pretrained(tmp_path).config.excluded == rule


def test_settings_and_files_are_as_before_where_nothing_is_left_out(tiny: Tiny, tmp_path: Path) -> None:
    (none,) = train_autoencoders(config(tiny, tmp_path / "none", num_tokens=512, exclude=()))
    (default,) = train_autoencoders(config(tiny, tmp_path / "default", num_tokens=512))
    assert not {"exclude", "activation", "warmup_fraction", "decay_fraction", "cache"} & none.settings.keys()
    assert "excluded" not in (tmp_path / "none" / "sae.json").read_text()
    # The tiny teacher has no outliers: the weights are the same, and the bound is all that is new.
    assert none.files["sae.safetensors"] == default.files["sae.safetensors"]
    assert none.facts["quality"] == default.facts["quality"]
    assert none.fingerprint != default.fingerprint


def test_outliers_that_are_kept_are_named(
    tiny: Tiny, tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_autoencoders(config(tiny, tmp_path / "sae", teacher=teacher, num_tokens=256, exclude=()))
    assert "--exclude outliers leaves those out" in capsys.readouterr().err


def test_a_step_without_tokens_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    settings = config(tiny, tmp_path / "sae", num_tokens=256, batch_size=1, exclude=("special",))
    with pytest.MonkeyPatch.context() as patch:
        rule = ExcludedPositions(tokens=tuple(range(300)))
        patch.setattr("cocomix.sae.train.excluded_positions", lambda *_: rule)
        with pytest.raises(CocomixError, match=r"--exclude special leaves 0 of 16 tokens in step 1"):
            train_autoencoders(settings)
    assert not (tmp_path / "sae").exists()


def test_the_fit_and_the_steering_score_leave_them_out(tiny: Tiny, teacher: Path) -> None:
    model, data = Teacher(load_teacher(teacher), 0), TokenDataset(tiny.data)
    ids = data.input_ids(range(8))
    ids[:, 5] = SINK
    h, kept = model.residual(ids), ~is_large(ids)
    rule = excluded_positions(["outliers"], h, data)
    sae = SparseAutoencoder(SparseAutoencoderConfig(12, 32, 6, excluded=rule)).requires_grad_(False)
    own = h[kept]
    expected = (own - sae(own)).pow(2).sum() / (own - own.mean(0)).pow(2).sum()
    assert reconstruction_fvu(sae, h) == pytest.approx(float(expected), rel=1e-4)
    latents = most_used_latents(model, sae, data, 4)
    read = TextReader(model, sae, latents).read(ids, 4).activations
    values = sae.read(h, ids)
    dense = torch.zeros(8, 16, 32).scatter_add(-1, values.indices, values.values)
    torch.testing.assert_close(read, dense[:, 4:, latents].mean(1))
    assert (sae.encode(h[:, 5]).values > 0).any()
    assert not dense[:, 5].any()


@pytest.mark.parametrize("criterion", ["activation_value", "attribution"])
def test_labels_by_attribution_and_of_random_dictionaries_are_masked_too(
    tiny: Tiny, teacher: Path, criterion: str
) -> None:
    excluded = ExcludedPositions(tokens=(SINK,))
    sae = SparseAutoencoder(SparseAutoencoderConfig(12, 32, 6, excluded=excluded)).requires_grad_(False)
    ids = TokenDataset(tiny.data).input_ids(range(4))
    ids[:, 7] = SINK
    attribution = AttributionConfig(criterion=criterion)  # type: ignore[arg-type]
    for control in ("none", "random"):
        rule = dataclasses.replace(attribution, control=control)
        scored = ConceptExtractor(load_teacher(teacher), sae, 0, rule).scored(ids)
        is_label = scored.labels != IGNORED_LABEL
        assert not is_label[ids == SINK].any()
        assert not scored.scores[ids == SINK].any()
        assert is_label[:, 8].any()
