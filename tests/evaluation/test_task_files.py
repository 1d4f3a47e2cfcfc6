"""The benchmarks' files: a miniature of each, what lm-eval asks about it, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cocomix import CocomixError
from cocomix.evaluation import task_files
from cocomix.evaluation.benchmarks import make_task
from cocomix.evaluation.task_files import benchmark_names, find_task_files, load_benchmark

GUIDE = Path(__file__).parents[2] / "docs" / "evaluation.md"
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


#: What lm-eval asks about each miniature (contexts and continuations), and which answer is right. Written out, so that
#: another version of lm-eval that asks something else is noticed.
CHOICES: dict[str, tuple[list[tuple[str, str]], int]] = {
    "hellaswag": (
        [
            ("Cleaning sink: A man stands. He He opens the. tap", ending)
            for ending in (" and sings.", "  then leaves.", " is gone.", " cleans.")
        ],
        1,
    ),
    "piqa": ([("Question: open a jar\nAnswer:", way) for way in (" twist the lid", " é twist the table")], 1),
    "siqa": ([("Q: Ann fell. What next?\nA:", answer) for answer in (" get up", " fly", " sing")], 2),
    "arc_easy": ([("Question: What is hot?\nAnswer:", answer) for answer in (" ice", " fire")], 1),
    "winogrande": ([(f"The cup is in the bag so {name}", " is full.") for name in ("the cup", "the bag")], 1),
    "blimp": ([("", " Cats sleep."), ("", " Cats sleeps.")], 0),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name: str, folder: Path) -> None:
    requests, right = CHOICES[name]
    (documents,) = find_task_files(name, folder).documents().values()
    task = make_task(name, name, documents)
    task.build_all_requests(limit=None)
    assert [request.args for request in task.instances] == requests
    metrics = ["acc", "acc_norm"] if name in ("hellaswag", "piqa", "arc_easy") else ["acc"]
    assert list(task.aggregation()) == metrics
    for likeliest in range(len(requests)):
        answers = [(-1.0 if choice == likeliest else -99.0, False) for choice in range(len(requests))]
        scores = task.process_results(task.eval_docs[0], answers)
        assert scores == dict.fromkeys(metrics, float(likeliest == right))


def test_last_words(folder: Path) -> None:
    task = make_task("lambada", "lambada", find_task_files("lambada", folder).documents()["lambada"])
    task.build_all_requests(limit=None)
    assert [request.args for request in task.instances] == [('He said: "wait\nhere" and left the old', " house")]
    assert task.process_results(task.eval_docs[0], [(-9.0, True)]) == {"perplexity": -9.0, "acc": 1}


def test_articles_are_whole_and_detokenized_but_counted_as_published(folder: Path) -> None:
    task = make_task("wikitext", "wikitext", find_task_files("wikitext", folder).documents()["wikitext"])
    task.build_all_requests(limit=None)
    assert [request.args for request in task.instances] == [
        (
            ' = First =\n\nThe "old" 3,000 ships (of wood)\'s,°C; he said: no .\n== Part ==\n'
            "A semi-naked [x] {y}'s'z'. ",
        ),
        (" = Second =\n\nText.\n",),
    ]
    for document, num_words, num_bytes in zip(task.eval_docs, (47, 7), (138, 24), strict=True):
        assert task.process_results(document, [-9.0]) == {
            "word_perplexity": (-9.0, num_words),
            "byte_perplexity": (-9.0, num_bytes),
            "bits_per_byte": (-9.0, num_bytes),
        }


def test_every_benchmark_has_its_requests_written_out() -> None:
    assert benchmark_names() == sorted([*CHOICES, "lambada", "wikitext"])


def test_other_published_forms(tmp_path: Path) -> None:
    (tmp_path / "lambada_test_plain_text.txt").write_text("one two three\n\nfour five\n")
    assert find_task_files("lambada", tmp_path).documents() == {
        "lambada": [{"text": "one two three"}, {"text": "four five"}]
    }
    write_rows(tmp_path / "arc_easy_dev.jsonl", ARC, ARC)
    assert len(find_task_files("arc_easy", tmp_path).documents(limit=1)["arc_easy"]) == 1
    unlabelled = {key: value for key, value in WINOGRANDE.items() if key != "answer"}
    write_rows(tmp_path / "winogrande" / "dev.jsonl", unlabelled)
    (tmp_path / "winogrande" / "dev-labels.lst").write_text("1\n")
    assert find_task_files("winogrande", tmp_path).documents()["winogrande"][0]["answer"] == "1"
    write_rows(tmp_path / "winogrande" / "dev.jsonl", WINOGRANDE, WINOGRANDE)  # the rows' own labels come first
    assert [row["answer"] for row in find_task_files("winogrande", tmp_path).documents()["winogrande"]] == ["2", "2"]
    write_rows(tmp_path / "hellaswag_val.jsonl", HELLASWAG | {"label": "1"})
    assert find_task_files("hellaswag", tmp_path).documents()["hellaswag"][0]["label"] == 1
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
    ("name", "file", "row", "named"),
    [
        ("lambada", "lambada_test.jsonl", {"words": "a b"}, '"text".* str'),
        ("lambada", "lambada_test.jsonl", {"text": " word"}, "LAMBADA"),
        ("lambada", "lambada_test.jsonl", ["a b"], "JSON"),
        ("hellaswag", "hellaswag_val.jsonl", HELLASWAG | {"label": 4}, "4.* 0, 1, 2, 3"),
        ("hellaswag", "hellaswag_val.jsonl", HELLASWAG | {"endings": ["one", "two"]}, '"endings".* 4 text'),
        ("arc_easy", "ARC-Easy-Test.jsonl", ARC | {"answerKey": "E"}, "'E'.* A, B"),
        ("arc_easy", "ARC-Easy-Test.jsonl", ARC | {"question": "What is hot?"}, '"question".* dict'),
        ("winogrande", "dev.jsonl", WINOGRANDE | {"sentence": "none"}, "`_`"),
        ("winogrande", "dev.jsonl", WINOGRANDE | {"answer": ""}, "''.* 1, 2"),
        ("siqa", "dev.jsonl", WINOGRANDE, '"context"'),
        ("blimp", "agreement.jsonl", PIQA, '"sentence_good"'),
        ("blimp", "agreement.jsonl", BLIMP | {"sentence_bad": 7}, '"sentence_bad".* text'),
        ("blimp", "agreement.jsonl", BLIMP | {"sentence_bad": " "}, '"sentence_bad".* text'),
        ("blimp", "agreement.jsonl", BLIMP | {"sentence_bad": "a\ud800"}, '"sentence_bad".* surrogate'),
        ("hellaswag", "hellaswag_val.jsonl", HELLASWAG | {"endings": ["a", "b", "", "d"]}, '"endings".* text'),
        ("hellaswag", "hellaswag_val.jsonl", HELLASWAG | {"endings": ["a", "b", "\udfff", "d"]}, "surrogate"),
        ("hellaswag", "hellaswag_val.jsonl", HELLASWAG | {"ctx_a": 5}, '"ctx_a".* str'),
        ("lambada", "lambada_test.jsonl", {"text": "a b \ud83d"}, "surrogate"),
        ("siqa", "dev.jsonl", SIQA | {"answerB": ""}, '"answerB".* text'),
        ("winogrande", "dev.jsonl", WINOGRANDE | {"option1": ""}, '"option1".* text'),
    ],
)
def test_a_wrong_row_is_refused_with_its_place(name: str, file: str, row: Any, named: str, folder: Path) -> None:
    (good,) = (folder / name / file).read_text("utf-8").splitlines()
    path = write_rows(folder / name / file, json.loads(good), row)
    if name == "siqa":
        (folder / name / "dev-labels.lst").write_text("3\n3\n")
    with pytest.raises(CocomixError, match=rf"^{re.escape(str(path))}, line 2: .*{named}"):
        find_task_files(name, folder).documents()


def test_a_wrong_file_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (folder / "piqa" / "valid-labels.lst").write_text("1\n0\n")
    with pytest.raises(CocomixError, match=r"valid-labels\.lst .*2.*valid\.jsonl .*1"):
        find_task_files("piqa", folder).documents()
    (folder / "piqa" / "valid-labels.lst").write_text("2\n")
    with pytest.raises(CocomixError, match=r"valid-labels\.lst, line 1: .*'2'.* 0, 1"):
        find_task_files("piqa", folder).documents()
    (folder / "lambada" / "lambada_test.jsonl").write_text('{"text": \n')
    with pytest.raises(CocomixError, match=r"lambada_test\.jsonl, line 1 .*JSON"):
        find_task_files("lambada", folder).documents()
    for content, named in ((b"\xff", "UTF-8"), (b"\n", "wikitext")):
        (folder / "wikitext" / "wiki.test.raw").write_bytes(content)
        with pytest.raises(CocomixError, match=rf"wiki\.test\.raw .*{named}"):
            find_task_files("wikitext", folder).documents()
    (folder / "piqa" / "valid-labels.lst").unlink()
    with pytest.raises(CocomixError, match=r"piqa.* valid\.jsonl .*valid-labels\.lst"):
        find_task_files("piqa", folder)
    with pytest.raises(CocomixError, match=r"nothing.*--task-data"):
        find_task_files("piqa", tmp_path / "nothing")
    with pytest.raises(CocomixError, match=r"'mmlu'.*, lambada,"):
        find_task_files("mmlu", folder)


def test_the_guide_names_every_file() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in guide.splitlines() if line.startswith("| `")}
    for name in benchmark_names():
        for file in (file for names in load_benchmark(name).files for file in names):
            assert f"`{file}`" in rows[name]


def test_the_guides_new_task_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert diff.count("\n") <= 25
    (definition,) = re.findall(r"tasks/boolq\.yaml\n@@.*\n((?:\+.*\n)+)", diff)
    monkeypatch.setattr(task_files, "TASKS", tmp_path)
    (tmp_path / "boolq.yaml").write_text(re.sub(r"^\+", "", definition, flags=re.MULTILINE))
    rows = [{"passage": "Cats sleep.", "question": "do cats sleep", "label": label} for label in (True, False)]
    write_rows(tmp_path / "val.jsonl", *rows)
    task = make_task("boolq", "boolq", find_task_files("boolq", tmp_path).documents()["boolq"])
    task.build_all_requests(limit=1)
    context = "Cats sleep.\nQuestion: do cats sleep?\nAnswer:"
    assert [request.args for request in task.instances] == [(context, " no"), (context, " yes")]
    answers = [(-9.0, False), (-1.0, False)]
    assert [task.process_results(row, answers) for row in task.eval_docs] == [{"acc": 1.0}, {"acc": 0.0}]
