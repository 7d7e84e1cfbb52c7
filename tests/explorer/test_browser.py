"""The workbook in a real browser. Skipped where there is no chromium (Debian's package), except in CI."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

from workbook.explorer.catalog import open_catalog
from workbook.explorer.widgets import AttentionExplorer, KernelExplorer
from workbook.style import png

if TYPE_CHECKING:
    from playwright.sync_api import Page

browser = pytest.importorskip("browser", reason="playwright is not installed", exc_type=ImportError)
if browser.CHROMIUM is None:
    if os.environ.get("CI"):
        pytest.fail("chromium is missing: in CI nothing may be skipped", pytrace=False)
    pytest.skip("chromium is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow

PICTURE = ".ka-explorer .widget-image.ka-picture"
SLIDER = ".ka-explorer .ka-layer .noUi-handle"


@pytest.fixture(scope="module")
def page() -> Iterator["Page"]:
    with browser.page() as opened:
        yield opened


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: opening a notebook may write to it."""
    return Path(shutil.copytree(ROOT / "notebooks", tmp_path_factory.mktemp("browser") / "notebooks"))


@pytest.fixture(scope="module")
def jupyterlab(notebooks: Path) -> Iterator[str]:
    with browser.lab(notebooks.parent / "lab", notebooks) as address:
        yield address


def test_kernels_in_jupyterlab(jupyterlab: str, page: "Page") -> None:
    """Open, run all, move the layer's slider: the picture becomes that of the next layer."""
    expected = KernelExplorer(open_catalog("kav11", "kav17"))
    browser.open_notebook(page, jupyterlab, "kernels.ipynb")
    browser.run_all(page)
    page.locator(SLIDER).first.scroll_into_view_if_needed()
    assert browser.shown(page, PICTURE) == png(expected.figure())
    before = browser.source(page, PICTURE)
    page.locator(SLIDER).first.focus()
    page.keyboard.press("ArrowRight")
    assert browser.shown(page, PICTURE, before) == png(expected.figure(layer=2))


def test_attention_in_jupyterlab(jupyterlab: str, page: "Page") -> None:
    """Clicking the image chooses the pixel."""
    expected = AttentionExplorer(open_catalog("kav1", "psrt"))
    browser.open_notebook(page, jupyterlab, "attention.ipynb")
    browser.run_all(page)
    assert browser.shown(page, PICTURE) == png(expected.figure())
    before = browser.source(page, PICTURE)
    zoom = expected.zoom
    page.locator(".ka-scene").first.click(position={"x": 10 * zoom + 1, "y": 40 * zoom + 1})
    assert browser.shown(page, PICTURE, before) == png(expected.figure(row=40, col=10))


@pytest.fixture(scope="module")
def explore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of `make explore RUNS=…` at a folder that is not there."""
    home = tmp_path_factory.mktemp("explore")
    with browser.explore(home, "--runs", str(home / "no runs")) as address:
        yield address


def test_the_page(explore: str, page: "Page") -> None:
    """The explorers answer there too; what is wrong is said, and what works is offered."""
    expected = KernelExplorer(open_catalog())
    page.goto(explore, timeout=120_000)
    page.wait_for_selector(SLIDER, timeout=120_000)
    assert "no runs is no folder; give one that holds runs" in page.locator(".ka-notices").inner_text()
    assert browser.shown(page, PICTURE) == png(expected.figure())
    before = browser.source(page, PICTURE)
    page.locator(SLIDER).first.focus()
    page.keyboard.press("ArrowRight")
    assert browser.shown(page, PICTURE, before) == png(expected.figure(layer=2))
    assert page.locator(".ka-output .noUi-target").first.get_attribute("disabled") is not None
    assert page.locator(".ka-beside select").first.is_disabled()


def test_reloads_keep_the_choices_and_leave_no_kernels(explore: str, page: "Page") -> None:
    """A kernel waits for the next page; those of pages that are gone end."""
    page.goto(explore, timeout=120_000)
    page.wait_for_selector(SLIDER, timeout=120_000)
    before = browser.settled(page, PICTURE)
    page.locator(".ka-model select").first.select_option("kav6")
    browser.settled(page, PICTURE, before)
    shown = png(
        KernelExplorer(open_catalog()).figure(
            model="kav6", layer=int(page.locator(".ka-layer .widget-readout").first.inner_text())
        )
    )
    for _ in range(4):
        page.goto(explore, timeout=120_000)
        page.wait_for_selector(SLIDER, timeout=120_000)
        assert page.locator(".ka-model select").first.input_value() == "kav6"
        assert browser.shown(page, PICTURE) == shown
    for _ in range(120):
        if len(browser.kernels(explore)) == 2:
            break
        page.wait_for_timeout(1000)
    assert len(browser.kernels(explore)) == 2
