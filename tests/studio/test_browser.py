"""The studio in a real browser: the whole story, two browsers at once, closing one, and text that is full of HTML."""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest

from tests.studio.conftest import ATTACK, Demo

expect = pytest.importorskip("playwright.sync_api").expect

TIMEOUT_SECONDS = 60.0
expect.set_options(timeout=1000 * TIMEOUT_SECONDS)
#: Importing torch on a busy machine takes long.
START_SECONDS = 240.0
#: What the event loop owes to everyone while continuations are written; a median of 74 ms when it was measured.
#: Here a machine may be busy with anything.
ANSWER_SECONDS = 1.0
#: What a closed tab may still take of the model; a token takes more than three times as long there.
CLOSED_SECONDS = 1.0
SLOW_BLOCKS = """
import functools, time
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

forward = LlamaDecoderLayer.forward

@functools.wraps(forward)
def slow_forward(*arguments, **options):
    time.sleep(SECONDS)
    return forward(*arguments, **options)

LlamaDecoderLayer.forward = slow_forward
"""
PROMPT = "<b>def</b> read(self, path):\n    return path\n"


@contextlib.contextmanager
def studio(demo: Demo, *plugin: str) -> Iterator[str]:
    """The address of a studio of its own, started as a person would."""
    command = [sys.executable, "-m", "cocomix.cli.main", *plugin, "studio", str(demo.root), "--port", "0", "--no-open"]
    # NiceGUI behaves otherwise when it believes to be under pytest.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    process = subprocess.Popen(
        command, env=environment | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stderr or ()], daemon=True).start()
    said: list[str] = []
    try:
        while not (found := re.search(r"http://[\d.:]+", said[-1] if said else "")):
            said.append(lines.get(timeout=START_SECONDS))
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(TIMEOUT_SECONDS)
        finally:
            process.kill()
    said += list(lines.queue)
    assert code == 0, said
    assert not any("Traceback" in line for line in said), "".join(said)


@pytest.fixture(scope="module")
def address(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A studio whose models are slowed down a little: on a fast machine a continuation would end before one can look."""
    plugin = tmp_path_factory.mktemp("plugin") / "slow_blocks.py"
    plugin.write_text(SLOW_BLOCKS.replace("SECONDS", "0.003"))
    with studio(demo, "--plugin", str(plugin)) as found:
        yield found


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages as different people would; they may ask this machine alone, and throw nothing."""
    contexts, complaints, requests = [], [], []

    def open_page(address: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * TIMEOUT_SECONDS)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
    assert {urlsplit(url).hostname for url in requests if not url.startswith("data:")} == {"127.0.0.1"}


def link(address: str, **query: str) -> str:
    return f"{address}/?{urlencode(query)}"


def wait_for(condition: Callable[[], bool], timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def top_of(page: Any, selector: str) -> float:
    """Where an element begins, in pixels from the top of the page."""
    return float(page.locator(selector).first.evaluate("(one) => one.getBoundingClientRect().top + scrollY"))


def num_running(address: str) -> int:
    return int(httpx.get(f"{address}/status").json()["running_continuations"])


def test_the_story_from_a_prompt_to_a_steered_continuation(address: str, new_page: Callable[..., Any]) -> None:
    page = new_page(link(address, seed="1"))
    # Type a prompt; every token shows what is predicted there.
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    tokens = page.locator(".tokens .token")
    expect(tokens.first).to_be_visible()
    shown = "".join(tokens.locator(".text").all_inner_texts())
    assert shown.replace("⏎", "\n").replace("␣", " ") == PROMPT
    assert " " not in shown
    # Hover one, click to hold it, let it go with the keyboard.
    tokens.nth(2).hover()
    expect(page.locator(".panel-title")).to_contain_text("At")
    expect(page.locator(".panel-title")).to_contain_text("token 3 of")
    tokens.nth(2).click()
    expect(page.locator(".panel-title")).to_contain_text("Held at")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".panel-title")).to_contain_text("token 5 of")
    expect(tokens.nth(4)).to_be_focused()
    # Find a concept by name, and pin it with the keyboard.
    page.get_by_label("Find concepts", exact=True).fill("import")
    result = page.locator(".rail .concept").first
    expect(result).to_contain_text("import statements")
    result.press("Enter")
    expect(page.locator(".pin-row")).to_have_count(1)
    # By example text.
    page.get_by_role("button", name="by example text").click()
    page.get_by_label("Find concepts", exact=True).fill("import os")
    expect(page.locator(".rail .concept .strength").first).to_be_visible()
    # Move its slider by keyboard; the next token is shown without and with it.
    page.get_by_role("slider", name="Strength of import statements").press("End")
    expect(page.get_by_label("Strength of import statements as a number")).to_have_value("2")
    expect(page.locator(".share.steered").first).to_be_visible()
    # A strength that isn't a number is said beside it, and changes nothing.
    field = page.get_by_label("Strength of import statements as a number")
    field.fill("much")
    field.press("Enter")
    expect(page.locator(".pin-row .problem")).to_contain_text("strength 'much' is not a number")
    field.fill("9.5")
    field.press("Enter")
    expect(page.locator(".pin-row .problem")).to_have_count(0)
    # Continue: both continuations are written, and what differs is marked.
    page.get_by_label("Tokens", exact=True).fill("12")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".continuations .steered mark").first).to_be_visible()
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    expect(page.locator(".continuations .steered h3")).to_have_text("Steered: import statements at 9.5")
    written = page.locator(".continuations .running").all_inner_texts()
    assert written[0] != written[1]
    # The address restores the view.
    page.wait_for_url(re.compile(r"pins=3:9\.5.*tokens=12"))
    again = new_page(page.url)
    expect(again.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    expect(again.get_by_label("Strength of import statements as a number")).to_have_value("9.5")
    again.get_by_role("button", name="Continue").click()
    expect(again.locator(".continuations .running .cursor")).to_have_count(0)
    wait_for(lambda: again.locator(".continuations .running").all_inner_texts() == written)
    # Reset, remove.
    again.get_by_role("button", name="Reset import statements").click()
    expect(again.get_by_label("Strength of import statements as a number")).to_have_value("")
    again.get_by_role("button", name="Remove import statements").click()
    expect(again.locator(".pin-row")).to_have_count(0)


def test_a_first_visit_shows_what_steering_does(address: str, new_page: Callable[..., Any]) -> None:
    page = new_page(address)
    expect(page.locator(".pin-row")).to_have_count(1)
    expect(page.locator(".pin-body input").last).to_have_value("0.5")
    expect(page.get_by_role("button", name="toward")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".tokens .token").first).to_be_visible()
    expect(page.locator(".share.steered").first).to_be_visible()
    expect(page.locator(".continuations .steered h3")).to_contain_text("at 0.5")
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    page.wait_for_url(re.compile("prompt=.*pins="))
    assert top_of(page, ".continuations .steered .running") < 900, "what steering does is in sight"


def test_a_view_is_taken_along_and_a_name_is_edited(
    demo: Demo, address: str, new_page: Callable[..., Any], tmp_path: Path
) -> None:
    query = {"prompt": PROMPT, "pins": "3:1.5,5", "tokens": "6", "temperature": "0.8", "seed": "3"}
    page = new_page(link(address, **query), permissions=["clipboard-read", "clipboard-write"])
    expect(page.locator(".tokens .token").first).to_be_visible()
    expect(page.locator(".share.steered").first).to_be_visible()
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".continuations .steered h3")).to_contain_text("at 1.5")
    wait_for(lambda: num_running(address) == 0)
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "view.json")
    view = json.loads((tmp_path / "view.json").read_text(encoding="utf-8"))
    assert (view["prompt"], view["mode"]) == (PROMPT, "toward")
    assert view["edits"] == [{"concept": 3, "name": "import statements", "strength": 1.5}]
    assert len(view["tokens"][0]["concepts"]) == 5
    page.get_by_role("button", name="Copy as Python").click()
    expect(page.locator(".code")).to_contain_text("cocomix.steer(model, {3: 1.5}, mode='toward')")
    wait_for(lambda: page.evaluate("navigator.clipboard.readText()") == page.locator(".code").text_content())
    # The program does what the page did.
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(page.locator(".code").text_content(), "view", "exec"), {})
    assert printed.getvalue() == view["continuations"]["steered"] + "\n"
    # Names are edited on the card; what can't be a name is said, and changes nothing.
    names = demo.model / "concept_names.json"
    before = names.read_bytes()
    page.locator(".pin-name").first.click()
    card = page.locator(".card-dialog")
    name = card.get_by_label("Name")
    expect(name).to_have_value("import statements")
    name.fill("string formatting")
    card.get_by_role("button", name="Save the name").click()
    expect(card.locator(".problem")).to_contain_text("both concept 3 and concept 5 'string formatting'")
    assert names.read_bytes() == before
    try:
        name.fill("imports & <i>exports</i>")
        name.press("Enter")
        expect(card.locator("h2")).to_have_text("imports & <i>exports</i>")
        expect(page.locator(".pin-name").first).to_have_text("imports & <i>exports</i>")
        assert json.loads(names.read_bytes())["3"] == "imports & <i>exports</i>"
        assert json.loads(names.read_bytes())["5"] == "string formatting"
    finally:
        (tmp_path / "names.json").write_bytes(before)
        (tmp_path / "names.json").replace(names)  # at once: the page may be reading


def test_toward_a_concept_and_where_there_is_no_direction(address: str, new_page: Callable[..., Any]) -> None:
    page = new_page(link(address, prompt=PROMPT, pins="3:0.5", tokens="4"))
    field = page.get_by_label("Strength of import statements as a number")
    slider = page.get_by_role("slider", name="Strength of import statements")
    # Another mode converts the strength: the slider stays where it is.
    for mode, strength, low in (("add", "2.5", "-10"), ("scale", "2.5", "-10"), ("toward", "0.5", "-2")):
        page.get_by_role("button", name=mode).click()
        expect(field).to_have_value(strength)
        expect(slider).to_have_attribute("min", low)
    # Here a strength of 1 is much, so the slider goes less far.
    slider.press("Home")
    expect(field).to_have_value("-2")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".continuations .steered h3")).to_have_text("Steered: import statements at −2")
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    page = new_page(link(address, prompt=PROMPT, pins="5:1", mode="toward"))
    refusal = "there is no direction toward concept 5 (string formatting)"
    expect(page.locator(".writing .problem")).to_contain_text(refusal)
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".writing .problem").first).to_contain_text(refusal)
    expect(page.locator(".writing .problem")).to_have_count(2)
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    expect(page.locator(".continuations")).to_be_hidden()


def test_text_of_models_names_and_cards_stays_text(address: str, new_page: Callable[..., Any]) -> None:
    page = new_page(link(address, prompt=ATTACK, pins="7:2,3"))
    expect(page.locator(".pin-row")).to_have_count(2)
    expect(page.locator(".pin-name").first).to_have_text(ATTACK)
    expect(page.locator(".tokens .token").first).to_be_visible()
    page.locator(".pin-name").first.click()
    card = page.locator(".card-dialog")
    expect(card.locator("h2")).to_have_text(ATTACK)
    expect(card.locator("mark").first).to_have_text("<i>")
    expect(card.locator(".chips .text").first).to_have_text(ATTACK.replace(" ", "␣"))
    card.get_by_role("button", name="Close").click()
    page.get_by_label("Tokens", exact=True).fill("8")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".continuations .steered .prompt")).to_have_text(ATTACK)
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    page.get_by_label("Find concepts", exact=True).fill(ATTACK[:20])
    expect(page.locator(".rail .concept .name").first).to_have_text(ATTACK)
    page.get_by_label("Find concepts", exact=True).fill("<u>no such name</u>")
    expect(page.locator(".rail .problem")).to_contain_text(
        "nothing is called '<u>no such name</u>'; the nearest names are"
    )
    assert page.title() == "cocomix studio"
    assert page.locator("main img, main script, main u").count() == 0


def test_two_browsers_at_once_and_one_closed_while_it_writes(address: str, new_page: Callable[..., Any]) -> None:
    first = new_page(link(address, prompt=PROMPT, pins="3:5", mode="add", tokens="512"))
    second = new_page(link(address, prompt=PROMPT, pins="5:-5", mode="add", tokens="512"))
    for page in (first, second):
        expect(page.locator(".share.steered").first).to_be_visible()
        page.get_by_role("button", name="Continue").click()
    wait_for(lambda: num_running(address) == 2)
    # Everyone else is answered meanwhile.
    slowest = 0.0
    for _ in range(10):
        before = time.monotonic()
        assert num_running(address) >= 1
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < ANSWER_SECONDS
    expect(first.locator(".continuations .steered h3")).to_have_text("Steered: import statements +5")
    expect(second.locator(".continuations .steered h3")).to_have_text("Steered: string formatting −5")
    # One closes its window: its continuation ends, the other's goes on until it is stopped.
    first.close()
    wait_for(lambda: num_running(address) == 1)
    second.get_by_role("button", name="Stop").click()
    expect(second.get_by_role("button", name="Continue")).to_be_visible()
    wait_for(lambda: num_running(address) == 0)
    assert second.url.endswith("pins=5:-5&mode=add&tokens=512")


@pytest.mark.slow
def test_a_tab_closed_while_a_slow_model_writes_frees_it(
    demo: Demo, new_page: Callable[..., Any], tmp_path: Path
) -> None:
    plugin = tmp_path / "slow_blocks.py"
    plugin.write_text(SLOW_BLOCKS.replace("SECONDS", "0.3"))
    with studio(demo, "--plugin", str(plugin)) as address:
        page = new_page(link(address, prompt=PROMPT, pins="3:5", tokens="512"))
        expect(page.locator(".share.steered").first).to_be_visible()
        page.get_by_role("button", name="Continue").click()
        wait_for(lambda: num_running(address) == 1)
        page.close()
        wait_for(lambda: num_running(address) == 0, CLOSED_SECONDS)


def test_mistakes_in_a_link_and_in_the_prompt_are_said(address: str, new_page: Callable[..., Any]) -> None:
    page = new_page(link(address, prompt="def " * 900, pins="improt statements:2,99:1", model="gone", tokens="0"))
    problem = page.locator(".studio > [role=alert]")
    expect(problem).to_contain_text("In the link, the length '0' is not a whole number")
    expect(problem).to_contain_text("The link asks for the model 'gone'")
    expect(problem).to_contain_text(
        "no concept is called 'improt statements'; the nearest names are 'import statements'"
    )
    expect(problem).to_contain_text("concept 99 does not exist; the model has concepts 0 to 23")
    expect(page.locator(".reading .problem")).to_contain_text("tokens, and the context of demo/cocomix holds 640")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".writing .problem")).to_contain_text("shorten it by")
    page.get_by_label("Prompt", exact=True).fill("")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".writing .problem")).to_contain_text("there is no prompt to continue")


def test_a_prompt_of_a_megabyte_is_a_sentence_and_the_page_lives_on(address: str, new_page: Callable[..., Any]) -> None:
    page = new_page(link(address, seed="1"))
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.focus()
    page.keyboard.insert_text("word " * 250_000)  # as pasted
    expect(page.locator(".reading .problem")).to_contain_text("shorten it")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".writing .problem").first).to_contain_text("shorten it")
    prompt.fill(PROMPT)
    expect(page.locator(".tokens .token").first).to_be_visible()
    expect(page.locator(".reading .problem")).to_have_count(0)


def test_loss_curves_themes_and_a_telephone(address: str, new_page: Callable[..., Any]) -> None:
    page = new_page(
        link(address, prompt=PROMPT, pins="3:1"), viewport={"width": 390, "height": 844}, color_scheme="dark"
    )
    expect(page.locator(".tokens .token").first).to_be_visible()
    expect(page.locator(".pin-row")).to_be_visible()
    parts = (".prompt-field", ".pin-row", ".go", ".share", ".tokens", "[aria-label='Find concepts']")
    tops = [top_of(page, part) for part in parts]
    assert tops == sorted(tops)
    assert tops[2] < 844, "what is steered and the button are in sight"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper = "getComputedStyle(document.body).getPropertyValue('--paper').trim()"
    assert page.evaluate(paper) == "#14171a"
    theme = page.locator(".theme")
    theme.click()
    expect(theme).to_have_text("Light")
    wait_for(lambda: page.evaluate(paper) == "#fdfdfb")
    page.get_by_role("button", name="Loss curves").click()
    expect(page.locator(".chart svg path[stroke='var(--series-2)']").first).to_be_attached()
    expect(page.locator(".ends tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Seconds").click()
    page.wait_for_url(re.compile("view=curves.*axis=seconds"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_other_sites_pages_can_not_ask(address: str) -> None:
    host = urlsplit(address).netloc
    assert httpx.get(f"{address}/status", headers={"Host": "attacker.example"}).status_code == 400
    assert httpx.get(f"{address}/status", headers={"Origin": "http://attacker.example"}).status_code == 403
    assert httpx.get(f"{address}/status", headers={"Origin": "http://localhost:1"}).status_code == 403
    own = httpx.get(f"{address}/", headers={"Origin": f"http://{host}"})
    assert own.status_code == 200
    assert "frame-ancestors 'none'" in own.headers["content-security-policy"]
