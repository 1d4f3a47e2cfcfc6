"""The site of an inspection in a real browser, opened from disk; its texts are full of HTML."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cocomix.tools.inspect.cards import CardReader
from cocomix.tools.inspect.site import script_json
from tests.tools.inspect.made_up import make_inspection, wait_until

ATTACK = "</script><script>window.stolen=1</script><img src=x onerror='window.stolen=1'>&amp;\u2028${1}`\\"
NUM_CONCEPTS = 300


def test_data_in_scripts_cannot_end_them() -> None:
    text = script_json({"name": ATTACK, "number": 1.5})
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text)["name"] == ATTACK


def test_the_name_of_the_model_s_folder_is_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_inspection(tmp_path / name, 3, model=name)
        assert f"Concepts of {name}" in (tmp_path / name / "index.html").read_text(encoding="utf-8")
    assert len({CardReader(tmp_path / name).manifest.fingerprint for name in ("one", "two")}) == 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "inspection"
    make_inspection(folder, NUM_CONCEPTS, num_contexts=2, text=ATTACK)
    return folder


@pytest.fixture
def open_page(browser: Any, site: Path) -> Iterator[Callable[..., Any]]:
    """Opens an address of a site; afterwards nothing was asked from elsewhere, nothing was thrown, and nothing injected."""
    pages, requests, complaints = [], [], []

    def opened(address: str = "", *, folder: Path = site, **options: Any) -> Any:
        page = browser.new_context(**options).new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(f"file://{folder}/index.html{address}")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        assert page.evaluate("window.stolen") is None
        page.context.close()
    assert complaints == []
    assert requests
    assert all(url.startswith("file://") for url in requests)


def ids(page: Any) -> list[int]:
    """Of the concepts in sight, in order."""
    return [int(text) for text in page.locator(".row:not(.head) .id").all_text_contents()]


def test_the_list_is_sorted_searched_and_used_by_keyboard(open_page: Callable[..., Any], site: Path) -> None:
    page, reader = open_page(), CardReader(site)
    rates = reader.columns("label_rate", "recall")
    page.wait_for_selector(".row[aria-selected]")
    by_label = sorted(range(NUM_CONCEPTS), key=lambda concept: -rates["label_rate"][concept])
    assert ids(page)[:5] == by_label[:5]
    assert len(ids(page)) < 60, "rows out of sight are not drawn"
    assert page.locator(".row .name").nth(1).text_content() == reader.card(by_label[0]).name
    page.select_option("#sort", "recall")
    page.click("#direction")
    assert ids(page)[:5] == sorted(range(NUM_CONCEPTS), key=lambda concept: rates["recall"][concept])[:5]
    page.keyboard.press("/")
    page.keyboard.type("TOKEN77<")
    wait_until(page, "document.getElementById('status').textContent.startsWith('1 of 300')")
    assert ids(page) == [77], "only its contexts have it"
    page.keyboard.press("Escape")
    wait_until(page, "document.getElementById('status').textContent === '300 concepts'")
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    page.wait_for_selector(f"#row-{max(range(NUM_CONCEPTS), key=lambda concept: rates['recall'][concept])}")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    second = ids(page)[1]
    page.keyboard.press("Enter")
    page.wait_for_selector("#concept .facts")
    assert page.evaluate("location.hash") == f"#/concept/{second}"
    page.keyboard.press("ArrowLeft")
    wait_until(page, f"location.hash !== '#/concept/{second}'")
    page.go_back()
    wait_until(page, f"document.querySelector('#concept .kicker').textContent === 'Concept {second}'")
    page.keyboard.press("Escape")
    page.wait_for_selector(f"#row-{second}[aria-selected=true]")
    assert page.input_value("#sort") == "recall", "the list is as it was left"


def test_a_deep_link_shows_one_concept_and_all_that_is_known(open_page: Callable[..., Any], site: Path) -> None:
    page, card = open_page("#/concept/129"), CardReader(site).card(129)
    page.wait_for_selector("#concept .facts")
    assert page.text_content("#concept .title") == card.name
    shown = [context.token.replace(" ", "␣") for context in (*card.contexts, *card.random_contexts)]
    assert page.locator("#concept mark").all_text_contents() == shown
    assert page.locator("#concept .histograms rect").count() == sum(len(found.counts) for found in card.histograms)
    assert page.locator("#concept .effects .card").count() == 4
    page.locator("#concept .near a").first.click()
    wait_until(
        page, f"document.querySelector('.kicker + .title') && location.hash === '#/concept/{card.nearest[0].concept}'"
    )
    for wrong in ("#/concept/300", "#/concept/x"):
        page.evaluate(f"location.hash = '{wrong}'")
        wait_until(page, "document.getElementById('concept').textContent.startsWith('There is no such concept')")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_a_phone_needs_no_sideways_scrolling(open_page: Callable[..., Any], scheme: str) -> None:
    for address in ("", "#/model", "#/concept/7"):
        page = open_page(address, viewport={"width": 360, "height": 740}, color_scheme=scheme)
        page.wait_for_selector(".row, #model:not([hidden]), #concept .facts", state="attached")
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), address


@pytest.mark.parametrize("width", [1400, 390])
def test_headings_stand_above_their_numbers(open_page: Callable[..., Any], width: int) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    page.wait_for_selector(".row[aria-selected]")
    ends = (
        "[...document.querySelectorAll('{} .value')].map((cell) => cell.getBoundingClientRect().right).filter(Boolean)"
    )
    heads = page.evaluate(ends.format(".row.head"))
    assert heads
    assert page.evaluate(ends.format("#rows .row:nth-child(3)")) == heads


def test_a_search_is_an_address(open_page: Callable[..., Any]) -> None:
    page = open_page("#/?q=token7%3C&sort=concept&up=1")
    wait_until(page, "document.getElementById('status').textContent.startsWith('1 of 300')")
    assert ids(page) == [7]


def test_a_real_inspection_opens(open_page: Callable[..., Any], inspection: Path) -> None:
    page = open_page("#/model", folder=inspection)
    assert page.locator("#model h2").all_text_contents() == [
        "Are labels predicted?",
        "How much concepts write",
        "Are concepts used?",
    ]
    page.click("nav a >> nth=0")
    page.wait_for_selector(".row[aria-selected]")


@pytest.mark.slow
def test_as_many_concepts_as_the_paper_has(open_page: Callable[..., Any], tmp_path: Path) -> None:
    make_inspection(tmp_path / "large", 32_768)
    page = open_page(folder=tmp_path / "large")
    page.wait_for_selector(".row[aria-selected]")
    assert page.text_content("#status") == "32,768 concepts"
    page.fill("#search", "token32767")
    page.wait_for_selector("#row-32767", timeout=60_000)
    page.keyboard.press("Enter")
    page.wait_for_selector("#concept .facts")
