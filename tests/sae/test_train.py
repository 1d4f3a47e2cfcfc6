"""Training autoencoders: the loss, several layers at once, interruptions, quality."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import (
    CocomixError,
    DistillationConfig,
    ExtractConfig,
    PrepareConfig,
    SparseAutoencoder,
    SparseAutoencoderConfig,
    TokenDataset,
    TrainConfig,
    TrainSaeConfig,
    extract,
    prepare,
    train,
    train_sae,
)
from cocomix.data.order import windows_of_step
from cocomix.modeling.teacher import Teacher, load_teacher
from cocomix.sae import train as sae_training
from cocomix.sae.quality import measure_sae
from cocomix.sae.train import train_autoencoders
from cocomix.sae.update import SaeUpdater, geometric_median
from tests.conftest import CONCEPT, Tiny
from tests.reference.sae_training import written_out_losses


def test_geometric_median_minimises_summed_distance() -> None:
    x = torch.cat([torch.randn(50, 3), torch.full((5, 3), 100.0)])
    median = geometric_median(x, num_iterations=200).requires_grad_(True)
    (gradient,) = torch.autograd.grad((x - median).norm(dim=-1).sum(), median)
    assert gradient.norm() < 1e-3
    assert median.norm() < 5  # the mean is near 9: outliers do not move the median


def config(tiny: Tiny, output: Path, **settings: object) -> TrainSaeConfig:
    shared: dict[str, object] = {"teacher": tiny.teacher, "data": tiny.data, "output": output, "layer": 0}
    shared |= {"num_latents": 32, "k": 6, "num_tokens": 4096, "batch_size": 16, "tokens_per_update": 64}
    return TrainSaeConfig(**shared | settings)  # type: ignore[arg-type]


def quality_of(config: TrainSaeConfig) -> dict[str, float]:
    (manifest,) = train_autoencoders(config)
    quality: dict[str, float] = manifest.facts["quality"]
    return quality


@pytest.mark.slow
def test_training_lowers_the_unexplained_variance_and_keeps_unit_rows(tiny: Tiny, tmp_path: Path) -> None:
    short = quality_of(config(tiny, tmp_path / "short", num_tokens=256))
    long = quality_of(config(tiny, tmp_path / "long", num_tokens=40_000))
    assert long["fvu"] < 0.6 * short["fvu"]
    assert long["l0"] <= 6
    rows = SparseAutoencoder.from_pretrained(tmp_path / "long").decoder_weight
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(32))


@pytest.mark.slow
def test_dead_latents_are_revived_by_the_auxiliary_loss(tiny: Tiny, tmp_path: Path) -> None:
    shared: dict[str, object] = {"num_latents": 64, "k": 2, "num_tokens": 20_000}
    left = quality_of(config(tiny, tmp_path / "left", **shared, num_auxiliary_latents=0))["num_dead"]
    helped = quality_of(config(tiny, tmp_path / "helped", **shared, dead_after_tokens=512))["num_dead"]
    assert left > 0
    assert helped < left


@pytest.mark.parametrize("with_dead", [False, True])
def test_losses_and_their_gradients_equal_the_written_out_ones(with_dead: bool) -> None:
    sae, h = SparseAutoencoder(SparseAutoencoderConfig(6, 19, 3)).double(), torch.randn(11, 6).double() + 1
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    updater = SaeUpdater(sae, 3, dead_after_tokens=100, num_auxiliary_latents=4)
    if with_dead:
        updater.tokens_since_active[::2] = 1000
    fvu, auxiliary, _, l0 = updater._losses(h, 1.0)
    dead = updater.tokens_since_active > 100
    gradients = torch.autograd.grad(fvu + 0.5 * auxiliary, list(sae.parameters()))
    expected_fvu, expected = written_out_losses(sae, h, dead, 4)
    if not with_dead:
        assert updater.num_dead == 0
        expected = torch.zeros_like(expected)
    torch.testing.assert_close((fvu, auxiliary), (expected_fvu, expected))
    expected_gradients = torch.autograd.grad(expected_fvu + 0.5 * expected, list(sae.parameters()))
    torch.testing.assert_close(gradients, expected_gradients)
    assert float(l0) == float((sae.encode(h).values > 0).sum(-1).double().mean())


def test_dead_are_those_silent_for_too_long() -> None:
    sae = SparseAutoencoder(SparseAutoencoderConfig(6, 19, 3))
    updater = SaeUpdater(sae, 3, dead_after_tokens=10, num_auxiliary_latents=0)
    h = torch.randn(5, 6)
    active = sae.encode(h)
    updater._losses(h, 1.0)
    assert int((updater.tokens_since_active == 0).sum()) == len(active.indices[active.values > 0].unique())
    updater._losses(h, 1.0)
    assert updater.num_dead == 0  # for exactly 10 tokens
    updater._losses(h, 1.0)
    assert updater.num_dead == int((updater.tokens_since_active == 15).sum()) > 0


def test_several_layers_in_one_pass_equal_runs_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    both = train_autoencoders(config(tiny, tmp_path / "both", layer=(1, 0)))
    assert [manifest.path.name for manifest in both] == ["layer-00", "layer-01"]
    for layer, manifest in enumerate(both):
        (alone,) = train_autoencoders(config(tiny, tmp_path / f"alone-{layer}", layer=layer))
        assert manifest.settings == alone.settings
        assert manifest.settings["layer"] == layer
        # Equal fingerprints mean that every byte is equal.
        assert manifest.fingerprint == alone.fingerprint
        SparseAutoencoder.from_pretrained(manifest.path)


def test_the_teacher_runs_once_a_step_up_to_the_highest_layer(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, calls = Teacher(load_teacher(tiny.teacher), 1), []
    ids = TokenDataset(tiny.data).input_ids(range(3))
    for layer, h in enumerate(teacher.residuals(ids, layers=[0, 1])):
        assert torch.equal(h, Teacher(teacher.model, layer).residual(ids))
    residuals = Teacher.residuals

    def counted(self: Teacher, *arguments: Any, layers: Sequence[int], **more: Any) -> list[torch.Tensor]:
        calls.append(tuple(layers))
        return residuals(self, *arguments, layers=layers, **more)

    monkeypatch.setattr(Teacher, "residuals", counted)
    train_autoencoders(config(tiny, tmp_path / "both", layer=(0, 1), num_tokens=1024))
    # One for the start of the biases, and one for each of four steps of 16 windows of 16 tokens.
    assert [layers for layers in calls if layers == (0, 1)] == [(0, 1)] * 5


@pytest.mark.parametrize("layer", [pytest.param(0, marks=pytest.mark.slow), (0, 1)])
def test_interrupted_and_continued_equals_undisturbed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int | tuple[int, ...]
) -> None:
    """Interrupted in a step, between two layers' checkpoints, and while each layer is measured."""
    settings: dict[str, object] = {"checkpoint_every_steps": 3, "dead_after_tokens": 500, "layer": layer}
    whole = train_autoencoders(config(tiny, tmp_path / "whole", **settings))
    num_layers = len(whole)
    # (what is called, on which call it is interrupted): 16 steps, a checkpoint a layer after every third and the last.
    interruptions = [(sae_training._Run, "_train_step", 9), (sae_training._Layer, "save", 2 * num_layers)]
    interruptions += [(sae_training, "measure_sae", number) for number in range(1, num_layers + 1)]
    for owner, name, number in interruptions:
        with monkeypatch.context() as patch:
            calls, original = itertools.count(1), getattr(owner, name)

            def until(*arguments: object, **named: object) -> object:
                if next(calls) == number:  # noqa: B023
                    raise KeyboardInterrupt
                return original(*arguments, **named)  # noqa: B023

            patch.setattr(owner, name, until)
            with pytest.raises(KeyboardInterrupt):
                train_autoencoders(config(tiny, tmp_path / "parts", **settings))
    parts = train_autoencoders(config(tiny, tmp_path / "parts", **settings))
    assert [manifest.fingerprint for manifest in parts] == [manifest.fingerprint for manifest in whole]
    assert not list((tmp_path / "parts").rglob("checkpoints"))
    assert train_autoencoders(config(tiny, tmp_path / "parts", **settings)) == parts


def test_a_checkpoint_of_another_run_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sae_training, "measure_sae", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    for seed in (0, 9):
        with pytest.raises(KeyboardInterrupt):
            train_autoencoders(config(tiny, tmp_path / str(seed), seed=seed, num_tokens=256))
    shutil.rmtree(tmp_path / "0" / "checkpoints")
    shutil.copytree(tmp_path / "9" / "checkpoints", tmp_path / "0" / "checkpoints")
    with pytest.raises(CocomixError, match=r"step-000000001.*other settings"):
        train_autoencoders(config(tiny, tmp_path / "0", num_tokens=256))


def test_quality_equals_its_definition(tiny: Tiny) -> None:
    teacher, sae = Teacher(load_teacher(tiny.teacher), 0), SparseAutoencoder.from_pretrained(tiny.sae)
    data = TokenDataset(tiny.data, "validation")
    quality, counts = measure_sae(teacher, sae, data)
    ids = data.input_ids(range(data.num_windows))
    h = teacher.residual(ids)
    expected = (h - sae(h)).pow(2).sum() / (h - h.mean((0, 1))).pow(2).sum()
    assert quality.fvu == pytest.approx(float(expected), rel=1e-4)
    std = h.std(-1, keepdim=True)
    x = (h - h.mean(-1, keepdim=True)) / std
    expected = ((h - sae(h)) / std).pow(2).sum() / (x - x.mean((0, 1))).pow(2).sum()
    assert quality.fvu_normalized == pytest.approx(float(expected), rel=1e-4)
    assert quality.num_tokens == ids.numel()
    loss = torch.nn.functional.cross_entropy(teacher.model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert quality.loss == pytest.approx(float(loss), rel=1e-4)
    recovered = 1 - (quality.spliced_loss - quality.loss) / (quality.mean_ablated_loss - quality.loss)
    assert quality.loss_recovered == pytest.approx(recovered)
    latents = sae.encode(h)
    active = torch.zeros(h.shape[0], h.shape[1], 32).scatter(-1, latents.indices, (latents.values > 0).float())
    assert torch.equal(counts, active.sum((0, 1)).long())
    assert quality.num_dead == int((active.sum((0, 1)) == 0).sum())
    assert quality.l0 == pytest.approx(float(active.sum(-1).mean()))


def test_logits_of_a_large_vocabulary_are_held_a_window_at_a_time(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, sae = Teacher(load_teacher(tiny.teacher), 0), SparseAutoencoder.from_pretrained(tiny.sae)
    data = TokenDataset(tiny.data, "validation")
    whole, _ = measure_sae(teacher, sae, data, max_windows=20)
    monkeypatch.setattr("cocomix.sae.quality.LOGITS_PER_BATCH", 1)
    parts, _ = measure_sae(teacher, sae, data, max_windows=20)
    assert parts.spliced_loss == pytest.approx(whole.spliced_loss, rel=1e-5)


@pytest.mark.slow
def test_dead_latents_are_counted_on_windows_that_no_step_read(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, validation = TokenDataset(tiny.data), TokenDataset(tiny.data, "validation")
    read: set[int] = set()
    input_ids = TokenDataset.input_ids

    def noted(self: TokenDataset, windows: list[int]) -> torch.Tensor:
        if self.split == "train":
            read.update(map(int, windows))
        return input_ids(self, windows)

    num_tokens = (validation.num_windows + 9) * 16
    monkeypatch.setattr(TokenDataset, "input_ids", noted)
    quality = quality_of(config(tiny, tmp_path / "some", num_tokens=1024, num_counted_tokens=num_tokens))
    assert quality["num_tokens"] == validation.num_windows * 16
    assert quality["num_counted_tokens"] == num_tokens
    trained_on = {int(w) for step in range(4) for w in windows_of_step(0, step, 16, data.num_windows)}
    assert len(read) == len(trained_on) + 9
    # All windows read: only the validation text is left. Some held back: those are used.
    settings: dict[str, object] = {"num_tokens": 20 * data.num_windows, "batch_size": 64}
    assert quality_of(config(tiny, tmp_path / "all", **settings))["num_counted_tokens"] == validation.num_windows * 16
    some = config(tiny, tmp_path / "held", **settings, num_windows=data.num_windows - 7)
    assert quality_of(some)["num_counted_tokens"] == (validation.num_windows + 7) * 16


def test_any_supported_decoder_is_a_teacher(tiny: Tiny, tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=16, n_embd=12, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path / "teacher")
    (manifest,) = train_autoencoders(config(tiny, tmp_path / "sae", teacher=tmp_path / "teacher", layer=1))
    assert SparseAutoencoder.from_pretrained(manifest.path).config.hidden_size == 12


def test_settings_that_cannot_be_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    for layer in ((), (1, 1)):
        with pytest.raises(CocomixError, match=r"layer is \("):
            config(tiny, tmp_path, layer=layer)
    with pytest.raises(CocomixError, match=r"k is 33.*num_latents \(32\)"):
        config(tiny, tmp_path, k=33)
    with pytest.raises(CocomixError, match="dead_after_tokens is 0"):
        config(tiny, tmp_path, dead_after_tokens=0)
    with pytest.raises(CocomixError, match=r"layer is 2.* 0 to 1"):
        train_autoencoders(config(tiny, tmp_path / "sae", layer=(0, 2)))


def test_one_and_several_layers_do_not_share_a_folder(tiny: Tiny, tmp_path: Path) -> None:
    train_autoencoders(config(tiny, tmp_path / "one", num_tokens=256))
    with pytest.raises(CocomixError, match=r"one holds .*--output"):
        train_autoencoders(config(tiny, tmp_path / "one", num_tokens=256, layer=(0, 1)))
    train_autoencoders(config(tiny, tmp_path / "two", num_tokens=256, layer=(0, 1)))
    with pytest.raises(CocomixError, match=r"two .*sparse-autoencoder"):
        train_autoencoders(config(tiny, tmp_path / "two", num_tokens=256))
    with pytest.raises(CocomixError, match=r"layer-00 .*\(k: 6 .*5"):
        train_autoencoders(config(tiny, tmp_path / "two", num_tokens=256, layer=(0, 1), k=5))


def test_a_teacher_of_another_vocabulary_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    prepare(
        PrepareConfig(tmp_path / "data", (tiny.corpus,), vocab_size=280, context_length=16, validation_fraction=0.2)
    )
    with pytest.raises(CocomixError, match=r"teacher and .*data .*--tokenizer"):
        train_autoencoders(config(tiny, tmp_path / "sae", data=tmp_path / "data"))
    small = load_teacher(tiny.teacher)
    small.resize_token_embeddings(290)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(CocomixError, match=r"290 tokens.* 300"):
        train_autoencoders(config(tiny, tmp_path / "sae", teacher=tmp_path / "small"))
    assert not (tmp_path / "sae").exists()


def test_a_teacher_may_pad_its_embeddings(tiny: Tiny, tmp_path: Path) -> None:
    """As Pythia, Qwen and Gemma do; students, labels and distillation then see the tokenizer's tokens alone."""
    padded = load_teacher(tiny.teacher)
    padded.resize_token_embeddings(320)
    padded.save_pretrained(tmp_path / "teacher")
    TokenDataset(tiny.data).tokenizer().save_pretrained(tmp_path / "teacher")
    teacher, sae = tmp_path / "teacher", tmp_path / "sae"
    train_autoencoders(config(tiny, sae, teacher=teacher, num_tokens=1024))
    made = extract(ExtractConfig(teacher=teacher, sae=sae, data=tiny.data, output=tmp_path / "labels"))
    assert made.facts["share_labelled"] > 0.5
    train(
        TrainConfig(
            data=tiny.data,
            output=tmp_path / "run",
            labels=tmp_path / "labels",
            student=CONCEPT,
            teacher=teacher,
            distillation=DistillationConfig(weight=0.5),
            num_tokens=256,
            num_evaluations=1,
        )
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"layer": -1}, "layer is -1"),
        ({"tokens_per_update": 1}, "tokens_per_update is 1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tiny: Tiny, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        config(tiny, tmp_path, **settings)


def test_a_run_that_diverges_stops(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=r"layer 0 .*step \d+.*learning_rate"):
        train_autoencoders(config(tiny, tmp_path / "sae", learning_rate=1e30))


def test_a_quality_that_is_not_finite_is_refused_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher can be finite on its first window, and not on others."""

    def infinite(*_: object) -> torch.Tensor:
        return torch.tensor(torch.inf, dtype=torch.float64)

    monkeypatch.setattr("cocomix.sae.quality._loss_sum", infinite)
    with pytest.raises(CocomixError, match=rf"{tiny.teacher} after block 0.*loss inf"):
        train_sae(config(tiny, tmp_path / "sae", num_tokens=256))
    assert not (tmp_path / "sae" / "sae.safetensors").exists()
