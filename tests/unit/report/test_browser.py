"""The report in a real browser: nothing complains and every figure is drawn, wide and narrow, light and dark."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ekd_nemo.cli.app import main
from ekd_nemo.report.figures import FIGURES, SECTIONS
from tests.browser import ABSENT, CHROMIUM, Page, browser

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=ABSENT)

OVER_TIME = {plot.name for plot in SECTIONS["Over time"]}

FIGURES_JS = """[...document.querySelectorAll('figure')].map(f => {
  const s = f.querySelector('svg'), b = s.getBoundingClientRect();
  return {name: f.previousElementSibling.id, x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height,
          marks: s.querySelectorAll('path, use').length, caption: f.querySelector('figcaption').textContent};
})"""
# What is cut off at the edge of its drawing, or text of an axis that lies on other text of the same axis.
CLASHES_JS = """[...document.querySelectorAll('figure svg')].flatMap(s => {
  const out = s.getBoundingClientRect(), found = [];
  const texts = [...s.querySelectorAll('g[id*="text_"]')].filter(t => t.getBoundingClientRect().width > 0);
  const boxes = texts.map(t => t.getBoundingClientRect());
  boxes.forEach((a, i) => {
    if (a.left < out.left - 1 || a.right > out.right + 1 || a.top < out.top - 1 || a.bottom > out.bottom + 1)
      found.push('cut off: ' + texts[i].id);
    boxes.slice(i + 1).forEach((b, k) => {
      const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (w > 2 && h > 2) found.push('overlap: ' + texts[i].id + ' ' + texts[i + 1 + k].id);
    });
  });
  return found;
})"""


@pytest.fixture(scope="module")
def report(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["report", "build", str(simulated), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def shown(page: Page) -> dict[str, dict[str, Any]]:
    return {figure["name"]: figure for figure in page.evaluate(FIGURES_JS)}


def pixels(page: Page) -> np.ndarray:
    """[height, width, 3] of the whole page at half its size, 0 to 255."""
    from matplotlib.image import imread

    return np.round(255 * imread(io.BytesIO(page.screenshot(scale=0.5)))[:, :, :3])


def test_the_browser_tells_of_a_script_that_fails(page: Page, tmp_path: Path) -> None:
    """Otherwise the silence of the next tests would say nothing."""
    bad = tmp_path / "bad.html"
    bad.write_text('<script>missing()</script><img src="gone.png">')
    page.screen(600)
    page.open(bad)
    complaints = "\n".join(page.complaints)
    assert "missing is not defined" in complaints
    assert "gone.png" in "\n".join(page.requests)
    page.complaints.clear()
    page.requests.clear()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_figure_is_drawn(page: Page, report: Path, dark: bool) -> None:
    page.screen(1280, dark=dark)
    page.open(report)
    figures = shown(page)
    assert list(figures) == list(FIGURES)
    ground = np.array([20, 23, 27] if dark else [255, 255, 255])
    seen = pixels(page)
    away = np.abs(seen - ground).max(axis=2)
    colourful = seen.max(axis=2) - seen.min(axis=2)
    for name, figure in figures.items():
        assert figure["width"] > 500, name
        assert figure["height"] > 100, name
        assert figure["marks"] > 20, name
        assert figure["caption"], name
        x, y, width, height = (round(figure[key] / 2) for key in ("x", "y", "width", "height"))
        part = away[y : y + height, x : x + width]
        assert (part > 60).mean() > 0.008, f"{name}: blank"
        # a legend alone colours 0.1 % of a figure; lines across it 2 %, points without coloured legend 0.1 %
        least = 0.008 if name in OVER_TIME else 0.0005
        coloured = (colourful[y : y + height, x : x + width] > 60).mean()
        assert coloured > least, f"{name}: no data"
        assert (part < 8).mean() > 0.3, f"{name}: its ground is not the page's"
    assert page.evaluate("document.querySelectorAll('p.absent').length") == 0
    assert page.complaints == []
    assert page.requests == [report.resolve().as_uri()]
    page.requests.clear()


def test_no_label_is_cut_off_or_lies_on_another(page: Page, report: Path) -> None:
    page.screen(1280)
    page.open(report)
    assert page.evaluate(CLASHES_JS) == []
    page.requests.clear()


def test_a_narrow_screen_scrolls_figures_and_not_the_page(page: Page, report: Path) -> None:
    page.screen(390)
    page.open(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(figure["width"] > 500 for figure in shown(page).values())
    page.requests.clear()


def test_the_contents_lead_to_every_figure(page: Page, report: Path) -> None:
    page.screen(1280)
    page.open(report)
    targets = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    assert FIGURES.keys() <= set(targets)
    assert page.evaluate(
        f"{targets}.every(t => document.getElementById(t).getBoundingClientRect().height > 0)"
    )
    page.requests.clear()
