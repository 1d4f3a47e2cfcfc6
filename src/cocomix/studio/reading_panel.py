"""The prompt, its tokens, and the concepts predicted at the token under the pointer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nicegui import ui

from cocomix.base.errors import CocomixError
from cocomix.studio.model import Reading
from cocomix.studio.rendering import render
from cocomix.studio.tasks import Coalesced

if TYPE_CHECKING:
    from cocomix.studio.page import StudioPage

NUM_SHOWN = 6
#: The browser cuts a longer text where it is typed or pasted: a message to the server holds a megabyte, and a text may grow
#: fourfold in it. What is left is refused with both lengths, as any prompt that the context can't hold.
MAX_PROMPT_CHARS = 200_000

#: The position of the token below the pointer or under the focus.
ON_TOKEN = """(event) => {
  const token = event.target.closest(".token");
  if (token) emit(Number(token.dataset.value));
}"""


class ReadingPanel:
    """See the module."""

    def __init__(self, page: StudioPage) -> None:
        self._page = page
        self._reading: Reading | None = None
        self._held: int | None = None
        self._shown = 0
        self._shows_all = False
        self.read = Coalesced(self._read)
        self.actions: dict[str, Callable[[str], Any]] = {"hold": self._hold, "all": self._show_all}
        ui.html("Prompt", sanitize=False, tag="h2")
        self._field = (
            ui.textarea(value=page.state.prompt, placeholder="def read(self, path):", on_change=self._typed)
            .props(
                f'outlined autogrow dense debounce=250 maxlength={MAX_PROMPT_CHARS} aria-label="Prompt" spellcheck=false'
            )
            .classes("prompt-field")
        )
        self._field.on("keydown.enter.ctrl", page.writing_asked)
        self._status = ui.html("", sanitize=False).props("role=status")
        ui.html(render("reading_title"), sanitize=False, tag="h2")
        self._tokens = ui.html(render("tokens", pieces=[]), sanitize=False)
        for event in ("mouseover", "focusin"):
            self._tokens.on(event, self._point, js_handler=ON_TOKEN, throttle=0.05)
        self._concepts = ui.html("", sanitize=False).classes("panel at-token").props("aria-live=polite")
        self._concepts.set_visibility(False)

    def write(self, prompt: str) -> None:
        """Replace the prompt, as if it had been typed."""
        self._field.value = prompt

    def show_tokens(self) -> None:
        """Draw the tokens; also after the pins change."""
        reading = self._reading
        if reading is None:
            return
        pinned = self._page.pins.keys()
        self._tokens.content = render(
            "tokens",
            pieces=reading.pieces,
            glosses=[reading.at(position)[0].name for position in range(len(reading))],
            pinned_at=[not pinned.isdisjoint(concepts) for concepts in reading.concepts],
            held=self._held,
        )

    def show_concepts(self) -> None:
        """Draw the concepts of the held token, or of the last one under the pointer."""
        reading, model = self._reading, self._page.model
        if reading is None or model is None or not len(reading):
            self._concepts.set_visibility(False)
            return
        entries = reading.at(self._shown)
        self._concepts.content = render(
            "token_concepts",
            entries=entries if self._shows_all else entries[:NUM_SHOWN],
            num_active=len(entries),
            piece=reading.pieces[self._shown],
            position=self._shown,
            num_tokens=len(reading),
            is_held=self._held is not None,
            pinned=self._page.pins.keys(),
            unit=model.describe_unit(),
        )
        self._concepts.set_visibility(True)

    async def _read(self) -> None:
        model, prompt = self._page.model, self._page.state.prompt
        if model is None:
            return
        try:
            reading = await self._page.off_loop(model.read, prompt)
        except CocomixError as error:
            self._status.content = render("problem", problem=f"{error}.")
            return
        self._status.content = render("length", num_tokens=len(reading), context_length=model.context_length)
        self._reading, self._held = reading, None
        # The last token of the prompt decides the next one.
        self._shown, self._shows_all = max(0, len(reading) - 1), False
        self.show_tokens()
        self.show_concepts()

    def _typed(self, event: Any) -> None:
        self._page.prompt_changed(event.value or "")

    def _point(self, event: Any) -> None:
        if self._held is None and self._reading is not None and 0 <= event.args < len(self._reading):
            self._shown, self._shows_all = event.args, False
            self.show_concepts()

    def _hold(self, value: str) -> None:
        position = int(value)
        if self._reading is None or not 0 <= position < len(self._reading):
            return
        self._held = None if self._held == position else position
        self._shown = position
        self.show_tokens()
        self.show_concepts()

    def _show_all(self, _: str) -> None:
        self._shows_all = True
        self.show_concepts()
