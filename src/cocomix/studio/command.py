"""`cocomix studio`: find models and curves, and serve the page."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from cocomix.base.command import CommandConfig
from cocomix.base.compute import Compute, ComputeConfig
from cocomix.base.errors import CocomixError
from cocomix.base.formats import counted
from cocomix.base.progress import say
from cocomix.studio.address import free_port
from cocomix.studio.runs import find_runs


@dataclass(frozen=True)
class StudioConfig(CommandConfig):
    """Which runs to open, and the address of the page."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")] = ()
    """Training runs, models, inspections, demos, or folders of them; by default runs/demo."""
    host: str = "127.0.0.1"
    """Address of this machine to listen on: 127.0.0.1, localhost or ::1."""
    port: int = 8420
    """Port to listen on; 0 takes a free one."""
    compute: Compute = field(default_factory=ComputeConfig)
    open: bool = True
    """Open the page in the browser."""

    example: ClassVar[str] = "cocomix studio runs/demo"
    common: ClassVar[Sequence[str]] = ("runs", "host", "port", "compute", "open")


def studio(config: StudioConfig) -> str:
    """Serve the page until interrupted.

    Raises:
        CocomixError: the extra is not installed, a folder holds nothing to show, the host is not this machine's own, or the
            port is in use.
    """
    if importlib.util.find_spec("nicegui") is None:
        raise CocomixError("the studio needs the package nicegui; install it with `pip install nicegui`")
    runs = find_runs(config.runs)
    port = free_port(config.host, config.port)
    # These take seconds to import; a mistake above should not cost that.
    from cocomix.base.devices import this_device

    this_device(config.compute.device)  # refused before the page is served
    from cocomix.studio.model_cache import ModelCache
    from cocomix.studio.server import serve

    found = counted(len(runs.models), "model"), counted(len(runs.curves), "loss curve")
    say(f"{found[0]} with concepts, {found[1]}, {counted(len(runs.inspections), 'inspection')}")
    serve(ModelCache(runs, config.compute), config.host, port, open_browser=config.open)
    return "the studio has ended"
