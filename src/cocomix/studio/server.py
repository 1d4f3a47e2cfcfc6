"""The server of the page: it answers this machine only, and its own pages only.

It listens on a loopback address, which keeps other machines out. A web page from elsewhere, open in a browser on this
machine, could still name a host that resolves to 127.0.0.1, or send requests directly. Therefore every request must name a
loopback host, a request with an origin must come from the studio itself, and the page may not load anything from other
hosts.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from fastapi import Request
from nicegui import app, ui
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cocomix.base.progress import say
from cocomix.studio.address import LOOPBACK
from cocomix.studio.generation import NUM_COMPUTING, Workers
from cocomix.studio.model_cache import ModelCache
from cocomix.studio.page import StudioPage

# NiceGUI compiles its templates in the browser and hands over scripts in the page.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SWITCH_SECONDS = 0.0005
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#1f2328"/>'
    '<circle cx="12" cy="16" r="6" fill="#56b4e9"/><circle cx="20" cy="16" r="6" fill="#ff8a3d" fill-opacity=".85"/></svg>'
)


class OwnPagesOnly:
    """Refuses requests of other sites' pages, and says what the studio's own page may load.

    Args:
        app: what is served.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{headers.get('host')}":
            await PlainTextResponse("only the studio's own page may ask\n", status_code=403)(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added["Content-Security-Policy"] = CONTENT_POLICY
                added["X-Content-Type-Options"] = "nosniff"
                added["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, send_with_policy)


def serve(models: ModelCache, host: str, port: int, *, open_browser: bool) -> None:
    """Serve until interrupted.

    Args:
        models: to show.
        host: one of `LOOPBACK`.
        port: a free one.
        open_browser: also open the page in the browser.
    """
    workers = Workers()
    # How long a computing thread may keep the interpreter from the thread that answers; the default is 5 ms.
    sys.setswitchinterval(SWITCH_SECONDS)
    torch.set_num_threads(NUM_COMPUTING)

    @ui.page("/")
    def page(request: Request) -> None:
        StudioPage(models, workers, dict(request.query_params)).build()

    @app.get("/status")
    def status() -> dict[str, int]:
        return {"running_continuations": workers.num_running}

    app.add_middleware(OwnPagesOnly)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK.values()), www_redirect=False)
    app.on_startup(lambda: say(f"the studio is at http://{LOOPBACK[host]}:{port} (Ctrl+C stops it)"))
    app.on_shutdown(workers.close)
    with _interruptible():
        ui.run(
            host=host,
            port=port,
            title="cocomix studio",
            favicon=FAVICON,
            dark=None,
            language="en-US",
            show=open_browser,
            reload=False,
            gzip_middleware_factory=None,  # on one machine, compressing takes longer than sending
            tailwind=False,
            show_welcome_message=False,
            binding_refresh_interval=None,
        )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl+C ends the studio; it is not a failure."""
    with contextlib.suppress(KeyboardInterrupt):
        yield
