"""Mistakes on the command line, and what the server lets in."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from cocomix import CocomixError
from cocomix.cli.main import main
from cocomix.studio.address import free_port
from cocomix.studio.command import StudioConfig, studio
from cocomix.studio.server import OwnPagesOnly
from tests.studio.conftest import Demo


def test_help_names_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["studio", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("RUN...", "--port", "--host", "--no-open"))


def test_mistakes_are_one_sentence_and_an_exit_code(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["studio"]) == 1
    assert "runs/demo" in capsys.readouterr().err
    assert main(["studio", str(tmp_path)]) == 1
    assert "is not a run" in capsys.readouterr().err
    assert main(["studio", str(demo.root), "--host", "0.0.0.0"]) == 1
    assert "--host is '0.0.0.0'; the studio serves this machine alone" in capsys.readouterr().err


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(CocomixError, match=f"port {port} .*--port"):
            free_port("127.0.0.1", port)
    with pytest.raises(CocomixError, match=r"--port.*70000"):
        free_port("localhost", 70000)


def test_the_missing_extra_is_named(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(CocomixError, match=r"nicegui.* nicegui"):
        studio(StudioConfig((demo.root,)))


def test_only_the_page_itself_may_ask() -> None:
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("welcome"))])

    async def ask(**headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=OwnPagesOnly(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8420") as client:
            return await client.get("/", headers=headers)

    assert asyncio.run(ask()).text == "welcome"
    own = asyncio.run(ask(origin="http://127.0.0.1:8420"))
    assert own.text == "welcome"
    assert "default-src 'self'" in own.headers["content-security-policy"]
    for origin in ("http://attacker.example", "http://127.0.0.1:1", "https://127.0.0.1:8420", "null"):
        assert asyncio.run(ask(origin=origin)).status_code == 403


def test_a_websocket_from_elsewhere_is_refused() -> None:
    sent: list[Any] = []

    async def never(*_: Any) -> None:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message["type"])

    headers = [(b"host", b"127.0.0.1:8420"), (b"origin", b"http://attacker.example")]
    scope = {"type": "websocket", "headers": headers, "extensions": {"websocket.http.response": {}}}
    asyncio.run(OwnPagesOnly(never)(scope, never, send))
    assert sent[0].startswith("websocket.http.response") or sent[0] == "websocket.close"
