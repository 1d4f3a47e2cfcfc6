"""`cocomix inspect` on a tiny student: what is there, what is absent, and what happens when it is run again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cocomix import (
    CardReader,
    CocomixError,
    CoCoMixForCausalLM,
    InspectConfig,
    TokenDataset,
    TrainConfig,
    inspect,
    load_causal_lm,
    steer,
    train,
)
from cocomix.base import artifacts
from cocomix.base.kinds import INSPECTION
from cocomix.cli.main import main
from cocomix.steering.concept_metadata import DIRECTIONS_NAME, read_metadata
from cocomix.tools.inspect import command as module
from cocomix.tools.inspect.cards import CARDS_NAME, read_card, read_cards, read_columns, read_summary
from tests.conftest import CONCEPT, Tiny
from tests.tools.inspect.conftest import config


@pytest.fixture
def own_student(student: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(student, tmp_path / "student"))


def names_of(model: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((model / "concept_names.json").read_text(encoding="utf-8"))
    return found


def test_every_concept_has_a_card_that_is_true(tiny: Tiny, inspection: Path) -> None:
    data, cards = TokenDataset(tiny.data, "validation"), read_cards(inspection)
    tokenizer = data.tokenizer()
    assert [card.concept for card in cards] == list(range(32))
    assert len({card.name for card in cards}) == 32
    assert read_card(inspection, 7) == cards[7]
    summary = read_summary(inspection)
    assert sum(card.num_predicted for card in cards) == 4 * summary["num_tokens"]
    assert sum(card.num_labels or 0 for card in cards) == 4 * summary["num_labelled_tokens"]
    for card in cards:
        for source in ("sae", "label", "prediction"):
            contexts = card.contexts_of(source)
            values = [context.activation for context in contexts]
            assert values == sorted(values, reverse=True)
            assert len(contexts) <= 3
            assert len({context.window for context in contexts}) == len(contexts)
            for context in contexts:
                ids = data.input_ids([context.window])[0]
                assert context.token == tokenizer.decode(ids[context.position : context.position + 1])
                text = context.before + context.token + context.after
                if "\ufffd" not in text:  # no part of a character at an end of the excerpt
                    assert "".join(context.pieces) == text
                    assert context.parts[context.marked] == context.token
                assert len(context.activations) == len(context.pieces)
                assert context.activations[context.marked] == pytest.approx(context.activation, rel=0.01)
        assert {context.source for context in card.random_contexts} <= {"sae"}
        quarters = [context.quarter or 0 for context in card.random_contexts]
        assert quarters == sorted(quarters, reverse=True)
        counts = {histogram.of: sum(histogram.counts) for histogram in card.histograms}
        assert counts["logits"] > 10
        assert counts.get("sae", 0) == round((card.sae_rate or 0) * summary["num_tokens"])
        assert len(card.promoted) == len(card.suppressed) == 4
        assert len(card.nearest) == len(card.nearest_predicted) == 3
        assert (card.measured_promoted is None) == (card.num_predicted == 0)


def test_the_whole_model(inspection: Path) -> None:
    summary = read_summary(inspection)
    assert summary["sources"] == ["sae", "label", "prediction"]
    assert summary["split"] == "validation"
    assert set(summary["usage"]) == {"sae", "label", "prediction"}
    assert set(summary["probes"]) == {"zero", "mean", "shuffle_batch", "shuffle_position", "oracle"}
    assert all(probe["standard_error"] > 0 for probe in summary["probes"].values())
    recall = list(summary["prediction"]["recall_at"].values())
    assert recall == sorted(recall)
    lines = [json.loads(line) for line in (inspection / "concepts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["concept"] for line in lines] == list(range(32))
    contexts = [dataclasses.asdict(context) for context in read_card(inspection, 3).contexts]
    assert lines[3]["contexts"] == json.loads(json.dumps(contexts))


def test_a_reader_finds_names_tokens_and_text_across_the_mark(inspection: Path) -> None:
    reader = CardReader(inspection)
    assert len(reader) == 32
    card = reader.card(5)
    assert reader.find(card.name)[0] == 5 or card.name in reader.card(reader.find(card.name)[0]).name
    context = card.contexts[0]
    around = (context.before[-3:] + context.token + context.after[:3]).upper()
    assert 5 in reader.find(around, limit=32)
    assert reader.find("nowhere in here at all") == []
    assert reader.columns("name")["name"][5] == card.name
    for concept in (-1, 32):
        with pytest.raises(CocomixError, match=f"concept {concept} .* 0 to 31"):
            reader.card(concept)


def test_names_stand_beside_the_weights_and_edits_are_kept(
    tiny: Tiny, own_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(tiny, own_student, tmp_path / "out", num_probe_windows=0)
    model = artifacts.read(own_student, "training-run").fingerprint
    (own_student / "concept_names.json").write_text('{"3": "my <b>own</b> name"}')
    inspect(given)
    assert read_card(given.output, 3).name == "my <b>own</b> name"
    assert read_card(given.output, 3).made_name != "my <b>own</b> name"
    assert artifacts.fingerprint_of_path(own_student) == model
    assert (own_student / "concept_statistics.json").exists()

    def refuse(*_: Any) -> None:
        raise AssertionError("nothing is computed again")

    monkeypatch.setattr(module, "_compute", refuse)
    page = given.output / "data" / "index.js"
    before = page.stat().st_mtime_ns
    inspect(given)
    assert page.stat().st_mtime_ns == before, "a finished inspection is recognised"
    names = names_of(own_student) | {"4": "other"}
    del names["5"]
    (own_student / "concept_names.json").write_text(json.dumps(names))
    inspect(given)
    assert read_card(given.output, 4).name == "other"
    assert read_card(given.output, 5).name == names_of(own_student)["5"]
    assert '"other"' in page.read_text(encoding="utf-8")
    assert CardReader(given.output).columns("name")["name"][4] == "other"
    (own_student / "concept_names.json").write_text('{"4": "same", "5": "same"}')
    with pytest.raises(CocomixError, match=r"concept 4 .*concept 5 'same'"):
        inspect(given)


def test_interrupted_after_the_computation_it_is_not_computed_again(
    tiny: Tiny, own_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inspection: Path
) -> None:
    given = config(tiny, own_student, tmp_path / "out")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_site", interrupt)
        with pytest.raises(KeyboardInterrupt):
            inspect(given)
    whole = read_columns(given.output, "made_name")
    # A table that is damaged while it lies there is made again, and then not again.
    (given.output / CARDS_NAME).write_bytes((given.output / CARDS_NAME).read_bytes()[:-1] + b"?")
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_site", interrupt)
        with pytest.raises(KeyboardInterrupt):
            inspect(given)
    assert read_columns(given.output, "made_name") == whole
    monkeypatch.setattr(module, "_compute", None)
    inspect(given)
    assert not (given.output / module.WORK_FOLDER).exists()
    assert artifacts.read(given.output, INSPECTION).files.keys() == artifacts.read(inspection, INSPECTION).files.keys()
    with pytest.raises(CocomixError, match="num_contexts"):
        inspect(dataclasses.replace(given, num_contexts=2))


def test_where_the_model_cannot_be_written_to_names_are_in_the_output(
    tiny: Tiny, own_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "access", lambda path, _mode: Path(path) != own_student)
    given = config(tiny, own_student, tmp_path / "out", num_probe_windows=0, num_measured=0)
    inspect(given)
    assert not (own_student / "concept_names.json").exists()
    names = names_of(given.output)
    (given.output / "concept_names.json").write_text(json.dumps(names | {"0": "edited"}))
    inspect(given)
    assert CardReader(given.output).card(0).name == "edited"
    assert CardReader(given.output).card(0).measured_promoted is None


def test_without_labels_and_teacher_their_parts_are_absent(tiny: Tiny, own_student: Path, tmp_path: Path) -> None:
    given = config(tiny, own_student, tmp_path / "out", labels=None, teacher=None, sae=None)
    summary = inspect(given)
    assert summary["sources"] == ["prediction"]
    assert summary["prediction"] is None
    assert "oracle" not in summary["probes"]
    card = read_card(given.output, 0)
    assert (card.label_rate, card.num_labels, card.sae_rate, card.precision, card.mean_probability) == (None,) * 5
    page = (given.output / "index.html").read_text(encoding="utf-8")
    assert "need a concept dataset" in page
    assert "Recall at k" not in page


@pytest.mark.slow
def test_labels_alone_are_those_of_the_training_text(tiny: Tiny, own_student: Path, tmp_path: Path) -> None:
    given = config(tiny, own_student, tmp_path / "out", teacher=None, sae=None, num_probe_windows=0)
    summary = inspect(given)
    assert (summary["sources"], summary["split"]) == (["label", "prediction"], "train")
    assert "on text that the model was trained on" in (given.output / "index.html").read_text(encoding="utf-8")


def test_a_model_that_mixes_nothing_in(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = tmp_path / "loss-only"
    settings = dataclasses.replace(CONCEPT, mixer=CONCEPT.mixer.changed(mixing="none"))
    train(TrainConfig(data=tiny.data, output=student, labels=tiny.concepts, student=settings, num_tokens=1024))
    summary = inspect(config(tiny, student, tmp_path / "out"))
    assert summary["probes"] is None
    said = capsys.readouterr().err
    assert all(missing in said for missing in ("effects", "probes", "directions"))
    for folder in (tmp_path / "out", student):
        statistics = read_metadata(folder, 32).statistics
        assert statistics is not None
        assert statistics.directions is None
        assert not (folder / DIRECTIONS_NAME).exists()
    with pytest.raises(CocomixError, match="mixing 'none'"), steer(load_causal_lm(student), {3: 1.0}, mode="toward"):
        pass
    assert read_card(tmp_path / "out", 0).promoted == ()
    assert "promote no tokens" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_upcycled_model(tiny: Tiny, tmp_path: Path) -> None:
    model = CoCoMixForCausalLM.from_backbone(
        load_causal_lm(tiny.teacher), layer=0, num_concepts=32, num_active_concepts=3
    )
    model.save_pretrained(tmp_path / "upcycled")
    given = config(tiny, tmp_path / "upcycled", tmp_path / "out", labels=None, teacher=None, sae=None)
    assert inspect(given)["compress_norm"]["num_zero"] == 32
    assert inspect(given)["num_concepts"] == 32, "metadata beside the weights does not make it another model"


def test_errors_people_make(tiny: Tiny, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CocomixError, match="no concepts"):
        inspect(config(tiny, tiny.teacher, tmp_path / "out"))
    assert not (tmp_path / "out").exists(), "a refused command leaves nothing"
    with pytest.raises(CocomixError, match="--teacher and --sae"):
        config(tiny, student, tmp_path, teacher=None)
    with pytest.raises(CocomixError, match=r"num_contexts.*0"):
        config(tiny, student, tmp_path, num_contexts=0)
    other = CoCoMixForCausalLM.from_backbone(load_causal_lm(tiny.teacher), num_concepts=16, num_active_concepts=3)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CocomixError, match=r"16 concepts.* 32 latents"):
        inspect(config(tiny, tmp_path / "other", tmp_path / "out", labels=None))
    with pytest.raises(CocomixError, match=r"16 concepts.* 32"):
        inspect(config(tiny, tmp_path / "other", tmp_path / "out", teacher=None, sae=None))
    with pytest.raises(CocomixError, match=r"nothing .*concept-inspection"):
        CardReader(tmp_path / "nothing")
    with pytest.raises(CocomixError, match="cocomix inspect"):
        read_card(tmp_path, 0)
    assert (
        main(["inspect", "--model", str(tmp_path / "x"), "--data", str(tiny.data), "--output", str(tmp_path / "o")])
        == 1
    )
    assert "error: " in capsys.readouterr().err


def test_settings_are_a_whole_config() -> None:
    given = InspectConfig(model=Path("m"), data=Path("d"), output=Path("o"))
    assert given.num_contexts == 8


def test_a_dictionary_without_a_student(tiny: Tiny, tmp_path: Path) -> None:
    few: dict[str, Any] = {"num_contexts": 3, "num_tokens": 4, "num_nearest": 3, "max_windows": 8}
    given = InspectConfig(data=tiny.data, output=tmp_path / "out", teacher=tiny.teacher, sae=tiny.sae, **few)
    summary = inspect(given)
    assert (summary["sources"], summary["compress_norm"]) == (["sae"], None)
    cards = read_cards(given.output)
    assert len({card.name for card in cards}) == len(cards) == summary["num_concepts"]
    assert {card.prediction_rate for card in cards} == {None}
    used = next(card for card in cards if card.sae_rate)
    assert used.contexts_of("sae")
    assert used.random_contexts
    assert len(used.promoted) == len(used.suppressed) == 4
    assert {histogram.of for histogram in used.histograms} == {"sae", "logits"}
    names = names_of(given.output)
    (given.output / "concept_names.json").write_text(json.dumps(names | {"0": "edited"}))
    inspect(given)
    assert read_card(given.output, 0).name == "edited"
    assert "Concepts of sae" in (given.output / "index.html").read_text(encoding="utf-8")
    for missing in ({"sae": None, "teacher": None}, {"labels": tiny.concepts}):
        with pytest.raises(CocomixError, match="--teacher and --sae"):
            dataclasses.replace(given, **missing)
