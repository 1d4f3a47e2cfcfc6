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

HISTOGRAMS = {
    "sae": "Activations of its latent",
    "label": "Scores of its labels",
    "prediction": "Raw logits where predicted",
    "logits": "Direct effects on logits",
}


class CardDialog:
    """See the module."""

    def __init__(self, page: StudioPage) -> None:
        self._page = page
        self.actions: dict[str, Callable[[str], Any]] = {
            "card": lambda value: self._open(int(value)),
            "pin-card": lambda value: self._toggle_pin(int(value)),
            "rename": lambda _: self._rename(),
            "close": lambda _: self._dialog.close(),
        }
        self._concept = 0
        with ui.dialog() as self._dialog, ui.element("div").classes("card-dialog") as self.body:
            self._content = ui.html("", sanitize=False)
            with ui.element("div").classes("card-bar"):
                self._name = ui.input("Name").props("outlined dense").classes("name-field")
                self._name.on("keydown.enter", self._rename)
                ui.html(render("rename"), sanitize=False)
            self._problem = ui.html("", sanitize=False).props("role=alert")

    def _toggle_pin(self, concept: int) -> None:
        self._page.toggle_pin(concept)
        self._dialog.close()

    async def _rename(self) -> None:
        model = self._page.model
        if model is None:
            return
        try:
            await self._page.off_loop(model.rename, self._concept, self._name.value or "")
        except CocomixError as error:
            self._problem.content = render("problem", problem=f"{error}.")
            return
        self._page.renamed(self._concept, model.name_of(self._concept))
        await self._open(self._concept)

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
            histograms=HISTOGRAMS,
            is_pinned=concept in self._page.pins,
            name_of=model.name_of,
            points=_in_points,
        )
        self._concept, self._name.value, self._problem.content = concept, model.name_of(concept), ""
        self._dialog.open()


def _in_points(effects: Sequence[TokenEffect]) -> list[TokenEffect]:
    """Changes of probability in percentage points."""
    return [dataclasses.replace(effect, change=100 * effect.change) for effect in effects]
