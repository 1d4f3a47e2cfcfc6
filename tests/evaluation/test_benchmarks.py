"""Benchmarks: lm-eval's numbers equal a few lines of plain loops, for a concept model and a plain decoder."""

from __future__ import annotations

import json
import math
import random
import socket
import statistics
import string
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.metrics import mean_stderr
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cocomix import CocomixError, EvalConfig, TrainConfig, evaluate, train
from cocomix.cli.main import main
from cocomix.data.tokenizer import load_tokenizer
from cocomix.evaluation.benchmarks import _Scorer, make_task, run_benchmarks, standard_error
from cocomix.evaluation.task_files import benchmark_names, find_task_files
from cocomix.modeling.loading import load_causal_lm
from tests.conftest import CONCEPT, Tiny
from tests.evaluation.test_task_files import WIKITEXT, write_all, write_rows
from tests.modeling.helpers import VOCAB_SIZE, backbone_config, student
from tests.reference import benchmarks as reference

CONTEXT_LENGTH = 64
KINDS = ("cocomix", "plain")


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """A letter a token, spaces dropped: whatever a model says is a word."""
    names = ["</s>", "?", *string.ascii_lowercase, *".=,"]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    assert len(names) <= VOCAB_SIZE
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", unk_token="?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A concept model and a plain decoder with random weights, saved with a tokenizer."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(backbone_config("gpt2", initializer_range=0.5))
    for kind, model in (("cocomix", student()), ("plain", plain)):
        model.save_pretrained(root / kind)
        letters_tokenizer().save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


def sentence(rng: random.Random, num_words: int) -> str:
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 5))) for _ in range(num_words))


def passages_for(model: torch.nn.Module, rng: random.Random) -> list[str]:
    """Passages below and above the model's length; half of them end with what the model says next."""
    tokenizer = letters_tokenizer()
    passages = []
    for number in range(60):
        passage = sentence(rng, rng.randint(2, 40))
        if number % 2:
            words = ""
            for _ in range(2):
                ids = torch.tensor([tokenizer.encode(passage + words)[-CONTEXT_LENGTH:]])
                words += tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax().item())
            passage += f" {words}" if words.isalpha() else " xyz"
        else:
            passage += " " + sentence(rng, 1)
        passages.append(passage)
    return passages


def run(folder: Path, output: Path, task_data: Path, *tasks: str, **settings: Any) -> dict[str, Any]:
    config = EvalConfig(model=folder, output=output, tasks=tasks, task_data=task_data, **settings)
    result = evaluate(config)
    assert json.loads((output / "evaluation.json").read_text()) == result
    return result


@pytest.mark.slow
def test_models_trained_by_the_demos_stages(tiny: Tiny, tmp_path: Path) -> None:
    """NTP and CoCoMix with the tokenizer that was trained with them: LAMBADA and BLiMP equal the plain loops."""
    concept = tmp_path / "cocomix"
    train(TrainConfig(tiny.data, concept, tiny.concepts, student=CONCEPT, num_tokens=2048))
    passages = ["return self in range for value", "class name import print for in True", "def None value in self"] * 4
    pairs = [("def return import self", "self import return def"), ("for in range", "range in for"), ("None", "True")]
    write_rows(tmp_path / "files" / "lambada.jsonl", *({"text": text} for text in passages))
    rows = ({"sentence_good": good, "sentence_bad": bad} for good, bad in pairs)
    write_rows(tmp_path / "files" / "blimp" / "order.jsonl", *rows)
    for folder in (tiny.teacher, concept):
        result = run(folder, tmp_path / f"of-{folder.name}", tmp_path / "files", "lambada", "blimp")["tasks"]
        model, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
        expected = reference.lambada(model, tokenizer, passages, 16)
        assert result["lambada"]["acc"] == pytest.approx(expected["acc"])
        assert result["lambada"]["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
        assert result["blimp"]["acc"] == pytest.approx(statistics.mean(reference.blimp(model, tokenizer, pairs, 16)))


@pytest.mark.parametrize("kind", KINDS)
class TestAgainstPlainLoops:
    """A folder of toy files through the whole command, and the same files through `tests/reference`."""

    def test_lambada(self, kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
        model = load_causal_lm(folders[kind])
        with torch.no_grad():
            passages = passages_for(model, random.Random(0))
        passages.append(passages[0])  # one request twice
        write_rows(tmp_path / "files" / "lambada_test.jsonl", *({"text": passage} for passage in passages))
        result = run(folders[kind], tmp_path / "out", tmp_path / "files", "lambada", batch_size=7)["tasks"]["lambada"]
        expected = reference.lambada(model, letters_tokenizer(), passages, CONTEXT_LENGTH)
        assert 0 < expected["acc"] < 1
        assert result["acc"] == pytest.approx(expected["acc"])
        assert result["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)  # float32 against float64
        assert result["num_items"] == result["num_requests"] == len(passages)
        lengths = [len(letters_tokenizer().encode(passage)) - 1 for passage in passages]
        assert result["num_truncated"] == sum(length > CONTEXT_LENGTH for length in lengths) > 0

    def test_blimp(self, kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
        model, rng = load_causal_lm(folders[kind]), random.Random(1)
        paradigms = {
            name: [(sentence(rng, 5), sentence(rng, 5)) for _ in range(count)] for name, count in (("a", 9), ("b", 23))
        }
        for name, pairs in paradigms.items():
            rows = ({"sentence_good": good, "sentence_bad": bad} for good, bad in pairs)
            write_rows(tmp_path / "files" / "blimp" / f"{name}.jsonl", *rows)
        result = run(folders[kind], tmp_path / "out", tmp_path / "files", "blimp", limit=20)["tasks"]["blimp"]
        hits = {
            name: reference.blimp(model, letters_tokenizer(), pairs[:20], CONTEXT_LENGTH)
            for name, pairs in paradigms.items()
        }
        for name, found in hits.items():
            assert result["paradigms"][name]["acc"] == pytest.approx(statistics.mean(found))
            assert result["paradigms"][name]["acc_standard_error"] == pytest.approx(mean_stderr(found))
        assert 0 < result["acc"] < 1
        assert result["acc"] == pytest.approx(statistics.mean(map(statistics.mean, hits.values())))
        assert result["acc_standard_error"] == pytest.approx(math.hypot(*map(mean_stderr, hits.values())) / 2)
        assert (result["num_items"], result["num_requests"]) == (29, 58)

    def test_wikitext(self, kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
        model, rng = load_causal_lm(folders[kind]), random.Random(2)
        text = " \n".join(f" = Article = \n {sentence(rng, count)} . \n" for count in (3, 60, 150)) + WIKITEXT
        (tmp_path / "wiki.test.raw").write_text(text, encoding="utf-8")
        result = run(folders[kind], tmp_path / "out", tmp_path, "wikitext", batch_size=3)["tasks"]["wikitext"]
        rows = find_task_files("wikitext", tmp_path).documents()["wikitext"]
        total = sum(
            reference.rolling(model, letters_tokenizer(), wikitext_detokenizer(row), CONTEXT_LENGTH) for row in rows
        )
        # An article begins and ends with white space, which the convention counts as two words.
        words, size = sum(len(row["page"].split()) + 2 for row in rows), sum(len(row["page"].encode()) for row in rows)
        assert result["num_items"] == len(rows) == 5
        assert result["num_truncated"] == 0
        assert result["word_perplexity"] == pytest.approx(math.exp(-total / words), rel=1e-5)
        assert result["byte_perplexity"] == pytest.approx(math.exp(-total / size), rel=1e-5)
        assert result["bits_per_byte"] == pytest.approx(-total / size / math.log(2), rel=1e-5)

    def test_every_request_of_every_task_in_one_padded_batch(
        self, kind: str, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        model, tokenizer = load_causal_lm(folders[kind]), letters_tokenizer()
        requests = []
        for name in (name for name in benchmark_names() if name != "wikitext"):
            for documents in find_task_files(name, write_all(tmp_path / name)).documents().values():
                task = make_task(name, name, documents)
                task.build_all_requests(limit=None)
                requests += task.instances
        assert len(requests) == 16
        found = _Scorer(model, tokenizer, batch_size=16).loglikelihood(requests)
        for request, (log_likelihood, hit) in zip(requests, found, strict=True):
            context, answer = (tokenizer.encode(text) for text in request.args)
            expected = reference.score(model, context or [tokenizer.bos_token_id], answer, CONTEXT_LENGTH)
            assert (log_likelihood, hit) == (pytest.approx(expected[0], rel=1e-5), expected[1])


def test_a_special_token_that_a_benchmark_spells_out_is_text(folders: dict[str, Path]) -> None:
    model, tokenizer = load_causal_lm(folders["plain"]), load_tokenizer(folders["plain"])
    assert tokenizer.eos_token_id in tokenizer.encode("a</s>b")
    ids = _Scorer(model, tokenizer, batch_size=16).tok_encode("a</s>b")
    assert tokenizer.decode(ids) == "a ? ? s ? b"


def test_model_is_left_as_it_is_and_nothing_is_fetched(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = load_causal_lm(folders["cocomix"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capfd.readouterr()
    folder = write_all(tmp_path)
    documents = {name: find_task_files(name, folder).documents() for name in benchmark_names()}
    results = run_benchmarks(model, letters_tokenizer(), documents)
    assert list(results["tasks"]) == benchmark_names()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == torch.float32 for name in before)
    output, progress = capfd.readouterr()
    assert output == ""
    assert {line.split(":")[0] for line in progress.splitlines() if line} == {*benchmark_names()}


def test_standard_errors() -> None:
    rng = random.Random(0)
    values = [rng.gauss(-3, 1) for _ in range(400)]
    assert standard_error("acc", 0.0, values) == pytest.approx(mean_stderr(values))
    assert standard_error("acc", 0.0, values[:1]) is None
    # Perplexities against the spread over many samples of the same size.
    samples = [[(rng.gauss(-3, 1) * w, w) for w in (rng.randint(1, 9) for _ in range(400))] for _ in range(400)]
    perplexities = [math.exp(-sum(x for x, _ in items) / sum(w for _, w in items)) for items in samples]
    found = standard_error("word_perplexity", perplexities[0], samples[0])
    assert found == pytest.approx(statistics.stdev(perplexities), rel=0.15)
    bits = standard_error("bits_per_byte", 0.0, samples[0])
    assert bits == pytest.approx(found / perplexities[0] / math.log(2))


class TestCommand:
    """`cocomix eval`: with tasks, with data, with both, and what it refuses."""

    def test_tasks_and_data(self, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        files = write_all(tmp_path / "files")
        arguments = ["--model", tiny.teacher, "--data", tiny.data, "--task-data", files, "--output", tmp_path / "both"]
        assert main(["eval", *map(str, arguments), "--tasks", "lambada", "wikitext", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["validation_loss"] > 0
        assert list(result["tasks"]) == ["lambada", "wikitext"]
        settings = json.loads((tmp_path / "both" / "settings.json").read_text())["settings"]
        assert settings["tasks"]["lambada"] == find_task_files("lambada", files).fingerprint

    def test_tokenizer_of_the_dataset(self, tiny: Tiny, tmp_path: Path) -> None:
        files = write_all(tmp_path / "files")
        load_causal_lm(tiny.teacher).save_pretrained(tmp_path / "bare")
        with pytest.raises(CocomixError, match=r"bare .*tokenizer.*--data"):
            run(tmp_path / "bare", tmp_path / "a", files, "lambada")
        bare = run(tmp_path / "bare", tmp_path / "b", files, "lambada", data=tiny.data)
        assert bare["tasks"] == run(tiny.teacher, tmp_path / "c", files, "lambada")["tasks"]

    def test_other_files_are_other_settings(self, tiny: Tiny, tmp_path: Path) -> None:
        files = write_all(tmp_path / "files")
        first = run(tiny.teacher, tmp_path / "out", files, "lambada")
        assert run(tiny.teacher, tmp_path / "out", files, "lambada", batch_size=1) == first
        write_rows(files / "lambada" / "lambada_test.jsonl", {"text": "other words"})
        with pytest.raises(CocomixError, match=r"tasks\.lambada"):
            run(tiny.teacher, tmp_path / "out", files, "lambada")

    def test_refusals(
        self, tiny: Tiny, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def config(**settings: Any) -> EvalConfig:
            return EvalConfig(model=tiny.teacher, output=tmp_path / "out", **settings)

        with pytest.raises(CocomixError, match=r"--data.*--tasks"):
            config()
        with pytest.raises(CocomixError, match=r"--tasks.*--task-data"):
            config(tasks=("lambada",))
        with pytest.raises(CocomixError, match=r"--tasks.*--task-data"):
            config(data=tiny.data, task_data=tmp_path)
        with pytest.raises(CocomixError, match=r"'mmlu'.*, lambada,"):
            config(tasks=("mmlu",), task_data=tmp_path)
        with pytest.raises(CocomixError, match=r"--probes.*--data"):
            config(tasks=("lambada",), task_data=tmp_path, probes=True)
        with pytest.raises(CocomixError, match=r"limit.* 0"):
            config(tasks=("lambada",), task_data=tmp_path, limit=0)
        with pytest.raises(CocomixError, match=r"lambada .*lambada_test\.jsonl .*lambada\.jsonl"):
            evaluate(config(tasks=("lambada",), task_data=tmp_path))

        files = write_all(tmp_path / "files")
        write_rows(files / "lambada" / "lambada_test.jsonl", {"text": "a " + "x" * 200})
        with pytest.raises(CocomixError, match=r"lambada.* \d+ tokens.* 16"):
            evaluate(config(tasks=("lambada",), task_data=files))
        documents = {"blimp": find_task_files("blimp", files).documents()}
        with pytest.raises(CocomixError, match=r"token \d+.* 39"):
            run_benchmarks(load_causal_lm(folders["plain"]), load_tokenizer(tiny.teacher), documents)
        monkeypatch.delitem(sys.modules, "cocomix.evaluation.benchmarks")
        monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)
        with pytest.raises(CocomixError, match=r"pip install"):
            evaluate(config(tasks=("lambada",), task_data=files))
