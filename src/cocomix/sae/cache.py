"""Activations of all steps of a training, kept on disk for further dictionaries of the same layers.

DIR/00000.safetensors   residual streams of the first step's windows, one tensor a layer, [B, T, D]
DIR/manifest.json       teacher, text, layers and order; checksums

They are those that the teacher gives in a pass of the same windows, so that a dictionary is the same to the bit with and
without a cache. A finished cache serves any run that reads some of its layers in the same order, for as many steps or fewer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import ACTIVATION_CACHE
from cocomix.base.progress import say
from cocomix.data.shard_work import ShardWork, finish_work
from cocomix.data.shards import shard_name

EXTENSION = "safetensors"


class ActivationCache:
    """The activations of a training, made if they are not there.

    Args:
        folder: of the cache.
        settings: all that determines the activations, `batch_size` windows a step among it; of them `layers`, and
            `num_windows` in all steps together, may be more in a cache that is there.
        context_length: tokens of a window.
        num_bytes: size of all activations.
        max_bytes: the most that a new cache may take.
        residuals: residual streams of a step's windows, for all layers of the settings.

    Raises:
        CocomixError: the cache holds other activations or is damaged, or would take too much.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        context_length: int,
        num_bytes: int,
        max_bytes: float,
        residuals: Callable[[int], Sequence[Tensor]],
    ) -> None:
        self.folder = folder
        try:
            artifacts.check_output(folder, ACTIVATION_CACHE)
        except CocomixError as error:  # which is usually of an output
            raise CocomixError(str(error).replace("--output", "--cache")) from None
        is_begun = (folder / artifacts.SETTINGS_NAME).exists()
        is_finished = (folder / artifacts.MANIFEST_NAME).exists()
        if is_begun:
            _require_activations(folder, artifacts.read_header(folder)["settings"], settings, is_finished=is_finished)
        if is_finished:
            artifacts.read(folder, ACTIVATION_CACHE)
            say(f"{folder}: reading the activations that are there, in place of running the teacher")
            return
        if not is_begun:
            _require_room(folder, num_bytes, max_bytes)
        finish_work(
            folder,
            ACTIVATION_CACHE,
            settings,
            lambda: _Steps(folder, settings, context_length, residuals),
            overwrite=False,
        )

    def residuals(self, step: int, layers: Sequence[int]) -> list[Float[Tensor, "B T D"]]:
        """Residual streams of a step's windows at some layers."""
        with safe_open(self.folder / shard_name(step, EXTENSION), "pt") as file:
            return [file.get_tensor(str(layer)) for layer in layers]


class _Steps(ShardWork):
    """A shard for each step."""

    description = "keeping activations"
    extension = EXTENSION

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        context_length: int,
        residuals: Callable[[int], Sequence[Tensor]],
    ) -> None:
        super().__init__(folder, settings, context_length)
        self.layers, self.residuals = settings["layers"], residuals

    def make(self, batches: Iterator[range]) -> dict[str, Tensor]:
        (windows,) = batches  # a step is a pass of the teacher
        residuals = self.residuals(windows.start // self.batch_size)
        return {str(layer): h.contiguous() for layer, h in zip(self.layers, residuals, strict=True)}

    def write(self, index: int, content: dict[str, Tensor]) -> dict[str, Any]:
        with artifacts.atomic(self.path(index)) as partial:
            save_file(content, partial)
        return {}

    def facts(self, receipts: list[dict[str, Any]]) -> dict[str, Any]:
        return {}


def _require_activations(
    folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], *, is_finished: bool
) -> None:
    """Refuse a cache of other activations; one that is finished may hold more layers and steps."""
    names = [name for name in wanted if stored.get(name) != wanted[name]]
    if is_finished:
        has_layers = {*wanted["layers"]} <= {*stored["layers"]}
        has_steps = wanted["num_windows"] <= stored["num_windows"]
        enough = [name for name, has in (("layers", has_layers), ("num_windows", has_steps)) if has]
        names = [name for name in names if name not in enough]
    if names:
        raise CocomixError(
            f"{folder} holds the activations of another run, with other {', '.join(names)}; choose another --cache, or "
            "delete that folder"
        )


def _require_room(folder: Path, num_bytes: int, max_bytes: float) -> None:
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free, needed = shutil.disk_usage(above).free, num_bytes / 1e9
    if num_bytes > max_bytes:
        raise CocomixError(
            f"the activations of this run take {needed:.3g} GB, more than --cache-gigabytes {max_bytes / 1e9:.3g}; raise it, "
            "or train on fewer tokens or layers"
        )
    if num_bytes > free:
        raise CocomixError(
            f"the activations of this run take {needed:.3g} GB, but {above} has {free / 1e9:.3g} GB free"
        )
