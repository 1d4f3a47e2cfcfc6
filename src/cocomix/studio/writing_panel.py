"""The next token without and with the edits, and both continuations while they are written."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from nicegui import ui

from cocomix.base.errors import CocomixError
from cocomix.base.page import visible
from cocomix.studio.export import as_json, as_python
from cocomix.studio.generation import Continuation, Plan, Step
from cocomix.studio.links import MAX_TOKENS, parse_integer, parse_temperature
from cocomix.studio.model import StudioModel
from cocomix.studio.rendering import render
from cocomix.studio.tasks import Coalesced

if TYPE_CHECKING:
    from cocomix.studio.page import StudioPage

SHOWN_EVERY_SECONDS = 0.1
_MARK = Markup("<mark>{}</mark>")
#: Before the strength of an edit, by its mode.
_SIGNS = {"add": "+", "set": "=", "scale": "×", "toward": "at "}


class WritingPanel:
    """See the module."""

    def __init__(self, page: StudioPage) -> None:
        self._page = page
        self._continuation: Continuation | None = None
        self.predict = Coalesced(self._predict)
        self.actions: dict[str, Callable[[str], Any]] = {
            "go": lambda _: self.go(),
            "python": lambda _: self._copy_as_python(),
            "download": lambda _: self._download(),
        }
        self._written: dict[str, str] = {}
        ui.html("Continuation", sanitize=False, tag="h2")
        with ui.element("div").classes("options"):
            self._button = ui.html(render("go", is_running=False), sanitize=False)
            self._fields = {
                "tokens": self._option("Tokens", f"{page.state.tokens}"),
                "temperature": self._option("Temperature", f"{page.state.temperature:g}"),
                "seed": self._option("Seed", f"{page.state.seed}"),
            }
            ui.html(render("export"), sanitize=False)
        self._problem = ui.html("", sanitize=False).props("role=alert")
        self._code = ui.html("", sanitize=False)
        with ui.element("div").classes("continuations") as self._both:
            self._original = ui.html("", sanitize=False, tag="article").classes("panel original")
            self._steered = ui.html("", sanitize=False, tag="article").classes("panel steered")
        self._both.set_visibility(False)
        ui.html("Next token", sanitize=False, tag="h2")
        self._next = ui.html("", sanitize=False)

    def edits_changed(self) -> None:
        """Predict the next token again; what was written and copied belongs to other edits."""
        self._code.content, self._written = "", {}
        self.predict.request()

    def stop(self) -> None:
        """Stop the current continuation, if any."""
        if self._continuation is not None:
            self._continuation.stop()

    def _option(self, label: str, value: str) -> ui.input:
        return ui.input(label, value=value).props("outlined dense inputmode=decimal")

    def _copy_as_python(self) -> None:
        page, model = self._page, self._page.model
        if model is None:
            return
        try:
            self._read_options()
        except CocomixError as error:
            self._problem.content = render("problem", problem=f"{error}.")
            return
        code = as_python(model, page.state, page.edits)
        self._code.content = render("code", code=code)
        ui.clipboard.write(code)

    async def _download(self) -> None:
        page, model = self._page, self._page.model
        if model is None:
            return
        try:
            view = await page.off_loop(as_json, model, page.state, page.edits, dict(self._written))
        except CocomixError as error:
            self._problem.content = render("problem", problem=f"{error}.")
            return
        ui.download.content(view, "cocomix-view.json", "application/json")

    async def _predict(self) -> None:
        page, model = self._page, self._page.model
        if model is None:
            return
        edits = page.edits
        try:
            await page.off_loop(model.encode, page.state.prompt)
        except CocomixError:  # the reading panel shows this error
            self._next.content = ""
            return
        try:
            tokens = await page.off_loop(model.next_tokens, page.state.prompt, edits, page.state.mode)
        except CocomixError as error:  # the edits are impossible
            self._next.content = render("problem", problem=f"{error}.")
            return
        largest = max((max(token.before, token.after) for token in tokens), default=1.0)
        self._next.content = render("next_tokens", tokens=tokens, largest=largest, is_steered=bool(edits))

    async def go(self) -> None:
        """Write both continuations, or stop writing."""
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
        except CocomixError as error:  # the edits are impossible
            self._both.set_visibility(False)
            self._problem.content = render("problem", problem=f"{error}.")
        finally:
            self._continuation = None
            if not page.client.is_deleted:
                self._button.content = render("go", is_running=False)

    def _read_options(self) -> None:
        fields = {name: field.value or "" for name, field in self._fields.items()}
        self._page.change(
            tokens=parse_integer("the length", fields["tokens"], 1, MAX_TOKENS),
            temperature=parse_temperature(fields["temperature"]),
            seed=parse_integer("the seed", fields["seed"], 0, 2**31 - 1),
        )

    async def _stream(self, model: StudioModel, continuation: Continuation, prompt: str) -> None:
        """Show tokens as they are written: each update shows all tokens since the last one."""
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[Step | None] = asyncio.Queue()

        def report(step: Step | None) -> None:
            loop.call_soon_threadsafe(steps.put_nowait, step)

        future = self._page.workers.start(continuation, report)
        future.add_done_callback(lambda _: report(None))
        sides = _Side(model, "original"), _Side(model, "steered")
        is_running = True
        while is_running and not self._page.client.is_deleted:
            new = [await steps.get()]
            while not steps.empty():
                new.append(steps.get_nowait())
            is_running = new[-1] is not None
            started = time.monotonic()
            rendered = await self._page.off_loop(_written, sides, new, continuation, prompt, is_running=is_running)
            self._original.content, self._steered.content = rendered
            self._written = {side.name: side.plain for side in sides}
            # Long texts take longer to compare and to draw: at most a third of the time goes into that.
            await asyncio.sleep(max(SHOWN_EVERY_SECONDS, 2 * (time.monotonic() - started)) if is_running else 0)
        await asyncio.wrap_future(future)  # raises the errors of the thread


class _Side:
    """One continuation so far: its tokens and their text as HTML."""

    def __init__(self, model: StudioModel, name: str) -> None:
        self.name = name
        self.tokens: list[int] = []
        self.texts: list[Markup] = []
        self.plain = ""
        self._decode = model.decoder()

    def add(self, token: int | None) -> None:
        if token is not None:
            self.tokens.append(token)
            text = self._decode(token)
            self.plain += text
            self.texts.append(visible(text, wrap=True))


def _written(
    sides: tuple[_Side, _Side],
    steps: Sequence[Step | None],
    continuation: Continuation,
    prompt: str,
    *,
    is_running: bool,
) -> list[Markup]:
    """Both continuations after some more steps, as HTML."""
    original, steered = sides
    for step in filter(None, steps):
        original.add(step.original)
        steered.add(step.steered)
    marks = changed_tokens(original.tokens, steered.tokens)
    titles = "Original", _steered_title(continuation.model, continuation.plan)
    return [
        render(
            "continuation",
            side=side.name,
            title=title,
            prompt=prompt,
            text=_marked(side.texts, marked),
            is_running=is_running,
            ended=not is_running and len(side.tokens) < continuation.num_tokens and not continuation.is_stopped,
        )
        for side, title, marked in zip(sides, titles, marks, strict=True)
    ]


def _marked(texts: Sequence[Markup], marked: Sequence[bool]) -> Markup:
    """All texts joined; adjacent marked texts share one mark."""
    groups = itertools.groupby(zip(texts, marked, strict=True), key=lambda item: item[1])
    joined = ((is_marked, Markup().join(text for text, _ in items)) for is_marked, items in groups)
    return Markup().join(_MARK.format(text) if is_marked else text for is_marked, text in joined)


def _steered_title(model: StudioModel, plan: Plan) -> str:
    if not plan.strengths:
        return "Steered: pin a concept and give it a strength"
    sign = _SIGNS[plan.mode]
    words = (f"{sign}{strength:g}".replace("+-", "−").replace("-", "−") for strength in plan.strengths.values())
    edits = map(" ".join, zip(map(model.name_of, plan.strengths), words, strict=True))
    return "Steered: " + ", ".join(edits)


def changed_tokens(original: Sequence[int], steered: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """For each token of both, whether it is outside the tokens that both share in the same order."""
    marks = [True] * len(original), [True] * len(steered)
    for a, b, size in SequenceMatcher(None, original, steered, autojunk=False).get_matching_blocks():
        marks[0][a : a + size] = [False] * size
        marks[1][b : b + size] = [False] * size
    return marks
