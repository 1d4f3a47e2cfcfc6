"""Names say what contexts have in common."""

from __future__ import annotations

import pytest

from cocomix.tools.inspect.cards import Context
from cocomix.tools.inspect.naming import Namer, patterns, shown


def context(text: str) -> Context:
    """`before|token|after` as a context."""
    before, token, after = text.split("|")
    return Context("sae", before, token, after, 1.0, 0, 0)


BACKGROUND = [
    context(f"{line}\n    {word}|{token}|{after}")
    for line in ("x = 1", "# a comment", "return x")
    for word in ("value", "if not", "a[")
    for token in (" the", "(", "s", ":", "\n   ")
    for after in (" other", " = 2", "")
]


def name(*texts: str, promoted: tuple[str, ...] = ()) -> str:
    return Namer(BACKGROUND).names([[context(text) for text in texts]], [promoted])[0]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("\n    self|._|name", "\n  x = self|.|flush", "(self|.|buffer"), "self."),
        (("\n    def de|coder| =", "x = en|coder|\n", " self.de|coder|.f"), "…coder"),
        (("\nimport p|y|doc", "a\nimport| os|\n", "b\nimport r|e|\n"), "import …"),
        (("a == '|wor|ld':", "b = '|he|llo', c", "('|x|y', "), "'…'"),
        (("MAX_|LEN|GTH", " NO|RM|AL", "x = DE|FAU|LT"), "[A-Z]…"),
        (("\n        if not| isinstance|(a, b)", "x =| isinstance|(c, d)", "or| isinstance|(e)"), "isinstance("),
    ],
)
def test_names_of_shared_patterns(texts: tuple[str, ...], expected: str) -> None:
    assert name(*texts) == expected


def test_two_patterns_share_a_name() -> None:
    assert name("x[a:| length|]", "(b +| length|)", "y[c -| end|;", "{d *| end|}") == "length / end"


def test_a_name_without_letters_says_what_comes_next() -> None:
    assert name("x|\n\n|def f", "y|\n\n|@a", "z|\n\n|def g", promoted=(" def", "@")) == "⏎ → def"


def test_names_differ_and_are_one_printable_line() -> None:
    same = [[context("\n    self|._|name"), context("x = self|._|flush")]] * 12
    names = Namer(BACKGROUND).names([*same, [], []], [("a", "\x00", "7")] * 14)
    assert len(set(names)) == 14
    assert all(name.strip() and name.isprintable() and not name.removeprefix("-").isdecimal() for name in names)


def test_control_characters_and_numbers() -> None:
    assert shown("a\x00b\n\n  c\t d") == "ab⏎c d"
    assert shown("-12") == "“-12”"
    assert shown("\n   ") == "⏎"
    assert shown("\ufffd") == ""
    assert patterns(context("||")) == set()
