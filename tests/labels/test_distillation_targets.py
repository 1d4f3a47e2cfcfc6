"""Distillation targets: the teacher's predictions at the windows, whatever shards and ranks, and only for matching inputs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cocomix import (
    CocomixError,
    DistillationConfig,
    DistillTargetsConfig,
    PrepareConfig,
    TargetDataset,
    TokenDataset,
    TrainConfig,
    distill_targets,
    prepare,
    train,
)
from cocomix.base.ranks import Ranks
from cocomix.cli.main import main
from cocomix.data.shard_work import ShardWork
from cocomix.labels import distillation_targets
from cocomix.labels.distillation_targets import draw, stratified
from cocomix.modeling.flops import causal_lm_flops_per_token
from cocomix.modeling.teacher import load_teacher
from tests.conftest import STUDENT, Tiny
from tests.modeling.helpers import backbone_config


def config(tiny: Tiny, output: Path, **settings: object) -> DistillTargetsConfig:
    default = {"teacher": tiny.teacher, "data": tiny.data, "output": output, "num_samples": 4, "num_windows": 80}
    return DistillTargetsConfig(**default | settings)  # type: ignore[arg-type]


def test_targets_are_drawn_from_the_teachers_predictions(tiny: Tiny, tmp_path: Path) -> None:
    manifest = distill_targets(config(tiny, tmp_path, temperature=1.5, seed=7))
    data = TokenDataset(tiny.data)
    stored = TargetDataset(tmp_path, data)
    windows = [3, 77, 20]
    found = stored.targets(windows)
    assert found.tokens.shape == (3, 15, 4)
    teacher = load_teacher(tiny.teacher)
    for row, window in enumerate(windows):
        logits = teacher(data.input_ids([window])).logits[0, :-1]
        drawn, entropy = draw(logits / 1.5, torch.from_numpy(stratified(7, window, 15, 4)))
        # Another batch size rounds differently, so a number close to the edge between two tokens may fall on the other side.
        assert (found.tokens[row] == drawn).float().mean() > 0.95
        torch.testing.assert_close(found.entropy[row], entropy)
    assert manifest.facts["flops_per_token"] == causal_lm_flops_per_token(teacher, 16)
    assert manifest.facts["mean_entropy"] == pytest.approx(float(stored.targets(range(80)).entropy.mean()), rel=1e-5)
    # Each run of an epoch or more pays for a window once.
    assert stored.training_flops(10**6, 80) == 80 * 16 * stored.flops_per_token


def test_shards_ranks_and_interruptions_do_not_matter(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TokenDataset(tiny.data)
    distill_targets(config(tiny, tmp_path / "one"))
    one = TargetDataset(tmp_path / "one", data).targets(range(80))
    write_missing = ShardWork.write_missing

    def as_two_ranks(self: ShardWork, _: Ranks) -> None:
        for rank in (1, 0):
            write_missing(self, Ranks(rank, 2))

    with monkeypatch.context() as patch:
        patch.setattr(ShardWork, "write_missing", as_two_ranks)
        whole = distill_targets(config(tiny, tmp_path / "many", windows_per_shard=32))
    many = TargetDataset(tmp_path / "many", data).targets(range(80))
    assert torch.equal(one.tokens, many.tokens)
    assert torch.equal(one.entropy, many.entropy)

    write = distillation_targets.write_targets

    def until(folder: Path, index: int, *arguments: object) -> None:
        if index == 1:
            raise KeyboardInterrupt
        write(folder, index, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(distillation_targets, "write_targets", until)
        with pytest.raises(KeyboardInterrupt):
            distill_targets(config(tiny, tmp_path / "parts", windows_per_shard=32))
    assert distill_targets(config(tiny, tmp_path / "parts", windows_per_shard=32)).files == whole.files
    assert distill_targets(config(tiny, tmp_path / "parts", windows_per_shard=32)).fingerprint == whole.fingerprint
    with pytest.raises(CocomixError, match=r"\(seed: 0 .*1"):
        distill_targets(config(tiny, tmp_path / "parts", windows_per_shard=32, seed=1))


def test_the_command(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "distill-targets",
        "--teacher",
        str(tiny.teacher),
        "--data",
        str(tiny.data),
        "--output",
        str(tmp_path / "x"),
    ]
    assert main([*words, "--num-windows", "4", "--num-samples", "2"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "x")
    assert main([*words, "--num-windows", "4", "--num-samples", "2"]) == 0
    assert "already exists" in capsys.readouterr().err


class TestErrors:
    """One sentence each, and nothing written."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_samples": 0}, r"num_samples.*0"),
            ({"temperature": 0.0}, r"temperature is 0\.0"),
            ({"num_windows": 10**6}, "num_windows is 1000000"),
        ],
    )
    def test_settings(self, tiny: Tiny, tmp_path: Path, settings: dict[str, object], message: str) -> None:
        with pytest.raises(CocomixError, match=message):
            distill_targets(config(tiny, tmp_path / "x", **settings))
        assert not (tmp_path / "x").exists()

    def test_a_teacher_of_another_vocabulary(self, tiny: Tiny, tmp_path: Path) -> None:
        AutoModelForCausalLM.from_config(backbone_config("llama", vocab_size=50)).save_pretrained(tmp_path / "teacher")
        with pytest.raises(CocomixError, match=r"50 tokens.* 300"):
            distill_targets(config(tiny, tmp_path / "x", teacher=tmp_path / "teacher"))
        assert not (tmp_path / "x").exists()

    def test_a_teacher_with_another_tokenizer(self, tiny: Tiny, tmp_path: Path) -> None:
        other = tmp_path / "teacher"
        shutil.copytree(tiny.teacher, other)
        for name in ("manifest.json", "settings.json"):
            (other / name).unlink()
        tokenizer = json.loads((other / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        first, second = [token for token in vocabulary if len(token) == 1][:2]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        (other / "tokenizer.json").write_text(json.dumps(tokenizer))
        with pytest.raises(CocomixError, match="--tokenizer"):
            distill_targets(config(tiny, tmp_path / "x", teacher=other))

    def test_targets_that_do_not_belong_to_the_run(self, tiny: Tiny, tmp_path: Path) -> None:
        distill_targets(config(tiny, tmp_path / "targets", temperature=2.0))
        distillation = DistillationConfig(weight=0.5, temperature=2.0, targets=tmp_path / "targets")
        run = TrainConfig(tiny.data, tmp_path / "run", student=STUDENT, distillation=distillation, num_tokens=256)

        other = PrepareConfig(tmp_path / "data", (tiny.corpus,), vocab_size=290, context_length=16)
        prepare(dataclasses.replace(other, validation_fraction=0.2))
        with pytest.raises(CocomixError, match=r"\(the tokenizer "):
            train(dataclasses.replace(run, data=tmp_path / "data"))
        cold = dataclasses.replace(distillation, temperature=1.0)
        with pytest.raises(CocomixError, match=r"2\.0.*distillation\.temperature is 1\.0"):
            train(dataclasses.replace(run, distillation=cold))
        shutil.copytree(tiny.teacher, tmp_path / "teacher")
        (tmp_path / "teacher" / "manifest.json").unlink()
        (tmp_path / "teacher" / "settings.json").unlink()
        with pytest.raises(CocomixError, match="another teacher"):
            train(dataclasses.replace(run, teacher=tmp_path / "teacher"))
        unused = dataclasses.replace(distillation, weight=0.0)
        with pytest.raises(CocomixError, match=r"distillation\.weight is 0"):
            train(dataclasses.replace(run, distillation=unused))
        with pytest.raises(CocomixError, match="80 windows"):
            train(dataclasses.replace(run, num_windows=81))
        assert not (tmp_path / "run").exists()
