"""The concept cards of `docs/concepts_demo.md`, from an inspection; a person chooses which.

python -m benchmarks.cards --inspection runs/demo/inspection --concepts 675 898 ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import DOCS, code, fill, visible
from cocomix.tools.inspect.cards import CardReader, ConceptCard, Context, TokenEffect

NUM_CONTEXTS = 3
NUM_TOKENS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inspection", type=Path, required=True, help="folder made by `cocomix inspect`")
    parser.add_argument("--concepts", type=int, nargs="+", required=True, help="which concepts")
    arguments = parser.parse_args()
    reader = CardReader(arguments.inspection)
    blocks = {"concepts": "\n".join(card(reader.card(concept)) for concept in arguments.concepts)}
    fill(DOCS / "concepts_demo.md", blocks)


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
            f"## {code(shown.name)}",
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
        f"{context.activation:5.2f}  {visible(context.before)}⟦{visible(context.token)}⟧{visible(context.after)}"
        for context in contexts[:NUM_CONTEXTS]
    ]
    return ["```text", *lines, "```", ""]


def _tokens(effects: tuple[TokenEffect, ...]) -> str:
    return ", ".join(code(effect.token) for effect in effects[:NUM_TOKENS])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"


if __name__ == "__main__":
    main()
