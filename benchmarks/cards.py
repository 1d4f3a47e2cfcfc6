"""A page of concept cards from an inspection.

    python -m benchmarks.cards --inspection runs/demo/inspection --concepts 675 898 ... --output docs/concepts_demo.md

Which concepts are shown is chosen by a person; everything on the page is the inspection's. Without `--concepts`: those that
are labels most often.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cocomix.base.page import write_file
from cocomix.tools.inspect.cards import CardReader, ConceptCard, Context, TokenEffect

NUM_CARDS = 10
NUM_CONTEXTS = 5
NUM_TOKENS = 6
HEAD = """\
# Ten concepts of the demo

Made by

```
python -m benchmarks.cards --inspection runs/demo/inspection --output docs/concepts_demo.md \\
    --concepts {concepts}
```

from `cocomix demo` (standard library of Python, {num_concepts:,} concepts, {num_tokens:,} tokens of held-out text
read). The ten were chosen by a person among {num_concepts:,}; names, contexts and numbers are as they came. The marked
token stands between `⟦` and `⟧`, a new line is `⏎`; the number in front is the activation. What each number means:
[inspecting](inspecting.md).

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inspection", type=Path, required=True, help="folder made by `cocomix inspect`")
    parser.add_argument("--concepts", type=int, nargs="*", default=[], help="which concepts")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file")
    arguments = parser.parse_args()
    reader = CardReader(arguments.inspection)
    counts = reader.columns("num_predicted", "num_labels")
    used = [labels or 0 for labels in counts["num_labels"]]
    chosen = arguments.concepts or sorted(range(len(reader)), key=lambda concept: -used[concept])[:NUM_CARDS]
    head = HEAD.format(
        concepts=" ".join(map(str, chosen)), num_concepts=len(reader), num_tokens=reader.summary["num_tokens"]
    )
    write_file(arguments.output, (head + "\n".join(card(reader.card(concept)) for concept in chosen)).encode())


def card(shown: ConceptCard) -> str:
    """One card as Markdown."""
    facts = [
        f"label of {_percent(shown.label_rate)} of tokens",
        f"predicted at {_percent(shown.prediction_rate)}",
        f"precision {_percent(shown.precision)}",
        f"recall {_percent(shown.recall)}",
        f"usual activation {shown.usual:.2f}" if shown.usual is not None else "never active",
    ]
    return "\n".join(
        [
            f"## {_code(shown.name)}",
            "",
            f"Concept {shown.concept}: {', '.join(facts)}.",
            "",
            "The latent is most active at:",
            "",
            *_contexts(shown.contexts_of("sae")),
            "The model predicts it most strongly at:",
            "",
            *_contexts(shown.contexts_of("prediction")),
            f"Promotes {_tokens(shown.promoted)}; suppresses {_tokens(shown.suppressed)}.",
            "",
        ]
    )


def _contexts(contexts: tuple[Context, ...]) -> list[str]:
    lines = [
        f"{context.activation:5.2f}  {_line(context.before)}⟦{_line(context.token)}⟧{_line(context.after)}"
        for context in contexts[:NUM_CONTEXTS]
    ]
    return ["```text", *lines, "```", ""]


def _tokens(effects: tuple[TokenEffect, ...]) -> str:
    return ", ".join(_code(effect.token) for effect in effects[:NUM_TOKENS])


def _line(text: str) -> str:
    """Text on one line, backticks harmless inside a fence."""
    shown = text.replace("\n", "⏎")
    return "".join(letter if letter.isprintable() else "·" for letter in shown)


def _code(text: str) -> str:
    """Text as inline code, whatever backticks it has."""
    shown = _line(text)
    fence = "``" if "`" in shown else "`"
    space = " " if "`" in shown or shown != shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"


if __name__ == "__main__":
    main()
