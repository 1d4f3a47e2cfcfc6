"""The page of one browser: its own state, and the panels that show it.

Panels send HTML made by templates to the browser; a click on an element with `data-action` comes back to this page under that
name. Slow work runs in threads, so that the event loop, which serves every browser, stays free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

from nicegui import ui

from cocomix.base.errors import CocomixError
from cocomix.studio.card_dialog import CardDialog
from cocomix.studio.curves_panel import CurvesPanel
from cocomix.studio.finding_panel import FindingPanel
from cocomix.studio.generation import Workers
from cocomix.studio.links import VIEWS, parse_query
from cocomix.studio.model import StudioModel
from cocomix.studio.model_cache import ModelCache
from cocomix.studio.pins_panel import PinsPanel, converted
from cocomix.studio.reading_panel import ReadingPanel
from cocomix.studio.rendering import page_script, page_style, render
from cocomix.studio.tasks import Coalesced
from cocomix.studio.writing_panel import WritingPanel

P = ParamSpec("P")
R = TypeVar("R")

VIEW_TITLES = {"steer": "Read and steer", "curves": "Loss curves"}
THEMES: dict[bool | None, str] = {None: "System", False: "Light", True: "Dark"}

#: A click on any element that names an action.
ON_ACTION = """(event) => {
  const source = event.target.closest("[data-action]");
  if (source) emit(source.dataset.action, source.dataset.value);
}"""


class StudioPage:
    """One browser's page.

    Args:
        models: models to show.
        workers: threads for the work.
        query: parameters of the address.
    """

    def __init__(self, models: ModelCache, workers: Workers, query: dict[str, str]) -> None:
        self.models, self.workers = models, workers
        self.state, self._problems = parse_query(query)
        self._is_first_visit = not query.keys() - {"model"}
        self.model: StudioModel | None = None
        self.pins: dict[int, float | None] = {}
        self.client = ui.context.client
        self._address = Coalesced(self._write_address)
        self._actions: dict[str, Callable[[str], Any]] = {
            "view": self._show_view,
            "theme": lambda _: self._next_theme(),
            "pin": lambda value: self.toggle_pin(int(value)),
        }

    def build(self) -> None:
        """Build the page; the model is loaded after the browser shows it."""
        ui.add_css(page_style())
        ui.add_head_html(f"<script>{page_script()}</script>")
        ui.colors(primary="var(--series-1)", dark="var(--card)", dark_page="var(--paper)")
        self._theme = ui.dark_mode(None)
        with ui.element("main").classes("studio") as root:
            self._build_masthead()
            self._notice = ui.html("", sanitize=False).props("role=alert")
            with ui.element("div").classes("steer") as self._steer:
                with ui.element("section").classes("reading"):
                    self.reading = ReadingPanel(self)
                with ui.element("aside").classes("rail"):
                    self.pinned = PinsPanel(self)
                    self.finding = FindingPanel(self)
                with ui.element("section").classes("writing"):
                    self.writing = WritingPanel(self)
            with ui.element("section").classes("curves") as self._curves:
                self.curves = CurvesPanel(self)
            ui.html(render("foot"), sanitize=False, tag="footer").classes("foot note")
        self.cards = CardDialog(self)
        for panel in (self.reading, self.pinned, self.finding, self.writing, self.curves, self.cards):
            self._actions |= panel.actions
        for element in (root, self.cards.body):
            element.on("click", self._act, js_handler=ON_ACTION)
        self._show_view(self.state.view if self.models.runs.models else "curves")
        self.client.on_disconnect(self.writing.stop)
        ui.timer(0, self._start, once=True)

    async def off_loop(self, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """Call a function in a thread and return its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.workers.pool, partial(function, *arguments, **options))

    def change(self, **fields: Any) -> None:
        """Change the state and the address."""
        self.state = replace(self.state, **fields)
        self._address.request()

    @property
    def edits(self) -> dict[int, float]:
        """Strengths of the pinned concepts that are steered."""
        return {concept: strength for concept, strength in self.pins.items() if strength is not None}

    def toggle_pin(self, concept: int) -> None:
        """Pin a concept, or remove it."""
        if concept in self.pins:
            del self.pins[concept]
        else:
            self.pins[concept] = None
        self._pins_changed()

    def set_strength(self, concept: int, strength: float | None) -> None:
        """Change the strength of a pinned concept; None: do not steer it."""
        self.pins[concept] = strength
        self._save_pins()
        self.writing.edits_changed()

    def set_mode(self, mode: str) -> None:
        """Change how strengths act; what they were is converted, as it would mean something else."""
        if mode == self.state.mode:
            return
        for concept, strength in self.edits.items():
            self.pins[concept] = converted(strength, self.state.mode, mode)
        self.change(mode=mode)
        self._pins_changed()

    def prompt_changed(self, prompt: str) -> None:
        """Use a newly typed prompt."""
        self.change(prompt=prompt)
        self.reading.read.request()
        self.writing.edits_changed()

    def renamed(self, concept: int, name: str) -> None:
        """Show the new name of a concept everywhere."""
        self.pinned.rename(concept, name)
        self._pins_changed()
        self.reading.read.request()
        self.finding.search.request()

    def say_problem(self, *problems: str) -> None:
        """Show problems at the top of the page; without any, remove the old ones."""
        self._problems = list(problems)
        text = "\n".join(problem[0].upper() + problem[1:] for problem in problems)
        self._notice.content = render("problem", problem=text) if text else ""

    async def writing_asked(self) -> None:
        """Continue the prompt or stop, like the button."""
        await self.writing.go()

    async def choose_model(self, name: str) -> None:
        """Show another model; pins whose concept it has are kept."""
        try:
            self.model = await self.off_loop(self.models.model, name)
        except CocomixError as error:
            self.say_problem(str(error))
            return
        self.change(model=self.model.name)
        self.pins = {concept: strength for concept, strength in self.pins.items() if concept < self.model.num_concepts}
        self._pins_changed()
        self.reading.read.request()

    async def _start(self) -> None:
        """Load the model and the pins that the address names; if it names nothing, show what steering does."""
        theme = await self.client.run_javascript("localStorage.getItem('cocomix-theme')")
        self._set_theme({"Light": False, "Dark": True}.get(theme))
        asked = dict(self.state.pins)
        problems = list(self._problems)
        wanted = self.state.model
        if wanted and wanted not in [run.name for run in self.models.runs.models]:
            problems.append(
                f"The link asks for the model {wanted!r}, which is not among the runs; this is another one."
            )
            wanted = ""
        await self.choose_model(wanted)
        if self.model is None:
            return
        for text, strength in asked.items():
            try:
                self.pins[self.model.resolve(text)] = strength
            except CocomixError as error:
                problems.append(f"In the link, {error}.")
        self._select.value = self.model.name
        self.say_problem(*problems)
        opening = await self.off_loop(self.model.opening) if self._is_first_visit else None
        if opening is not None:
            self.pins[opening.concept] = opening.strength
            self.reading.write(opening.prompt)
        self._pins_changed()
        if opening is not None:
            await self.writing.go()

    def _pins_changed(self) -> None:
        self._save_pins()
        self.pinned.show()
        self.reading.show_tokens()
        self.reading.show_concepts()
        self.finding.show()
        self.writing.edits_changed()

    def _save_pins(self) -> None:
        self.change(pins={str(concept): strength for concept, strength in self.pins.items()})

    async def _write_address(self) -> None:
        await asyncio.sleep(0.2)  # browsers refuse more than some hundred changes of the address in half a minute
        if self.model is not None and not self.client.is_deleted:
            with self.client:
                ui.navigate.history.replace("/?" + self.state.query())

    async def _act(self, event: Any) -> None:
        name, value = event.args
        if name in self._actions:
            result = self._actions[name](value)
            if asyncio.iscoroutine(result):
                await result

    def _build_masthead(self) -> None:
        models = [run.name for run in self.models.runs.models]
        with ui.element("header").classes("masthead"):
            ui.html("coco<span>mix</span> studio", sanitize=False, tag="h1")
            self._tabs = ui.html("", sanitize=False, tag="nav").props('aria-label="Views"')
            self._theme_button = ui.html("", sanitize=False).classes("push")
            if models:
                self._select = (
                    ui.select(models, label="Model", on_change=lambda event: self._model_chosen(event.value))
                    .props("outlined dense options-dense")
                    .classes("model")
                )

    async def _model_chosen(self, name: str) -> None:
        if self.model is not None and name != self.model.name:
            self.writing.stop()
            await self.choose_model(name)

    def _show_view(self, view: str) -> None:
        if view not in VIEWS:
            return
        self._tabs.content = render("tabs", titles=VIEW_TITLES, view=view)
        self._steer.set_visibility(view == "steer")
        self._curves.set_visibility(view == "curves")
        if view == "curves":
            self.curves.draw.request()
        if view != self.state.view:
            self.change(view=view)

    def _next_theme(self) -> None:
        values = list(THEMES)
        value = values[(values.index(self._theme.value) + 1) % len(values)]
        self._set_theme(value)
        self.client.run_javascript(f"localStorage.setItem('cocomix-theme', '{THEMES[value]}')")

    def _set_theme(self, value: bool | None) -> None:
        self._theme.value = value
        self._theme_button.content = render("theme", name=THEMES[value])
