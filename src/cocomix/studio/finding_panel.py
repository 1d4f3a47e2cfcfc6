"""Search for concepts by name, or by an example text in which they are predicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nicegui import ui

from cocomix.base.errors import CocomixError
from cocomix.studio.model import ConceptEntry
from cocomix.studio.rendering import render
from cocomix.studio.tasks import Coalesced

if TYPE_CHECKING:
    from cocomix.studio.page import StudioPage

PLACEHOLDERS = {"name": "a name, a word of it, or an index", "example": "text in which they would be predicted"}


class FindingPanel:
    """See the module."""

    def __init__(self, page: StudioPage) -> None:
        self._page = page
        self._way = "name"
        self._entries: list[ConceptEntry] = []
        self._problem = self._nothing = ""
        self.search = Coalesced(self._search)
        self.actions: dict[str, Callable[[str], Any]] = {"way": self._choose_way}
        ui.html("Find concepts", sanitize=False, tag="h2")
        self._ways = ui.html(render("ways", way=self._way), sanitize=False)
        self._field = (
            ui.input(placeholder=PLACEHOLDERS[self._way], on_change=lambda _: self.search.request())
            .props('outlined dense clearable debounce=250 type=search aria-label="Find concepts"')
            .style("margin: .5rem 0")
        )
        self._list = ui.html("", sanitize=False).props("aria-live=polite")

    def show(self) -> None:
        """Draw the results; also after the pins change."""
        model = self._page.model
        if model is not None:
            self._list.content = render(
                "search_results",
                entries=self._entries,
                problem=self._problem,
                nothing=self._nothing,
                pinned=self._page.pins.keys(),
                unit="Mean strength at these tokens, above what is usual at any",
            )

    async def _search(self) -> None:
        model, text = self._page.model, self._field.value or ""
        if model is None:
            return
        self._entries, self._problem, self._nothing = [], "", ""
        look = model.search_names if self._way == "name" else model.search_example
        try:
            self._entries = await self._page.off_loop(look, text)
        except CocomixError as error:
            self._problem = f"{error}."
        if text.strip() and not self._entries:
            self._nothing = "No concept is predicted there."
        self.show()

    def _choose_way(self, value: str) -> None:
        if value in PLACEHOLDERS:
            self._way = value
            self._ways.content = render("ways", way=value)
            self._field.props["placeholder"] = PLACEHOLDERS[value]
            self._field.update()
            self.search.request()
