"""Runs side by side: numbers worked out by hand, seeds in pairs, and folders that are refused in one sentence."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocomix import CocomixError, CompareConfig, TrainConfig, compare, train
from cocomix.base.artifacts import begin, finish, write_json
from cocomix.cli.main import main
from cocomix.tools.compare.comparison import compare_groups
from cocomix.tools.compare.curves import loss_at, series_of, units_to_match
from cocomix.tools.compare.intervals import bootstrap_interval
from cocomix.tools.compare.runs import read_groups
from cocomix.tools.compare.text import headline, tables
from tests.conftest import STUDENT, Tiny


def make_run(
    path: Path, losses: Sequence[float], *, seed: int = 0, cost: float = 1.0, finished: bool = True, **settings: Any
) -> Path:
    """A folder as a training run leaves it; a point every 1,000 tokens, at `cost` FLOPs a token and 2 ms a token."""
    shared: dict[str, Any] = {"num_tokens": 4000, "max_validation_windows": None, "inputs": {"data": "d"}, "seed": seed}
    lines = []
    for number, loss in enumerate(losses, start=1):
        tokens = 1000 * number
        place = {"step": number, "train_tokens": tokens, "train_flops": tokens * cost, "train_seconds": tokens * 0.002}
        lines += [json.dumps({**place, "lm_loss": loss}), json.dumps({**place, "validation_loss": loss})]
    with begin(path, "training-run", shared | settings):
        (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
        if finished:
            for name in ("config.json", "model.safetensors", "tokenizer.json"):
                (path / name).touch()
            finish(path, {"num_parameters": 100, "teacher_flops": 7.0})
    return path


def compared(*run_specs: str | Path, baseline: str | None = None) -> dict[str, Any]:
    return compare_groups(read_groups([str(spec) for spec in run_specs]), baseline)


def test_units_to_match_interpolates_and_can_be_never() -> None:
    curve = [{"x": 1.0, "validation_loss": 4.0}, {"x": 2.0, "validation_loss": 3.0}, {"x": 3.0, "validation_loss": 2.0}]
    assert units_to_match(curve, [{"validation_loss": 2.5}], "x") == 2.5
    assert units_to_match(curve, [{"validation_loss": 5.0}], "x") == 1.0
    assert units_to_match(curve, [{"validation_loss": 1.0}], "x") is None
    assert [loss_at(curve, "x", x) for x in (0.5, 1.0, 1.25, 3.0, 3.5)] == [None, 4.0, 3.75, 2.0, None]


def test_two_runs_worked_out_by_hand(tmp_path: Path) -> None:
    slow = make_run(tmp_path / "slow", [5.0, 4.0, 3.5, 3.25])
    fast = make_run(tmp_path / "fast", [4.0, 3.5, 3.0, 2.5], cost=2.0, recipe="fast")
    result = compared(slow, fast)
    assert result["baseline"] == "slow"
    facts = result["groups"]["fast"]
    assert facts["difference"]["pairs"][0] == {"difference": -0.75, "train_tokens": 4000}
    assert facts["difference"]["interval"] is None
    reached = facts["to_reach"]["slow"]  # 3.25 lies half-way between its second and third point
    assert [reached[axis]["amount"] for axis in ("train_tokens", "train_flops", "train_seconds")] == [2500, 5000, 5.0]
    assert [reached[axis]["share"] for axis in ("train_tokens", "train_flops")] == [2500 / 4000, 5000 / 4000]
    assert result["groups"]["slow"]["to_reach"]["fast"]["train_tokens"]["amount"] is None
    assert re.search(r"fast, 2\.500 .*−0\.750 .*slow", headline(result))
    rows = {table.title: table.rows for table in tables(result)}
    assert rows["Against slow"] == (
        ("fast", "−0.750", "2.50k (62\u202f%)", "5.00\u202fkFLOP (125\u202f%)", "5.0\u202fs (62\u202f%)"),
    )
    assert any(row[-1] == "never" for title, table in rows.items() if title.startswith("Tokens a run") for row in table)
    assert compared(slow, fast, baseline=str(fast))["baseline"] == "fast"
    assert compared(slow, fast, baseline=f"{tmp_path}/slow/../fast/")["baseline"] == "fast"


def test_seeds_are_grouped_and_compared_in_pairs(tmp_path: Path) -> None:
    losses = {"ntp": (3.0, 3.2, 3.1), "concepts": (2.9, 3.0, 3.05)}
    paths = [
        make_run(tmp_path / f"{name}-seed{seed}", [4.0, loss], seed=seed, recipe=name)
        for name, by_seed in losses.items()
        for seed, loss in enumerate(by_seed)
    ]
    result = compared(*paths)
    assert list(result["groups"]) == ["ntp", "concepts"]
    facts = result["groups"]["concepts"]
    differences = [pair["difference"] for pair in facts["difference"]["pairs"].values()]
    assert differences == pytest.approx([-0.1, -0.2, -0.05])
    assert facts["difference"]["mean"] == pytest.approx(-0.35 / 3)
    assert facts["difference"]["standard_deviation"] == pytest.approx(0.07638, abs=1e-4)
    low, high = facts["difference"]["interval"]
    assert -0.2 <= low < -0.35 / 3 < high <= -0.05
    reached = facts["to_reach"]["ntp"]["train_tokens"]
    each = [1000 + 1000 * (4.0 - ntp) / (4.0 - own) for ntp, own in zip(*losses.values(), strict=True)]
    assert [run["amount"] for run in reached["runs"]] == pytest.approx(each)
    assert reached["amount"] == pytest.approx(sum(each) / 3)
    back = next(table for table in tables(result) if table.title.startswith("Tokens a run"))
    assert back.rows[0][-1] == "never"
    assert len(next(table for table in tables(result) if table.title.startswith("Pairs")).rows) == 3
    chosen = compared(f"a={paths[0]},{paths[1]}", f"b={paths[3]}")
    assert [len(facts["runs"]) for facts in chosen["groups"].values()] == [2, 1]
    assert len(chosen["notes"]) == 3
    assert list(chosen["groups"]["b"]["difference"]["pairs"]) == [0]
    two = compared(*paths[:2], *paths[3:5])
    assert two["groups"]["concepts"]["difference"]["interval"] is None
    assert len(two["notes"]) == 3
    assert len(next(table for table in tables(two) if table.title.startswith("Pairs")).rows) == 2


def test_without_a_run_of_its_seed_the_others_mean_is_to_be_reached(tmp_path: Path) -> None:
    a = [make_run(tmp_path / f"a-{seed}", [4.0, 3.0 + seed], seed=seed, recipe="a") for seed in (0, 1)]
    b = make_run(tmp_path / "b", [5.0, 3.0], seed=7, recipe="b")
    facts = compared(*a, b)["groups"]["b"]
    assert facts["to_reach"]["a"]["train_tokens"]["amount"] == 1750  # 3.5
    assert facts["difference"]["mean"] is None


def test_unfinished_runs_are_compared_where_they_are(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", [5.0, 4.0, 3.0, 2.0])
    part = make_run(tmp_path / "part", [4.5, 3.8], finished=False, recipe="x")
    with (part / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train_tok')  # being written
    begun = make_run(tmp_path / "begun", [], finished=False, recipe="y")
    result = compared(whole, part, begun)
    assert result["groups"]["part"]["difference"]["pairs"][0]["difference"] == pytest.approx(-0.2)
    assert result["groups"]["begun"]["validation_loss"]["mean"] is None
    rows = {row[0]: row for row in tables(result)[0].rows}
    assert rows["part (unfinished)"][3] == "2.00k of 4.00k"
    with pytest.raises(CocomixError, match="validation loss"):
        compared(begun)


def test_names_that_folders_share_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / parent / "ntp", [3.0], recipe=parent) for parent in ("a", "b")]
    assert list(compared(*runs)["groups"]) == [str(run) for run in runs]


def test_the_bootstrap_is_exact_for_few_and_covers_about_what_it_says_for_many() -> None:
    values = (1.0, 2.0, 4.0)
    means = [sum(drawn) / 3 for drawn in itertools.product(values, repeat=3)]
    assert bootstrap_interval(values) == pytest.approx(np.quantile(means, [0.025, 0.975]))
    assert bootstrap_interval([1.0, 2.0]) is None
    rng = np.random.default_rng(0)
    covered = dict.fromkeys((3, 40), 0)
    for size in covered:
        for draw in range(200):
            interval = bootstrap_interval(rng.normal(0.3, 1.0, size).tolist(), seed=draw)
            assert interval is not None
            covered[size] += interval[0] <= 0.3 <= interval[1]
    assert 0.88 <= covered[40] / 200 <= 0.98
    assert 0.55 < covered[3] / 200 < 0.8, "two thirds, as docs/comparing.md says"


def test_what_cannot_be_compared_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    run = make_run(tmp_path / "run", [3.0])
    with pytest.raises(CocomixError, match=r"data .*token-dataset"):
        compared(run, tiny.data)
    with pytest.raises(CocomixError, match="nowhere "):
        compared(tmp_path / "nowhere")
    other = make_run(tmp_path / "other", [3.0], inputs={"data": "e"})
    with pytest.raises(CocomixError, match=r"run and .*other .*dataset"):
        compared(run, other)
    fewer = make_run(tmp_path / "fewer", [3.0], max_validation_windows=8)
    with pytest.raises(CocomixError, match=r"run and .*fewer .*max_validation_windows None and 8"):
        compared(run, fewer)
    with pytest.raises(CocomixError, match=r"run and .*twin .*seed 0"):
        compared(run, make_run(tmp_path / "twin", [3.0]))
    with pytest.raises(CocomixError, match="'a='"):
        compared("a=")
    with pytest.raises(CocomixError, match="same name"):
        compared(f"a={run}", f"a={other}")
    with pytest.raises(CocomixError, match=r"--baseline is 'x'.* run"):
        compared(run, baseline="x")
    with pytest.raises(CocomixError, match="no runs"):
        CompareConfig(())
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(CocomixError, match=r"metrics.jsonl"):
        compared(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", {}, "manifest.json"),
        ("manifest.json", {"facts": {}, "files": {}}, "manifest.json"),
        ("settings.json", {"kind": "training-run"}, "settings.json"),
        ("settings.json", {"kind": "training-run", "format_version": 1, "settings": {}}, "settings.json .*seed"),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, name: str, content: dict[str, Any], message: str) -> None:
    run = make_run(tmp_path / "run", [3.0], finished=name == "manifest.json")
    write_json(run / name, content)
    with pytest.raises(CocomixError, match=message):
        compared(run)


@pytest.mark.parametrize(
    "line",
    [
        *("null", "[1]", '{"step": null}', '{"validation_loss": 3.0}', "[" * 100_000, "9" * 5000, "{"),
        *('{"lm_loss": NaN}', '{"lm_loss": 1e999}', f'{{"lm_loss": {"9" * 400}}}'),
    ],
)
def test_a_line_that_is_no_measurement_is_named(line: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [3.0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    (run / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(CocomixError, match=r"metrics.jsonl, line \d"):
        compared(run)


def test_the_page_fetches_nothing_and_names_cannot_reach_into_it(tmp_path: Path) -> None:
    evil = tmp_path / "<script>alert(1)<" / "script>"
    first, second = make_run(evil, [4.0, 3.0]), make_run(tmp_path / "[red]b[", [5.0, 2.5], recipe="b")
    config = CompareConfig((f"<b>&={first}", str(second)), output=tmp_path / "out")
    text = compare(config)
    assert isinstance(text, str)
    assert "[red]b[" in text
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)
    assert not re.search(r"url\((?!#)|@import|https?:", page)
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {
        "loss-tokens.png",
        "loss-flops.png",
        "loss-seconds.png",
    }
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert stored == json.loads(json.dumps(compare(CompareConfig(config.runs, json=True))))
    compare(config)
    with pytest.raises(CocomixError, match="settings"):
        compare(CompareConfig((str(second),), output=tmp_path / "out"))


def test_one_run_and_many_groups_have_a_page(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"run{n}x", [4.0, 3.0 - n / 10], recipe=n) for n in range(7)]
    unevaluated = make_run(tmp_path / "begun", [], finished=False)
    for number, words in enumerate(([paths[0]], paths, [unevaluated, paths[0]])):
        compare(CompareConfig(tuple(map(str, words)), output=tmp_path / f"out{number}"))
        assert (tmp_path / f"out{number}" / "comparison.html").exists()


def test_ntp_and_cocomix_have_their_colours_wherever_they_stand() -> None:
    assert series_of(["a/pause", "CoCoMix-paper", "a/cocomix", "b", "ntp"]) == {
        "a/pause": 2,
        "CoCoMix-paper": 3,
        "a/cocomix": 1,
        "b": 4,
        "ntp": 0,
    }
    assert series_of(["kd", "cocomix"]) == {"kd": 2, "cocomix": 1}
    assert series_of(["a", "b"]) == {"a": 0, "b": 1}


def test_comparing_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name, [4.0, 3.0], recipe=name)) for name in ("a", "b")]
    heavy = ("torch", "transformers", "datasets", "matplotlib", "scipy", "numpy", "pyarrow")
    code = (
        "import sys\nfrom cocomix.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    for arguments in (["compare", *runs], ["compare", *runs, "--json"], ["compare", "--help"], ["compare", "--wrong"]):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "[]", arguments
    with_page = subprocess.run(
        [sys.executable, "-c", code, "compare", *runs, "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert with_page.stdout.splitlines()[-1] == "['matplotlib', 'numpy']"


def test_real_runs_from_the_command_line(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        settings: dict[str, Any] = {"student": STUDENT, "num_tokens": 1024, "num_evaluations": 4, "seed": seed}
        train(TrainConfig(data=tiny.data, output=tmp_path / f"ntp-{seed}", **settings))
    runs = [str(tmp_path / f"ntp-{seed}") for seed in (0, 1)]
    assert main(["compare", *runs, str(tiny.teacher), "--json", "--baseline", "teacher"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["groups"]) == ["ntp", "teacher"]
    assert [run["seed"] for run in result["groups"]["ntp"]["runs"]] == [0, 1]
    assert main(["compare", *runs]) == 0
    assert "validation loss" in capsys.readouterr().out
    assert main(["compare", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
