"""Models and inspections, shared by all browsers; each is loaded once, at its first use."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from cocomix.base.compute import ComputeConfig
from cocomix.base.errors import CocomixError
from cocomix.base.progress import say
from cocomix.studio.model import StudioModel
from cocomix.studio.runs import Runs
from cocomix.tools.inspect.cards import CardReader


class ModelCache:
    """Models by name, with their cards.

    Args:
        runs: from `find_runs`.
        compute: device and precision of the models.
    """

    def __init__(self, runs: Runs, compute: ComputeConfig | None = None) -> None:
        self.runs, self.compute = runs, compute or ComputeConfig()
        self._lock = threading.Lock()
        self._models: dict[str, Future[StudioModel]] = {}
        self._inspections: list[CardReader] | None = None

    def model(self, name: str) -> StudioModel:
        """A model by its name; an empty name is the first model. Blocks until the model is loaded, by this thread or another.

        Raises:
            CocomixError: there is no such model, or it can't be loaded.
        """
        names = [run.name for run in self.runs.models]
        if not names:
            raise CocomixError("none of the runs has concepts to steer; the page shows the loss curves only")
        if name and name not in names:
            raise CocomixError(f"no model is called {name!r}; choose one of {', '.join(names)}")
        run = self.runs.models[names.index(name) if name else 0]
        with self._lock:
            is_first = run.name not in self._models
            future = self._models.setdefault(run.name, Future())
        if is_first:
            try:
                future.set_result(StudioModel(run, self._cards(), self.compute))
            except BaseException as error:
                with self._lock:
                    del self._models[run.name]  # the next request tries again
                future.set_exception(error)
        return future.result()

    def _cards(self) -> list[CardReader]:
        with self._lock:
            if self._inspections is None:
                self._inspections = []
                for folder in self.runs.inspections:
                    try:
                        self._inspections.append(CardReader(folder))
                    except CocomixError as error:  # steering works without cards
                        say(f"{error}; continuing without its cards")
            return self._inspections
