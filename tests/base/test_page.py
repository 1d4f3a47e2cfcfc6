"""What every page shares."""

from __future__ import annotations

from cocomix.base.page import visible


def test_visible_shows_whitespace_and_control_characters() -> None:
    assert visible("\ta\n\x0c&") == '\ta<span class="sign">⏎</span><span class="sign">^L</span>&amp;'
    assert visible(" a\t", is_token=True) == '<span class="sign">␣</span>a<span class="sign">⇥</span>'
    assert visible("a\nb", wrap=True) == 'a<span class="sign">⏎</span>\nb'
