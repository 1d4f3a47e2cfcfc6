"""What was aimed at in speed, what it was before, and what the stored results say.

    python -m benchmarks.aims     # what no other result holds: a plan's hours

"Before" was measured beside the paper's released code, on one core of a Xeon with AMX. A row says `met` by the numbers, so it
changes with the results and never by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.common import options, store, stored, table
from cocomix.base.formats import format_bytes
from cocomix.tools.plan.plan import plan

RECIPE, TOKENS, DEVICES, DEVICE = "gpt2-69m-cocomix", "20B", 8, "h100"


def main() -> None:
    arguments = options("aims", __doc__).parse_args()
    planned = plan(RECIPE, tokens=TOKENS, devices=DEVICES, device=DEVICE).as_dict()
    store(arguments.output, "aims", duration=planned["duration"])


def aims() -> str:
    """A row for each aim."""
    return table(["", "before", "aim", "measured", ""], [*_bench(), *_beyond()])


def _row(
    what: str, aim: float, measured: float, *, before: str = "", at_least: bool = False, share: bool = False
) -> list[str]:
    is_met = measured >= aim if at_least else measured <= aim
    words = "at least" if at_least else "at most"
    shown = [f"{value:.0%}" if share else f"{value:.4g}" for value in (aim, measured)]
    return [what, before, f"{words} {shown[0]}", shown[1], "met" if is_met else "not met"]


def _bench() -> Iterator[list[str]]:
    """Aims of `cocomix bench`."""
    result = stored("bench")
    cases: Mapping[str, Any] = result["cases"]
    train, extract, generate, sae = (cases[name] for name in ("train", "extract", "generate", "sae"))
    yield _row("training, times as fast as dense", 1.7, train["dense_over_fast"]["median"], at_least=True)
    yield _row("training, time over NTP's by FLOPs over NTP's", 1.15, train["time_ratio_over_flop_ratio"])
    heads = [row["peak_bytes"] for row in cases["head"]["rows"] if "dense" in row["peak_bytes"]]
    share = max(peak["fast"] / peak["dense"] for peak in heads)
    yield _row("concept head, share of the dense memory", 0.25, share, share=True)
    yield _row("extraction, times as fast as dense", 1.7, extract["dense_over_fast"]["median"], at_least=True)
    ranks = extract["ranks"]["one_over_two"]["median"]
    yield _row("extraction, two processes over one", 1.7, ranks, at_least=True)
    two = stored("bench_two_threads")["cases"]["generate"]
    for threads, case in (("one thread", generate), ("two threads", two)):
        slowest = case["slowest_over_fastest_length"]
        yield _row(f"generation, slowest length over the fastest, {threads}", 1.5, slowest)
    without = generate["uncached_over_cached"]["median"]
    yield _row("generation, without a cache over with one", 10, without, at_least=True)
    yield _row("autoencoder, times as fast as eai-sparsify", 1, sae["sparsify_over_fast"]["median"], at_least=True)


def _beyond() -> Iterator[list[str]]:
    """Aims with a number from before."""
    bench, precision, rehearsal = stored("bench"), stored("precision"), stored("rehearsal")
    tokens = precision["generation"]["over_ntp"]
    yield _row("generation, 256 tokens after 128 over NTP's ([tokens](#tokens))", 1.4, tokens, before="1.81")
    step = precision["speed"]["rows"]["training step, 69M"]["times_as_fast"]["median"]
    yield _row(
        "bfloat16, a step at 69M, times as fast as float32; the aim is of AMX",
        4,
        step,
        before="1.9 to 2.5",
        at_least=True,
    )
    duration = stored("aims")["duration"]
    hours = duration["labels_hours"] / duration["hours"]
    what = f"labels of the paper's 69M run ({TOKENS} tokens, {DEVICES} H100) over its training, planned"
    yield _row(what, 1, hours, before="13")
    for name, before in (
        ("import cocomix", ""),
        ("cocomix --help", ""),
        ("cocomix recipes", "20"),
        ("cocomix train --batch-size 0", "10"),
    ):
        aim = {"import cocomix": 0.3, "cocomix --help": 0.5}.get(name, 1)
        yield _row(f"`{name}`, seconds", aim, bench["startup"]["cpu_seconds"][name]["median"], before=before)
    weights = rehearsal["plan"]["num_parameters"]
    kept = rehearsal["settings"]["fsdp"]["bytes_between_steps"]
    share = 12 * weights / rehearsal["devices"]
    yield [
        "a 1.38B student on 64 ranks, from its first byte to its last",
        f"built whole: {format_bytes(4 * weights)}",
        f"its share: {format_bytes(share)}",
        format_bytes(kept),
        "met" if kept < 1.05 * share else "not met",
    ]
    yield [
        "heads, activation, maxima, norms, the order of weights for one token",
        "",
        "taken",
        "[log](log.md)",
        "taken",
    ]
    yield ["CUDA", "never run", "one command of eight minutes", "[rehearsed](#on-a-gpu) on a CPU", "never run"]


if __name__ == "__main__":
    main()
