"""Bad input and diverging runs: one sentence each, nothing overwritten, nothing half-written."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from cocomix import (
    AttributionConfig,
    CocomixError,
    DistillationConfig,
    ExtractConfig,
    HiddenRegressionConfig,
    OptimizerConfig,
    ParallelConfig,
    PrepareConfig,
    SparseAutoencoder,
    SparseAutoencoderConfig,
    StudentConfig,
    TokenDataset,
    TrainConfig,
    extract,
    prepare,
    train,
)
from cocomix.base.artifacts import read_json
from cocomix.base.checkpoints import META_NAME, Checkpoint
from cocomix.base.ranks import Ranks
from cocomix.base.stopping import Stopped
from cocomix.data.order import windows_of_step
from cocomix.objectives.base import Batch
from cocomix.objectives.config import ConceptLossConfig
from cocomix.training.engine import Engine
from cocomix.training.students import backbone_config as from_settings
from tests.conftest import CONCEPT, STUDENT, Tiny
from tests.modeling.helpers import backbone_config
from tests.training.helpers import config, equal_weights, in_step, terminate, untimed


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Model and optimizer of a saved state."""
    stored = Checkpoint(folder, {}, Ranks())
    tensors = {name: torch.empty(shape) for name, shape in stored.shapes.items() if not name.startswith("metrics/")}
    stored.read_into(tensors)
    return tensors


@pytest.fixture(scope="module")
def overflowing(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher that overflows at a token which the first windows, on which it is tried, don't have; and a dictionary."""
    root, data = tmp_path_factory.mktemp("overflowing"), TokenDataset(tiny.data)
    later = set(data.input_ids(range(8, 24)).flatten().tolist()) - set(data.input_ids(range(8)).flatten().tolist())
    sizes = {"vocab_size": 300, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    settings = GPT2Config(**sizes, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(settings)
    with torch.no_grad():
        model.transformer.wte.weight[sorted(later)] = 3e38
    model.save_pretrained(root / "teacher")
    SparseAutoencoder(SparseAutoencoderConfig(16, 32, 6)).save_pretrained(root / "sae")
    return {"teacher": root / "teacher", "sae": root / "sae"}


@pytest.mark.parametrize(
    ("what", "settings"),
    [
        ("logits", {"distillation": DistillationConfig(weight=1.0)}),
        ("residual stream", {"hidden_regression": HiddenRegressionConfig(weight=1.0)}),
        ("residual stream", {"sae": True}),
    ],
)
def test_a_teacher_that_is_not_finite_is_named(
    what: str, settings: dict[str, Any], overflowing: dict[str, Path], tiny: Tiny, tmp_path: Path
) -> None:
    teacher = overflowing["teacher"]
    if "sae" in settings:
        settings = {"sae": overflowing["sae"], "layer": 1, "student": CONCEPT}
    given = TrainConfig(data=tiny.data, output=tmp_path / "run", teacher=teacher, num_tokens=2048, **settings)
    with pytest.raises(CocomixError, match=f"the {what} of the teacher {teacher}.*not finite") as error:
        train(given)
    assert "learning_rate" not in str(error.value)


def test_labels_of_a_teacher_that_is_not_finite_are_refused(
    overflowing: dict[str, Path], tiny: Tiny, tmp_path: Path
) -> None:
    attribution = AttributionConfig(criterion="attribution")
    given = ExtractConfig(data=tiny.data, output=tmp_path / "out", layer=1, attribution=attribution, **overflowing)
    with pytest.raises(CocomixError, match=f"of the teacher {overflowing['teacher']} after block 1 is not finite"):
        extract(given)


def test_a_step_that_is_not_finite_stops_the_run_before_it(tiny: Tiny, tmp_path: Path) -> None:
    """Seen some steps later, at the next line of the metrics, but the weights are those before it."""
    forward, steps = Engine.forward, iter(range(100))

    def poisoned(self: Engine, batch: Batch, *place: int) -> dict[str, torch.Tensor]:
        sums = forward(self, batch, *place)
        return sums | {"lm_loss": sums["lm_loss"] * (math.nan if next(steps) >= 14 else 1.0)}

    train(config(tiny, tmp_path / "whole", checkpoint_every_steps=100))
    with in_step(13, terminate), pytest.raises(Stopped):
        train(config(tiny, tmp_path / "stopped", checkpoint_every_steps=100))
    windows = windows_of_step(0, 14, 8, tiny_windows(tiny)).tolist()
    message = (
        rf"step 15\b.*lm_loss nan, concept_loss [0-9.]+, .*\b{windows[0]}, {windows[1]}, .*non_finite"
        r".*optimizer\.learning_rate"
    )
    with mock.patch.object(Engine, "forward", poisoned), pytest.raises(CocomixError, match=message):
        train(config(tiny, tmp_path / "run", checkpoint_every_steps=100))
    saved = tmp_path / "run" / "non_finite"
    meta = read_json(saved / META_NAME)
    assert (meta["step"], meta["windows"], meta["values"]["lm_loss"]) == (15, windows, "nan")
    before, expected = tensors_of(saved), tensors_of(tmp_path / "stopped" / "checkpoints" / "step-000000014")
    assert before.keys() == expected.keys()
    for name in before:
        assert torch.equal(before[name], expected[name]), name
    # The same command starts from the newest checkpoint, and what was kept goes when it gets beyond.
    train(config(tiny, tmp_path / "run", checkpoint_every_steps=100))
    assert equal_weights(tmp_path / "run", tmp_path / "whole")
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")
    assert not saved.exists()


def tiny_windows(tiny: Tiny) -> int:
    return int(read_json(tiny.concepts / "settings.json")["settings"]["num_windows"])


def test_a_learning_rate_that_diverges(tiny: Tiny, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e30, max_gradient_norm=1e30)
    with pytest.raises(CocomixError, match=r"step 2\b.*lm_loss.*optimizer\.learning_rate"):
        train(config(tiny, tmp_path, "ntp", optimizer=optimizer))
    assert not list(tmp_path.glob("checkpoints/*"))


def test_inputs_that_are_not_whole_or_belong_elsewhere(tiny: Tiny, tmp_path: Path) -> None:
    shape = {"vocab_size": 300, "context_length": 8, "validation_fraction": 0.2}
    prepare(PrepareConfig(tmp_path / "other", (tiny.corpus,), **shape))
    for name in ("data", "concepts"):
        shutil.copytree(getattr(tiny, name), tmp_path / name)
    (tmp_path / "concepts" / "00000.parquet").unlink()
    (tmp_path / "data" / "train" / "00000.parquet").unlink()
    output = tmp_path / "run"
    for settings, message in (
        ({"data": tmp_path / "other"}, r"other\b.*windows"),
        ({"labels": tmp_path / "concepts"}, r"concepts/00000\.parquet"),
        ({"data": tmp_path / "data"}, r"data/train/00000\.parquet"),
        ({"data": tmp_path / "nothing"}, r"nothing.*token-dataset"),
        ({"parallel": ParallelConfig(device="cuda")}, r"device.*cuda"),
    ):
        with pytest.raises(CocomixError, match=message):
            train(config(tiny, output, **settings))
        assert not output.exists()


def test_the_folder_of_another_run_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    with in_step(4, terminate), pytest.raises(Stopped):
        train(config(tiny, tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    with pytest.raises(CocomixError, match=r"seed.*0.*1.*--output"):
        train(config(tiny, tmp_path, seed=1))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": None}, r"--labels.*--teacher.*--sae.*concept_loss\.weight"),
        ({"sae": Path("x")}, r"--teacher.*--sae.*--labels"),
        ({"labels": None, "sae": Path("x")}, r"--teacher.*--sae"),
        ({"layer": 1}, "layer .*--sae"),
        ({"attribution": AttributionConfig("attribution")}, "criterion 'activation_value'"),
        ({"labels": None, "concept_loss": ConceptLossConfig(weight=0.0)}, "student.num_concepts"),
        ({"student": STUDENT}, r"labels.*mixer.*'none'"),
        ({"micro_batch_size": 3}, r"micro_batch_size.*3.*batch_size.*8"),
        ({"distillation": DistillationConfig(weight=0.5)}, r"distillation\.weight.*teacher"),
        (
            {"teacher": Path("x")},
            r"teacher.*distillation\.weight.*hidden_regression\.weight",
        ),
        ({"num_tokens": 0}, r"num_tokens.*0"),
        ({"seed": -1}, r"seed.*-1.*0"),
        (
            {"teacher": Path("/nowhere"), "distillation": DistillationConfig(weight=1.0)},
            r"teacher.*/nowhere",
        ),
        ({"num_windows": 10**6}, r"[0-9]+ windows"),
    ],
)
def test_contradictions(tiny: Tiny, tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        train(config(tiny, tmp_path, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, r"optimizer\.learning_rate.*-1\.0"),
        ({"learning_rate": math.nan}, r"optimizer\.learning_rate.*nan"),
        ({"max_gradient_norm": 0.0}, r"optimizer\.max_gradient_norm.*0\.0"),
        ({"warmup_fraction": 7.0}, r"optimizer\.warmup_fraction.*7\.0"),
        ({"beta1": 2.0}, r"optimizer\.beta1.*2\.0"),
        ({"weight_decay": -0.1}, r"weight_decay.*-0\.1"),
    ],
)
def test_optimizers_that_cannot_be(settings: dict[str, float], message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        OptimizerConfig(**settings)


def test_head_size(tiny: Tiny) -> None:
    with pytest.raises(CocomixError, match=r"hidden_size.*10.*num_heads.*4"):
        StudentConfig(family="gpt2", hidden_size=10, num_heads=4)
    with pytest.raises(CocomixError, match=r"hidden_size.*12.*num_heads.*4"):
        from_settings(StudentConfig(hidden_size=12, num_heads=4), TokenDataset(tiny.data))


def test_a_teacher_of_another_vocabulary(tiny: Tiny, tmp_path: Path) -> None:
    teacher = AutoModelForCausalLM.from_config(backbone_config("llama", vocab_size=50))
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(CocomixError, match=r"50.*300"):
        train(config(tiny, tmp_path / "run", "kd", teacher=tmp_path / "teacher"))
