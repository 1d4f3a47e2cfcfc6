"""Ranks: what the first one does, all know."""

from __future__ import annotations

from typing import Any

import pytest
from torch import distributed

from cocomix import CocomixError
from cocomix.base.ranks import Ranks, joined_ranks


def test_a_single_process_is_one_rank_of_one() -> None:
    with joined_ranks() as ranks:
        assert ranks == Ranks(0, 1)
        assert ranks.is_first
        assert ranks.on_first_rank(lambda: 3) == 3
        ranks.wait()


def test_result_and_failure_of_the_first_rank_reach_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def broadcast(words: list[Any], **_: Any) -> None:
        if sent:
            words[:] = sent
        else:
            sent[:] = words

    monkeypatch.setattr(distributed, "broadcast_object_list", broadcast)

    def fail() -> int:
        raise CocomixError("the folder is wrong")

    for rank in (0, 1):
        assert Ranks(rank, 2).on_first_rank(lambda: 3) == 3
    sent.clear()
    for rank in (0, 1):
        with pytest.raises(CocomixError, match="the folder is wrong"):
            Ranks(rank, 2).on_first_rank(fail)
