"""Addresses that hold the view."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest

from cocomix import CocomixError
from cocomix.studio.links import ViewState, parse_query, parse_strength


def test_an_address_restores_the_state() -> None:
    state = ViewState(
        model="demo/cocomix",
        prompt="a&b=ü\n\tc+d%",
        pins={"12": -1.5, "893": None},
        mode="set",
        tokens=7,
        temperature=0.75,
        seed=3,
        view="curves",
        axis="flops",
    )
    assert parse_query(dict(parse_qsl(state.query()))) == (state, [])
    assert ViewState().query() == ""
    assert parse_query({}) == (ViewState(), [])


def test_a_prompt_that_no_address_can_hold_is_left_out() -> None:
    assert ViewState(prompt="x" * 1_000_000, seed=3).query() == "seed=3"


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ({"pins": "3:much"}, "strength 'much'"),
        ({"pins": "3:nan"}, "strength 'nan'"),
        ({"mode": "push"}, "mode is 'push'"),
        ({"tokens": "0"}, "length '0'"),
        ({"tokens": "2.5"}, "length '2.5'"),
        ({"temperature": "-1"}, "temperature -1"),
        ({"view": "x"}, "view is 'x'"),
    ],
)
def test_what_can_not_be_used_is_named_and_left_out(query: dict[str, str], problem: str) -> None:
    state, problems = parse_query({"prompt": "kept", **query})
    assert state == ViewState(prompt="kept")
    assert problem in problems[0]


def test_names_may_stand_in_a_link() -> None:
    assert parse_query({"pins": "import statements:2, 5"})[0].pins == {"import statements": 2.0, "5": None}


def test_strengths_are_read_as_people_write_them() -> None:
    assert parse_strength(" −1,5 ") == -1.5
    assert parse_strength("2e1") == 20
    for text in ("", "four", "1e999", "inf"):
        with pytest.raises(CocomixError, match="number"):
            parse_strength(text)
