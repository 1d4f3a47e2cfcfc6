"""The tables of the pages from the stored results, and those of decoder families and dictionaries from the code.

    python -m benchmarks.render

The evidence has a command of its own, `python -m benchmarks.evidence --page`. Sentences are written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import AutoConfig

from benchmarks import scratch, smollm2
from benchmarks.aims import aims
from benchmarks.common import DOCS, fill, losses, signed, stored, table
from cocomix.base.formats import format_bytes, format_flops, format_hours, format_signed
from cocomix.modeling.backbones import supported_families
from cocomix.sae.config import ACTIVATIONS, INPUT_NORMALIZATIONS
from cocomix.sae.find import FILES
from cocomix.sae.formats import FORMATS, saelens
from cocomix.sae.formats.files import NEEDED
from cocomix.sae.formats.readers import DICTIONARY_LEARNING
from cocomix.tools.bench.command import heading, sections
from cocomix.tools.bench.report import ratio, seconds

PAGES = tuple(
    DOCS / f"{name}.md"
    for name in (
        "results",
        "data",
        "steering",
        "families",
        "dictionaries",
        "benchmarks",
        "scale",
        "pretrained",
        "smollm2",
    )
)
VARIANTS = {
    "ntp": "next-token prediction alone",
    "interleave": "the paper's variant: labels by attribution, the largest positive ones",
    "interleave, lowers_loss": "labels by attribution, the most negative ones",
    "interleave, magnitude": "labels by attribution, the largest of either sign",
    "interleave, activation_value": "the default: labels by activation",
    "interleave, random": "control: labels of a fixed random dictionary, by the paper's attribution",
    "interleave, shuffled": "control: the paper's labels, permuted over the positions of each window",
    "interleave_residual": "the paper's labels; the concept position starts from hidden state plus concept vector",
    "add": "the paper's labels; hidden state plus concept vector, no extra position",
}


def main() -> None:
    for page in PAGES:
        fill(page, blocks())


def blocks() -> dict[str, str]:
    """All tables by name."""
    models = stored("upcycling")["models"]
    return {
        "variants": variants(),
        "autoencoders": autoencoders(),
        "stride": stride(),
        "prepare": prepare(),
        "faults": faults(),
        "families": families(),
        "dictionaries": dictionaries(),
        "dictionaries not read": dictionaries_not_read(),
        "steering modes": steering_modes(),
        "steering strengths": steering_strengths(),
        "scale run": scale_run(),
        "scale memory": scale_memory(),
        "scale messages": scale_messages(),
        **smollm2.blocks(stored("smollm2")),
        **scratch.blocks(stored("scratch")),
        "aims": aims(),
        "learning": learning(),
        "precision speed": precision_speed(),
        "precision generation": precision_generation(),
        "precision loss": precision_loss(),
        **{f"upcycling {name}": upcycling(model) for name, model in models.items()},
        **{name: bench(stored(name)) for name in ("bench", "bench_two_threads")},
    }


#: Of Llama 3's pretraining (arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions on 16,384 H100 in 54 days.
FAILURES_PER_DEVICE_HOUR = 419 / (16_384 * 54 * 24)
#: Each weight is drawn when it is built and initialised, some once more, and when it gets its memory.
DRAWS_PER_WEIGHT = 3.5
SMALL_MESSAGE_BYTES = 10**6


def scale_run() -> str:
    run = stored("rehearsal")
    plan, windows, rates = run["plan"], run["windows"], run["rates"]
    duration, tokens = plan["duration"], plan["num_tokens"]
    step_seconds = 3600 * duration["hours"] / run["num_steps"]
    state = 12 * plan["num_parameters"]
    between = run["checkpoint_every_steps"] * step_seconds
    text = 2 * tokens
    hours = duration["hours"] + duration["labels_hours"]
    rows = [
        ["labels, before training", format_hours(duration["labels_hours"]), f"plan, in {duration['labels_precision']}"],
        ["training", format_hours(duration["hours"]), f"plan, at {duration['utilisation']:.0%} of the peak"],
        ["device-hours", f"{duration['device_hours']:,.0f}", "plan"],
        ["a step", f"{step_seconds:.2f} s", f"of {run['num_steps']:,}"],
        ["tokens, stored", format_bytes(text), "2 bytes a token"],
        ["labels, stored", format_bytes(plan["label_bytes"]), f"{plan['label_bytes_per_token']} bytes a token"],
        ["read by a rank, a step", format_bytes((text + plan["label_bytes"]) / run["num_steps"] / run["devices"]), ""],
        ["a checkpoint", format_bytes(state), "weights and two moments, float32"],
        ["written by a rank", format_bytes(state / run["devices"]), "its share"],
        ["between two checkpoints", f"{between / 60:.0f} min", f"every {run['checkpoint_every_steps']} steps"],
        [
            "failures a week",
            f"{FAILURES_PER_DEVICE_HOUR * run['devices'] * 168:.1f}",
            "at Llama 3's rate; on its machines of eight devices",
        ],
        ["failures in the run", f"{FAILURES_PER_DEVICE_HOUR * run['devices'] * hours:.2f}", "labels and training"],
        ["lost by one, on average", f"{between / 120:.1f} min", "half of what is between two checkpoints"],
        [
            "a start: every file checked",
            f"{(2 * text + plan['label_bytes']) / rates['bytes_hashed'] / 60:.0f} min",
            f"{format_bytes(rates['bytes_hashed'])} a second, by each rank",
        ],
        [
            "a start: the weights drawn",
            f"{DRAWS_PER_WEIGHT * plan['num_parameters'] / rates['numbers_drawn']:.0f} s",
            f"{rates['numbers_drawn'] / 1e6:.0f} million numbers a second",
        ],
        [
            "a start: the order of an epoch",
            f"{windows['order_seconds']:.0f} s",
            f"{windows['num_windows']:,} windows; {format_bytes(windows['order_bytes'])} in each rank's memory",
        ],
    ]
    return table(["", "", "from"], rows)


def scale_memory() -> str:
    rows = [
        [
            name,
            format_bytes(row["planned_bytes"]["total"]),
            format_bytes(row["peak_bytes"]),
            f"{row['peak_over_planned']:.2f}",
            format_bytes(row["bytes_between_steps"]),
        ]
        for name, row in stored("rehearsal")["settings"].items()
    ]
    return table(["a rank", "plan", "rehearsed", "rehearsed over plan", "of it between steps"], rows)


def scale_messages() -> str:
    run, rows = stored("rehearsal"), []
    nodes, passes = run["devices"] // run["devices_per_node"], run["windows"]["passes"]
    seconds = 3600 * run["plan"]["duration"]["hours"] / run["num_steps"]
    for name in ("fsdp", "hsdp, checkpointed"):
        strategy, messages = name.split(",")[0], run["settings"][name]["messages"]
        inside = outside = 0.0
        for message in messages:
            if (size := message["bytes"]) < SMALL_MESSAGE_BYTES:
                continue
            # Weights are gathered in every pass; all else is exchanged once a step.
            is_gather = message["name"] == "allgather"
            count = message["count"] * passes // run["passes_rehearsed"] if is_gather else message["count"]
            if message["name"] == "allreduce":  # in a ring, between copies
                outside += 2 * (nodes - 1) / nodes * size * count
            else:
                inside += size * count
                outside += 0 if strategy == "hsdp" else size * count * (nodes - 1) / nodes / run["devices_per_node"]
            rows.append([strategy, message["name"], f"{size:,}", f"{count:,}", "", ""])
        small = [message for message in messages if message["bytes"] < SMALL_MESSAGE_BYTES]
        largest, count = max(message["bytes"] for message in small), sum(message["count"] for message in small)
        rows.append([strategy, "counts, means, norms", f"up to {largest:,}", f"{count}", "", ""])
        totals = [f"{format_bytes(value)}, {format_bytes(value / seconds)}/s" for value in (inside, outside)]
        rows.append([strategy, "in all", "", "", *totals])
    head = ["", "collective", "bytes", "a step", "to a device within its node", "over a device's link to others"]
    return table(head, rows)


def learning() -> str:
    rows = [
        [
            f"`{mixing}`",
            f"`{learns}`",
            f"{row['time_over_all']:.2f}",
            f"{row['flops_over_all']:.2f}",
            format_bytes(row["measured_bytes"]),
            f"{row['measured_over_planned']:.2f}",
        ]
        for mixing, by_learning in stored("learning")["mixings"].items()
        for learns, row in by_learning.items()
    ]
    return table(["mixing", "learns", "time of a step over `all`", "FLOPs", "memory", "over the plan's"], rows)


def precision_speed() -> str:
    rows = [
        [name, seconds(row["float32"]), seconds(row["bfloat16"]), ratio(row["times_as_fast"])]
        for name, row in stored("precision")["speed"]["rows"].items()
    ]
    return table(["", "float32", "bfloat16", "times as fast"], rows)


def precision_generation() -> str:
    run = stored("precision")["generation"]
    taken = run["seconds"]
    rows = [
        [name, f"{1000 * taken[name] / run['num_tokens']:.1f} ms", f"{taken[name] / taken['NTP']:.2f}"]
        for name in taken
    ]
    return table(["", "a token", "over NTP"], rows)


def precision_loss() -> str:
    run = stored("precision")["loss"]
    rows = [
        [name, losses(values), signed(run["difference"][name]), signed([run["mean_difference"][name]])]
        for name, values in run["validation_loss"].items()
    ]
    return table(["student", "loss by seed", "difference to float32", "its mean"], rows)


def variants() -> str:
    rows = [
        [
            f"`{name}`: {VARIANTS[name]}",
            losses(row["validation_loss"]),
            losses([row["mean"]]),
            "" if name == "ntp" else format_signed(row["mean_difference_to_ntp"]),
            "" if name == "ntp" else losses([row["standard_deviation_of_difference"]]),
            format_flops(row["train_flops"]),
        ]
        for name in VARIANTS
        for row in [stored("variants")["table"][name]]
    ]
    return table(["variant", "loss by seed", "mean", "difference to NTP", "its sd", "training FLOPs"], rows)


def autoencoders() -> str:
    rows = [
        [
            name,
            losses([row["quality"]["fvu"]]),
            f"{row['quality']['loss_recovered']:.1%}",
            format_signed(row["quality"]["spliced_loss"] - row["quality"]["loss"]),
            f"{row['quality']['num_dead']:,} ({row['quality']['dead_share']:.1%})",
            f"{row['quality']['l0']:.1f}",
            f"{row['train_seconds']:.0f} s",
        ]
        for name, row in stored("sae")["table"].items()
    ]
    return table(["latents", "FVU", "loss recovered", "loss added, nats", "dead", "L0", "training time"], rows)


def upcycling(model: Mapping[str, Any]) -> str:
    rows = [
        [
            start,
            format_signed(row["loss"] - model["backbone_loss"]),
            f"{abs(row['kl_divergence']):.4f}",  # rounded to zero it may be -0.0
            f"{row['same_first_choice']:.1%}",
        ]
        for start, row in model["starts"].items()
    ]
    return table(["start", "loss", "KL divergence", "same first choice"], rows)


def stride() -> str:
    rows = []
    for name in ("exact", "stride 2"):
        row = stored("stride")["rows"][name]
        compared = [""] * 3
        if row["step"] is not None:
            faster = row["step"]["exact_over_this"]
            compared = [
                signed(row["loss_change"].values()),
                f"{faster['median']:.2f} ({faster['least']:.2f} to {faster['most']:.2f})",
                f"{row['step']['training_flops_over_exact']:.2f}",
            ]
        rows.append([name, losses(row["validation_loss"].values()), *compared])
    return table(["student", "loss by seed", "difference to exact", "times as fast", "FLOPs, exact = 1"], rows)


def prepare() -> str:
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
        for run in stored("prepare")["runs"]
    ]
    head = ["text", "", "workers", "peak memory", "of workers", "wall clock", "processor time", "load average"]
    return table(head, rows)


def faults() -> str:
    outcomes = ("refused", "same result", "said", "silent", "traceback", "left behind")
    rows = [
        [kind, *(str(counts.get(outcome, 0)) for outcome in outcomes)]
        for kind, counts in stored("faults")["kinds"].items()
    ]
    return table(["folder", *outcomes], rows)


def families() -> str:
    """Every family with an adapter."""
    rows = []
    for family, adapter in supported_families().items():
        has_windows = hasattr(AutoConfig.for_model(family), "sliding_window")
        windows = "yes" if has_windows else ""
        rows.append([adapter.families[family], f"`{family}`", f"`{adapter.__name__}`", adapter.positions, windows])
    return table(["models", "`model_type`", "adapter", "positions", "windows"], rows)


def dictionaries() -> str:
    """Every format that is read."""
    own = (_names(INPUT_NORMALIZATIONS), _names(ACTIVATIONS))
    saelens_6 = f"versions 6 and 5, and checkpoints of a training: {_names(saelens.ARCHITECTURES)}"
    by_name = {
        "own": ("all that its settings say", "`decoder_bias`, if `subtract_decoder_bias`", *own),
        "openai": (
            "TopK (v5) and the older ReLU files",
            "`pre_bias`",
            "TopK: x = (h − mean) / (std + 1e-5), undone by · std + mean; ReLU: none",
            "k largest, after a ReLU; or all above zero",
        ),
        "sparsify": (
            "TopK, signed TopK, groupmax; skip connections and transcoders",
            "`b_dec`, unless a transcoder",
            "none",
            "k largest, or the largest of each of k groups, after a ReLU; signed: the k largest in size, with their signs",
        ),
        "saelens": (
            saelens_6,
            "`b_dec`, if `apply_b_dec_to_input`",
            _names(saelens.NORMALIZATIONS),
            "by architecture; BatchTopK ones all above their threshold; `abstopk` the k largest in size, with their signs",
        ),
        "gemma_scope": ("all", "nothing", "none", "above a threshold each"),
        "gemma_scope_2": ("autoencoders", "nothing", "none", "above a threshold each"),
        "dictionary_learning": (
            _names(DICTIONARY_LEARNING),
            "`b_dec`",
            "none",
            "k largest, after a ReLU; the BatchTopK ones all above their threshold",
        ),
        "qwen_scope": (
            "all",
            "nothing",
            "none",
            "k largest, after a ReLU; k is the end of the repository's name (`L0_50`)",
        ),
    }
    alone = {"openai": "one `.pt` with `pre_bias`", "qwen_scope": "one `layer….sae.pt` with `W_enc`"}
    rows = []
    for name in FORMATS:
        files = alone[name] if name in alone else " + ".join(f"`{file}`" for file in FILES[name])
        rows.append([f"`{name}`", files, *by_name[name]])
    head = ["name", "files", "which are read", "subtracted before encoding", "input normalisation", "active latents"]
    return table(head, rows)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def dictionaries_not_read() -> str:
    """What is refused by the name of its kind, and what would be needed."""
    names: dict[str, list[str]] = {}
    for name, need in NEEDED.items():
        names.setdefault(need, []).append(f"`{name}`")
    return table(["kind", "would need"], [[", ".join(kinds), need] for need, kinds in names.items()])


def steering_modes() -> str:
    """Each mode and seed at the strength whose median activation is the largest."""
    rows = []
    for mode, seeds in stored("steering")["modes"].items():
        for seed, score in seeds.items():
            best = max(score["strengths"], key=lambda row: row["own_ratio"][1])
            shares = [f"{score[name]:.0%}" for name in ("share_rising", "share_rising_by_others")]
            medians = [f"{best[name][1]:.2f}" for name in ("own_ratio", "other_ratio")]
            rows.append([f"`{mode}`", seed, *shares, *medians, f"{best['strength']:g}"])
    head = ["mode", "seed", "concepts that rise", "by a random other", "activation, steered / unsteered"]
    return table([*head, "other concepts'", "at strength"], rows)


def steering_strengths() -> str:
    """Every strength of `toward`, first seed."""
    rows = [
        [
            f"{row['strength']:g}",
            "{1:.2f} ({0:.2f} to {2:.2f})".format(*row["own_ratio"]),
            f"{row['other_ratio'][1]:.2f}",
            f"{row['share_rising']:.0%}",
            "{1:+.2f} ({0:+.2f} to {2:+.2f})".format(*row["fluency_cost"]).replace("-", "−"),
            f"{row['repetition']:.1%}",
        ]
        for row in stored("steering")["modes"]["toward"]["0"]["strengths"]
    ]
    head = ["strength", "activation, steered / unsteered", "other concepts'", "rise significantly"]
    return table([*head, "cost, nats a token", "repetition"], rows)


def bench(result: dict[str, Any]) -> str:
    """What `cocomix bench` says of one stored result."""
    tables = [section.as_markdown().replace("## ", "### ", 1) for section in sections(result)]
    return "\n\n".join([f"`{result['command']}`", heading(result), *tables])


if __name__ == "__main__":
    main()
