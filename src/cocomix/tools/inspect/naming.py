"""Short names of concepts, made from their strongest contexts.

A name is a pattern of the text around the marked token that is common in the contexts and rare in other text. Patterns are

    literal    up to the end of the token, or to a place inside it, from the start of some word on: `self._…`
    in word    the text before and after the word that holds the token: `'…':`
    line       how the line of the token starts: `from …`
    letters    `[A-Z]…` in a word of capitals, `[0-9]…` in a number

where `…` stands for text that differs. Patterns are ranked by share * log2(share / share elsewhere), with shares of the
contexts and of random positions of the text. If the best pattern does not cover enough contexts, a second one is added for
the others (`import … / from …`). A name without letters, or one that another concept already has, gets the token that the
concept promotes most (`⏎ → def`). No knowledge of a language is used: a pattern is characteristic if it is rarer elsewhere.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from cocomix.tools.inspect.cards import Context

ELLIPSIS, NEWLINE, SPACES = "…", "⏎", "␣␣"
#: Letters of a pattern before the token at most.
MAX_LETTERS = 24
MAX_PIECES = 5
#: Share of the contexts that must have the pattern.
MIN_SHARE = 0.35
MIN_SECOND_SHARE = 0.25
#: With this share of the contexts one pattern is enough.
ENOUGH = 0.7
#: Patterns with a lower score, in bits, are not used as names.
MIN_SCORE = 0.9
NUM_ALTERNATIVES = 8

_WORD_END, _WORD_START = re.compile(r"\w*\Z"), re.compile(r"\w*")
_PIECE = re.compile(r"\w+|\s+|[^\w\s]")


class Namer:
    """Names concepts, given a background of ordinary text.

    Args:
        background: contexts of random positions of the same text.
    """

    def __init__(self, background: Iterable[Context]) -> None:
        self.num_places = 0
        self.counts: Counter[str] = Counter()
        for place in background:
            self.num_places += 1
            self.counts.update(patterns(place))

    def names(self, contexts: Sequence[Sequence[Context]], promoted: Sequence[Sequence[str]]) -> list[str]:
        """A name for each concept, all different.

        Args:
            contexts: of each concept, strongest first; earlier concepts choose their name first.
            promoted: tokens that each promotes, strongest first.
        """
        taken: set[str] = set()
        names = []
        for own, tokens in zip(contexts, promoted, strict=True):
            names.append(next(name for name in self._proposals(own, tokens) if name not in taken))
            taken.add(names[-1])
        return names

    def best(self, places: Sequence[set[str]]) -> str | None:
        """The pattern that says most about places, each given by its `patterns`; None: no pattern is characteristic."""
        return next(iter(self._ranked(places, MIN_SHARE)), None)

    def _proposals(self, contexts: Sequence[Context], promoted: Sequence[str]) -> Iterator[str]:
        """An endless sequence of names, best first."""
        per_context = [patterns(context) for context in contexts]
        ranked = self._ranked(per_context, MIN_SHARE)
        tokens = [token for token in dict.fromkeys(shown(token) for token in promoted) if token]
        if ranked:
            best = ranked[0]
            rest = [own for own in per_context if best not in own]
            if len(rest) > (1 - ENOUGH) * len(per_context):
                others = [
                    other
                    for other in self._ranked(rest, MIN_SECOND_SHARE * len(per_context) / len(rest))
                    if shown(other).strip(ELLIPSIS) not in best and best.strip(ELLIPSIS) not in other
                ]
                if others and _has_letters(best) == _has_letters(others[0]):
                    yield f"{shown(best)} / {shown(others[0])}"
            if _has_letters(best) or not tokens:
                yield shown(best)
            for token in tokens:
                if not _has_letters(best):
                    yield f"{shown(best)} → {token}"
            for other in ranked[1:NUM_ALTERNATIVES]:
                if shown(other).strip(ELLIPSIS) not in shown(best) and shown(best).strip(ELLIPSIS) not in shown(other):
                    yield f"{shown(best)}, {shown(other)}"
        stem = shown(ranked[0]) if ranked else self._marked(contexts)
        for token in tokens:
            yield f"{stem} → {token}".strip()
        number = 2
        while True:
            yield f"{stem or 'no name'} ({number})"
            number += 1

    def _ranked(self, per_context: Sequence[set[str]], min_share: float) -> list[str]:
        """Patterns of some contexts, best first; among equally good ones the longest first."""
        shared = Counter(pattern for own in per_context for pattern in own)
        scores: dict[str, float] = {}
        for pattern, count in shared.items():
            share = count / len(per_context)
            if share >= min_share and (count > 1 or len(per_context) == 1) and shown(pattern):
                elsewhere = (self.counts[pattern] + 1) / (self.num_places + 1)
                score = share * math.log2(share / elsewhere)
                if score >= MIN_SCORE:
                    scores[pattern] = score
        return sorted(scores, key=lambda pattern: (-scores[pattern], -len(pattern), pattern))

    @staticmethod
    def _marked(contexts: Sequence[Context]) -> str:
        """The most common marked tokens, for contexts without a shared pattern."""
        common = Counter(shown(context.token) for context in contexts).most_common(2)
        return " / ".join(token for token, _ in common if token)


def patterns(place: Context) -> set[str]:
    """All patterns of the text around a token."""
    before, token, after = place.before, place.token, place.after
    result = set(_letters(before, token, after))
    recent = before[-MAX_LETTERS:]
    # Starts of pieces, including the token's own; the cut at the front does not start a piece.
    starts = [match.start() for match in _PIECE.finditer(recent) if match.start() or recent == before][-MAX_PIECES:]
    starts = [start + len(before) - len(recent) for start in starts] + [len(before)]
    ends = {match.end() for match in _PIECE.finditer(token)}
    for start in starts:
        mark = ELLIPSIS if start and _inside_word(before[:start], before[start:] + token) else ""
        for end in ends:
            literal = before[start:] + token[:end]
            rest = token[end:] + after
            if literal.strip() or "\n" in literal:
                result.add(mark + literal + (ELLIPSIS if _inside_word(literal, rest) else ""))
            if end == len(token) and literal.strip():
                result |= {mark + literal + tail for tail in _tails(literal, after)}
    result |= set(_in_word(before, token, after, starts))
    line = (before + token).rsplit("\n", 1)[-1].lstrip()
    first = _PIECE.match(line)
    if first is not None and "\n" in before and len(line) > len(first.group()) + 1:
        result.add(f"{first.group()} {ELLIPSIS}")
    return result


def shown(pattern: str) -> str:
    """A pattern or token as (part of) a name: a single line without leading whitespace; a bare number is quoted."""
    if pattern and not pattern.strip():
        return NEWLINE if "\n" in pattern else SPACES if len(pattern) > 1 else ""
    text = re.sub(r"\s*\n\s*", NEWLINE, pattern.lstrip())
    text = re.sub(r"\s+", " ", text).strip()
    text = "".join(letter for letter in text if letter.isprintable() and letter != "\ufffd")
    return f"“{text}”" if text.removeprefix("-").isdecimal() else text


def _tails(literal: str, after: str) -> Iterator[str]:
    """How the text continues: to the end of the word, and one piece further."""
    pieces = list(_PIECE.finditer(after[:MAX_LETTERS]))[:2]
    for piece in pieces:
        tail = after[: piece.end()]
        yield tail + (ELLIPSIS if _inside_word(literal + tail, after[piece.end() :]) else "")


def _in_word(before: str, token: str, after: str, starts: Sequence[int]) -> Iterator[str]:
    """The text before and after the word in which the token ends."""
    word = _WORD_END.search(before + token)
    assert word is not None
    if not word.group() or word.start() > len(before) + len(token) - len(token.lstrip()):
        return
    head = before + token
    word_end = _WORD_START.match(after)
    assert word_end is not None
    closing = after[word_end.end() : word_end.end() + 1].strip()
    for start in starts:
        opening = head[start : word.start()]
        if opening.strip():
            yield opening + ELLIPSIS
            if closing:
                yield opening + ELLIPSIS + closing


def _letters(before: str, token: str, after: str) -> Iterator[str]:
    """The kind of letters in the word that holds the token."""
    head, tail = _WORD_END.search(before + token), _WORD_START.match(after)
    assert head is not None
    assert tail is not None
    word = head.group() + tail.group() if head.group() else ""
    letters = [letter for letter in word if letter.isalpha()]
    if len(letters) > 2 and all(letter.isupper() for letter in letters):
        yield f"[A-Z]{ELLIPSIS}"
    if word and word[0].isdigit():
        yield f"[0-9]{ELLIPSIS}"


def _inside_word(left: str, right: str) -> bool:
    """Whether a cut between two texts splits a word."""
    return (left[-1:].isalnum() or left[-1:] == "_") and right[:1].isalnum()


def _has_letters(pattern: str) -> bool:
    return any(letter.isalnum() for letter in pattern)
