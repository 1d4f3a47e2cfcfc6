"""The card of one concept, over the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nicegui import ui

from cocomix.base.errors import CocomixError
from cocomix.studio.rendering import render
from cocomix.tools.inspect.cards import TokenEffect

if TYPE_CHECKING:
    from cocomix.studio.page import StudioPage

SOURCES = {
    "prediction": "Where the model predicts it most strongly",
    "sae": "Where the teacher’s latent is most active",
    "label": "Where it is a label",
}


class CardDialog:
    """See the module."""

    def __init__(self, page: StudioPage) -> None:
        self._page = page
        self.actions: dict[str, Callable[[str], Any]] = {
            "card": lambda value: self._open(int(value)),
            "pin-card": lambda value: self._toggle_pin(int(value)),
            "close": lambda _: self._dialog.close(),
        }
        with ui.dialog() as self._dialog, ui.element("div").classes("card-dialog") as self.body:
            self._content = ui.html("", sanitize=False)

    def _toggle_pin(self, concept: int) -> None:
        self._page.toggle_pin(concept)
        self._dialog.close()

    async def _open(self, concept: int) -> None:
        model = self._page.model
        if model is None:
            return
        try:
            card = await self._page.off_loop(model.card, concept)
        except CocomixError as error:
            self._page.say_problem(f"{error}.")
            return
        self._content.content = render(
            "card",
            card=card,
            concept=concept,
            name=model.name_of(concept),
            model=model.name,
            sources=SOURCES,
            is_pinned=concept in self._page.pins,
            name_of=model.name_of,
            points=_in_points,
        )
        self._dialog.open()


def _in_points(effects: Sequence[TokenEffect]) -> list[TokenEffect]:
    """Changes of probability in percentage points."""
    return [dataclasses.replace(effect, change=100 * effect.change) for effect in effects]
