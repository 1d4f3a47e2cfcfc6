"""The next token without and with the edits, and both continuations as they are written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nicegui import ui

from cocomix.base.errors import CocomixError
from cocomix.studio.changes import changed_tokens
from cocomix.studio.generation import Continuation, Plan, Step
from cocomix.studio.links import MAX_TOKENS, parse_temperature, parse_whole
from cocomix.studio.model import StudioModel
from cocomix.studio.rendering import render
from cocomix.studio.tasks import Latest

if TYPE_CHECKING:
    from cocomix.studio.page import StudioPage


class WritingPanel:
    """See the module."""

    def __init__(self, page: StudioPage) -> None:
        self._page = page
        self._continuation: Continuation | None = None
        self.predict = Latest(self._predict)
        self.actions: dict[str, Callable[[str], Any]] = {"go": lambda _: self.go()}
        ui.html("Next token", sanitize=False, tag="h2")
        self._next = ui.html("", sanitize=False)
        ui.html("Continuation", sanitize=False, tag="h2")
        with ui.element("div").classes("options"):
            self._button = ui.html(render("go", is_running=False), sanitize=False)
            self._fields = {
                "tokens": self._option("Tokens", f"{page.state.tokens}"),
                "temperature": self._option("Temperature", f"{page.state.temperature:g}"),
                "seed": self._option("Seed", f"{page.state.seed}"),
            }
        self._problem = ui.html("", sanitize=False).props("role=alert")
        with ui.element("div").classes("continuations") as self._both:
            self._original = ui.html("", sanitize=False, tag="article").classes("panel original")
            self._steered = ui.html("", sanitize=False, tag="article").classes("panel steered")
        self._both.set_visibility(False)

    def edits_changed(self) -> None:
        """Ask for the next token again."""
        self.predict.ask()

    def stop(self) -> None:
        """End the continuation that is being written, if one is."""
        if self._continuation is not None:
            self._continuation.stop()

    def _option(self, label: str, value: str) -> ui.input:
        return ui.input(label, value=value).props("outlined dense inputmode=decimal")

    async def _predict(self) -> None:
        page, model = self._page, self._page.model
        if model is None:
            return
        edits = page.edits
        try:
            tokens = await page.off_loop(model.next_tokens, page.state.prompt, edits, page.state.mode)
        except CocomixError:  # said beside the prompt
            tokens = []
        largest = max((max(token.before, token.after) for token in tokens), default=1.0)
        self._next.content = render("next_tokens", tokens=tokens, largest=largest, is_steered=bool(edits))

    async def go(self) -> None:
        """Write both continuations, or stop where they are being written."""
        if self._continuation is not None:
            self._continuation.stop()
            return
        page, model = self._page, self._page.model
        self._problem.content = ""
        if model is None:
            return
        try:
            self._read_options()
            ids = await page.off_loop(model.encode, page.state.prompt)
            state = page.state
            plan = Plan(ids, page.edits, state.mode, state.tokens, state.temperature, state.seed)
            self._continuation = continuation = Continuation(model, plan)
        except CocomixError as error:
            self._problem.content = render("problem", problem=f"{error}.")
            return
        if page.client.is_deleted or not page.client.has_socket_connection:
            self._continuation = None
            return
        self._button.content = render("go", is_running=True)
        self._both.set_visibility(True)
        try:
            await self._stream(model, continuation, state.prompt)
        finally:
            self._continuation = None
            if not page.client.is_deleted:
                self._button.content = render("go", is_running=False)

    def _read_options(self) -> None:
        fields = {name: field.value or "" for name, field in self._fields.items()}
        self._page.change(
            tokens=parse_whole("the length", fields["tokens"], 1, MAX_TOKENS),
            temperature=parse_temperature(fields["temperature"]),
            seed=parse_whole("the seed", fields["seed"], 0, 2**31 - 1),
        )

    async def _stream(self, model: StudioModel, continuation: Continuation, prompt: str) -> None:
        """Show tokens as they come: all that have come since the last time at once."""
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[Step | None] = asyncio.Queue()

        def report(step: Step | None) -> None:
            loop.call_soon_threadsafe(steps.put_nowait, step)

        future = self._page.workers.start(continuation, report)
        future.add_done_callback(lambda _: report(None))
        original: list[int] = []
        steered: list[int] = []
        is_running = True
        while is_running:
            new = [await steps.get()]
            while not steps.empty():
                new.append(steps.get_nowait())
            is_running = new[-1] is not None
            original += [step.original for step in new if step is not None and step.original is not None]
            steered += [step.steered for step in new if step is not None and step.steered is not None]
            if self._page.client.is_deleted:
                return
            await self._show(model, continuation, prompt, original, steered, is_running)
        await asyncio.wrap_future(future)  # raises what was raised in the thread

    async def _show(
        self,
        model: StudioModel,
        continuation: Continuation,
        prompt: str,
        original: list[int],
        steered: list[int],
        is_running: bool,
    ) -> None:
        marks = await self._page.off_loop(changed_tokens, original, steered)
        sides = ((self._original, "original", original), (self._steered, "steered", steered))
        for (element, side, ids), marked in zip(sides, marks, strict=True):
            element.content = render(
                "continuation",
                side=side,
                title="Original" if side == "original" else _steered_title(model, continuation.plan),
                prompt=prompt,
                pieces=list(zip(model.pieces(ids), marked, strict=True)),
                is_running=is_running,
                ended=not is_running and len(ids) < continuation.num_tokens and not continuation.is_stopped,
            )


def _steered_title(model: StudioModel, plan: Plan) -> str:
    if not plan.strengths:
        return "Steered: pin a concept and give it a strength"
    sign = {"add": "+", "set": "=", "scale": "×"}[plan.mode]
    edits = (f"{model.name_of(concept)} {sign}{strength:g}" for concept, strength in plan.strengths.items())
    return "Steered: " + ", ".join(edits).replace("+-", "−").replace("-", "−")
