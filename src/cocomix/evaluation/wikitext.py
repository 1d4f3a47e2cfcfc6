"""WikiText as the benchmark scores it: whole articles, with the spaces of its tokenization taken out again.

The published text separates punctuation by spaces and writes ` @-@ ` for a hyphen inside a word. Perplexity is measured
on text as people write it, but a word and a byte stay those of the published text, so that numbers compare across
tokenizers (the convention of Megatron-LM, which lm-eval follows).
"""

from __future__ import annotations

import re

#: Contractions, marks inside numbers and words, and punctuation, in this order.
_JOINED = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
#: Brackets and quotes, with what is inside of them.
_BRACKETED = tuple(
    re.compile(pattern) for pattern in (r"\([^)]*\)", r"\[[^\]]*\]", r"\{[^}]*\}", r'"[^"]*"', r"'[^']*'")
)
#: Heading marks, the degree sign, line ends, and what is left of the tokenization.
_CLEANED = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def articles(text: str) -> list[str]:
    """The articles of a WikiText file, each with its title line."""
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _is_title(line):
            found.append([])
        found[-1].append(line)
    return [page for page in map("\n".join, found) if page.strip()]


def detokenize(page: str) -> str:
    """An article as people would write it."""
    for old, new in _JOINED:
        page = page.replace(old, new)
    for pattern in _BRACKETED:
        page = pattern.sub(_without_inner_spaces, page)
    for old, new in _CLEANED:
        page = page.replace(old, new)
    return page


def num_words(page: str) -> int:
    """Words of the published text: the pieces between runs of white space, an empty one at either end included."""
    return len(re.split(r"\s+", page))


def _without_inner_spaces(match: re.Match[str]) -> str:
    text = match[0]
    return text[0] + text[1:-1].strip() + text[-1]


def _is_title(line: str) -> bool:
    """Whether a line is ` = Title = `; sections have two marks or more on each side."""
    marked = line.replace("= = =", "===").replace("= =", "==").strip()
    return marked.startswith("= ") and marked.endswith(" =")
