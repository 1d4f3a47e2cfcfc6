"""`docs/results.md`, and the results in the README, from the stored results: no figure there is typed by hand. The table of
`docs/families.md`, from the code. What `docs/data.md` says of speed and memory, `docs/studio.md` and `docs/inspecting.md` of
speed, and `docs/benchmarks.md`.

python -m benchmarks.render
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from benchmarks import bench_page, speed_blocks
from cocomix.base.artifacts import read_json
from cocomix.base.formats import format_count, format_flops
from cocomix.modeling.backbones import supported_families
from cocomix.tools.bench.command import threads_of
from cocomix.training.recipes import VARIANTS, find_recipe

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- results -->", "<!-- end of results -->"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
FAMILIES_PAGE = Path(__file__).parent.parent / "docs" / "families.md"
FAMILIES_START, FAMILIES_END = "<!-- families -->", "<!-- end of families -->"
DATA_PAGE = Path(__file__).parent.parent / "docs" / "data.md"
STEERING_PAGE = Path(__file__).parent.parent / "docs" / "steering.md"
STEERING_START, STEERING_END = "<!-- steering -->", "<!-- end of steering -->"
PREPARE_START, PREPARE_END = "<!-- prepare -->", "<!-- end of prepare -->"

VARIANT_NOTES = {
    "ntp": "next-token prediction alone",
    "interleave": "the paper's exact variant: labels by attribution, top of +a",
    "interleave, lowers_loss": "labels from the top of -a",
    "interleave, magnitude": "labels from the largest a of either sign",
    "interleave, activation_value": "the default: labels by activation",
    "interleave, random": "control: labels of a fixed random dictionary, by the paper's attribution",
    "interleave, shuffled": "control: the paper's labels permuted over the positions of each window",
    "interleave_residual": "labels as the paper's; the concept position starts from hidden state plus concept vector",
    "add": "labels as the paper's; hidden state plus concept vector, no extra position",
}


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    fill(README, START, readme_block(), END)
    fill(FAMILIES_PAGE, FAMILIES_START, families_block(), FAMILIES_END)
    fill(DATA_PAGE, PREPARE_START, prepare_block(), PREPARE_END)
    fill(STEERING_PAGE, STEERING_START, steering_block(), STEERING_END)
    studio, site = speed_blocks.studio_block(), speed_blocks.site_block()
    fill(speed_blocks.STUDIO_PAGE, speed_blocks.STUDIO_START, studio, speed_blocks.STUDIO_END)
    fill(speed_blocks.INSPECTING_PAGE, speed_blocks.SITE_START, site, speed_blocks.SITE_END)
    fill(bench_page.PAGE, bench_page.START, bench_page.block(), bench_page.END)
    fill(README, bench_page.SHORT_START, bench_page.short_block(), bench_page.SHORT_END)


def fill(page: Path, start: str, block: str, end: str) -> None:
    """Put a block between its two marks."""
    before, _, after = page.read_text(encoding="utf-8").partition(start)
    page.write_text(before + start + block + end + after.partition(end)[2], encoding="utf-8")


def steering_block() -> str:
    """The score of each mode, and what each strength of the best one does."""
    found = read_json(RESULTS / "steering.json")
    rows = []
    for mode, seeds in found["modes"].items():
        for seed, score in seeds.items():
            # Over the strengths, all prompts: the largest median.
            best = max(score["strengths"], key=lambda row: row["own_ratio"][1])
            rows.append(
                f"| `{mode}` | {seed} | **{score['share_rising']:.0%}** | {score['share_rising_by_others']:.0%} | "
                f"{best['own_ratio'][1]:.2f} | {best['other_ratio'][1]:.2f} | {best['strength']:g} |"
            )
    best_mode = "toward"  # stored results are sorted by name
    score = next(iter(found["modes"][best_mode].values()))
    effects = [
        f"| {row['strength']:g} | {row['own_ratio'][1]:.2f} ({row['own_ratio'][0]:.2f} to {row['own_ratio'][2]:.2f}) | "
        f"{row['other_ratio'][1]:.2f} | {row['share_rising']:.0%} | {row['fluency_cost'][1]:+.2f} "
        f"({row['fluency_cost'][0]:+.2f} to {row['fluency_cost'][2]:+.2f}) | {row['repetition']:.1%} |"
        for row in score["strengths"]
    ]
    return "\n".join(
        [
            "",
            "",
            f"The demo's default model, {score['num_concepts']} concepts, cost at most {score['max_fluency_cost']:g} nats a "
            "token:",
            "",
            "| mode | seed | concepts that rise | by a random other | median of steered / unsteered activation, at best "
            "| of other concepts | at strength |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"`{best_mode}` by strength, first seed, all prompts; medians over concepts, quartiles in brackets. Without "
            f"steering the teacher's loss is {score['unsteered']['teacher_loss']:.2f} nats a token, and "
            f"{score['unsteered']['repetition']:.1%} of the runs of four tokens repeat:",
            "",
            "| strength | activation, steered / unsteered | other concepts' | rise significantly | cost, nats a token "
            "| repetition |",
            "|---|---|---|---|---|---|",
            *effects,
            "",
            f"`{found['command']}`",
            "",
            "",
        ]
    )


def families_block() -> str:
    """Every family with an adapter, as the code has them."""
    rows = []
    for family, adapter in supported_families().items():
        has_windows = hasattr(AutoConfig.for_model(family), "sliding_window")
        rows.append(
            f"| {adapter.families[family]} | `{family}` | `{adapter.__name__}` | {adapter.positions} | "
            f"{'yes' if has_windows else ''} |"
        )
    return "\n".join(
        ["", "| models | `model_type` | adapter | positions | windows |", "|---|---|---|---|---|", *rows, ""]
    )


def prepare_block() -> str:
    """Time and memory of preparing text."""
    result = read_json(RESULTS / "prepare.json")
    base = result["peak_bytes_of_imports"]
    rows = [
        [
            f"{run['corpus_bytes'] / 1e6:,.0f} MB",
            "streamed" if run["stream"] else "copied first",
            str(run["num_workers"]),
            f"{run['peak_bytes'] / 1e6:,.0f} MB",
            "" if run["peak_bytes_of_workers"] is None else f"{run['peak_bytes_of_workers'] / 1e6:,.0f} MB each",
            f"{run['seconds']:.0f} s",
            f"{run['cpu_seconds']:.0f} s",
            f"{run['load_average']:.0f}",
        ]
        for run in result["runs"]
    ]
    head = ["text", "", "workers", "peak memory", "of workers", "wall clock", "processor time", "load average"]
    return (
        "\n"
        + "\n\n".join(
            [
                f"`{result['command']}`",
                f"JSON-lines of synthetic words, windows of {result['context_length']:,}, a given tokenizer of "
                f"{result['vocab_size']:,} tokens, each run in a process of its own on {result['machine']['cores']} cores. "
                f"Peak memory is the kernel's high-water mark (VmHWM); {base / 1e6:,.0f} MB of it are the imports'. The "
                "machine was busy with other work (its load average stands beside the times), so the wall clock says little "
                "and the processor time more: workers cost little on top.",
                table(head, rows),
            ]
        )
        + "\n"
    )


def readme_block() -> str:
    """What the README says of the default demo."""
    result = read_json(RESULTS / "demo_seeds.json")
    runs = list(result["seeds"].values())
    summary = result["cocomix_minus_ntp"]
    tokens = [run["tokens_to_match_ntp"] / run["ntp"]["train_tokens"] for run in runs]
    flops = [run["flops_to_match_ntp"] / run["ntp"]["train_flops"] for run in runs]
    per_token = runs[0]["cocomix"]["train_flops"] / runs[0]["ntp"]["train_flops"]
    return (
        f"\nOn {len(runs)} seeds of the default demo, CoCoMix's validation loss is below NTP's at equal tokens by "
        f"{_list(f'{-difference:.3f}' for difference in summary['validation_loss'])} nats. It reaches NTP's final loss with "
        f"{_list(f'{100 * share:.0f} %' for share in tokens)} of the tokens, and with "
        f"{_list(f'{100 * share:.0f} %' for share in flops)} of the training FLOPs: a token costs it {per_token:.2f} times "
        "NTP's, not counting the teacher's. The teacher is stronger than the students here. "
        "[All results](docs/results.md), the paper's exact variant among them.\n"
    )


def page() -> str:
    """The whole page, from the stored results alone."""
    parts = [
        "# Results\n\nWritten by `python -m benchmarks.render` from `benchmarks/results/`; each table names the command that "
        "measured it. Losses are nats a token on validation text; a minus sign means lower, which is better. FLOPs are the "
        "student's own, without the teacher's.",
        seeds(read_json(RESULTS / "demo_seeds.json")),
        variants(read_json(RESULTS / "variants.json")),
        recipes(read_json(RESULTS / "recipes.json")),
        autoencoders(read_json(RESULTS / "sae.json")),
        upcycling(read_json(RESULTS / "upcycling.json")),
        kills(read_json(RESULTS / "kills.json")),
        demo_kills(read_json(RESULTS / "demo_kills.json")),
    ]
    if (RESULTS / "approximations.json").exists():
        parts.append(approximations(read_json(RESULTS / "approximations.json")))
    return "\n\n".join(parts) + "\n"


def seeds(result: dict[str, Any]) -> str:
    rows = []
    for seed, run in result["seeds"].items():
        ntp, cocomix = run["ntp"], run["cocomix"]
        rows.append(
            [
                seed,
                f"{ntp['validation_loss']:.3f}",
                f"{cocomix['validation_loss']:.3f}",
                _signed(cocomix["validation_loss"] - ntp["validation_loss"]),
                _share(run["tokens_to_match_ntp"], ntp["train_tokens"]),
                _share(run["flops_to_match_ntp"], ntp["train_flops"]),
                f"{cocomix['train_seconds'] / ntp['train_seconds']:.2f}",
                f"{run['sae']['fvu']:.3f}",
                f"{run['sae']['loss_recovered']:.3f}",
                _probe(run, "shuffle_batch"),
                _probe(run, "oracle"),
            ]
        )
    head = ["seed", "NTP", "CoCoMix", "difference", "tokens to NTP's loss", "FLOPs to NTP's loss", "time over NTP's"]
    head += ["SAE FVU", "loss recovered", "shuffled concepts", "oracle labels"]
    first = next(iter(result["seeds"].values()))
    summary = result["cocomix_minus_ntp"]
    return "\n\n".join(
        [
            "## CoCoMix against NTP, the default demo on three seeds",
            f"Each seed has its own split, tokenizer, teacher and dictionary. Students see "
            f"{format_count(first['ntp']['train_tokens'])} tokens; NTP spends {format_flops(first['ntp']['train_flops'])}, "
            f"CoCoMix {format_flops(first['cocomix']['train_flops'])} and {format_flops(first['cocomix']['teacher_flops'])} "
            "of the teacher's for its labels.",
            table(head, rows),
            f"At equal tokens the difference is {_signed(summary['mean'])} nats on average, with a standard deviation of "
            f"{summary['standard_deviation']:.3f} over the seeds. *Tokens (FLOPs) to NTP's loss* is where CoCoMix's "
            "validation curve first reaches the last point of NTP's, as a share of what NTP's whole run took; above 100 % "
            "CoCoMix needed more. *Shuffled concepts* and *oracle labels* are changes of CoCoMix's loss under the "
            "[causal probes](demo.md#the-probes).",
            _command(result),
        ]
    )


def variants(result: dict[str, Any]) -> str:
    rows = [
        [
            f"`{name}`",
            VARIANT_NOTES[name],
            ", ".join(f"{loss:.3f}" for loss in row["validation_loss"]),
            f"{row['mean']:.3f}",
            _signed(row["mean_difference_to_ntp"]),
            "one seed"
            if row["standard_deviation_of_difference"] is None
            else f"{row['standard_deviation_of_difference']:.3f}",
            format_flops(row["train_flops"]),
        ]
        for name, row in result["table"].items()
    ]
    head = [
        "variant",
        "what it is",
        "loss by seed",
        "mean",
        "difference to NTP",
        "its standard deviation",
        "training FLOPs",
    ]
    return "\n\n".join(
        [
            "## Mixing and attribution",
            "One teacher, dictionary and split (the default demo's, seed 0); the students' seeds differ in initial weights "
            "and data order, which all runs of a seed share. Same tokens, schedule and settings for all. A row of one seed "
            "compares with the others' first.",
            table(head, rows),
            _command(result),
        ]
    )


def recipes(result: dict[str, Any]) -> str:
    """The table fills in run by run: a recipe without runs says so."""
    ntp = result["runs"].get("ntp", {})
    rows = [_recipe_row(result, name, ntp) for name in VARIANTS]
    head = ["recipe", "what", "loss by seed", "mean", "difference to NTP", "at 25, 50, 75 % of the tokens"]
    head += ["parameters", "training FLOPs", "teacher’s", "seconds"]
    teacher = result["teacher"]
    made_with = (
        "Nothing has run yet."
        if teacher is None
        else f"The teacher saw {format_count(teacher['train_tokens'])} tokens and is at {teacher['validation_loss']:.3f} "
        f"nats on the curves' validation sample; its dictionary of 1,024 latents has FVU {teacher['sae']['fvu']:.3f}."
    )
    threads = threads_of(result["machine"])
    return "\n\n".join(
        [
            "## Every recipe at small size",
            f"`gpt2-{result['size']}-*` ([recipes](recipes.md)), {format_count(result['num_tokens'])} tokens each, one "
            f"teacher, one dictionary, labels of both kinds. {made_with}",
            table(head, rows),
            "Losses are of the whole validation split, those on the way of the curves' sample of it (the runs' curves are in "
            "`benchmarks/results/recipes.json`). Runs of a seed share data and schedule; one seed tells differences of some "
            f"hundredths of a nat from nothing. Seconds are of {threads} on a machine that was busy with other work. FLOPs "
            "are of the code that made the run: interleaving rows ran the whole of the last block; `ntp-equal-flops`, whose "
            "width follows today's count, was made after that block left out what nothing depends on.",
            _command(result),
        ]
    )


def _recipe_row(result: dict[str, Any], name: str, ntp: dict[str, Any]) -> list[str]:
    what = find_recipe(f"gpt2-{result['size']}-{name}").what
    runs = result["runs"].get(name)
    if not runs:
        return [f"`{name}`", what, "not run yet", *[""] * 7]
    losses = {seed: run["validation_loss"] for seed, run in runs.items()}
    differences = [loss - ntp[seed]["validation_loss"] for seed, loss in losses.items() if seed in ntp]
    first = next(iter(runs.values()))
    return [
        f"`{name}`",
        what,
        ", ".join(f"{loss:.3f}" for loss in losses.values()),
        f"{_mean(list(losses.values())):.3f}",
        _signed(_mean(differences)) if differences else "",
        ", ".join(f"{loss:.3f}" for loss in _quarters(first["curve"])),
        format_count(first["num_parameters"]),
        format_flops(first["train_flops"]),
        format_flops(first["teacher_flops"]) if first["teacher_flops"] else "",
        f"{_mean([run['train_seconds'] for run in runs.values()]):.0f}",
    ]


def _quarters(curve: dict[str, Any]) -> list[float]:
    """Losses at the first point of a curve at or after each quarter of its tokens, but for the last."""
    tokens, loss = (curve["columns"].index(name) for name in ("train_tokens", "validation_loss"))
    rows = curve["rows"]
    return [next(row[loss] for row in rows if row[tokens] >= share * rows[-1][tokens]) for share in (0.25, 0.5, 0.75)]


def autoencoders(result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['quality']['fvu']:.3f}",
            f"{100 * row['quality']['loss_recovered']:.1f} %",
            _signed(row["quality"]["spliced_loss"] - row["quality"]["loss"]),
            f"{row['quality']['num_dead']:,} ({100 * row['quality']['dead_share']:.1f} %)",
            f"{row['quality']['l0']:.1f}",
            f"{row['train_seconds']:.0f} s",
        ]
        for name, row in result["table"].items()
    ]
    head = ["latents", "FVU", "loss recovered", "loss added, nats", "dead", "L0", "training time"]
    row, targets = result["table"]["4096"], result["targets"]
    met = "meets" if row["meets_targets"] else "does not meet"
    threads = threads_of(result["machine"])
    return "\n\n".join(
        [
            "## Autoencoders",
            f"`cocomix train-sae` on the default demo's teacher (block {row['settings']['layer']}, "
            f"{format_count(row['train_tokens'])} tokens), with its defaults but for the number of latents and, where a row "
            "says so, a multiple of the default learning rate. FVU and losses are of the validation text; dead are those "
            f"active at none of {format_count(row['quality']['num_counted_tokens'])} tokens that were not trained on.",
            table(head, rows),
            f"With 4,096 latents the default {met} the targets set for it (FVU at most {targets['fvu']}, loss recovered at "
            f"least {100 * targets['loss_recovered']:.0f} %, dead at most {100 * targets['dead_share']:.0f} %). "
            "*Loss added* is what splicing the reconstruction in costs the teacher; *loss recovered* relates it to putting "
            f"the mean in at every token ({row['quality']['mean_ablated_loss']:.1f} nats), which flatters. "
            f"Times are wall clock with {threads}, on a machine that was "
            "busy with other work.",
            _command(result),
        ]
    )


def upcycling(result: dict[str, Any]) -> str:
    parts = []
    for name, model in result["models"].items():
        rows = [
            f"| {start} | {row['loss'] - model['backbone_loss']:+.3f} | {row['kl_divergence']:.4f} | "
            f"{100 * row['same_first_choice']:.1f} % |".replace("-0.0000", "0.0000")
            for start, row in model["starts"].items()
        ]
        starts = "\n".join(["| start | loss | KL divergence | same first choice |", "|---|---|---|---|", *rows])
        parts.append(
            f"**{name}**, inserted before block {model['insert_layer']}, {model['num_tokens']:,} tokens; its own loss is "
            f"{model['backbone_loss']:.3f}.\n\n{starts}"
        )
    return (
        f"## Pretrained decoders, before any training\n\n`{result['command']}`\n\n"
        f"A mixer of {result['num_concepts']:,} concepts, {result['num_active_concepts']} active, put into a pretrained "
        "decoder: change of its next-token loss, mean KL divergence (nats) of the new next-token distributions from its own, "
        "and how often both have the same first choice. `interleave_residual` is what `from_backbone` does unless told "
        "otherwise.\n\n" + "\n\n".join(parts)
    )


def kills(result: dict[str, Any]) -> str:
    newest = ", ".join(f"{kill['newest_checkpoint']:,}" for kill in result["kills"])
    outcome = "equal" if result["weights_equal"] and result["metrics_equal"] else "not equal"
    return "\n\n".join(
        [
            f"## Killed {result['num_kills']} times",
            f"A CoCoMix run of {result['num_steps']:,} steps with accumulation, killed with SIGKILL {result['num_kills']} "
            "times at random moments of its process, and started again with the same command: to the bit, its weights are "
            f"{outcome} to those of an undisturbed run, and so are its metrics, times aside. The newest checkpoint after "
            f"each kill was that of step {newest}.",
            _command(result),
        ]
    )


def demo_kills(result: dict[str, Any]) -> str:
    stages = ", ".join(kill["killed_in"].partition("] ")[2] for kill in result["kills"])
    outcome = "equal" if result["summaries_equal"] else "not equal"
    return "\n\n".join(
        [
            "## Killed in every stage",
            f"The demo of size `{result['size']}`, killed with SIGKILL {result['num_kills']} times (in {stages}), and "
            f"started again with the same command: its summary is {outcome} to that of an undisturbed run, "
            "times aside.",
            _command(result),
        ]
    )


def approximations(result: dict[str, Any]) -> str:
    rows = []
    for name, row in result["rows"].items():
        losses, changes, step = row["validation_loss"].values(), row["loss_change"].values(), row["step"]
        timed = ["–", "–"]
        if step is not None:
            ratio = step["exact_over_this"]
            timed = [f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"]
            timed.append(f"{step['training_flops_over_exact']:.2f}")
        rows.append(
            [
                name,
                ", ".join(f"{loss:.3f}" for loss in losses) or "–",
                ", ".join(map(_signed, changes)) or "–",
                "–" if row["mean_loss_change"] is None else _signed(row["mean_loss_change"]),
                *timed,
            ]
        )
    head = ["student", "validation loss, by seed", "change", "mean change", "exact step ÷ this one's", "FLOPs ÷ exact"]
    return "\n\n".join(
        [
            "## Approximations",
            f"The student of `{result['recipe']}` on {result['num_tokens']:,} tokens, exact and with each "
            "[approximation](model.md#approximations): equal data, order and initial weights in a seed. Times are processor "
            "seconds of a training step, exact and approximate in turn in one process: the median of the paired ratios.",
            table(head, rows),
            _command(result),
        ]
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _command(result: dict[str, Any]) -> str:
    return f"```\n{result['command']}\n```"


def _list(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _share(value: float | None, whole: float) -> str:
    return "not reached" if value is None else f"{100 * value / whole:.0f} %"


def _probe(run: dict[str, Any], name: str) -> str:
    probe = run["probes"][name]
    return f"{_signed(probe['loss_delta'])} ± {probe['standard_error']:.3f}"


if __name__ == "__main__":
    main()
