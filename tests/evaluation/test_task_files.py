"""The benchmarks' files: a miniature of each, and lm-eval's own definition of the task as the reference for its prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

from cocomix import CocomixError
from cocomix.evaluation import wikitext
from cocomix.evaluation.benchmarks import _Task, definition
from cocomix.evaluation.task_files import BENCHMARKS, find_task_files

PASSAGE = 'He said: "wait\nhere" and left the old house'
HELLASWAG = {
    "activity_label": "Cleaning sink",
    "ctx_a": "A man stands. [header] He",
    "ctx_b": "he Opens  the [title] tap",
    "ctx": "unused",
    "endings": [" and  sings.", "[step] then leaves.", "is gone.", "cleans."],
    "label": 1,
}
PIQA = {"goal": "open a jar", "sol1": "twist the lid", "sol2": "é twist the table"}
SIQA = {"context": "Ann fell.", "question": "What next?", "answerA": "get up", "answerB": "fly", "answerC": "sing"}
ARC = {
    "id": "1",
    "question": {"stem": "What is hot?", "choices": [{"text": "ice", "label": "A"}, {"text": "fire", "label": "B"}]},
    "answerKey": "B",
}
WINOGRANDE = {
    "sentence": "The cup is in the bag so _ is full.",
    "option1": "the cup",
    "option2": "the bag",
    "answer": "2",
}
BLIMP = {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "UID": "agreement", "pairID": "0"}
WIKITEXT = """ \n = First = \n \n The " old " 3 @,@ 000 ships ( of wood ) 's , ° C ; he said : no .
 = = Part = = \n A semi @-@ naked [ x ] { y } 's ' z ' . \n = Second = \n \n Text . \n"""


def write_rows(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_all(folder: Path) -> Path:
    """A miniature of every benchmark, each in its folder."""
    write_rows(folder / "lambada" / "lambada_test.jsonl", {"text": PASSAGE})
    write_rows(folder / "hellaswag" / "hellaswag_val.jsonl", HELLASWAG)
    write_rows(folder / "piqa" / "valid.jsonl", PIQA)
    (folder / "piqa" / "valid-labels.lst").write_text("1\n")
    write_rows(folder / "siqa" / "dev.jsonl", SIQA)
    (folder / "siqa" / "dev-labels.lst").write_text("3\n")
    write_rows(folder / "arc_easy" / "ARC-Easy-Test.jsonl", ARC)
    write_rows(folder / "winogrande" / "dev.jsonl", WINOGRANDE)
    write_rows(folder / "blimp" / "agreement.jsonl", BLIMP)
    (folder / "wikitext").mkdir()
    (folder / "wikitext" / "wiki.test.raw").write_text(WIKITEXT, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path)


#: For each benchmark lm-eval's own definition, and the miniature as a row of the data set that it downloads.
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "wikitext": ("wikitext/wikitext.yaml", {"page": wikitext.articles(WIKITEXT)[0]}),
    "lambada": ("lambada/lambada_openai.yaml", {"text": PASSAGE}),
    "hellaswag": ("hellaswag/hellaswag.yaml", HELLASWAG | {"label": "1"}),
    "piqa": ("piqa/piqa.yaml", PIQA | {"label": 1}),
    "siqa": ("siqa/siqa.yaml", SIQA | {"label": "3"}),
    "arc_easy": (
        "arc/arc_easy.yaml",
        {"question": "What is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"},
    ),
    "winogrande": ("winogrande/default.yaml", WINOGRANDE),
    "blimp": ("blimp/adjunct_island.yaml", BLIMP),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_requests_and_metrics_are_those_of_lm_evals_own_definition(name: str, folder: Path) -> None:
    path, row = STOCK[name]
    stock = load_yaml(Path(lm_eval.__file__).parent / "tasks" / path)
    splits = {stock.get(kind) for kind in ("training_split", "validation_split", "test_split")} - {None}
    data = Dataset.from_list([row])
    theirs = ConfigurableTask(config=stock | {"custom_dataset": lambda **_: dict.fromkeys(splits, data)})
    (documents,) = find_task_files(name, folder).documents().values()
    ours = _Task(name, definition(name), documents)

    for task in (theirs, ours):
        task.set_config("num_fewshot", 0)
        task.build_all_requests(limit=1)
    assert [request.args for request in ours.instances] == [request.args for request in theirs.instances]
    assert {request.request_type for request in ours.instances} == {
        request.request_type for request in theirs.instances
    }
    assert ours.aggregation() == theirs.aggregation()
    # Scores that fall from choice to choice, and then rise: the right one must be the same for both.
    count = len(ours.instances)
    for scores in (range(-9, -9 - count, -1), range(-9, -9 + count)):
        answers = [(float(score), True) for score in scores] if name != "wikitext" else [-9.0]
        assert ours.process_results(documents[0], answers) == theirs.process_results(theirs.eval_docs[0], answers)


def test_wikitext_articles_are_whole_and_detokenized_as_in_lm_eval() -> None:
    pages = wikitext.articles(WIKITEXT)
    assert len(pages) == 2
    assert "= = Part = =" in pages[0]
    for page in pages:
        assert wikitext.detokenize(page) == wikitext_detokenizer({"page": page})
        assert process_results({"page": page}, [-1.0])["word_perplexity"] == (-1.0, wikitext.num_words(page))
    assert wikitext.detokenize(pages[1]) == " = Second =\n\nText.\n"


def test_other_published_forms(tmp_path: Path) -> None:
    (tmp_path / "lambada_test_plain_text.txt").write_text("one two three\n\nfour five\n")
    assert find_task_files("lambada", tmp_path).documents() == {
        "lambada": [{"context": "one two", "target": " three"}, {"context": "four", "target": " five"}]
    }
    write_rows(tmp_path / "arc_easy_dev.jsonl", ARC, ARC)
    assert len(find_task_files("arc_easy", tmp_path).documents(limit=1)["arc_easy"]) == 1
    unlabelled = {key: value for key, value in WINOGRANDE.items() if key != "answer"}
    write_rows(tmp_path / "winogrande" / "dev.jsonl", unlabelled)
    (tmp_path / "winogrande" / "dev-labels.lst").write_text("1\n")
    assert find_task_files("winogrande", tmp_path).documents()["winogrande"][0]["gold"] == 0
    (tmp_path / "wikitext2_valid.txt").write_text(WIKITEXT)
    assert len(find_task_files("wikitext", tmp_path).documents()["wikitext"]) == 2


def test_every_paradigm_is_a_task_and_the_benchmarks_folder_comes_first(tmp_path: Path) -> None:
    write_rows(tmp_path / "other.jsonl", {"text": "no pair"})
    write_rows(tmp_path / "blimp" / "b.jsonl", BLIMP, BLIMP)
    write_rows(tmp_path / "blimp" / "a.jsonl", BLIMP)
    found = find_task_files("blimp", tmp_path)
    assert {name: len(rows) for name, rows in found.documents().items()} == {"a": 1, "b": 2}
    before = found.fingerprint
    write_rows(tmp_path / "blimp" / "a.jsonl", BLIMP, BLIMP)
    assert find_task_files("blimp", tmp_path).fingerprint != before


@pytest.mark.parametrize(
    ("name", "file", "row", "message"),
    [
        ("lambada", "lambada_test.jsonl", {"words": "a b"}, r'lambada_test\.jsonl.*line 1.*"text"'),
        ("lambada", "lambada_test.jsonl", {"text": " word"}, r"lambada_test\.jsonl.*word"),
        ("lambada", "lambada_test.jsonl", ["a b"], r"lambada_test\.jsonl.*JSON"),
        ("hellaswag", "hellaswag_val.jsonl", HELLASWAG | {"label": 4}, r"4.*0, 1, 2, 3"),
        ("arc_easy", "ARC-Easy-Test.jsonl", ARC | {"answerKey": "E"}, r"'E'.*A, B"),
        ("winogrande", "dev.jsonl", WINOGRANDE | {"sentence": "none"}, r"dev\.jsonl.*gap"),
        ("winogrande", "dev.jsonl", WINOGRANDE | {"answer": ""}, r"''.*1, 2"),
        ("siqa", "dev.jsonl", WINOGRANDE, '"context"'),
        ("blimp", "agreement.jsonl", PIQA, '"sentence_good"'),
    ],
)
def test_a_wrong_row_is_one_sentence(name: str, file: str, row: Any, message: str, folder: Path) -> None:
    write_rows(folder / name / file, row)
    with pytest.raises(CocomixError, match=message):
        find_task_files(name, folder).documents()


def test_a_wrong_file_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (folder / "piqa" / "valid-labels.lst").write_text("1\n0\n")
    with pytest.raises(CocomixError, match=r"2.*1"):
        find_task_files("piqa", folder).documents()
    (folder / "lambada" / "lambada_test.jsonl").write_text('{"text": \n')
    with pytest.raises(CocomixError, match=r"line 1.*JSON"):
        find_task_files("lambada", folder).documents()
    (folder / "wikitext" / "wiki.test.raw").write_bytes(b"\xff")
    with pytest.raises(CocomixError, match="UTF-8"):
        find_task_files("wikitext", folder).documents()
    (folder / "wikitext" / "wiki.test.raw").write_text("\n")
    with pytest.raises(CocomixError, match=r"wiki.*empty"):
        find_task_files("wikitext", folder).documents()
    (folder / "piqa" / "valid-labels.lst").unlink()
    with pytest.raises(CocomixError, match=r"valid\.jsonl.*valid-labels\.lst"):
        find_task_files("piqa", folder)
    with pytest.raises(CocomixError, match="nothing"):
        find_task_files("piqa", tmp_path / "nothing")
    with pytest.raises(CocomixError, match=r"'mmlu'.*wikitext, lambada"):
        find_task_files("mmlu", folder)


def test_the_guide_names_every_file() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in guide.splitlines() if line.startswith("| `")}
    for name, benchmark in BENCHMARKS.items():
        for file in (file for names in benchmark.files for file in names):
            assert f"`{file}`" in rows[name]
