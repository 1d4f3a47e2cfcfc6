"""The pinned concepts, each with its slider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nicegui import ui

from cocomix.base.errors import CocomixError
from cocomix.studio.links import MODES, parse_strength
from cocomix.studio.rendering import render

if TYPE_CHECKING:
    from cocomix.studio.page import StudioPage


@dataclass(frozen=True)
class _Range:
    """From minus `end` to `end`, in steps."""

    end: float
    step: float


_RANGE = _Range(10.0, 0.25)
#: In mode `toward` a strength of 1 is much.
_RANGES = {"toward": _Range(2.0, 0.05)}

MODE_HELP = {
    "toward": "Bring it about in what follows: 0.3 is a touch, 1 is much",
    "add": "Add the strength to its activation, everywhere",
    "set": "Set its activation to the strength, everywhere",
    "scale": "Multiply its activation by the strength, where it is active",
}


def converted(strength: float, old: str, new: str) -> float:
    """A strength in another mode: its slider stays where it is, or at an end."""
    before, after = _RANGES.get(old, _RANGE), _RANGES.get(new, _RANGE)
    share = max(-1.0, min(1.0, strength / before.end))
    return round(share * after.end / after.step) * after.step


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
        self._list = ui.element("div").classes("pins")
        self._rows: dict[int, _Row] = {}
        self._model_name = ""
        self._note = ui.html("", sanitize=False)

    def show(self) -> None:
        """Show one row per pinned concept; a row that stays keeps any text being typed in it."""
        model, pins = self._page.model, self._page.pins
        if model is None:
            return
        self._mode.content = render("modes", modes=MODE_HELP, mode=self._page.state.mode) if pins else ""
        for concept in [concept for concept in self._rows if concept not in pins or model.name != self._model_name]:
            self._rows.pop(concept).remove()
        self._model_name = model.name
        slider_range = _RANGES.get(self._page.state.mode, _RANGE)
        for concept in pins:
            if concept not in self._rows:
                with self._list:
                    self._rows[concept] = _Row(self._page, concept, model.name_of(concept))
            self._rows[concept].set_range(slider_range)
            self._rows[concept].show(pins[concept])
        self._note.content = render(
            "pins_note",
            unsteerable=model.model.config.mixer.unsteerable,
            has_pins=bool(pins),
            unit=model.describe_unit(),
            mode=self._page.state.mode,
        )

    def rename(self, concept: int, name: str) -> None:
        """Show another name of a concept, if it is pinned."""
        if concept in self._rows:
            self._rows[concept].call(name)

    def _reset(self, concept: int) -> None:
        if concept in self._page.pins:
            self._page.set_strength(concept, None)
            self._rows[concept].show(None)


class _Row:
    """One pinned concept."""

    def __init__(self, page: StudioPage, concept: int, name: str) -> None:
        self._page, self._concept = page, concept
        self._shown: float | None = None
        self._range = _RANGE
        with ui.element("div").classes("pin-row") as self._row:
            self._head = ui.html("", sanitize=False)
            with ui.element("div").classes("pin-body"):
                self._slider = ui.element("input").props(
                    f"type=range min={-_RANGE.end} max={_RANGE.end} step={_RANGE.step} value=0"
                )
                self._field = ui.input(placeholder="as is").props("outlined dense inputmode=decimal").classes("mono")
            self._problem = ui.html("", sanitize=False).props("role=alert")
        self.call(name)
        # A redraw sends the values held by the server, so a moved slider first updates the value in the browser.
        keep = f"mounted_app.elements[{self._slider.id}].props.value = event.target.value"
        self._slider.on("input", self._slid, js_handler=f"(event) => {{ {keep}; emit(Number(event.target.value)); }}")
        self._field.on("change", self._typed)

    def call(self, name: str) -> None:
        """Show the name of the concept."""
        self._head.content = render("pin_head", concept=self._concept, name=name)
        # Set one by one: in a string of props a name could be read as further props.
        self._slider.props["aria-label"] = f"Strength of {name}"
        self._field.props["aria-label"] = f"Strength of {name} as a number"

    def set_range(self, slider_range: _Range) -> None:
        """Set the range of the slider; the strength does not change."""
        if slider_range != self._range:
            self._range = slider_range
            bounds = {"min": -slider_range.end, "max": slider_range.end, "step": slider_range.step}
            for name, value in bounds.items():
                self._slider.props[name] = value
            self._move_slider(self._shown)

    def show(self, strength: float | None) -> None:
        """Show a strength that was set outside this row."""
        if strength != self._shown:
            self._shown = strength
            self._problem.content = ""
            self._move_slider(strength)
            self._field.value = _as_text(strength)

    def remove(self) -> None:
        """Remove the row from the page."""
        self._row.delete()

    def _slid(self, event: Any) -> None:
        self._take(float(event.args))
        self._field.value = _as_text(self._shown)

    def _typed(self, event: Any) -> None:
        text = str(event.args or "")
        try:
            strength = parse_strength(text) if text.strip() else None
        except CocomixError as error:
            self._problem.content = render("problem", problem=f"{error}.")
            return
        self._take(strength)
        self._move_slider(strength)

    def _move_slider(self, strength: float | None) -> None:
        self._slider.props["value"] = max(-self._range.end, min(self._range.end, strength or 0.0))

    def _take(self, strength: float | None) -> None:
        self._problem.content = ""
        if self._concept in self._page.pins:
            self._shown = strength
            self._page.set_strength(self._concept, strength)


def _as_text(strength: float | None) -> str:
    return "" if strength is None else f"{strength:g}"
