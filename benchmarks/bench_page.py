"""What `cocomix bench` measured, for `docs/benchmarks.md` and the README: all figures come from the stored results.

cocomix bench --json benchmarks/results/bench.json && python -m benchmarks.render
cocomix bench --case train generate --threads 2 --json benchmarks/results/bench_two_threads.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base.artifacts import read_json
from cocomix.tools.bench.command import heading, sections, threads_of

RESULTS = Path(__file__).parent / "results"
#: Every case with one thread, and what several threads may change.
NAMES = ("bench.json", "bench_two_threads.json")
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
START, END = "<!-- bench -->", "<!-- end of bench -->"
SHORT_START, SHORT_END = "<!-- bench in short -->", "<!-- end of bench in short -->"


@dataclass(frozen=True)
class Target:
    """Something that is aimed at.

    Args:
        what: in words.
        wanted: the bound.
        is_least: whether the bound is a least value or a most.
        find: the measured value in a result's cases and start-up; None: not measured.
    """

    what: str
    wanted: float
    is_least: bool
    find: Callable[[dict[str, Any]], float | None]

    def row(self, measured: Sequence[dict[str, Any]]) -> str:
        """A line of the table: what each result says of it."""
        wanted = f"{'at least' if self.is_least else 'at most'} {self.wanted:g}"
        return " | ".join([f"| {self.what}", wanted, *map(self._cell, measured)]) + " |"

    def _cell(self, parts: dict[str, Any]) -> str:
        found = self.find(parts)
        if found is None:
            return ""
        is_met = found >= self.wanted if self.is_least else found <= self.wanted
        return f"{found:.2f}, {'met' if is_met else 'not met'}"


def _head_share(parts: dict[str, Any]) -> float | None:
    if "head" not in parts:
        return None
    peaks = [row["peak_bytes"] for row in parts["head"]["rows"] if "dense" in row["peak_bytes"]]
    return max(peak["fast"] / peak["dense"] for peak in peaks)


def _value(*names: str) -> Callable[[dict[str, Any]], float | None]:
    """What stands below these names; None where it was not measured."""

    def find(parts: dict[str, Any]) -> float | None:
        found: Any = parts
        for name in names:
            found = None if found is None else found.get(name)
        return None if found is None else float(found)

    return find


TARGETS = (
    Target(
        "training: tokens a second over the dense reference's",
        1.7,
        True,
        _value("train", "dense_over_fast", "median"),
    ),
    Target(
        "training: time over NTP's, over the FLOP ratio of dense reference and NTP",
        1.15,
        False,
        _value("train", "time_ratio_over_flop_ratio"),
    ),
    Target("concept head and compression: largest share of the dense reference's memory", 0.25, False, _head_share),
    Target(
        "extraction: tokens a second over the dense formulation's",
        1.7,
        True,
        _value("extract", "dense_over_fast", "median"),
    ),
    Target("extraction: two processes over one", 1.7, True, _value("extract", "ranks", "one_over_two", "median")),
    Target(
        "generation: slowest length over the fastest",
        1.5,
        False,
        _value("generate", "slowest_over_fastest_length"),
    ),
    Target(
        "generation: time without a cache over time with one",
        10,
        True,
        _value("generate", "uncached_over_cached", "median"),
    ),
    Target("autoencoder: tokens a second over eai-sparsify's", 1, True, _value("sae", "sparsify_over_fast", "median")),
    Target(
        "start-up: seconds of processor time of `import cocomix`",
        0.3,
        False,
        _value("startup", "cpu_seconds", "import cocomix", "median"),
    ),
    Target(
        "start-up: seconds of processor time of `cocomix --help`",
        0.5,
        False,
        _value("startup", "cpu_seconds", "cocomix --help", "median"),
    ),
)


def block() -> str:
    """The measured part of the page."""
    results = _results()
    measured = [_parts(result) for result in results]
    heads = [threads_of(result["machine"]) for result in results]
    return "\n\n".join(
        [
            "",
            "## Aims",
            "\n".join(
                [
                    "| | aim | " + " | ".join(heads) + " |",
                    "|---" * (2 + len(heads)) + "|",
                    *(target.row(measured) for target in TARGETS),
                ]
            ),
            _growth(measured[0]["head"]),
            _bound(measured[0]["train"]),
            *(part for result, head in zip(results, heads, strict=True) for part in _section(result, head)),
            "",
        ]
    )


def _section(result: dict[str, Any], head: str) -> list[str]:
    """One file's figures."""
    tables = [section.as_markdown().replace("## ", "### ", 1) for section in sections(result)]
    return [f"## {head[0].upper()}{head[1:]}", f"`{result['command']}`", heading(result), *tables]


def _results() -> list[dict[str, Any]]:
    return [read_json(RESULTS / name) for name in NAMES if (RESULTS / name).exists()]


def _parts(result: dict[str, Any]) -> dict[str, Any]:
    return dict(result["cases"]) | ({"startup": result["startup"]} if "startup" in result else {})


def _growth(head: dict[str, Any]) -> str:
    """How the head's memory goes with concepts times tokens."""
    first, last = (pick(head["rows"], key=lambda row: row["num_concepts"] * row["num_tokens"]) for pick in (min, max))
    work = last["num_concepts"] * last["num_tokens"] / (first["num_concepts"] * first["num_tokens"])
    memory = last["peak_bytes"]["fast"] / first["peak_bytes"]["fast"]
    return (
        f"The memory of the concept head and compression does not go with concepts times tokens: of {work:.0f} times as much "
        f"it takes {memory:.2f} times as much memory."
    )


def _bound(train: dict[str, Any]) -> str:
    """What the matrix products allow the training step."""
    flops, speed = train["flops_per_token"], train["tokens_per_second"]
    rates = {name: flops[name] * speed[name] / 1e9 for name in ("fast", "dense", "ntp")}
    return (
        f"The training step has the dense reference's products but for {1 - flops['fast'] / flops['dense']:.0%} of them, so "
        f"at equal speed of multiplying it can be {flops['dense'] / flops['fast']:.2f} times as fast, and more only by what "
        f"the reference loses beside its products. Here it loses little: it runs at {rates['dense']:.0f} GFLOP/s, CoCoMix at "
        f"{rates['fast']:.0f} and NTP at {rates['ntp']:.0f}, in one process whose allocator keeps freed memory, so that "
        "large temporary tensors cost neither of them page faults."
    )


def short_block() -> str:
    """What the README says."""
    cases = _results()[0]["cases"]
    said = [say(cases[name]) for name, say in (("train", _training), ("generate", _generation)) if name in cases]
    said.append("[What things cost](docs/benchmarks.md); `cocomix bench` measures your machine.")
    return f"\n{' '.join(said)}\n"


def _training(train: dict[str, Any]) -> str:
    shape = train["shape"]
    return (
        f"One training step of the paper's smallest model (width {shape['width']}, {shape['num_blocks']} blocks, "
        f"{shape['num_concepts']:,} concepts) is {train['dense_over_fast']['median']:.2f} times as fast as the paper's dense "
        f"formulation of it, and takes {train['fast_over_ntp']['median']:.2f} times NTP's time at "
        f"{train['flop_ratio']:.2f} times its FLOPs."
    )


def _generation(generate: dict[str, Any]) -> str:
    return (
        f"With a cache, a token after {generate['shape']['uncached_length']} others comes "
        f"{generate['uncached_over_cached']['median']:.0f} times as fast as without."
    )
