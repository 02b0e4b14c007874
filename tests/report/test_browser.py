"""The report in Chromium, offline: ``pytest -m browser tests/report`` (needs playwright and a chromium)."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.conftest import HOSTILE, VARIABLES
from tqs_onnx.report.write import write_report

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (360, 1600)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(run: Path, frontier: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("browser") / "report.html"
    write_report([run, frontier], out)
    return out.as_uri()


@pytest.fixture(params=[(w, t) for w in WIDTHS for t in ("light", "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def opened(request, browser, address):
    """The page, and what it logged, requested or threw."""
    width, theme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, accept_downloads=True
    )
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("dialog", lambda d: said.append("dialog"))
    page.on(
        "request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else said.append(r.url)
    )
    page.goto(address)
    page.wait_for_function("document.querySelectorAll('.chart .main-svg').length > 0")
    yield page, said, width, theme
    context.close()


def test_every_chart_is_drawn_without_errors_or_network(opened) -> None:
    page, said, _, _ = opened
    assert page.locator(".chart").count() >= 8
    for chart in page.locator(".chart").all():
        assert chart.locator(".main-svg").count() > 0
    assert said == []


def test_the_page_is_no_wider_than_the_screen_and_follows_the_theme(opened) -> None:
    page, _, width, theme = opened
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_search_sort_choice_and_download_work(opened) -> None:
    page, said, _, _ = opened
    table = page.locator('[data-table="points"]')
    table.locator("th button", has_text="bytes").first.click()
    heads = [cell.inner_text().strip() for cell in table.locator("thead th").all()]
    place = 1 + next(i for i, text in enumerate(heads) if text.startswith("bytes"))
    column = [cell.inner_text() for cell in table.locator(f"tbody tr td:nth-child({place})").all()]
    numbers = [int(text.replace(",", "")) for text in column]
    assert numbers == sorted(numbers)
    with page.expect_download() as download:
        table.locator(".download").click()
    assert download.value.suggested_filename == "points.csv"
    assert "," in Path(download.value.path()).read_text().splitlines()[0]
    search = page.locator("input[type=search]").first
    box = page.locator(".table", has=page.locator("input[type=search]")).first
    rows = box.locator("tbody tr:visible").count()
    search.fill("no such thing anywhere")
    assert box.locator("tbody tr:visible").count() == 0
    search.fill("")
    assert box.locator("tbody tr:visible").count() == rows
    growth = page.locator('[data-chart="growth"] select')
    assert growth.locator("option").all_inner_texts() == [" ".join(v.split()) for v in VARIABLES]
    growth.select_option(index=1)
    assert said == []


def test_hostile_names_are_shown_as_text(opened) -> None:
    page, said, _, _ = opened
    assert page.locator("td", has_text=HOSTILE).count() > 0
    assert page.locator("td b, option b, .sentence b").count() == 0
    assert said == []
