"""`cocomix generate`: continuations of any model, steered ones explained, and one sentence for every mistake."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cocomix import CocomixError, CoCoMixForCausalLM, TokenDataset, steer
from cocomix.cli.main import main
from cocomix.data.tokenizer import load_tokenizer
from cocomix.steering.activations import concept_activations
from cocomix.steering.concept_metadata import write_statistics
from cocomix.steering.concept_names import write_names
from cocomix.tools.generate.config import GenerateConfig
from tests.conftest import Tiny


@pytest.fixture(scope="module")
def folder(tiny: Tiny, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with named concepts, statistics and directions."""
    path = Path(shutil.copytree(student, tmp_path_factory.mktemp("generation") / "student"))
    model, data = CoCoMixForCausalLM.from_pretrained(path).eval(), TokenDataset(tiny.data)
    write_names(path, {5: "imports", 6: "a = b"}, model.config.num_concepts)
    statistics = concept_activations(model, data, 64)
    write_statistics(path, dataclasses.replace(statistics, directions=torch.ones(model.config.num_concepts, 16)))
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["generate", *map(str, words)])
    found = capsys.readouterr()
    return code, found.out, found.err.splitlines()[-1] if found.err else ""


def test_a_steered_continuation_is_the_librarys_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", folder, "--prompt", "def value", "--max-new-tokens", 6]
    code, plain, _ = run(capsys, *words)
    assert code == 0
    code, text, said = run(capsys, *words, "--steer", "imports=40", "--mode", "set", "--compare")
    assert code == 0
    assert f"--- original\n{plain.rstrip()}" in text

    assert "5 (imports): set to 40 = " in said
    assert " times its usual activation of " in said
    assert said.endswith("% of tokens")

    model, tokenizer = CoCoMixForCausalLM.from_pretrained(folder).eval(), load_tokenizer(folder)
    ids = tokenizer("def value", return_tensors="pt").input_ids
    with steer(model, {5: 40.0}, mode="set"):
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    steered = tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert text.endswith(f"--- steered\n{steered}\n")


def test_json_says_it_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", folder, "--prompt", "", "--max-new-tokens", 6, "--temperature", 1, "--top-k", 20, "--json"]
    results = []
    for seed in (1, 1, 2):
        code, text, _ = run(
            capsys, *words, "--seed", seed, "--steer", "a = b=2", "--mode", "set", "--unit", "usual", "--compare"
        )
        assert code == 0
        results.append(json.loads(text))
    assert results[0] == results[1]
    assert results[0] != results[2]
    assert set(results[0]) == {"prompt", "original", "steered", "edits", "num_prompt_tokens", "max_new_tokens"}
    assert results[0]["edits"][0].startswith("6 (a = b): set to ")
    assert " = 2 times its usual activation" in results[0]["edits"][0]


def test_every_mode_is_explained(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", folder, "--prompt", "def", "--max-new-tokens", 2]
    for mode, expected in (
        ("add", "5 (imports): raised by 2 = "),
        ("scale", "multiplied by 2 where it is active, usually at "),
        ("scale_logits", "logit multiplied by 2 before the strongest concepts are chosen, usually at "),
        ("zero", "removed where it is active, usually at "),
        ("toward", "steered toward, which changes the next token's distribution by about 2 nats; active on "),
    ):
        code, _, said = run(capsys, *words, "--steer", "5=2", "--mode", mode)
        assert code == 0
        assert expected in said
    assert run(capsys, *words, "--steer", "imports", "--mode", "zero")[0] == 0
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("concept_*"))
    code, _, said = run(capsys, "--model", tmp_path / "bare", "--prompt", "def", "--steer", "5=2", "--mode", "set")
    assert code == 0
    assert said.startswith("5: set to 2; ")
    assert "cocomix inspect" in said
    toward = ["--prompt", "def", "--steer", "5=2"]  # the default mode
    code, _, said = run(capsys, "--model", tmp_path / "bare", *toward)
    assert code == 1
    assert said.startswith("error: the directions")
    assert "cocomix inspect" in said


def test_plain_decoders_continue_too(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "--model", tiny.teacher, "--prompt", "for value in", "--max-new-tokens", 4)
    assert code == 0
    tokenizer = TokenDataset(tiny.data).tokenizer()
    ids = tokenizer("for value in", return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(tiny.teacher)
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert text == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True) + "\n"


def test_a_terminal_is_written_to_as_tokens_come(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", folder, "--prompt", "def", "--max-new-tokens", 5]
    _, whole, _ = run(capsys, *words)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert run(capsys, *words)[1].strip() == whole.strip()
    assert run(capsys, *words, "--steer", "5=1", "--compare")[1].startswith("--- original\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steer", "import=2"], "'imports'"),
        (["--steer", "32=2"], "concept 32 "),
        (["--steer", "5=nan"], "concept 5 is nan"),
        (["--steer", "5=1", "--steer", "imports=2"], "concept 5 is steered twice"),
        (["--max-new-tokens", "16"], "14 new"),
        (["--prompt", "def " * 20], "context is 16"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, out, said = run(capsys, "--model", folder, "--prompt", "def value", *words)
    assert (code, out) == (1, "")
    assert said.startswith("error: ")
    assert message in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"top_k": 3}, "top_k"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"steer": ("5=much",)}, "'5=much'"),
        ({"steer": ("5",)}, "CONCEPT=STRENGTH"),
        ({"steer": ("5=1", "5=2")}, "'5' twice"),
        ({"temperature": 1.0, "top_p": 2.0}, "top_p is 2"),
        ({"compare": True}, "--steer"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        GenerateConfig(model=Path("model"), prompt="", **settings)


def test_models_that_cannot_be_used(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words: list[Any] = ["--prompt", "def", "--steer", "5=1"]
    assert "plain decoder" in run(capsys, "--model", tiny.teacher, *words)[2]
    code, _, said = run(capsys, "--model", tmp_path, *words)
    assert code == 1
    assert "config.json" in said
    code, _, said = run(capsys, "--model", tiny.sae, *words)
    assert code == 1
    assert "error: " in said


def test_the_random_state_of_the_caller_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    run(capsys, "--model", folder, "--prompt", "def", "--max-new-tokens", 2, "--temperature", 1)
    assert torch.equal(torch.rand(1), expected)
