"""The pinned concepts, each with its slider."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nicegui import ui

from cocomix.base.errors import CocomixError
from cocomix.studio.links import MODES, parse_strength
from cocomix.studio.rendering import render

if TYPE_CHECKING:
    from cocomix.studio.page import StudioPage

SLIDER_END = 10.0
SLIDER_STEP = 0.25

MODE_HELP = {
    "add": "Add the strength to its activation, everywhere",
    "set": "Set its activation to the strength, everywhere",
    "scale": "Multiply its activation by the strength, where it is active",
}


class PinsPanel:
    """See the module."""

    def __init__(self, page: StudioPage) -> None:
        self._page = page
        self.actions: dict[str, Callable[[str], Any]] = {
            "mode": lambda value: page.set_mode(value) if value in MODES else None,
            "reset": lambda value: self._reset(int(value)),
        }
        ui.html("Steering", sanitize=False, tag="h2")
        self._mode = ui.html("", sanitize=False)
        self._rows = ui.element("div").classes("pins")
        self._note = ui.html("", sanitize=False)

    def show(self) -> None:
        """Draw all rows."""
        model, pins = self._page.model, self._page.pins
        if model is None:
            return
        self._mode.content = render("modes", modes=MODE_HELP, mode=self._page.state.mode) if pins else ""
        self._rows.clear()
        with self._rows:
            for concept, strength in pins.items():
                _Row(self._page, concept, model.name_of(concept), strength)
        self._note.content = render("pins_note", has_pins=bool(pins), unit=model.unit, mode=self._page.state.mode)

    def _reset(self, concept: int) -> None:
        self._page.set_strength(concept, None)
        self.show()


class _Row:
    """One pinned concept."""

    def __init__(self, page: StudioPage, concept: int, name: str, strength: float | None) -> None:
        self._page, self._concept = page, concept
        with ui.element("div").classes("pin-row"):
            ui.html(render("pin_head", concept=concept, name=name), sanitize=False)
            with ui.element("div").classes("pin-body"):
                # The name stands in an attribute of the slider's own, where text cannot become markup.
                slider = ui.slider(min=-SLIDER_END, max=SLIDER_END, step=SLIDER_STEP, value=_on_slider(strength))
                slider.props["aria-label"] = f"Strength of {name}"
                field = ui.input(value=_as_text(strength)).props("outlined dense").classes("mono")
                field.props["aria-label"] = f"Strength of {name} as a number"
            self._problem = ui.html("", sanitize=False).props("role=alert")
        # Only what a person does to the slider, not what is set from the field beside it.
        slider.on("update:model-value", self._slid, throttle=0.05)
        field.on("change", self._typed, js_handler="(event) => emit(event.target.value)")
        self._slider, self._field = slider, field

    def _slid(self, event: Any) -> None:
        self._take(float(event.args))
        self._field.value = _as_text(self._page.pins.get(self._concept))

    def _typed(self, event: Any) -> None:
        try:
            strength = parse_strength(str(event.args)) if str(event.args).strip() else None
        except CocomixError as error:
            self._problem.content = render("problem", problem=f"{error}.")
            return
        self._take(strength)
        self._slider.value = _on_slider(strength)

    def _take(self, strength: float | None) -> None:
        self._problem.content = ""
        if self._concept in self._page.pins:
            self._page.set_strength(self._concept, strength)


def _on_slider(strength: float | None) -> float:
    return max(-SLIDER_END, min(SLIDER_END, strength or 0.0))


def _as_text(strength: float | None) -> str:
    return "" if strength is None else f"{strength:g}"
