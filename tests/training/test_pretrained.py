"""A student that is trained already: what learns, what stays to the bit, what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from cocomix import CocomixError, CoCoMixForCausalLM, TrainConfig, train
from cocomix.base.artifacts import CARD_NAME, read_header, read_json
from cocomix.base.stopping import Stopped
from cocomix.cli.main import main
from cocomix.cli.options import parse
from cocomix.data.token_dataset import TokenDataset
from cocomix.mixers.config import ConceptConfig, MixerConfig, NoMixerConfig
from cocomix.modeling.configuration import CoCoMixConfig
from cocomix.modeling.loading import load_causal_lm
from cocomix.sae.model import SparseAutoencoder
from cocomix.training import students
from cocomix.training.config import OptimizerConfig, ParallelConfig, StudentConfig
from cocomix.training.optimizer import adamw
from cocomix.training.students import build_student, settled
from tests.conftest import Tiny
from tests.training.helpers import config, equal_weights, in_step, on_ranks, terminate, untimed, weights

MIXER = ConceptConfig(mixing="interleave_residual", num_active_concepts=4)
#: Names of the teacher's weights above block 0.
ABOVE = ("model.layers.1.", "model.norm.")


def student_of(tiny: Tiny, learning: str, mixer: MixerConfig = MIXER) -> StudentConfig:
    """The tiny teacher as a student."""
    above = 0 if learning == "above" and not mixer.inserts else None
    return StudentConfig(pretrained=tiny.teacher, train=learning, train_above=above, mixer=mixer)  # type: ignore[arg-type]


def run(tiny: Tiny, output: Path, student: StudentConfig, **settings: object) -> TrainConfig:
    """Five steps of it."""
    given: dict[str, object] = {"student": student, "num_tokens": 640, "num_evaluations": 2}
    return config(tiny, output, "cocomix" if student.mixer.has_concepts else "ntp", **given | settings)


@pytest.mark.parametrize(
    ("learning", "mixer"),
    [
        ("mixer", MIXER),
        ("above", MIXER),
        ("above", NoMixerConfig()),
        pytest.param("all", MIXER, marks=pytest.mark.slow),
    ],
)
def test_what_is_frozen_stays_to_the_bit_and_all_else_learns(
    tiny: Tiny, tmp_path: Path, learning: str, mixer: MixerConfig
) -> None:
    train(run(tiny, tmp_path / "run", student_of(tiny, learning, mixer), checkpoint_every_steps=100))
    before, after = weights(tiny.teacher), weights(tmp_path / "run")
    for name, tensor in before.items():
        learns = learning == "all" or (learning == "above" and name.startswith(ABOVE))
        own = name if name in after else f"backbone.{name}"
        assert torch.equal(after[own], tensor) != learns, name
    assert {name for name in after if name.startswith("mixer.")} == (
        {f"mixer.{n}" for n in _mixer()} if mixer.inserts else set()
    )


def _mixer() -> list[str]:
    return ["head_weight", "head_bias", "compress_weight", "compress_bias", "pre_bias"]


def test_a_run_says_what_it_came_from_and_what_learnt(tiny: Tiny, tmp_path: Path) -> None:
    manifest = train(run(tiny, tmp_path / "run", student_of(tiny, "above")))
    settings, facts = read_header(tmp_path / "run")["settings"], manifest.facts
    assert settings["student"]["train"] == "above"
    assert (settings["student"]["hidden_size"], settings["student"]["num_layers"]) == (16, 2)
    assert len(settings["inputs"]["pretrained"]) == 64
    assert str(tiny.teacher) not in str(settings)
    assert 0 < facts["num_learning_parameters"] < facts["num_parameters"]
    card = (tmp_path / "run" / CARD_NAME).read_text()
    assert "| continued from | teacher |" in card
    assert f"above: {facts['num_learning_parameters']:,} parameters, from block 1 on" in card
    assert str(tiny.root) not in (tmp_path / "run" / "config.json").read_text()
    # Its own configuration gives the same run: it is recognised as finished.
    assert main(["train", "--config", str(tmp_path / "run")]) == 0


def test_old_and_new_weights_have_their_own_rates(tiny: Tiny, tmp_path: Path) -> None:
    rates = OptimizerConfig(learning_rate=1e-2)
    made = settled(
        run(
            tiny,
            tmp_path / "run",
            student_of(tiny, "all", dataclasses.replace(MIXER, num_concepts=32)),
            optimizer=rates,
        )
    )
    model = build_student(made, TokenDataset(tiny.data), made.student.mixer)
    for given, expected in ((rates, 1e-3), (dataclasses.replace(rates, pretrained_learning_rate=5e-5), 5e-5)):
        optimizer = adamw(model, given, model.backbone)
        found = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert {found[p] for p in model.mixer.parameters()} == {1e-2}
        assert {found[p] for p in model.backbone.parameters()} == {expected}
        assert len(found) == len(list(model.parameters()))


def test_blocks_below_have_no_graph_and_checkpoints_hold_what_learns(tiny: Tiny, tmp_path: Path) -> None:
    with in_step(2, terminate), pytest.raises(Stopped):
        train(run(tiny, tmp_path / "run", student_of(tiny, "mixer")))
    (shard,) = (tmp_path / "run" / "checkpoints" / "step-000000003").glob("*.safetensors")
    assert {name.split("/")[-1] for name in load_file(shard) if not name.startswith("metrics/")} == {
        f"model.mixer.{name}" for name in _mixer()
    }
    made = settled(
        run(tiny, tmp_path / "other", student_of(tiny, "mixer", dataclasses.replace(MIXER, num_concepts=32)))
    )
    data = TokenDataset(tiny.data)
    model = build_student(made, data, made.student.mixer).train()
    states = model(data.windows([0]).input_ids, output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, True]


@pytest.mark.slow
def test_stopped_and_continued_equals_undisturbed(tiny: Tiny, tmp_path: Path) -> None:
    train(run(tiny, tmp_path / "whole", student_of(tiny, "above")))
    with in_step(2, terminate), pytest.raises(Stopped):
        train(run(tiny, tmp_path / "parts", student_of(tiny, "above")))
    train(run(tiny, tmp_path / "parts", student_of(tiny, "above")))
    assert equal_weights(tmp_path / "whole", tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")


def test_the_mixer_starts_from_a_dictionary_of_its_layer(tiny: Tiny, tmp_path: Path) -> None:
    mixer = ConceptConfig(mixing="interleave", num_active_concepts=6, num_concepts=32)
    student = StudentConfig(pretrained=tiny.teacher, mixer=mixer, start_from_sae=tiny.sae)
    made = settled(run(tiny, tmp_path / "run", student))
    model, sae = build_student(made, TokenDataset(tiny.data), mixer), SparseAutoencoder.from_pretrained(tiny.sae)
    assert torch.equal(model.mixer.head_weight, sae.encoder_weight)
    assert torch.equal(model.mixer.compress_weight, sae.decoder_weight)
    train(dataclasses.replace(made, num_tokens=128))
    assert len(read_header(tmp_path / "run")["settings"]["inputs"]["start_from_sae"]) == 64
    elsewhere = dataclasses.replace(student, mixer=mixer.changed(layer=-1))
    with pytest.raises(CocomixError, match=r"trained on layer 0, but --student.layer is -1; set it to 0"):
        train(run(tiny, tmp_path / "refused", elsewhere))
    assert not (tmp_path / "refused").exists()


def test_on_the_command_line_the_start_is_close_to_the_decoders_own(tiny: Tiny, tmp_path: Path) -> None:
    argv = ["train", "--data", str(tiny.data), "--labels", str(tiny.concepts), "--output", str(tmp_path / "run")]
    argv += ["--student.pretrained", str(tiny.teacher), "--student.mixer", "concept", "--student.num-active-concepts=4"]
    argv += ["--student.train", "mixer", "--num-tokens", "128", "--max-validation-windows", "8", "--num-evaluations=1"]
    argv += ["--optimizer.learning-rate", "1e-9"]
    assert main(argv) == 0
    stored = read_json(tmp_path / "run" / "config.json")
    assert (stored["mixing"], stored["backbone_config"]["num_hidden_layers"]) == ("add", 2)
    train(
        run(
            tiny,
            tmp_path / "ntp",
            student_of(tiny, "all", NoMixerConfig()),
            num_tokens=128,
            optimizer=OptimizerConfig(1e-9),
        )
    )
    found, own = (untimed(tmp_path / name)[-1]["validation_loss"] for name in ("run", "ntp"))
    assert found == pytest.approx(own, abs=0.05)


@pytest.mark.slow
def test_a_plan_counts_what_learns(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "local_model", None)  # a plan downloads no weights
    options = [
        "plan",
        "--data",
        str(tiny.data),
        "--labels",
        str(tiny.concepts),
        "--student.pretrained",
        str(tiny.teacher),
    ]
    options += ["--student.mixer", "concept", "--student.num-active-concepts", "4", "--json"]
    plans = {}
    for learning in ("mixer", "all"):
        assert main([*options, "--student.train", learning]) == 0
        plans[learning] = json.loads(capsys.readouterr().out)
    few, whole = plans["mixer"], plans["all"]
    assert few["num_parameters"] == whole["num_parameters"] == whole["num_learning_parameters"]
    assert few["num_learning_parameters"] == 2 * 32 * 16 + 32 + 2 * 16
    assert few["equal_ntp"]["parameters"] is None
    flops, all_flops = (plan["flops_per_token"]["algorithmic"] for plan in (few, whole))
    assert flops["inference"] == all_flops["inference"]
    assert flops["training"] < all_flops["training"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--student.train", "all"], "student.train is set, but only a decoder of student.pretrained has it; give one"),
        (["--optimizer.pretrained-learning-rate=1e-4"], "there is no student.pretrained; give one"),
        (
            ["MODEL", "--student.hidden-size", "128"],
            "student.hidden_size is 128, but that of MODEL is 16; leave it out",
        ),
        (["MODEL", "--student.family", "gpt2"], "student.family is gpt2, but that of MODEL is llama; leave it out"),
        (["MODEL", "--student.train", "mixer"], "so nothing would learn; train 'above' or 'all'"),
        (["MODEL", "--student.train", "above"], "stands nowhere; give student.train_above"),
        (["MODEL", "--student.train=above", "--student.train-above=1"], "with 2 blocks it must be -1 to 0"),
        (
            ["MODEL", "--student.mixer=concept", "--student.layer=1", "--labels=LABELS"],
            "--student.layer is 1, but a mixer stands below the last block: it must be -1 to 0",
        ),
        (["MODEL", "--student.train-above", "0"], "student.train is not 'above'"),
        (["MODEL", "--student.start-from-sae", "SAE"], "student.start_from_sae is set, but the mixer is 'none'"),
        (
            [
                "MODEL",
                "--student.mixer=concept",
                "--student.mixing=none",
                "--student.train=mixer",
                "--concept-loss.weight=0",
            ],
            "so nothing would learn",
        ),
        (["--student.pretrained", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
    ],
)
def test_what_contradicts_is_one_sentence(
    tiny: Tiny, tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(tiny.data), "--output", str(tmp_path / "run")]
    for option in options:
        named = option.replace("SAE", str(tiny.sae)).replace("LABELS", str(tiny.concepts))
        words += ["--student.pretrained", str(tiny.teacher)] if option == "MODEL" else [named]
    with contextlib.suppress(SystemExit):
        assert main(words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said.replace("MODEL", str(tiny.teacher)) in lines[0]
    assert not (tmp_path / "run").exists()


def test_equal_sizes_may_be_said_again(tiny: Tiny, tmp_path: Path) -> None:
    student = StudentConfig("llama", 16, 2, 2, pretrained=tiny.teacher)
    assert settled(run(tiny, tmp_path / "run", student)).student == dataclasses.replace(student, train="all")


def test_models_that_can_be_no_student_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    own = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    ).eval()
    own.save_pretrained(tmp_path / "small vocabulary")
    with pytest.raises(CocomixError, match="has 40 tokens"):
        train(run(tiny, tmp_path / "run", StudentConfig(pretrained=tmp_path / "small vocabulary")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mixer", ["concept", "pause"])
def test_a_student_with_a_mixer_is_continued_with_it(
    tiny: Tiny, tmp_path: Path, mixer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [
        "train",
        "--data",
        str(tiny.data),
        "--num-tokens",
        "128",
        "--max-validation-windows=8",
        "--num-evaluations=1",
    ]
    labels = ["--labels", str(tiny.concepts)] if mixer == "concept" else []
    first = [*short, *labels, "--student.pretrained", str(tiny.teacher), "--student.mixer", mixer, "--student.layer=0"]
    first += ["--student.num-active-concepts=3"] if labels else []
    assert main([*first, "--student.mixing=interleave_residual", "--output", str(tmp_path / "first")]) == 0
    more = [*short, *labels, "--student.pretrained", str(tmp_path / "first")]
    assert main([*more, "--student.train", "mixer", "--output", str(tmp_path / "second")]) == 0
    assert [read_json(tmp_path / name / "config.json")["mixing"] for name in ("first", "second")] == [
        "interleave_residual"
    ] * 2
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} <= {
        name for name in before if name.startswith("mixer.")
    }
    assert not equal_weights(tmp_path / "first", tmp_path / "second")
    assert main(["train", "--config", str(tmp_path / "second")]) == 0  # recognised
    capsys.readouterr()
    assert main([*more, "--student.mixing", "add", "--output", str(tmp_path / "other")]) == 1
    assert (
        f"has a mixer already, {mixer} (interleave_residual), after block 0, and is continued"
        in capsys.readouterr().err
    )


def test_a_mixer_that_stands_higher_than_a_scratch_decoder_has_blocks_is_continued(tmp_path: Path) -> None:
    backbone = LlamaConfig(num_hidden_layers=8, hidden_size=16, num_attention_heads=2)
    CoCoMixConfig(backbone, layer=5, num_concepts=8, num_active_concepts=2).save_pretrained(tmp_path)
    words = ["--data=d", "--output=o", "--labels=l", f"--student.pretrained={tmp_path}"]
    student = parse(TrainConfig, "cocomix train", "", words).student
    assert (student.mixer.layer, student.num_layers) == (5, None)


def test_labels_of_another_dictionary_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = CoCoMixForCausalLM.from_backbone(load_causal_lm(tiny.teacher), num_concepts=8, num_active_concepts=2)
    model.save_pretrained(tmp_path / "mixed")
    with pytest.raises(CocomixError, match=r"mixed has 8 concepts, but the labels have 32$"):
        train(run(tiny, tmp_path / "run", StudentConfig(pretrained=tmp_path / "mixed", mixer=model.config.mixer)))


def test_dropout_is_off_as_from_scratch(tiny: Tiny, tmp_path: Path) -> None:
    shape = GPT2Config(vocab_size=300, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "gpt2")
    made = settled(run(tiny, tmp_path / "run", StudentConfig(pretrained=tmp_path / "gpt2")))
    model = build_student(made, TokenDataset(tiny.data), NoMixerConfig()).train()
    ids = TokenDataset(tiny.data).windows([0]).input_ids
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("learning", "mixer"), [("mixer", MIXER), ("above", MIXER), ("above", NoMixerConfig())])
def test_two_ranks_equal_one_and_continue(
    tiny: Tiny, tmp_path: Path, strategy: str, learning: str, mixer: MixerConfig
) -> None:
    parallel = ParallelConfig(strategy=strategy)  # type: ignore[arg-type]
    train(run(tiny, tmp_path / "one", student_of(tiny, learning, mixer)))

    def work(rank: int) -> None:
        train(run(tiny, tmp_path / "two", student_of(tiny, learning, mixer), parallel=parallel))
        with in_step(2, terminate if rank else lambda: None), pytest.raises(Stopped):
            train(run(tiny, tmp_path / "parts", student_of(tiny, learning, mixer), parallel=parallel))
        train(run(tiny, tmp_path / "parts", student_of(tiny, learning, mixer), parallel=parallel))

    on_ranks(2, tmp_path, work)
    assert equal_weights(tmp_path / "two", tmp_path / "parts")
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "two" / "config.json").read_bytes()
    found, expected = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=2e-5)
    for name, tensor in weights(tiny.teacher).items():
        if not name.startswith(ABOVE) or learning == "mixer":
            assert torch.equal(found[name if name in found else f"backbone.{name}"], tensor)
    if not mixer.inserts:
        assert not isinstance(load_causal_lm(tmp_path / "two"), CoCoMixForCausalLM)
