"""What people do with a saved model in the libraries around transformers."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments

from cocomix import CocomixError, CoCoMixForCausalLM, load_causal_lm, train
from cocomix.base.artifacts import CARD_NAME, CONCEPT_METADATA_NAMES, fingerprint_of_path
from cocomix.data.tokenizer import load_tokenizer
from cocomix.steering.concept_metadata import metadata_of, write_statistics
from cocomix.steering.concept_names import NAMES_NAME, write_names
from cocomix.steering.steer import steer
from tests.conftest import Tiny
from tests.modeling.helpers import NUM_CONCEPTS, concept_labels, student, tokens
from tests.steering.test_concept_metadata import NAMES, statistics
from tests.training.helpers import config

TRANSFORMERS = "from transformers import AutoModelForCausalLM, pipeline\n"
LOADED = """
for model in (pipeline("text-generation", {0!r}, device="cpu").model, AutoModelForCausalLM.from_pretrained({0!r})):
    print(type(model).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("imports", [f"import cocomix\n{TRANSFORMERS}", f"{TRANSFORMERS}import cocomix\n"])
def test_importing_cocomix_is_enough_for_transformers(tiny: Tiny, imports: str, tmp_path: Path) -> None:
    """`tests/cli/test_main.py` checks that the import loads neither torch nor transformers."""
    student().save_pretrained(tmp_path)
    shutil.copytree(tiny.data / "tokenizer", tmp_path, dirs_exist_ok=True)
    code = imports + LOADED.format(str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["CoCoMixForCausalLM"] * 2, done.stderr


def test_a_pipeline_writes(tiny: Tiny, tmp_path: Path) -> None:
    run = train(config(tiny, tmp_path / "run", num_tokens=128, num_evaluations=1)).path
    write = transformers.pipeline("text-generation", model=str(run), device="cpu")
    assert write("def", max_new_tokens=4, do_sample=False)[0]["generated_text"].startswith("def")


def loaded_with_metadata(folder: Path) -> CoCoMixForCausalLM:
    student().save_pretrained(folder)
    write_names(folder, NAMES, NUM_CONCEPTS)
    write_statistics(folder, statistics())
    (folder / CARD_NAME).write_text("# A card")
    return CoCoMixForCausalLM.from_pretrained(folder)


def test_names_statistics_directions_and_card_travel_with_a_saved_model(tmp_path: Path) -> None:
    model = loaded_with_metadata(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    again = load_causal_lm(tmp_path / "second")
    assert metadata_of(again).names == NAMES
    with steer(again, {"docstrings": 0.3}, "toward"):
        again(tokens())
    for name in (*CONCEPT_METADATA_NAMES, CARD_NAME):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    # A card that somebody wrote there is kept, and a model is saved where it came from.
    (tmp_path / "second" / CARD_NAME).write_text("# Mine")
    model.save_pretrained(tmp_path / "second")
    model.save_pretrained(tmp_path / "first")
    assert (tmp_path / "second" / CARD_NAME).read_text() == "# Mine"
    assert metadata_of(load_causal_lm(tmp_path / "first")).names == NAMES


def test_a_model_loaded_by_a_relative_path_keeps_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded_with_metadata(tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    models = [CoCoMixForCausalLM.from_pretrained("first"), load_causal_lm(Path("first"))]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for number, model in enumerate(models):
        assert metadata_of(model).names == NAMES
        model.save_pretrained(f"saved-{number}")
        assert metadata_of(load_causal_lm(Path(f"saved-{number}"))).names == NAMES


def test_a_model_made_here_takes_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded_with_metadata(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    student().save_pretrained(tmp_path / "saved")
    assert not {*CONCEPT_METADATA_NAMES, CARD_NAME} & {path.name for path in (tmp_path / "saved").iterdir()}


def test_what_people_wrote_travels_even_if_the_folder_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy.deepcopy(loaded_with_metadata(tmp_path / "first"))
    (tmp_path / "first").rename(tmp_path / "moved")
    model.save_pretrained(tmp_path / "second")
    assert f"warning: {tmp_path / 'first'}" in capsys.readouterr().err
    assert metadata_of(load_causal_lm(tmp_path / "second")).names == NAMES
    assert (tmp_path / "second" / CARD_NAME).read_text() == "# A card"
    assert "kept" not in (tmp_path / "second" / "config.json").read_text()
    # What the folder no longer holds while it is there is not brought back.
    (tmp_path / "moved").rename(tmp_path / "first")
    (tmp_path / "first" / NAMES_NAME).unlink()
    model.save_pretrained(tmp_path / "third")
    assert not (tmp_path / "third" / NAMES_NAME).exists()


def test_a_model_of_the_hub_knows_its_names(tmp_path: Path) -> None:
    """The layout of a download: one folder for each commit."""
    commit = "0" * 40
    repository = tmp_path / "models--me--mine"
    loaded_with_metadata(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = CoCoMixForCausalLM.from_pretrained("me/mine", cache_dir=tmp_path)
    assert metadata_of(model).names == NAMES
    model.save_pretrained(tmp_path / "saved")
    assert metadata_of(load_causal_lm(tmp_path / "saved")).names == NAMES


def test_pushing_uploads_what_stands_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded_with_metadata(tmp_path / "run")
    uploaded: dict[str, bytes] = {}

    def create_commit(_: HfApi, *, operations: list[Any], **_options: Any) -> None:
        for operation in operations:
            uploaded[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()

    def upload_file(_: HfApi, *, path_or_fileobj: Path, path_in_repo: str, **_options: Any) -> None:
        uploaded[path_in_repo] = path_or_fileobj.read_bytes()

    def load_card(*_: Any, **_options: Any) -> huggingface_hub.ModelCard:
        return huggingface_hub.ModelCard(uploaded[CARD_NAME].decode())

    monkeypatch.setattr(
        HfApi, "create_repo", lambda *_, **__: huggingface_hub.RepoUrl("https://huggingface.co/me/mine")
    )
    monkeypatch.setattr(HfApi, "file_exists", lambda *_, **__: False)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(HfApi, "upload_file", upload_file)
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", load_card)
    model.push_to_hub("me/mine")
    assert {*CONCEPT_METADATA_NAMES, CARD_NAME, "config.json", "model.safetensors"} <= uploaded.keys()
    assert b"# A card" in uploaded[CARD_NAME]


def test_a_run_has_a_card_that_people_may_edit(tiny: Tiny, tmp_path: Path) -> None:
    manifest = train(config(tiny, tmp_path / "run", num_tokens=128, num_evaluations=1))
    card = tmp_path / "run" / CARD_NAME
    text = card.read_text()
    assert "| loss | 1 · next token (constant, to 100%) + 0.1 · concept loss (constant, to 100%) |" in text
    assert all(part in text for part in ("mixer: concept", "FLOPs", "nats", "Licence"))
    assert "num_concepts: 32," in text
    assert "the run that wrote `run`: training its weights further" in text
    assert "license:" not in text.split("---")[1]
    assert CARD_NAME not in manifest.files
    card.write_text("---\nlicense: mit\n---\n")
    assert fingerprint_of_path(tmp_path / "run") == manifest.fingerprint
    load_causal_lm(tmp_path / "run").save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / CARD_NAME).read_text() == card.read_text()


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """A few rows of text, with or without concept labels."""

    def __init__(self, *, has_concepts: bool) -> None:
        self.ids, self.concepts = tokens(4), concept_labels(4) if has_concepts else None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {"input_ids": self.ids[index], "labels": self.ids[index]}
        return row if self.concepts is None else row | {"concept_labels": self.concepts[index]}


@pytest.mark.parametrize("has_concepts", [True, False])
def test_trainer_evaluates_with_and_without_concept_labels(has_concepts: bool, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model, rows = student(), Rows(has_concepts=has_concepts)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], per_device_eval_batch_size=4)
    found = Trainer(model=model, args=arguments, eval_dataset=rows).evaluate()
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        expected = model(**batch)
    assert found["eval_loss"] == pytest.approx(float(expected.loss), rel=1e-5)
    assert (expected.concept_loss is not None) == has_concepts


def test_the_model_without_its_head_has_the_concepts_mixed_in() -> None:
    """`base_model`, which trainers with a loss of their own call."""
    model, ids = student("gemma2"), tokens()
    hidden = model.base_model(input_ids=ids).last_hidden_state
    cap = model.config.backbone_config.final_logit_softcapping
    logits = cap * (model.get_output_embeddings()(hidden) / cap).tanh()
    torch.testing.assert_close(logits, model(ids).logits)
    assert not torch.allclose(hidden, model.backbone.base_model(input_ids=ids).last_hidden_state)
    with pytest.raises(CocomixError, match="concept_labels"):
        model.base_model(input_ids=ids, concept_labels=concept_labels())


@pytest.mark.slow
def test_trl_trains_the_model_with_its_concepts(tiny: Tiny, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    run = train(config(tiny, tmp_path / "run", num_tokens=128, num_evaluations=1)).path
    model, tokenizer = load_causal_lm(run).train(), load_tokenizer(run)
    rows = datasets.Dataset.from_dict({"text": ["def return import", "class print value name"] * 2})
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        max_steps=1,
        max_length=16,
        per_device_train_batch_size=4,
        save_strategy="no",
    )
    tokenizer.pad_token = tokenizer.eos_token
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    expected = trainer.evaluate()["eval_loss"]
    batch = trainer.data_collator(list(trainer.eval_dataset))
    with torch.no_grad():
        assert expected == pytest.approx(float(model(**batch).loss), rel=1e-4)
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {"mixer.head_weight", "mixer.compress_weight"} <= changed
